//! The steps of a task, each journaled before its effect.

use std::time::Duration;

use api::agent::{ExitReason, TaskExit};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::info;

use crate::clock;
use crate::failpoint::failpoint;
use crate::host::decide::{Seen, Step};
use crate::host::link;
use crate::host::log_reader;
use crate::host::record::{Entry, WARNINGS_LIMIT};
use crate::host::runtime::{self, Failure, Progress};
use crate::host::task::{LogMark, Message, News, Task};
use crate::wire::{JobStatus, LOST_OUTPUT, Order};

/// How soon a step that could not be taken is tried again: there was no room on the disk, or no engine.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How much longer than its grace a supervisor may take before it is ended from outside.
const OVERDUE_AFTER: Duration = Duration::from_secs(15);
/// How many orders may wait for a supervisor.
const ORDERS: usize = 16;

impl Task {
    /// Takes a step; answers whether another may follow at once.
    pub(super) async fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Wait => return false,
            Step::Launch => self.launch(),
            Step::CancelLaunch => {
                self.cancel.cancel();
                self.seen.cancelled = true;
            }
            Step::Attach => self.attach(),
            Step::NoteReady(resolved) => {
                failpoint("ready:before");
                self.note_anyway(Entry::Ready(resolved));
                failpoint("ready:after");
            }
            Step::NoteRunning => return self.note_running(),
            Step::SendGo => {
                self.seen.go_sent = true;
                let ports = self.record.as_ref().map(|record| record.peer_ports.clone()).unwrap_or_default();
                if !ports.is_empty() {
                    self.send(Order::Peers { ssh_ports: ports });
                }
                self.send(Order::Go);
                failpoint("go:after");
            }
            Step::NoteStarted(at) => {
                failpoint("started:before");
                self.note_anyway(Entry::Started(at));
                failpoint("started:after");
                self.spec = None;
                self.handle.dir.remove_secrets();
            }
            Step::SendStop(kill_at) => self.send_stop(kill_at),
            Step::NoteExited(exit) => self.note_exited(exit),
            Step::Seal => return self.seal().await,
        }
        true
    }

    fn launch(&mut self) {
        let relaunches = self.seen.relaunches + u32::from(self.seen.gone.is_some());
        self.seen = Seen { relaunches, ..Seen::default() };
        self.attempt += 1;
        self.orders = None;
        failpoint("preparing:before");
        self.note_anyway(Entry::Preparing);
        failpoint("preparing:after");
        if self.spec.is_none() {
            match self.handle.dir.read_spec() {
                Ok(spec) => self.spec = Some(spec),
                Err(error) => {
                    let message = format!("the task's spec cannot be read: {error}");
                    self.seen.failure = Some(Failure::executor(message));
                    return;
                }
            }
        }
        let Some(spec) = self.spec.clone() else {
            return;
        };
        failpoint("gpus:before");
        let gpus = match self.host.gpus.take(spec.id, &spec.share) {
            Ok(gpus) => gpus,
            Err(message) => {
                self.seen.failure = Some(Failure::executor(message));
                return;
            }
        };
        self.note_anyway(Entry::Gpus(gpus.clone()));
        failpoint("gpus:after");
        self.seen.launching = true;
        failpoint("launch:before");
        let (host, handle) = (self.host.clone(), self.handle.clone());
        let cancel = self.cancel.clone();
        let attempt = self.attempt;
        let launching = tokio::spawn(async move {
            let tell = |news: News| handle.tell(Message::News(attempt, news));
            let (progress, mut news) = mpsc::channel(16);
            let launch = runtime::launch(&host, &handle.dir, &spec, gpus, &progress, &cancel);
            tokio::pin!(launch);
            let result = loop {
                tokio::select! {
                    biased;
                    Some(news) = news.recv() => {
                        tell(News::Progress(news)).await;
                    }
                    result = &mut launch => break result,
                }
            };
            while let Ok(news) = news.try_recv() {
                tell(News::Progress(news)).await;
            }
            tell(News::Launched(result)).await;
        });
        self.launching = Some(launching);
    }

    /// Follows the supervisor that was started, now or by an earlier agent.
    fn attach(&mut self) {
        let Some(record) = &self.record else {
            return;
        };
        let (orders, inbox) = mpsc::channel(ORDERS);
        self.orders = Some(orders);
        self.seen.attached = true;
        let (host, handle) = (self.host.clone(), self.handle.clone());
        let attempt = self.attempt;
        tokio::spawn(link::follow(host, handle, attempt, record.accepted.container, inbox));
    }

    /// The start is the one step that must not come without its line.
    fn note_running(&mut self) -> bool {
        failpoint("running:before");
        if self.note(Entry::Running).is_ok() {
            failpoint("running:after");
            return true;
        }
        self.tell_later(Message::Retry);
        false
    }

    /// Has a step that could not be taken tried again, which is what the message says.
    pub(super) fn tell_later(&self, message: Message) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RETRY_AFTER).await;
            handle.tell(message).await;
        });
    }

    fn send(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A supervisor that is gone needs no orders; the link says so.
            let _ = orders.try_send(order);
        }
    }

    fn send_stop(&mut self, kill_at: Timestamp) {
        self.seen.stop_sent = Some(kill_at);
        let grace = Duration::try_from(kill_at.duration_since(clock::now())).unwrap_or_default();
        let taken_back = self.host.news.borrow().interruption.is_some();
        self.send(Order::Stop { grace_millis: grace.as_millis() as u64, taken_back });
        failpoint("stop:after");
    }

    /// Sees to it that an order to end comes true, whatever the supervisor does and whether or not it is reached.
    pub(super) fn watch_end(&mut self) {
        let Some(record) = self.record.as_ref().filter(|record| record.state.exit.is_none()) else {
            return;
        };
        let Some(kill_at) = record.stopping.map(|stopping| stopping.kill_at) else {
            return;
        };
        if self.watched_end.is_some_and(|watched| watched <= kill_at) {
            return;
        }
        self.watched_end = Some(kill_at);
        let grace = Duration::try_from(kill_at.duration_since(clock::now())).unwrap_or_default();
        let handle = self.handle.clone();
        tokio::spawn(async move {
            tokio::time::sleep(grace + OVERDUE_AFTER).await;
            if !handle.is_sealed() {
                handle.tell(Message::Overdue).await;
            }
        });
    }

    fn note_exited(&mut self, mut exit: TaskExit) {
        let is_silent = self.seen.gone.is_some() && exit.reason == ExitReason::ExecutorError;
        if let (true, Some(message)) = (is_silent, &mut exit.message)
            && let Some(words) = self.handle.dir.last_words()
        {
            message.push_str(": ");
            message.push_str(&words);
        }
        let warnings = self.seen.status.as_ref().map_or(&[][..], |status| &status.warnings[..]);
        for warning in warnings.iter().take(WARNINGS_LIMIT).cloned().collect::<Vec<_>>() {
            self.note_anyway(Entry::Warning(warning));
        }
        failpoint("exited:before");
        info!(task.id = %self.handle.id, "ended: {:?}, status {:?}", exit.reason, exit.exit_status);
        self.note_anyway(Entry::Exited(exit));
        self.publish();
        failpoint("exited:after");
    }

    /// Answers whether the task is sealed: not while something of it may still run, for instance with its GPUs.
    async fn seal(&mut self) -> bool {
        self.orders = None;
        if !self.destroy().await {
            self.tell_later(Message::Retry);
            return false;
        }
        self.host.gpus.release(self.handle.id);
        self.spec = None;
        self.handle.dir.remove_secrets();
        let last = self.handle.dir.read_exit();
        let told = last.as_ref().or(self.seen.status.as_ref()).map_or(0, |status| status.log_end);
        let end = told.max(log_reader::end_on_disk(&self.handle.dir.logs()));
        failpoint("sealed:before");
        self.note_anyway(Entry::Sealed(end));
        failpoint("sealed:after");
        self.handle.log.send_replace(LogMark { end, sealed: true });
        true
    }

    /// Takes in what happened to this attempt.
    pub(super) fn note_news(&mut self, news: News) {
        match news {
            News::Launched(result) => {
                self.seen.launching = false;
                match result {
                    Ok(()) => {
                        failpoint("launch:after");
                        self.attach();
                    }
                    Err(failure) => self.seen.failure = Some(failure),
                }
            }
            News::Progress(progress) => self.note_progress(progress),
            News::Connected => {
                self.seen.go_sent = false;
                self.seen.stop_sent = None;
            }
            News::Status(status) => self.note_status(*status),
            News::Gone(gone) => {
                self.note_visits(None);
                self.orders = None;
                self.seen.gone = Some(gone);
            }
        }
    }

    /// Takes in what the launch found out.
    fn note_progress(&mut self, progress: Progress) {
        match progress {
            Progress::Pulling => self.note_anyway(Entry::Pulling),
            Progress::Warning(warning) => self.note_anyway(Entry::Warning(warning)),
            Progress::Pull(pull) => {
                if let Some(record) = &mut self.record {
                    record.state.pull = Some(pull);
                }
            }
            Progress::Resolved(resolved) => {
                if let Some(record) = &mut self.record {
                    let gpu_uuids = std::mem::take(&mut record.state.resolved.gpu_uuids);
                    record.state.resolved = resolved;
                    record.state.resolved.gpu_uuids = gpu_uuids;
                }
            }
        }
    }

    /// Takes in what the supervisor said.
    fn note_status(&mut self, status: JobStatus) {
        if let Some(record) = &mut self.record {
            for warning in status.warnings.iter().take(WARNINGS_LIMIT) {
                if warning.starts_with(LOST_OUTPUT) {
                    // It counts on, in place of the earlier count.
                    record.state.warnings.retain(|other| !other.starts_with(LOST_OUTPUT));
                }
                record.warn(warning);
            }
        }
        self.note_visits(status.unvisited_millis);
        self.seen.gone = None;
        self.seen.status = Some(status);
    }
}
