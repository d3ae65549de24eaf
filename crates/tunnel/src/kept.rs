//! A connection that is kept: made again whenever it is lost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::{Error, HostKey, Limits, Result, Session, Target};

/// Chance: a number below the one that it is given, which is at least 1.
pub type Chance = Arc<dyn Fn(u32) -> u32 + Send + Sync>;

/// How long to wait between two tries: the first time, doubled each time, up to the longest. A share of up to a half
/// is left to chance, so that hosts that were lost together are not called together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { first: Duration::from_millis(200), longest: Duration::from_secs(30) }
    }
}

/// Where a kept connection stands.
#[derive(Debug, Clone)]
pub enum State {
    Connecting,
    Up(Session),
    /// Lost, or never there; tried again at `next`.
    Down {
        error: Error,
        next: Instant,
    },
}

/// One connection to a host, kept until the last clone is dropped. It knows the host by the key of the first contact.
#[derive(Clone)]
pub struct Kept(Arc<Inner>);

struct Inner {
    name: String,
    state: watch::Sender<State>,
    hurry: Arc<Notify>,
    task: AbortHandle,
}

impl Kept {
    /// Starts to connect, now and whenever the connection is lost.
    pub fn new(target: Target, limits: Limits, retry: Retry, chance: Chance) -> Kept {
        let state = watch::Sender::new(State::Connecting);
        let hurry = Arc::new(Notify::new());
        let name = target.to_string();
        let keeper = Keeper { target, limits, retry, chance, state: state.clone(), hurry: Arc::clone(&hurry) };
        let task = tokio::spawn(keeper.run()).abort_handle();
        Kept(Arc::new(Inner { name, state, hurry, task }))
    }

    /// The connection as it is, or why there is none. Waits while one is being made.
    pub async fn session(&self) -> Result<Session> {
        let is_settled = |state: &State| match state {
            State::Connecting => false,
            State::Up(session) => !session.is_closed(),
            State::Down { .. } => true,
        };
        match self.wait_for(is_settled).await {
            State::Up(session) => Ok(session),
            State::Down { error, .. } => Err(error),
            State::Connecting => unreachable!("it was waited for the end of this"),
        }
    }

    /// Waits for a connection, however often it fails. Give it a deadline.
    pub async fn wait(&self) -> Session {
        let is_up = |state: &State| matches!(state, State::Up(session) if !session.is_closed());
        match self.wait_for(is_up).await {
            State::Up(session) => session,
            State::Connecting | State::Down { .. } => unreachable!("it was waited for the end of these"),
        }
    }

    /// What happens, as it happens.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Tries again now instead of later, because somebody asks or knows of a change.
    pub fn retry_now(&self) {
        let was_waiting = self.0.state.send_if_modified(|state| {
            let is_down = matches!(state, State::Down { .. });
            if is_down {
                *state = State::Connecting;
            }
            is_down
        });
        if was_waiting {
            self.0.hurry.notify_one();
        }
    }

    async fn wait_for(&self, is_right: impl Fn(&State) -> bool) -> State {
        let mut state = self.0.state.subscribe();
        let seen = state.wait_for(|state| is_right(state)).await;
        seen.expect("whoever asks holds a sender").clone()
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({}, {:?})", self.0.name, *self.0.state.borrow())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    target: Target,
    limits: Limits,
    retry: Retry,
    chance: Chance,
    state: watch::Sender<State>,
    hurry: Arc<Notify>,
}

impl Keeper {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            self.state.send_replace(State::Connecting);
            let error = match Session::connect(&self.target, &self.limits).await {
                Ok(session) => {
                    let since = Instant::now();
                    let error = self.hold(session).await;
                    // A connection that breaks at once again and again is as bad as one that fails.
                    failures = if self.retry.longest < since.elapsed() { 0 } else { failures + 1 };
                    error
                }
                Err(error) => {
                    failures += 1;
                    error
                }
            };
            tracing::debug!("no connection to {}: {error}", self.target);
            let next = Instant::now() + self.retry.pause(failures, &error, &self.chance);
            self.state.send_replace(State::Down { error, next });
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.hurry.notified() => {}
            }
        }
    }

    /// Keeps a connection until it is over, and says why.
    async fn hold(&mut self, session: Session) -> Error {
        pin(&mut self.target, &session);
        tracing::debug!("connected to {}", self.target);
        self.state.send_replace(State::Up(session.clone()));
        session.closed().await
    }
}

impl Retry {
    /// How long to wait after so many failures in a row.
    fn pause(&self, failures: u32, error: &Error, chance: &Chance) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
        let whole = if error.may_pass() { doubled.min(self.longest) } else { self.longest };
        let half = whole / 2;
        let limit = u32::try_from(half.as_millis()).unwrap_or(u32::MAX).saturating_add(1);
        half + Duration::from_millis(u64::from(chance(limit)))
    }
}

/// From now on the hosts on the way must be the same.
fn pin(target: &mut Target, session: &Session) {
    let keys: Vec<_> = session.jump_host_keys().into_iter().chain([session.host_key().clone()]).collect();
    for (hop, key) in hops_mut(target).into_iter().zip(keys) {
        *hop = Some(key);
    }
}

/// Where the keys of the hosts on the way are kept, in the order of [`Target::hops`].
fn hops_mut(target: &mut Target) -> Vec<&mut Option<HostKey>> {
    let mut hops: Vec<&mut Option<HostKey>> = target.jumps.iter_mut().flat_map(hops_mut).collect();
    hops.push(&mut target.known_host);
    hops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_longest_and_leave_a_half_to_chance() {
        let retry = Retry { first: Duration::from_millis(100), longest: Duration::from_secs(1) };
        let lowest: Chance = Arc::new(|_: u32| 0);
        let highest: Chance = Arc::new(|limit: u32| limit - 1);
        let check = |failures, error: &Error, least, most| {
            let millis = Duration::from_millis;
            assert_eq!(retry.pause(failures, error, &lowest), millis(least), "{failures}");
            assert_eq!(retry.pause(failures, error, &highest), millis(most), "{failures}");
        };
        let passing = Error::Refused { address: String::new() };
        check(1, &passing, 50, 100);
        check(2, &passing, 100, 200);
        check(4, &passing, 400, 800);
        check(5, &passing, 500, 1000);
        check(u32::MAX, &passing, 500, 1000);
        // What nobody repaired yet is not worth asking often.
        let lasting = Error::HostKeyChanged { address: String::new(), known: String::new(), seen: String::new() };
        check(1, &lasting, 500, 1000);
    }

    #[test]
    fn the_keys_of_all_hosts_on_the_way_have_their_places() {
        let mut target = Target::new("last", "a", Vec::new());
        target.jumps = vec![Target::new("first", "a", Vec::new()), Target::new("second", "a", Vec::new())];
        target.jumps[1].jumps = vec![Target::new("between", "a", Vec::new())];
        assert_eq!(hops_mut(&mut target).len(), target.hops().len());
    }
}
