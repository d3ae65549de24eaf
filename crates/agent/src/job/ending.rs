//! The end of a job's processes: polite signals, grace, then the kill of everything that is left.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

/// How long the second polite signal waits after the first, at most.
const TERMINATE_AFTER: Duration = Duration::from_secs(5);
/// The same where the machine is taken back. Programs that save what they can often do so at the second one only.
const HURRIED_TERMINATE_AFTER: Duration = Duration::from_secs(1);
/// What a command that ended by itself grants to the processes it left behind.
pub(crate) const LEFTOVER_GRACE: Duration = Duration::from_millis(500);
/// How often processes that do not die are killed again.
const KILL_INTERVAL: Duration = Duration::from_millis(10);
/// How often processes in their grace are counted.
const COUNT_INTERVAL: Duration = Duration::from_millis(100);

/// Why a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The command ended by itself.
    Finished,
    /// It was told to.
    Stopped,
    /// It was told to, because its machine is taken back.
    TakenBack,
    /// It ran too long.
    MaxDuration,
    /// Somebody else than the host agent told the supervisor to end: the container engine, or an operator.
    Interrupted,
}

/// The state of an end that was begun.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Why.
    pub(crate) cause: Cause,
    terminate_at: Instant,
    kill_at: Instant,
    last_signal: Option<Signal>,
    next: Instant,
}

impl Ending {
    /// Begins to end a job. Where the command ended by itself there is nobody to interrupt.
    pub(crate) fn begin(cause: Cause, grace: Duration, now: Instant) -> Ending {
        let terminate_after = match cause {
            Cause::Finished => Duration::ZERO,
            Cause::TakenBack => HURRIED_TERMINATE_AFTER.min(grace / 2),
            Cause::Stopped | Cause::MaxDuration | Cause::Interrupted => TERMINATE_AFTER.min(grace / 2),
        };
        Ending { cause, terminate_at: now + terminate_after, kill_at: now + grace, last_signal: None, next: now }
    }

    /// Makes the end come sooner, never later.
    pub(crate) fn shorten(&mut self, grace: Duration, now: Instant) {
        if now + grace < self.kill_at {
            self.kill_at = now + grace;
            self.terminate_at = self.terminate_at.min(now + grace / 2);
            self.next = now;
        }
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// The signal that is due now, and when to look again. Polite signals are sent once, the kill again and
    /// again.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Signal> {
        let wanted = match now {
            now if self.kill_at <= now => Signal::SIGKILL,
            now if self.terminate_at <= now => Signal::SIGTERM,
            _ => Signal::SIGINT,
        };
        let first = self.last_signal != Some(wanted);
        self.last_signal = Some(wanted);
        self.next = match wanted {
            Signal::SIGKILL => now + KILL_INTERVAL,
            Signal::SIGTERM => self.kill_at.min(now + COUNT_INTERVAL),
            _ => self.terminate_at.min(now + COUNT_INTERVAL),
        };
        (first || wanted == Signal::SIGKILL).then_some(wanted)
    }

    /// Whether what is left will not even die of being killed.
    pub(crate) fn is_hopeless(&self, now: Instant) -> bool {
        self.kill_at + crate::procs::KILL_TIMEOUT < now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(ending: &mut Ending, from: Instant, millis: &[u64]) -> Vec<Option<Signal>> {
        millis.iter().map(|millis| ending.due(from + Duration::from_millis(*millis))).collect()
    }

    #[test]
    fn a_stop_interrupts_then_terminates_then_kills() {
        let now = crate::clock::monotonic();
        let mut ending = Ending::begin(Cause::Stopped, Duration::from_secs(4), now);
        let seen = signals(&mut ending, now, &[0, 100, 2000, 2100, 4000, 4010]);
        let (int, term, kill) = (Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL);
        assert_eq!(seen, [Some(int), None, Some(term), None, Some(kill), Some(kill)]);
    }

    #[test]
    fn a_machine_that_is_taken_back_leaves_no_time_between_the_polite_signals() {
        let now = crate::clock::monotonic();
        let mut ending = Ending::begin(Cause::TakenBack, Duration::from_secs(110), now);
        let seen = signals(&mut ending, now, &[0, 900, 1000, 5000, 110_000]);
        let (int, term, kill) = (Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL);
        assert_eq!(seen, [Some(int), None, Some(term), None, Some(kill)]);
    }

    #[test]
    fn no_grace_kills_at_once_and_a_later_order_cannot_lengthen_it() {
        let now = crate::clock::monotonic();
        let mut ending = Ending::begin(Cause::Stopped, Duration::from_mins(1), now);
        ending.shorten(Duration::ZERO, now);
        ending.shorten(Duration::from_mins(1), now);
        assert_eq!(ending.due(now), Some(Signal::SIGKILL));
    }
}
