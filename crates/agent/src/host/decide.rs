//! What to do next about a task: a function of what its journal says and of what was seen.

use api::agent::{ExitReason, Resolved, TaskExit, TaskPhase};
use jiff::Timestamp;

use crate::host::record::Record;
use crate::host::runtime::{Failure, Gone};
use crate::wire::{JobStatus, Stage};

/// How often a supervisor that ended before its command may have started is started again.
const RELAUNCHES_LIMIT: u32 = 2;

/// What was seen of a task since the agent started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// The launch goes on.
    pub(crate) launching: bool,
    /// The launch was told to give up.
    pub(crate) cancelled: bool,
    /// The launch failed.
    pub(crate) failure: Option<Failure>,
    /// The supervisor was started, or is looked for.
    pub(crate) attached: bool,
    /// What the supervisor said last.
    pub(crate) status: Option<JobStatus>,
    /// The supervisor ended without a last word.
    pub(crate) gone: Option<Gone>,
    /// `go` was sent on this connection.
    pub(crate) go_sent: bool,
    /// The order to end was sent on this connection, with this deadline.
    pub(crate) stop_sent: Option<Timestamp>,
    /// How often the supervisor was started again.
    pub(crate) relaunches: u32,
}

/// The next step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Nothing, until something happens.
    Wait,
    /// Take GPUs, then image, container, supervisor.
    Launch,
    /// Give up the launch.
    CancelLaunch,
    /// Find the supervisor that was started earlier.
    Attach,
    /// All is there.
    NoteReady(Resolved),
    /// The command may start.
    NoteRunning,
    /// Tell the supervisor to start the command.
    SendGo,
    /// The command has started.
    NoteStarted(Timestamp),
    /// Tell the supervisor to end the command by then.
    SendStop(Timestamp),
    /// The task ended.
    NoteExited(TaskExit),
    /// Make sure that nothing of the task runs, and close its log.
    Seal,
}

/// Decides the next step. Time and boot are given, so that the same journal always leads to the same end.
pub(crate) fn decide(record: &Record, seen: &Seen, now: Timestamp, boot: &str) -> Step {
    let phase = record.state.phase;
    if phase == TaskPhase::Sealed {
        return Step::Wait;
    }
    if record.state.exit.is_some() {
        return Step::Seal;
    }
    let stopped = || exit(ExitReason::Stopped, None, now);
    if let Some(exit) = seen.status.as_ref().and_then(|status| status.exit.clone()) {
        let gone_wrong = exit.reason == ExitReason::ExecutorError;
        let was_stopped = record.stopping.is_some() && !phase.has_started() && gone_wrong;
        return Step::NoteExited(if was_stopped { stopped() } else { exit });
    }
    if let Some(failure) = &seen.failure {
        return Step::NoteExited(match record.stopping {
            Some(_) => stopped(),
            None => exit(failure.reason, Some(failure.message.clone()), now),
        });
    }
    if let Some(gone) = &seen.gone {
        return after_gone(record, seen, gone, now, boot);
    }
    if let Some(stopping) = record.stopping {
        return end(record, seen, stopping.kill_at, now);
    }
    if seen.launching {
        return Step::Wait;
    }
    if !seen.attached {
        let was_launched = phase >= TaskPhase::Ready;
        return if was_launched { Step::Attach } else { Step::Launch };
    }
    match &seen.status {
        Some(status) => follow(record, seen, status),
        None => Step::Wait,
    }
}

/// The way from launched to started.
fn follow(record: &Record, seen: &Seen, status: &JobStatus) -> Step {
    let phase = record.state.phase;
    if phase < TaskPhase::Ready {
        if status.stage < Stage::Ready {
            return Step::Wait;
        }
        let mut resolved = record.state.resolved.clone();
        resolved.working_dir.clone_from(&status.working_dir);
        resolved.username.clone_from(&status.username);
        resolved.on_host_network = record.accepted.on_host_network;
        // What a supervisor says of ports counts only where it could not say more by connecting itself.
        if let (Some(wanted), Some(port), true) =
            (record.accepted.ssh_port, status.ssh_port, record.accepted.on_host_network)
        {
            resolved.ports.insert(wanted, port);
        }
        return Step::NoteReady(resolved);
    }
    if phase == TaskPhase::Ready && record.released {
        return Step::NoteRunning;
    }
    if phase == TaskPhase::Running && status.stage == Stage::Ready && !seen.go_sent {
        return Step::SendGo;
    }
    match status.started_at {
        Some(started_at) if record.state.started_at.is_none() => Step::NoteStarted(started_at),
        _ => Step::Wait,
    }
}

/// The way to the end of a task that was told to end.
fn end(record: &Record, seen: &Seen, kill_at: Timestamp, now: Timestamp) -> Step {
    let may_have_started = record.state.phase.has_started();
    if seen.launching {
        return if seen.cancelled { Step::Wait } else { Step::CancelLaunch };
    }
    if !may_have_started {
        // Sealing ends a supervisor that still waits.
        return Step::NoteExited(exit(ExitReason::Stopped, None, now));
    }
    if !seen.attached {
        return Step::Attach;
    }
    if let Some(started_at) = seen.status.as_ref().and_then(|status| status.started_at)
        && record.state.started_at.is_none()
    {
        return Step::NoteStarted(started_at);
    }
    let is_sent = seen.stop_sent.is_some_and(|sent| sent <= kill_at);
    match &seen.status {
        Some(_) if !is_sent => Step::SendStop(kill_at),
        _ => Step::Wait,
    }
}

