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

/// How fresh an answer must be to be used again.
#[derive(Debug, Clone, Copy)]
pub struct Fresh {
    /// It came this long ago at the most.
    pub max_age: SignedDuration,
    /// It was asked for after this.
    pub later_than: Option<Timestamp>,
}

/// Answers by question.
#[derive(Debug)]
pub struct Answers<K, T> {
    clock: Clock,
    /// How long an answer may be used again at the most.
    max_age: SignedDuration,
    questions: Mutex<HashMap<K, Question<T>>>,
}

#[derive(Debug)]
struct Question<T> {
    /// How often something was changed: an answer that was asked for before a change must not be kept after it.
    changes: u64,
    kept: Option<Kept<T>>,
    /// Held by whoever asks.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Kept<T> {
    asked_at: Timestamp,
    at: Timestamp,
    answer: backends::Result<T>,
    /// How long the backend was waited for in vain. For whoever has more patience that is no answer.
    in_vain: Option<Duration>,
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

    /// The answer that is known, or else what `ask` gives. Who comes while somebody asks waits for that answer. Both
    /// together may take as long as `patience`.
    pub async fn get(
        &self,
        key: &K,
        patience: Duration,
        ask: impl Future<Output = backends::Result<T>>,
    ) -> backends::Result<T> {
        self.get_telling(key, Fresh { max_age: self.max_age, later_than: None }, patience, ask, |_| {}).await
    }

    /// Like [`Answers::get`], but only an answer is good that is as fresh as is wanted; `tell` is told of a failure once,
    /// and not by each of those whom it is the answer for.
    pub async fn get_telling(
        &self,
        key: &K,
        fresh: Fresh,
        patience: Duration,
        ask: impl Future<Output = backends::Result<T>>,
        tell: impl FnOnce(&backends::Error),
    ) -> backends::Result<T> {
        let deadline = tokio::time::Instant::now() + patience;
        let turn = match self.known(key, fresh, patience) {
            Ok(answer) => return answer,
            Err(turn) => turn,
        };
        let Ok(_turn) = tokio::time::timeout_at(deadline, turn.lock()).await else {
            return Err(silence(patience));
        };
        if let Ok(answer) = self.known(key, fresh, patience) {
            return answer;
        }
        let changes = self.with(key, |question| question.changes);
        let asked_at = self.clock.now();
        let answered = tokio::time::timeout_at(deadline, ask).await;
        let in_vain = answered.is_err().then_some(patience);
        let answer = answered.unwrap_or_else(|_| Err(silence(patience)));
        self.keep(key, changes, Kept { asked_at, at: self.clock.now(), answer: answer.clone(), in_vain });
        answer.inspect_err(tell)
    }

