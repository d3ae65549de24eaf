//! The end of machines. Callers end them one by one, and AWS counts calls: a thousand of them would be refused for
//! minutes, so those that come while a call is under way go together in the next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::errors::failure;
use super::launch::{UNSEEN, UNSEEN_PAUSE};
use crate::{Error, ErrorKind, Result};

/// How long it is waited for others before a call: callers come one by one, each from a database.
const GATHER: Duration = Duration::from_millis(25);

/// Machines that one call may end.
const ENDED_AT_ONCE: usize = 500;

/// Machines that are to end, by region.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<HashMap<String, Arc<Queue>>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Vec<Waiting>>,
    /// Held by whoever calls AWS.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Waiting {
    id: String,
    told: oneshot::Sender<Result<Fate>>,
}

/// What AWS said to the end of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It ends, or has ended.
    Ends,
    /// AWS does not know it: it is gone, or was made a moment ago and is not shown yet.
    Unknown,
}

/// What became of each of some machines.
type Ended = HashMap<String, Result<Fate>>;

impl Ends {
    /// Ends a machine. One that AWS does not know is no error.
    pub(super) async fn end(&self, ec2: &Client, region: &str, id: &str) -> Result<Fate> {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queues.entry(region.to_owned()).or_default().clone()
        };
        queue.end(id, |ids| async move { end_each(ec2, &ids).await }).await
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn end<C: Future<Output = Ended>>(&self, id: &str, call: impl FnOnce(Vec<String>) -> C) -> Result<Fate> {
        // Whoever called for this one may have been cut off in the middle, and then nobody knows.
        let cut_off = |_| Err(Error::new(ErrorKind::Unavailable, format!("nobody waited for the end of {id}")));
        let (told, mut answer) = oneshot::channel();
        self.waiting().push(Waiting { id: id.to_owned(), told });
        tokio::select! {
            biased;
            // It was taken along by another call.
            told = &mut answer => return told.unwrap_or_else(cut_off),
            _turn = self.turn.lock() => {
                tokio::time::sleep(GATHER).await;
                let all = std::mem::take(&mut *self.waiting());
                let ended = call(all.iter().map(|one| one.id.clone()).collect()).await;
                // A machine may be there twice. Of whom nothing is said, whoever waits is told that nobody knows.
                for one in all {
                    if let Some(ended) = ended.get(&one.id) {
                        let _gone_away = one.told.send(ended.clone());
                    }
                }
            }
        }
        answer.await.unwrap_or_else(cut_off)
    }
}

/// Ends machines that were made a moment ago, once AWS shows them. The first failure is told, and the others are ended all
/// the same.
pub(super) async fn undo(ec2: &Client, ids: &[String]) -> Result<()> {
    let deadline = Instant::now() + UNSEEN;
    let mut left = ids.to_vec();
    loop {
        let ended = end_each(ec2, &left).await;
        left.retain(|id| matches!(ended.get(id), Some(Ok(Fate::Unknown))));
        let failed = ended.into_values().find_map(Result::err);
        match (failed, left.first()) {
            (Some(error), _) => return Err(error),
            (None, None) => return Ok(()),
            (None, Some(id)) if deadline <= Instant::now() => {
                let message = format!("AWS does not show {id} yet, which is to end");
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
            (None, Some(_)) => tokio::time::sleep(UNSEEN_PAUSE).await,
        }
    }
}

async fn end_each(ec2: &Client, ids: &[String]) -> Ended {
    let call =
        async |some: &[String]| match ec2.terminate_instances().set_instance_ids(Some(some.to_vec())).send().await
        {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(UNKNOWN) => {
                Err(unknown_ones(some, error.message().unwrap_or_default()))
            }
            Err(error) => Err(Refused::All(failure("terminate instances", &error))),
        };
    let mut ended = Ended::new();
    let mut left: Vec<Vec<String>> = ids.chunks(ENDED_AT_ONCE).map(<[String]>::to_vec).collect();
    while let Some(some) = left.pop() {
        match call(&some).await {
            Ok(()) => ended.extend(some.into_iter().map(|id| (id, Ok(Fate::Ends)))),
            // Those keep AWS from ending the others.
            Err(Refused::Unknown(gone)) => {
                let rest: Vec<String> = some.into_iter().filter(|id| !gone.contains(id)).collect();
                ended.extend(gone.into_iter().map(|id| (id, Ok(Fate::Unknown))));
                left.extend((!rest.is_empty()).then_some(rest));
            }
            Err(Refused::All(error))
                if error.kind.is_transient() || error.kind == ErrorKind::InvalidCredentials =>
            {
                // It would be said of the others, too.
                let all = some.into_iter().chain(left.drain(..).flatten());
                ended.extend(all.map(|id| (id, Err(error.clone()))));
            }
            // One that may not be ended keeps AWS from ending the others as well, and nobody says which it is.
            Err(Refused::All(error)) => match &some[..] {
                [id] => ended.extend([(id.clone(), Err(error))]),
                _ => left.extend(some.chunks(some.len().div_ceil(2)).map(<[String]>::to_vec)),
            },
        }
    }
    ended
}

/// AWS's word for instances that are gone, or that it does not show yet.
const UNKNOWN: &str = "InvalidInstanceID.NotFound";

/// Why a call ended nothing.
enum Refused {
    /// AWS does not know these.
    Unknown(Vec<String>),
    All(Error),
}

/// The machines that a refusal names; if it names none of them, each of them may be meant.
fn unknown_ones(ids: &[String], message: &str) -> Refused {
    let named: Vec<String> = ids.iter().filter(|id| message.contains(id.as_str())).cloned().collect();
    match (named.is_empty(), ids) {
        (false, _) => Refused::Unknown(named),
        (true, [_]) => Refused::Unknown(ids.to_vec()),
        (true, _) => Refused::All(Error::new(ErrorKind::InvalidRequest, message)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_come_together_go_together() {
        let queue = Queue::default();
        let calls = Mutex::new(vec![]);
        let call = async |ids: Vec<String>| {
            calls.lock().unwrap().push(ids.clone());
            yield_now().await;
            let later = || Err(Error::new(ErrorKind::RateLimited, "later"));
            ids.into_iter()
                .map(|id| if id == "i-7" { (id, later()) } else { (id, Ok(Fate::Ends)) })
                .collect::<Ended>()
        };
        let ids: Vec<String> = (0..100).map(|number| format!("i-{number}")).collect();
        let ended = join_all(ids.iter().map(|id| queue.end(id, &call))).await;
        assert_eq!(*calls.lock().unwrap(), [ids]);
        assert!(ended.iter().zip(0..).all(|(ended, number)| ended.is_err() == (number == 7)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_cut_off_leaves_nobody_waiting() {
        let queue = Arc::new(Queue::default());
        let hang = |_: Vec<String>| std::future::pending::<Ended>();
        let begin = |id: &'static str| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.end(id, hang).await })
        };
        let first = begin("i-1");
        tokio::time::sleep(GATHER * 2).await;
        let second = begin("i-2");
        yield_now().await;
        let third = tokio::spawn({
            let queue = queue.clone();
            async move { queue.end("i-3", |_| std::future::ready(Ended::new())).await }
        });
        yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        // The second one takes the third one along and is cut off, too.
        tokio::time::sleep(GATHER * 2).await;
        second.abort();
        let told = tokio::time::timeout(Duration::from_secs(30), third).await.unwrap().unwrap();
        assert_eq!(told.unwrap_err().kind, ErrorKind::Unavailable);
    }
}
