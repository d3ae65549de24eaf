//! The supervisor's loop: one `poll` over the host agent's socket, signals, and the command's terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::agent::{ExitReason, TaskExit};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::disk::Heir;
use crate::failpoint::{armed, failpoint};
use crate::job::aside::Aside;
use crate::job::control::Control;
use crate::job::ending::{Cause, Ending, LEFTOVER_GRACE};
use crate::job::launch::{Launched, launch};
use crate::job::logs::LogWriter;
use crate::job::oom::{self, OomKills};
use crate::job::prepare::{Prepared, prepare};
use crate::job::ssh::Keeper;
use crate::wire::{self, JobFile, JobStatus, Order, Stage};
use crate::{clock, procs};

/// How much of the terminal is read before anything else is looked at.
const READ_BYTES: usize = 64 * 1024;
/// How often the host agent learns that the log grew.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);
/// What a container engine that is told to end leaves its containers, less what the last word takes.
const ENGINE_GRACE: Duration = Duration::from_secs(8);
/// How many of the last lines tell why a command failed.
const MESSAGE_LINES: usize = 5;

/// Supervises one job.
pub(crate) struct Supervisor {
    dir: PathBuf,
    job: JobFile,
    control: Control,
    signals: SignalFd,
    log: LogWriter,
    status: JobStatus,
    preparing: Option<Preparing>,
    prepared: Option<Prepared>,
    // The job is being told of its gang's nodes, which is the last thing before its command starts.
    introducing: Option<Introducing>,
    ssh: Option<Keeper>,
    command: Option<Launched>,
    command_status: Option<WaitStatus>,
    released: bool,
    deadline: Option<Instant>,
    ending: Option<Ending>,
    reaped: bool,
    oom_kills_before: OomKills,
    buffer: Vec<u8>,
    changed: bool,
    reported_at: Option<Instant>,
    reported_end: u64,
    /// Since when nobody has been in a job that stays.
    unvisited_since: Option<Instant>,
}

/// What is done on a thread of its own, because it may wait for others. While it may have children, the loop takes in
/// none.
type Preparing = Aside<Result<Prepared, String>>;
/// As above; it answers what went wrong.
type Introducing = Aside<Result<(), String>>;

impl Supervisor {
    /// A supervisor that has begun to prepare the job.
    pub(crate) fn new(dir: &Path, job: JobFile, control: Control) -> io::Result<Supervisor> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let mask: SigSet =
            [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let log = LogWriter::create(&dir.join(wire::LOGS), job.log_cap_bytes, Heir::of(dir)?)?;
        let (thread_job, thread_dir) = (job.clone(), dir.to_owned());
        let preparing = Aside::start("prepare", move || prepare(&thread_job, &thread_dir))?;
        Ok(Supervisor {
            dir: dir.to_owned(),
            control,
            signals,
            log,
            status: JobStatus {
                stage: Stage::Preparing,
                pid: Pid::this().as_raw(),
                working_dir: None,
                username: None,
                ssh_port: None,
                started_at: None,
                log_end: 0,
                warnings: Vec::new(),
                exit: None,
                unvisited_millis: None,
                visits: 0,
            },
            preparing: Some(preparing),
            prepared: None,
            introducing: None,
            ssh: None,
            command: None,
            command_status: None,
            released: false,
            deadline: None,
            ending: None,
            reaped: false,
            oom_kills_before: OomKills::count(job.container),
            buffer: vec![0; READ_BYTES],
            changed: false,
            reported_at: None,
            reported_end: 0,
            unvisited_since: None,
            job,
        })
    }

