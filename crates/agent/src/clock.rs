//! The only place that asks the machine for the time. Everything else takes it from here.

#![expect(clippy::disallowed_methods, reason = "this module is the agent's clock; the bans keep it the only one")]

use std::time::Instant;

use jiff::Timestamp;

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// The wall clock in microseconds since the epoch.
pub(crate) fn unix_micros() -> i64 {
    Timestamp::now().as_microsecond()
}

/// A clock that never goes back, for time-outs.
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

/// Waits between two tries of something that has no event to wait for.
pub(crate) fn pause(time: std::time::Duration) {
    std::thread::sleep(time);
}
