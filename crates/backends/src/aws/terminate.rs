//! The end of machines. Callers end them one by one, and AWS counts calls: a thousand of them would be refused for
//! minutes, so those that come while a call is under way go together in the next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use tokio::sync::oneshot;

use super::errors::failure;
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
    told: oneshot::Sender<Result<()>>,
}

impl Ends {
    /// Ends a machine. One that is gone already is no error.
    pub(super) async fn end(&self, ec2: &Client, region: &str, id: &str) -> Result<()> {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queues.entry(region.to_owned()).or_default().clone()
        };
        queue.end(id, |ids| async move { terminate(ec2, &ids).await }).await
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn end<C: Future<Output = Result<()>>>(
        &self,
        id: &str,
        call: impl FnOnce(Vec<String>) -> C,
    ) -> Result<()> {
        let (told, answer) = oneshot::channel();
        self.waiting().push(Waiting { id: id.to_owned(), told });
        let turn = self.turn.lock().await;
        // Otherwise it was taken along by the call before.
        if !self.waiting().is_empty() {
            tokio::time::sleep(GATHER).await;
            let all = std::mem::take(&mut *self.waiting());
            let ids: Vec<String> = all.iter().map(|one| one.id.clone()).collect();
            let ended = call(ids).await;
            for one in all {
                let _ = one.told.send(ended.clone());
            }
        }
        drop(turn);
        // Whoever called for this one may have been cut off in the middle, and then nobody knows.
        let cut_off = |_| Err(Error::new(ErrorKind::Unavailable, format!("nobody waited for the end of {id}")));
        answer.await.unwrap_or_else(cut_off)
    }
}

/// Ends machines. One that is gone already is no error.
pub(super) async fn terminate(ec2: &Client, ids: &[String]) -> Result<()> {
    for some in ids.chunks(ENDED_AT_ONCE) {
        let Err(error) = ec2.terminate_instances().set_instance_ids(Some(some.to_vec())).send().await else {
            continue;
        };
        if error.code() != Some("InvalidInstanceID.NotFound") {
            return Err(failure("terminate instances", &error));
        }
        // One unknown machine keeps AWS from ending the others.
        if let [_] = some {
            continue;
        }
        for id in some {
            Box::pin(terminate(ec2, std::slice::from_ref(id))).await?;
        }
    }
    Ok(())
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
            if ids.contains(&"i-0".to_owned()) { Err(Error::new(ErrorKind::RateLimited, "later")) } else { Ok(()) }
        };
        let ids: Vec<String> = (0..100).map(|number| format!("i-{number}")).collect();
        let ended = join_all(ids.iter().map(|id| queue.end(id, &call))).await;
        assert_eq!(*calls.lock().unwrap(), [ids]);
        assert!(ended.iter().all(Result::is_err));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_cut_off_leaves_nobody_waiting() {
        let queue = Arc::new(Queue::default());
        let hang = |_: Vec<String>| std::future::pending::<Result<()>>();
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
            async move { queue.end("i-3", |_| std::future::ready(Ok(()))).await }
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