    /// Runs the job to its end: nothing of it runs and its log is complete when this returns.
    pub(crate) fn supervise(mut self) -> io::Result<(JobStatus, Control)> {
        loop {
            self.wait()?;
            self.note_absence();
            for order in self.control.receive(&self.status) {
                self.obey(order);
            }
            self.receive_signals()?;
            self.finish_preparing();
            self.finish_introducing();
            self.start_if_released();
            if let Some(ssh) = &mut self.ssh {
                ssh.restart_if_due();
                ssh.answer(&self.dir.join(wire::LOGS));
            }
            self.note_visits();
            self.read_terminal();
            if self.end_if_due() {
                break;
            }
            self.report();
        }
        while self.read_terminal() {}
        self.log.seal();
        self.status.log_end = self.log.end();
        self.end_ssh();
        self.note_lost_output();
        self.status.stage = Stage::Ended;
        Ok((self.status, self.control))
    }

    /// Waits until something happens or is due.
    fn wait(&mut self) -> io::Result<()> {
        let now = clock::monotonic();
        let timeout = self.next_due().map(|due| due.saturating_duration_since(now));
        // Rounded up, so that what is due really is when the wait ends.
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            let millis = timeout.as_nanos().div_ceil(1_000_000).min(60_000);
            PollTimeout::from(millis as u16)
        });
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<PollFd<'_>> = self.control.readable().map(readable).collect();
        fds.push(readable(self.signals.as_fd()));
        fds.extend(self.preparing.iter().map(|preparing| readable(preparing.done())));
        fds.extend(self.introducing.iter().map(|introducing| readable(introducing.done())));
        fds.extend(self.ssh.as_ref().and_then(Keeper::readable).map(readable));
        fds.extend(self.terminal().map(readable));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if self.control.has_output() {
            self.control.flush();
        }
        Ok(())
    }

    fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.command.as_ref().map(|command| command.terminal.as_fd())
    }

    fn next_due(&self) -> Option<Instant> {
        let log_grew = self.reported_end < self.log.end();
        let report = self.reported_at.filter(|_| log_grew).map(|at| at + REPORT_INTERVAL);
        // A client that reads slowly is tried again now and then.
        let flush = self.control.has_output().then(|| clock::monotonic() + REPORT_INTERVAL);
        let ending = self.ending.as_ref().map(Ending::next);
        let deadline = self.deadline.filter(|_| self.ending.is_none());
        let restart = self.ssh.as_ref().and_then(Keeper::next_due);
        [report, flush, ending, deadline, restart].into_iter().flatten().min()
    }

    /// Sees whether somebody has come into a job that stays, or left it.
    fn note_visits(&mut self) {
        if self.job.spec.stay.is_none() || self.status.started_at.is_none() {
            return;
        }
        let visits = self.ssh.as_ref().map_or(self.status.visits, Keeper::visits);
        let is_visited = self.ssh.as_ref().is_some_and(Keeper::is_visited);
        let came = visits != self.status.visits;
        let is_same = !came && is_visited == self.unvisited_since.is_none();
        if is_same {
            return;
        }
        self.status.visits = visits;
        self.unvisited_since = (!is_visited).then(clock::monotonic);
        self.changed = true;
    }

    /// Says in the status how long nobody has been there by now.
    fn note_absence(&mut self) {
        let now = clock::monotonic();
        let absence = self.unvisited_since.map(|since| now.saturating_duration_since(since));
        self.status.unvisited_millis = absence.map(|absence| absence.as_millis() as u64);
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Peers { ssh_ports } => {
                if let Some(gang) = &mut self.job.spec.gang {
                    gang.ports = ssh_ports;
                }
            }
            Order::Go => self.released = true,
            Order::Stop { grace_millis, taken_back } => {
                let cause = if taken_back { Cause::TakenBack } else { Cause::Stopped };
                self.stop(cause, Duration::from_millis(grace_millis));
            }
        }
    }

    fn stop(&mut self, cause: Cause, grace: Duration) {
        let now = clock::monotonic();
        // Nothing is lost where nothing has started.
        let grace = if self.command.is_some() { grace } else { Duration::ZERO };
        match &mut self.ending {
            Some(ending) => ending.shorten(grace, now),
            None => self.begin_end(cause, grace),
        }
    }

    /// How long the job may take where somebody else ends it. A container's engine does not wait for longer, and the
    /// last word must be out before its kill.
    fn interrupt_grace(&self) -> Duration {
        let grace = Duration::from_secs(self.job.spec.stop_grace_secs);
        if self.job.container { grace.min(ENGINE_GRACE) } else { grace }
    }

    fn begin_end(&mut self, cause: Cause, grace: Duration) {
        self.ending = Some(Ending::begin(cause, grace, clock::monotonic()));
        self.status.stage = self.status.stage.max(Stage::Ending);
        self.changed = true;
    }

    fn receive_signals(&mut self) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            let asks_to_end =
                [Signal::SIGTERM, Signal::SIGINT].iter().any(|signal| *signal as i32 == info.ssi_signo as i32);
            if asks_to_end {
                self.stop(Cause::Interrupted, self.interrupt_grace());
            }
        }
        // While another thread waits for its own children, nobody else may.
        if self.preparing.is_none() && self.introducing.is_none() {
            self.reap();
        }
        Ok(())
    }

    /// Takes in every child that ended: the command, and strangers that lost their parent.
    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::EINTR) => {}
                // Nobody has ended, or nobody is there.
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => {
                    self.reaped = true;
                    let command = self.command.as_ref().map(|command| command.pid);
                    if status.pid() == command {
                        self.command_status = Some(status);
                    }
                    if let Some(ssh) = &mut self.ssh
                        && status.pid() == ssh.pid()
                    {
                        ssh.note_end();
                    }
                }
            }
        }
    }

    fn finish_preparing(&mut self) {
        let Some(preparing) = self.preparing.take_if(|preparing| preparing.is_done()) else {
            return;
        };
        failpoint("job:before-ready");
        assert!(!armed("job:panic"), "a test asked for it");
        let outcome = preparing.join().unwrap_or_else(|| Err("preparing the job panicked".to_owned()));
        match outcome {
            Ok(prepared) => {
                self.status.working_dir = Some(prepared.working_dir.clone());
                self.status.username = Some(prepared.username.clone());
                self.status.warnings.extend(prepared.warnings.iter().cloned());
                self.start_ssh(&prepared);
                self.status.stage = self.status.stage.max(Stage::Ready);
                self.prepared = Some(prepared);
                self.changed = true;
            }
            Err(message) => self.fail(message),
        }
    }

    /// Ends the SSH server, and what it may still have started where the job failed to.
    fn end_ssh(&mut self) {
        if let Some(ssh) = self.ssh.take() {
            ssh.finish(&self.dir.join(wire::LOGS), self.log.end());
            procs::kill_all(self.job.spec.id);
        }
    }

    /// Lets the job be entered, if that is wanted. Where it cannot be, the job runs without, unless it must not.
    fn start_ssh(&mut self, prepared: &Prepared) {
        let Some(spec) = self.job.spec.ssh.as_ref().filter(|_| self.ending.is_none()) else {
            return;
        };
        match Keeper::start(spec, self.job.spec.id, prepared) {
            Ok(ssh) => {
                self.status.ssh_port = Some(ssh.port());
                self.ssh = Some(ssh);
            }
            Err(message) if spec.required => self.fail_because(ExitReason::PortsBindingFailed, message),
            Err(message) => self.status.warnings.push(message),
        }
    }

    fn start_if_released(&mut self) {
        if !self.released || self.ending.is_some() || !self.is_introduced() {
            return;
        }
        let Some(prepared) = self.prepared.take() else {
            return;
        };
        failpoint("job:go");
        if let Err(error) = self.mark_started() {
            self.fail(format!("cannot start the command: {error}"));
            return;
        }
        failpoint("job:started-marked");
        match launch(&prepared) {
            Ok(command) => {
                failpoint("job:started");
                self.command = Some(command);
                self.status.started_at = Some(clock::now());
                self.status.stage = Stage::Running;
                let longest = self.job.spec.max_duration_secs.map(Duration::from_secs);
                self.deadline = longest.and_then(|longest| clock::monotonic().checked_add(longest));
                self.changed = true;
            }
            Err(message) => self.fail(message),
        }
    }

    fn finish_introducing(&mut self) {
        let Some(introducing) = self.introducing.take_if(|introducing| introducing.is_done()) else {
            return;
        };
        let panicked = || Err("telling the job of its gang's nodes panicked".to_owned());
        if let Err(warning) = introducing.join().unwrap_or_else(panicked) {
            self.status.warnings.push(warning);
            self.changed = true;
        }
        // Others may have ended meanwhile.
        self.reap();
    }

    /// Whether the job knows its gang's nodes, as far as it ever will; begins to tell it of them where nobody has.
    fn is_introduced(&mut self) -> bool {
        if self.introducing.is_some() {
            return false;
        }
        let Some(prepared) = &mut self.prepared else {
            return false;
        };
        let Some(peers) = prepared.peers.take() else {
            return true;
        };
        let (job, owner) = (self.job.clone(), prepared.credentials.clone());
        match Aside::start("introduce", move || peers.introduce(&job, owner.as_ref())) {
            Ok(introducing) => self.introducing = Some(introducing),
            Err(error) => {
                self.status.warnings.push(format!("the job cannot be told of its gang's nodes: {error}"));
            }
        }
        self.introducing.is_none()
    }

    /// Leaves a mark that the command may have started: it never starts twice, whatever happens.
    fn mark_started(&self) -> io::Result<()> {
        let path = self.dir.join(wire::STARTED_MARK);
        let created = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        match created {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(io::Error::other("it was started before"))
            }
            // A full disk does not keep a job from running: the host agent has journaled the start.
            Err(error) if crate::disk::is_full(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads what the command printed, once; answers whether there was something.
    fn read_terminal(&mut self) -> bool {
        let Some(command) = &mut self.command else {
            return false;
        };
        let length = command.terminal.read(&mut self.buffer);
        if length > 0 {
            self.log.append(&self.buffer[..length]);
        }
        length > 0
    }

    /// Does what is due of the end; answers whether it is reached.
    fn end_if_due(&mut self) -> bool {
        if self.status.exit.is_some() {
            return true;
        }
        let now = clock::monotonic();
        let grace = Duration::from_secs(self.job.spec.stop_grace_secs);
        let is_too_long = self.deadline.is_some_and(|deadline| deadline <= now);
        if is_too_long && self.ending.is_none() {
            self.begin_end(Cause::MaxDuration, grace);
        }
        if self.command_status.is_some() && self.ending.is_none() {
            self.begin_end(Cause::Finished, LEFTOVER_GRACE);
        }
        let Some(ending) = &self.ending else {
            return false;
        };
        let command_ended = self.command.is_none() || self.command_status.is_some();
        let next = ending.next();
        if let Some(ssh) = self.ssh.as_mut().filter(|_| command_ended) {
            // Whoever is in the job leaves it when its command is gone.
            ssh.end_sessions();
        }
        // Processes are counted when it is time, and when one is known to have ended.
        if now < next && !std::mem::take(&mut self.reaped) {
            return false;
        }
        let left = self.end_processes(command_ended, now);
        let hopeless = self.ending.as_ref().is_some_and(|ending| ending.is_hopeless(now));
        let prepared = self.preparing.is_none() && self.introducing.is_none();
        if !(hopeless || left == 0 && command_ended && prepared) {
            return false;
        }
        if left > 0 {
            self.status.warnings.push(format!("{left} processes of the job would not die"));
        }
        let exit = self.exit();
        self.status.exit = Some(exit);
        true
    }

    /// Does to the job's processes what is due, and answers how many there are.
    fn end_processes(&mut self, command_ended: bool, now: Instant) -> usize {
        let Some(ending) = &mut self.ending else {
            return 0;
        };
        let signal = ending.due(now);
        // The SSH server lives on until it has told the end of the log.
        let server = self.ssh.as_ref().and_then(Keeper::pid);
        let mut left = procs::find(self.job.spec.id, Some(Pid::this()));
        left.retain(|process| Some(*process) != server);
        let visitors = server.map(procs::descendants).unwrap_or_default();
        let own: Vec<Pid> = left.iter().copied().filter(|process| !visitors.contains(process)).collect();
        if command_ended && own.is_empty() && !left.is_empty() {
            // Those who are only in the job have no claim to its grace.
            ending.shorten(LEFTOVER_GRACE, now);
        }
        // It waits for the command, so it is not in its way.
        let waits = self.command.as_ref().filter(|_| self.job.spec.stay.is_some()).map(|command| command.pid);
        let at_work: Vec<Pid> = own.iter().copied().filter(|process| Some(*process) != waits).collect();
        if let Some(signal) = signal {
            procs::signal_all(&left, signal);
        } else if let [last] = at_work[..]
            && procs::is_shell_at_its_prompt(last, &self.job.spec.argv)
        {
            procs::hang_up(last);
        }
        left.len()
    }

    /// Ends the job because something of ours failed.
    fn fail(&mut self, message: String) {
        self.fail_because(ExitReason::ExecutorError, message);
    }

    fn fail_because(&mut self, reason: ExitReason, message: String) {
        self.status.exit = Some(TaskExit {
            reason,
            exit_status: None,
            signal: None,
            oom_killed: false,
            message: Some(message),
            finished_at: clock::now(),
        });
    }

    fn exit(&self) -> TaskExit {
        let cause = self.ending.as_ref().map_or(Cause::Finished, |ending| ending.cause);
        let (exit_status, signal) = match self.command_status {
            Some(WaitStatus::Exited(_, status)) => (Some(status), None),
            Some(WaitStatus::Signaled(_, signal, _)) => (Some(128 + signal as i32), Some(signal as i32)),
            _ => (None, None),
        };
        let oom_killed = cause == Cause::Finished
            && oom::ended(exit_status, self.oom_kills_before, OomKills::count(self.job.container));
        let (reason, message) = match cause {
            Cause::Stopped | Cause::TakenBack => (ExitReason::Stopped, None),
            Cause::MaxDuration => {
                let longest = self.job.spec.max_duration_secs.unwrap_or_default();
                (ExitReason::MaxDurationExceeded, Some(format!("ran longer than {longest} s")))
            }
            Cause::Interrupted => {
                let message = if self.job.container {
                    wire::ENGINE_INTERRUPTED
                } else {
                    "the job's supervisor was told to end by a signal"
                };
                (ExitReason::HostInterrupted, Some(message.to_owned()))
            }
            Cause::Finished if exit_status == Some(0) => (ExitReason::Done, None),
            Cause::Finished if oom_killed => {
                let lines = self.log.last_lines(MESSAGE_LINES);
                (ExitReason::Failed, Some(oom::message(exit_status, &lines)))
            }
            Cause::Finished => (ExitReason::Failed, Some(self.log.last_lines(MESSAGE_LINES))),
        };
        TaskExit {
            reason,
            exit_status,
            signal,
            oom_killed,
            message: message.filter(|message| !message.is_empty()),
            finished_at: clock::now(),
        }
    }

    /// Tells the host agent what changed: at once, but growth of the log only now and then.
    fn report(&mut self) {
        let end = self.log.end();
        let now = clock::monotonic();
        let may_tell = self.reported_at.is_none_or(|at| at + REPORT_INTERVAL <= now);
        let log_is_news = self.reported_end < end && may_tell;
        if !self.changed && !log_is_news {
            return;
        }
        self.note_lost_output();
        self.note_absence();
        self.status.log_end = end;
        self.control.report(&self.status);
        self.changed = false;
        self.reported_at = Some(now);
        self.reported_end = end;
    }

    fn note_lost_output(&mut self) {
        let Some(error) = &self.log.error else {
            return;
        };
        let warning = format!("{}: {error} ({} bytes so far)", wire::LOST_OUTPUT, self.log.lost);
        self.status.warnings.retain(|other| !other.starts_with(wire::LOST_OUTPUT));
        self.status.warnings.push(warning);
    }
}