    /// Keeps an answer, unless something was changed meanwhile, and drops those that nobody will be given any more:
    /// what is asked is up to users, so questions would pile up.
    fn keep(&self, key: &K, changes: u64, kept: Kept<T>) {
        let now = kept.at;
        let mut questions = self.questions.lock().expect("nobody panics while keeping answers");
        let question = questions.entry(key.clone()).or_default();
        if question.changes == changes {
            question.kept = Some(kept);
        }
        questions.retain(|_, question| {
            let is_asked = Arc::strong_count(&question.turn) > 1;
            is_asked || question.kept.as_ref().is_some_and(|kept| Self::is_good(kept, now, self.max_age))
        });
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
    fn known(
        &self,
        key: &K,
        fresh: Fresh,
        patience: Duration,
    ) -> Result<backends::Result<T>, Arc<tokio::sync::Mutex<()>>> {
        let now = self.clock.now();
        let is_late = |kept: &Kept<T>| fresh.later_than.is_some_and(|change| kept.asked_at <= change);
        self.with(key, |question| match &question.kept {
            Some(kept)
                if Self::is_good(kept, now, fresh.max_age)
                    && !is_late(kept)
                    && kept.in_vain.is_none_or(|waited| patience <= waited) =>
            {
                Ok(kept.answer.clone())
            }
            Some(_) | None => Err(question.turn.clone()),
        })
    }

    fn is_good(kept: &Kept<T>, now: Timestamp, max_age: SignedDuration) -> bool {
        let max_age = if kept.answer.is_ok() { max_age } else { FAILURE_MAX_AGE };
        now.duration_since(kept.at) < max_age
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

    const ANY: Fresh = Fresh { max_age: SignedDuration::from_millis(500), later_than: None };

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
        let asked = AtomicU32::new(0);
        let hang = || async {
            asked.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<backends::Result<u32>>().await
        };
        let all = futures_util::future::join_all((0..100).map(|_| answers.get(&"a", PATIENCE, hang()))).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_backend_is_silent_only_for_those_who_have_no_more_patience() {
        let answers = answers(&Clock::manual(Timestamp::UNIX_EPOCH));
        let (short, long) = (Duration::from_millis(10), Duration::from_mins(1));
        assert!(answers.get(&"a", short, std::future::pending()).await.is_err());
        assert!(answers.get(&"a", short, async { Ok(1) }).await.is_err(), "it was waited for as long as this");
        assert_eq!(answers.get(&"a", long, async { Ok(2) }).await, Ok(2));
        assert_eq!(answers.get(&"a", short, async { Ok(3) }).await, Ok(2));
        // What a backend says itself is the answer for everybody.
        let refused = Error::new(ErrorKind::InvalidCredentials, "no");
        assert_eq!(answers.get(&"b", short, async { Err(refused.clone()) }).await, Err(refused.clone()));
        assert_eq!(answers.get(&"b", long, async { Ok(4) }).await, Err(refused));
    }

    #[tokio::test]
    async fn a_failure_is_told_once() {
        let answers = answers(&Clock::manual(Timestamp::UNIX_EPOCH));
        let told = AtomicU32::new(0);
        let tell = |_: &Error| {
            told.fetch_add(1, Ordering::SeqCst);
        };
        let hang = std::future::pending::<backends::Result<u32>>;
        let both = [
            answers.get_telling(&"a", ANY, PATIENCE, hang(), tell),
            answers.get_telling(&"a", ANY, PATIENCE, hang(), tell),
        ];
        assert!(futures_util::future::join_all(both).await.iter().all(Result::is_err));
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_answer_to_an_older_question_is_not_good_enough() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let answers = answers(&clock);
        let get = async |later_than, number| {
            let say = async move { Ok(number) };
            answers.get_telling(&"a", Fresh { later_than, ..ANY }, PATIENCE, say, |_| {}).await
        };
        assert_eq!(get(None, 1).await, Ok(1));
        clock.advance(Duration::from_millis(100));
        let change = clock.now();
        assert_eq!(get(None, 2).await, Ok(1));
        // In the same moment may be before.
        assert_eq!(get(Some(change), 3).await, Ok(3));
        assert_eq!(get(Some(change), 4).await, Ok(4));
        clock.advance(Duration::from_millis(1));
        assert_eq!(get(Some(change), 5).await, Ok(5));
        assert_eq!(get(Some(change), 6).await, Ok(5));
    }

    #[tokio::test]
    async fn an_answer_is_too_old_for_some_and_good_enough_for_others() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let answers = answers(&clock);
        let get = async |millis, number| {
            let fresh = Fresh { max_age: SignedDuration::from_millis(millis), later_than: None };
            answers.get_telling(&"a", fresh, PATIENCE, async move { Ok(number) }, |_| {}).await
        };
        assert_eq!(get(500, 1).await, Ok(1));
        clock.advance(Duration::from_millis(100));
        assert_eq!(get(500, 2).await, Ok(1));
        assert_eq!(get(100, 3).await, Ok(3));
        assert_eq!(get(500, 4).await, Ok(3));
    }

    #[tokio::test]
    async fn old_answers_are_dropped() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let answers = answers(&clock);
        assert_eq!(answers.get(&"a", PATIENCE, async { Ok(1) }).await, Ok(1));
        clock.advance(Duration::from_millis(500));
        assert_eq!(answers.get(&"b", PATIENCE, async { Ok(2) }).await, Ok(2));
        let known: Vec<&str> = answers.questions.lock().unwrap().keys().copied().collect();
        assert_eq!(known, ["b"]);
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
