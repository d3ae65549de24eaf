//! The only place that reads the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// A clock: the machine's, or one that a test moves.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's.
    System,
    /// Microseconds since the epoch, moved by hand.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `start` until it is advanced.
    pub fn manual(start: Timestamp) -> Clock {
        Clock::Manual(Arc::new(AtomicI64::new(start.as_microsecond())))
    }

    /// The time now, to the microsecond, which is all that the database keeps.
    #[expect(clippy::disallowed_methods, reason = "this is the injected clock")]
    pub fn now(&self) -> Timestamp {
        let micros = match self {
            Clock::System => Timestamp::now().as_microsecond(),
            Clock::Manual(micros) => micros.load(Ordering::SeqCst),
        };
        Timestamp::from_microsecond(micros).expect("the clock stays within the years that a timestamp can hold")
    }

    /// Moves a manual clock forward; the machine's does not obey.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(micros) = self {
            let by = i64::try_from(by.as_micros()).expect("tests advance by less than 292,000 years");
            micros.fetch_add(by, Ordering::SeqCst);
        }
    }
}