fn after_gone(record: &Record, seen: &Seen, gone: &Gone, now: Timestamp, boot: &str) -> Step {
    if record.stopping.is_some() {
        return Step::NoteExited(exit(ExitReason::Stopped, None, now));
    }
    let may_have_started = record.state.phase.has_started();
    if !may_have_started && seen.relaunches < RELAUNCHES_LIMIT {
        return Step::Launch;
    }
    if record.boot != boot {
        let message = Some("the host rebooted".to_owned());
        return Step::NoteExited(exit(ExitReason::HostInterrupted, message, now));
    }
    if let Some(message) = &gone.interrupted {
        let message = Some(message.clone());
        return Step::NoteExited(exit(ExitReason::HostInterrupted, message, now));
    }
    let message = if gone.oom_killed {
        "the job's supervisor was ended by the kernel for want of memory"
    } else {
        "the job's supervisor ended without a word"
    };
    let mut exit = exit(ExitReason::ExecutorError, Some(message.to_owned()), now);
    exit.oom_killed = gone.oom_killed;
    Step::NoteExited(exit)
}

fn exit(reason: ExitReason, message: Option<String>, now: Timestamp) -> TaskExit {
    TaskExit { reason, exit_status: None, signal: None, oom_killed: false, message, finished_at: now }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::record::{Accepted, Entry, Line, Stopping};
    use api::ids::JobId;

    fn record(entries: &[Entry]) -> Record {
        let accepted = Accepted {
            id: JobId(uuid::Uuid::nil()),
            generation: 1,
            job_name: "job".to_owned(),
            container: false,
            released: false,
            ssh_port: None,
            on_host_network: true,
            over_host: None,
        };
        let mut record = Record::new(accepted, "boot".to_owned());
        for entry in entries {
            let line = Line { at: Timestamp::UNIX_EPOCH, boot: "boot".to_owned(), entry: entry.clone() };
            record.apply(&line);
        }
        record
    }

    fn attached(stage: Stage) -> Seen {
        let status = JobStatus {
            stage,
            pid: 1,
            working_dir: None,
            username: None,
            ssh_port: None,
            started_at: None,
            log_end: 0,
            warnings: Vec::new(),
            exit: None,
            unvisited_millis: None,
            visits: 0,
        };
        Seen { attached: true, status: Some(status), ..Seen::default() }
    }

    fn check(entries: &[Entry], seen: &Seen, expected: &Step) {
        let found = decide(&record(entries), seen, Timestamp::UNIX_EPOCH, "boot");
        assert_eq!(&found, expected, "{entries:?} {seen:?}");
    }

    fn ready() -> Entry {
        Entry::Ready(Resolved::default())
    }

    #[test]
    fn a_fresh_task_goes_to_ready_and_waits_there() {
        check(&[], &Seen::default(), &Step::Launch);
        check(&[Entry::Preparing], &Seen::default(), &Step::Launch);
        check(&[Entry::Preparing], &attached(Stage::Preparing), &Step::Wait);
        let seen = attached(Stage::Ready);
        let resolved = Resolved { on_host_network: true, ..Resolved::default() };
        check(&[Entry::Preparing], &seen, &Step::NoteReady(resolved));
        check(&[ready()], &seen, &Step::Wait);
        check(&[ready(), Entry::Released], &seen, &Step::NoteRunning);
        check(&[ready(), Entry::Released, Entry::Running], &seen, &Step::SendGo);
    }

    #[test]
    fn a_restarted_agent_looks_for_the_supervisor_instead_of_starting_another() {
        check(&[ready()], &Seen::default(), &Step::Attach);
        check(&[ready(), Entry::Running], &Seen::default(), &Step::Attach);
    }

    #[test]
    fn a_supervisor_that_is_gone_is_replaced_only_before_the_command() {
        let seen = Seen { gone: Some(Gone::default()), ..Seen::default() };
        check(&[ready()], &seen, &Step::Launch);
        let found = decide(&record(&[ready(), Entry::Running]), &seen, Timestamp::UNIX_EPOCH, "boot");
        let Step::NoteExited(exit) = found else { panic!("{found:?}") };
        assert_eq!(exit.reason, ExitReason::ExecutorError);
        let found = decide(&record(&[ready(), Entry::Running]), &seen, Timestamp::UNIX_EPOCH, "other");
        let Step::NoteExited(exit) = found else { panic!("{found:?}") };
        assert_eq!(exit.reason, ExitReason::HostInterrupted);
    }

    #[test]
    fn a_stop_ends_what_never_ran_at_once_and_asks_what_runs() {
        let stopping = Entry::Stopping(Stopping { kill_at: Timestamp::UNIX_EPOCH });
        let stopped = Step::NoteExited(exit(ExitReason::Stopped, None, Timestamp::UNIX_EPOCH));
        check(std::slice::from_ref(&stopping), &Seen::default(), &stopped);
        check(&[ready(), stopping.clone()], &attached(Stage::Ready), &stopped);
        let running = [ready(), Entry::Running, stopping];
        check(&running, &attached(Stage::Running), &Step::SendStop(Timestamp::UNIX_EPOCH));
        let launching = Seen { launching: true, ..Seen::default() };
        check(&running[2..], &launching, &Step::CancelLaunch);
    }
}
