//! Backends that cannot be asked: since when, and why. What passes by itself is not news; the rest is told to the users
//! of their projects until it is over, because nothing of such a backend begins or ends meanwhile.

use std::collections::HashMap;
use std::sync::Mutex;

use api::ids::BackendId;
use backends::{Error, ErrorKind, SilentRegion};
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
    /// The region that does not answer; none: nothing of the backend does.
    pub region: Option<String>,
    /// What it said last, or that it said nothing.
    pub error: Error,
}

/// What the backends of all projects answered last, where that was no answer.
#[derive(Debug)]
pub struct Troubles {
    clock: Clock,
    /// By backend, and by region where only that one does not answer.
    known: Mutex<HashMap<(BackendId, Option<String>), Known>>,
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

    /// A backend has answered, but for some regions.
    pub fn answered(&self, id: BackendId, kind: &str, silent: &[SilentRegion]) {
        let is_silent = |region: &Option<String>| silent.iter().any(|one| Some(&one.region) == region.as_ref());
        self.known.lock().expect("nobody panics while keeping troubles").retain(|(of, region), known| {
            let is_over = *of == id && !is_silent(region);
            if is_over && known.is_logged {
                let place = place(region.as_deref());
                tracing::info!(backend.id = %id, "backend `{kind}`{place} can be asked again");
            }
            !is_over
        });
        for SilentRegion { region, error } in silent {
            self.note(id, kind, Some(region), error);
        }
    }

    /// A backend has refused to answer, or did not.
    pub fn failed(&self, id: BackendId, kind: &str, error: &Error) {
        self.note(id, kind, None, error);
    }

    fn note(&self, id: BackendId, kind: &str, region: Option<&String>, error: &Error) {
        let now = self.clock.now();
        let mut all = self.known.lock().expect("nobody panics while keeping troubles");
        let trouble = || Trouble { since: now, region: region.cloned(), error: error.clone() };
        let known =
            all.entry((id, region.cloned())).or_insert_with(|| Known { trouble: trouble(), is_logged: false });
        known.trouble.error = error.clone();
        if known.trouble.is_news(now) && !known.is_logged {
            known.is_logged = true;
            tracing::error!(backend.id = %id, "backend `{kind}` {}", known.trouble.in_words());
        }
    }

    /// What is told of a backend, by region, if it is in trouble.
    pub fn of(&self, id: BackendId) -> Vec<Trouble> {
        let now = self.clock.now();
        let all = self.known.lock().expect("nobody panics while keeping troubles");
        let of_backend = all.iter().filter(|((of, _), known)| *of == id && known.trouble.is_news(now));
        let mut troubles: Vec<Trouble> = of_backend.map(|(_, known)| known.trouble.clone()).collect();
        troubles.sort_by(|one, other| one.region.cmp(&other.region));
        troubles
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
            ErrorKind::RegionClosed => "it is not enabled for the account",
            ErrorKind::RateLimited => "it is asked too often",
            ErrorKind::Unavailable => "it does not answer",
            ErrorKind::NoCapacity
            | ErrorKind::ReservationUsedUp
            | ErrorKind::QuotaExceeded
            | ErrorKind::RegionLimit
            | ErrorKind::LaunchUsedUp
            | ErrorKind::NoAddresses
            | ErrorKind::InvalidRequest => "it refuses",
        };
        let code = self.error.code.as_ref().map(|code| format!("{code}: ")).unwrap_or_default();
        let said: String = self.error.message.chars().take(MOST_SAID).collect();
        let (since, said) = (self.since.strftime("%Y-%m-%d %H:%M UTC"), said.trim_end_matches('.'));
        let place = place(self.region.as_deref());
        let machines = if self.region.is_some() { "Machines there" } else { "Its machines" };
        format!("cannot be asked{place} since {since}: {why} ({code}{said}). {machines} run on, and are kept")
    }
}

fn place(region: Option<&str>) -> String {
    region.map(|region| format!(" in {region}")).unwrap_or_default()
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
        assert_eq!(troubles.of(ID), []);
        clock.advance(Duration::from_mins(1));
        let expected = "cannot be asked since 1970-01-01 00:00 UTC: it does not answer (no answer). Its machines run \
                        on, and are kept";
        let words = || troubles.of(ID).iter().map(Trouble::in_words).collect::<Vec<_>>();
        assert_eq!(words(), [expected]);
        troubles.answered(ID, "one", &[]);
        assert_eq!(troubles.of(ID), []);
        let refusal = Error::new(ErrorKind::InvalidCredentials, "who are you?").with_code("AuthFailure");
        troubles.failed(ID, "one", &refusal);
        let told = troubles.of(ID).remove(0);
        assert_eq!(told.since, clock.now());
        assert!(told.in_words().contains("its credentials are refused (AuthFailure: who are you?)"), "{told:?}");
    }
    #[test]
    fn a_region_that_does_not_answer_is_told_by_its_name() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let troubles = Troubles::new(clock);
        let error = Error::new(ErrorKind::PermissionDenied, "an explicit deny").with_code("UnauthorizedOperation");
        let silent = [SilentRegion { region: "us-east-1".to_owned(), error }];
        troubles.failed(ID, "one", &Error::new(ErrorKind::InvalidCredentials, "who are you?"));
        troubles.answered(ID, "one", &silent);
        let told: Vec<String> = troubles.of(ID).iter().map(Trouble::in_words).collect();
        let expected = "cannot be asked in us-east-1 since 1970-01-01 00:00 UTC: its credentials may not list machines \
                        (UnauthorizedOperation: an explicit deny). Machines there run on, and are kept";
        assert_eq!(told, [expected]);
        troubles.answered(ID, "one", &[]);
        assert_eq!(troubles.of(ID), []);
    }
}
