//! Answers that are kept for a while. Who comes while one is asked for waits for the same answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::Result;

/// How long a failure is remembered, so that many who ask do not make AWS throttle us.
const FAILURE_AGE: Duration = Duration::from_secs(5);

/// One answer for each key.
#[derive(Debug)]
pub(super) struct Cached<K, V> {
    max_age: Duration,
    failure_age: Duration,
    answers: Mutex<HashMap<K, Slot<V>>>,
}

type Slot<V> = Arc<tokio::sync::Mutex<Option<(Instant, Result<Arc<V>>)>>>;

impl<K: Hash + Eq + Clone, V> Cached<K, V> {
    pub(super) fn new(max_age: Duration) -> Cached<K, V> {
        Cached::remembering(max_age, FAILURE_AGE.min(max_age))
    }

    /// Answers that are kept for a while, and failures for another.
    pub(super) fn remembering(max_age: Duration, failure_age: Duration) -> Cached<K, V> {
        Cached { max_age, failure_age, answers: Mutex::default() }
    }

    /// The answer for a key, asked for unless it is known.
    pub(super) async fn get(&self, key: &K, ask: impl Future<Output = Result<V>>) -> Result<Arc<V>> {
        let slot = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.entry(key.clone()).or_default().clone()
        };
        let mut slot = slot.lock().await;
        if let Some((at, answer)) = slot.as_ref() {
            let max_age = if answer.is_ok() { self.max_age } else { self.failure_age };
            if at.elapsed() < max_age {
                return answer.clone();
            }
        }
        let answer = ask.await.map(Arc::new);
        *slot = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Forgets the answer for a key.
    pub(super) fn forget(&self, key: &K) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, ErrorKind};

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_failures_shortly() {
        let cached: Cached<&str, u32> = Cached::new(Duration::from_mins(10));
        assert_eq!(*cached.get(&"a", async { Ok(1) }).await.unwrap(), 1);
        tokio::time::advance(Duration::from_mins(9)).await;
        assert_eq!(*cached.get(&"a", async { Ok(2) }).await.unwrap(), 1);
        tokio::time::advance(Duration::from_mins(2)).await;
        assert_eq!(*cached.get(&"a", async { Ok(3) }).await.unwrap(), 3);
        cached.forget(&"a");
        let refused = Error::new(ErrorKind::RateLimited, "later");
        assert_eq!(cached.get(&"a", async { Err(refused.clone()) }).await, Err(refused.clone()));
        assert_eq!(cached.get(&"a", async { Ok(4) }).await, Err(refused));
        tokio::time::advance(FAILURE_AGE).await;
        assert_eq!(*cached.get(&"a", async { Ok(4) }).await.unwrap(), 4);
    }
}
