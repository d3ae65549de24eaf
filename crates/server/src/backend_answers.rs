//! Answers of backends, kept for a moment. Many rows that ask one backend the same at the same time make one question
//! of it, also when it does not answer: a backend that hangs must not be waited for by each of ten thousand instances.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::clock::Clock;

/// How long a failure is taken for the answer.
const FAILURE_MAX_AGE: SignedDuration = SignedDuration::from_secs(2);

/// Answers by question.
#[derive(Debug)]
pub struct Answers<K, T> {
    clock: Clock,
    /// How long an answer may be used again.
    max_age: SignedDuration,
    questions: Mutex<HashMap<K, Question<T>>>,
}

#[derive(Debug)]
struct Question<T> {
    /// How often something was changed: an answer that was asked for before a change must not be kept after it.
    changes: u64,
    kept: Option<(Timestamp, backends::Result<T>)>,
    /// Held by whoever asks.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<T> Default for Question<T> {
    fn default() -> Self {
        Question { changes: 0, kept: None, turn: Arc::default() }
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Answers<K, T> {
    /// No answers yet; each is kept for `max_age`.
    pub fn new(clock: Clock, max_age: SignedDuration) -> Answers<K, T> {
        Answers { clock, max_age, questions: Mutex::default() }
    }

    /// The answer that is known, or else what `ask` gives, which may take as long as `patience`. Who comes while
    /// somebody asks waits for that answer.
    pub async fn get(
        &self,
        key: &K,
        patience: Duration,
        ask: impl Future<Output = backends::Result<T>>,
    ) -> backends::Result<T> {
        let turn = match self.known(key) {
            Ok(answer) => return answer,
            Err(turn) => turn,
        };
        let Ok(_turn) = tokio::time::timeout(patience, turn.lock()).await else { return Err(silence(patience)) };
        if let Ok(answer) = self.known(key) {
            return answer;
        }
        let changes = self.with(key, |question| question.changes);
        let answer = tokio::time::timeout(patience, ask).await.unwrap_or_else(|_| Err(silence(patience)));
        let now = self.clock.now();
        self.with(key, |question| {
            if question.changes == changes {
                question.kept = Some((now, answer.clone()));
            }
        });
        answer
    }

    /// Forgets the answers to some questions, because something was just changed.
    pub fn forget(&self, concerns: impl Fn(&K) -> bool) {
        let mut questions = self.questions.lock().expect("nobody panics while keeping answers");
        for (_, question) in questions.iter_mut().filter(|(key, _)| concerns(key)) {
            question.changes += 1;
            question.kept = None;
        }
    }

    /// The answer that is still good, or whose turn it is to ask.
    fn known(&self, key: &K) -> Result<backends::Result<T>, Arc<tokio::sync::Mutex<()>>> {
        let now = self.clock.now();
        self.with(key, |question| match &question.kept {
            Some((at, answer)) if now.duration_since(*at) < self.age_of(answer) => Ok(answer.clone()),
            Some(_) | None => Err(question.turn.clone()),
        })
    }

    fn age_of(&self, answer: &backends::Result<T>) -> SignedDuration {
        if answer.is_ok() { self.max_age } else { FAILURE_MAX_AGE }
    }

    fn with<R>(&self, key: &K, work: impl FnOnce(&mut Question<T>) -> R) -> R {
        let mut questions = self.questions.lock().expect("nobody panics while keeping answers");
        work(questions.entry(key.clone()).or_default())
    }
}

fn silence(patience: Duration) -> backends::Error {
    let message = format!("the backend has not answered for {} s", patience.as_secs());
    backends::Error::new(backends::ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use backends::{Error, ErrorKind};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    fn answers(clock: &Clock) -> Answers<&'static str, u32> {
        Answers::new(clock.clone(), SignedDuration::from_millis(500))
    }

    #[tokio::test]
    async fn who_comes_while_somebody_asks_waits_for_that_answer() {
        let answers = answers(&Clock::manual(Timestamp::UNIX_EPOCH));
        let asked = AtomicU32::new(0);
        let ask = || async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(asked.fetch_add(1, Ordering::SeqCst))
        };
        let all = futures_util::future::join_all((0..100).map(|_| answers.get(&"a", PATIENCE, ask()))).await;
        assert!(all.iter().all(|answer| *answer == Ok(0)), "{all:?}");
        assert_eq!(answers.get(&"b", PATIENCE, ask()).await, Ok(1));
    }

    #[tokio::test]
    async fn a_backend_that_hangs_is_waited_for_once() {
        let answers = answers(&Clock::manual(Timestamp::UNIX_EPOCH));
        let began = tokio::time::Instant::now();
        let hang = || std::future::pending::<backends::Result<u32>>();
        let all = futures_util::future::join_all((0..100).map(|_| answers.get(&"a", PATIENCE, hang()))).await;
        assert!(all.iter().all(Result::is_err));
        assert!(began.elapsed() < 20 * PATIENCE);
    }

    #[tokio::test]
    async fn answers_are_kept_for_a_moment_and_forgotten_after_a_change() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let answers = answers(&clock);
        let say = |number| async move { Ok(number) };
        assert_eq!(answers.get(&"a", PATIENCE, say(1)).await, Ok(1));
        assert_eq!(answers.get(&"a", PATIENCE, say(2)).await, Ok(1));
        answers.forget(|_| true);
        assert_eq!(answers.get(&"a", PATIENCE, say(3)).await, Ok(3));
        clock.advance(Duration::from_millis(500));
        assert_eq!(answers.get(&"a", PATIENCE, say(4)).await, Ok(4));
        // What was asked for before a change is no answer after it.
        answers.forget(|_| true);
        let changes_meanwhile = async {
            answers.forget(|_| true);
            Ok(5)
        };
        assert_eq!(answers.get(&"a", PATIENCE, changes_meanwhile).await, Ok(5));
        assert_eq!(answers.get(&"a", PATIENCE, say(6)).await, Ok(6));
        let refused = Error::new(ErrorKind::RateLimited, "later");
        answers.forget(|_| true);
        assert_eq!(answers.get(&"a", PATIENCE, async { Err(refused.clone()) }).await, Err(refused.clone()));
        assert_eq!(answers.get(&"a", PATIENCE, say(7)).await, Err(refused));
        clock.advance(Duration::from_secs(2));
        assert_eq!(answers.get(&"a", PATIENCE, say(8)).await, Ok(8));
    }
}
