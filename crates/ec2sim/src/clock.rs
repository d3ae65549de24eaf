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
    /// Milliseconds since the epoch, moved by hand.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `start` until it is advanced.
    pub fn manual(start: Timestamp) -> Clock {
        Clock::Manual(Arc::new(AtomicI64::new(start.as_millisecond())))
    }

    /// The time now, to the millisecond, which is all that AWS tells.
    #[expect(clippy::disallowed_methods, reason = "this is the injected clock")]
    pub fn now(&self) -> Timestamp {
        let millis = match self {
            Clock::System => Timestamp::now().as_millisecond(),
            Clock::Manual(millis) => millis.load(Ordering::SeqCst),
        };
        Timestamp::from_millisecond(millis).expect("the clock stays within the years that a timestamp can hold")
    }

    /// Moves a manual clock forward; the machine's does not obey.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(millis) = self {
            let by = i64::try_from(by.as_millis()).expect("tests advance by less than 292 million years");
            millis.fetch_add(by, Ordering::SeqCst);
        }
    }
}
