//! Backends that cannot be asked: since when, and why. What passes by itself is not news; the rest is told to the users
//! of their projects until it is over, because nothing of such a backend begins or ends meanwhile.

use std::collections::HashMap;
use std::sync::Mutex;

use api::ids::BackendId;
use backends::{Error, ErrorKind};
use jiff::{SignedDuration, Timestamp};

use crate::clock::Clock;

/// How long a backend is asked in vain before that is told, unless it refuses the credentials.
const PATIENCE: SignedDuration = SignedDuration::from_mins(3);

/// How much of what a backend said is told, in characters.
const MOST_SAID: usize = 300;

/// Why a backend cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Timestamp,
    /// What it said last, or that it said nothing.
    pub error: Error,
}

/// What the backends of all projects answered last, where that was no answer.
#[derive(Debug)]
pub struct Troubles {
    clock: Clock,
    known: Mutex<HashMap<BackendId, Known>>,
}

#[derive(Debug)]
struct Known {
    trouble: Trouble,
    /// The log tells of it.
    is_logged: bool,
}

impl Troubles {
    /// No troubles yet.
    pub fn new(clock: Clock) -> Troubles {
        Troubles { clock, known: Mutex::default() }
    }

    /// A backend has answered.
    pub fn answered(&self, id: BackendId, kind: &str) {
        let was = self.known.lock().expect("nobody panics while keeping troubles").remove(&id);
        if was.is_some_and(|was| was.is_logged) {
            tracing::info!(backend.id = %id, "backend `{kind}` can be asked again");
        }
    }

    /// A backend has refused to answer, or did not.
    pub fn failed(&self, id: BackendId, kind: &str, error: &Error) {
        let now = self.clock.now();
        let mut all = self.known.lock().expect("nobody panics while keeping troubles");
        let new = || Known { trouble: Trouble { since: now, error: error.clone() }, is_logged: false };
        let known = all.entry(id).or_insert_with(new);
        known.trouble.error = error.clone();
        if known.trouble.is_news(now) && !known.is_logged {
            known.is_logged = true;
            tracing::error!(backend.id = %id, "backend `{kind}` {}", known.trouble.in_words());
        }
    }

    /// What is told of a backend, if it is in trouble.
    pub fn of(&self, id: BackendId) -> Option<Trouble> {
        let now = self.clock.now();
        let all = self.known.lock().expect("nobody panics while keeping troubles");
        all.get(&id).map(|known| known.trouble.clone()).filter(|trouble| trouble.is_news(now))
    }
}

impl Trouble {
    /// Whether it does not pass by itself.
    fn is_news(&self, now: Timestamp) -> bool {
        let is_refused = matches!(self.error.kind, ErrorKind::InvalidCredentials | ErrorKind::PermissionDenied);
        is_refused || self.since + PATIENCE <= now
    }

    /// What is said of the backend.
    pub fn in_words(&self) -> String {
        let why = match self.error.kind {
            ErrorKind::InvalidCredentials => "its credentials are refused",
            ErrorKind::PermissionDenied => "its credentials may not list machines",
            ErrorKind::RateLimited => "it is asked too often",
            ErrorKind::Unavailable => "it does not answer",
            ErrorKind::NoCapacity
            | ErrorKind::ReservationUsedUp
            | ErrorKind::QuotaExceeded
            | ErrorKind::NoAddresses
            | ErrorKind::InvalidRequest => "it refuses",
        };
        let code = self.error.code.as_ref().map(|code| format!("{code}: ")).unwrap_or_default();
        let said: String = self.error.message.chars().take(MOST_SAID).collect();
        let (since, said) = (self.since.strftime("%Y-%m-%d %H:%M UTC"), said.trim_end_matches('.'));
        format!("cannot be asked since {since}: {why} ({code}{said}). Its machines run on, and are kept")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ID: BackendId = BackendId(uuid::Uuid::from_u128(1));

    #[test]
    fn refused_credentials_are_told_at_once_and_silence_only_when_it_lasts() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let troubles = Troubles::new(clock.clone());
        let silence = Error::new(ErrorKind::Unavailable, "no answer.");
        troubles.failed(ID, "one", &silence);
        clock.advance(Duration::from_mins(2));
        troubles.failed(ID, "one", &silence);
        assert_eq!(troubles.of(ID), None);
        clock.advance(Duration::from_mins(1));
        let expected = "cannot be asked since 1970-01-01 00:00 UTC: it does not answer (no answer). Its machines run \
                        on, and are kept";
        assert_eq!(troubles.of(ID).map(|trouble| trouble.in_words()).as_deref(), Some(expected));
        troubles.answered(ID, "one");
        assert_eq!(troubles.of(ID), None);
        let refusal = Error::new(ErrorKind::InvalidCredentials, "who are you?").with_code("AuthFailure");
        troubles.failed(ID, "one", &refusal);
        let told = troubles.of(ID).unwrap();
        assert_eq!(told.since, clock.now());
        assert!(told.in_words().contains("its credentials are refused (AuthFailure: who are you?)"), "{told:?}");
    }
}
