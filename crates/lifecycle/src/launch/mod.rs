//! A launch: one purchase of machines. Each new try is a new row, so its identifier is the backend's client token.
//!
//! ```text
//! wanted ──▶ requested ──▶ done
//!               │ recorded before the call, so that a lost reply is found again by the token
//!               └────────▶ failed   nothing of it exists any more
//! ```
//!
//! What follows from a failure is its fleet's business: see `fleet/round.rs`.

mod decide;

pub use decide::{Effect, LaunchDecision, Seen, decide};

use api::ids::{BackendId, FleetId, InstanceId, LaunchId, ProjectId};
use api::instances::Offer;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A launch's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Its identifier, the client token and the tag.
    pub id: LaunchId,
    /// The project that pays.
    pub project_id: ProjectId,
    /// The fleet that wants the machines.
    pub fleet_id: FleetId,
    /// The backend that sells them.
    pub backend_id: BackendId,
    /// When it was decided.
    pub created_at: Timestamp,
    /// Where it is in its life.
    pub status: LaunchStatus,
    /// Nobody wants its machines any more. Written by the fleet's reconciler.
    pub cancelled: bool,
    /// What is only carried.
    pub state: LaunchState,
}

/// The life of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaunchStatus {
    /// Decided, not yet asked for.
    Wanted,
    /// The backend is being asked, or was.
    Requested,
    /// All its machines are listed.
    Done,
    /// It came to nothing.
    Failed,
}

impl LaunchStatus {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            LaunchStatus::Wanted => "wanted",
            LaunchStatus::Requested => "requested",
            LaunchStatus::Done => "done",
            LaunchStatus::Failed => "failed",
        }
    }

    /// Whether nothing will happen to it any more.
    pub fn is_final(self) -> bool {
        matches!(self, LaunchStatus::Done | LaunchStatus::Failed)
    }
}

/// The part of a launch that no query asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchState {
    /// What is bought.
    pub offer: Offer,
    /// The kind of backend.
    pub backend: String,
    /// The zone, where it is fixed.
    pub zone: Option<String>,
    /// What its backend found out before it was asked, and asks for each time.
    #[serde(default)]
    pub prepared: Option<serde_json::Value>,
    /// How many machines.
    pub count: u32,
    /// With fewer than this the launch is worthless.
    pub least: u32,
    /// How many there are, once it is done. They have the lowest indexes.
    #[serde(default)]
    pub made: Option<u32>,
    /// The gang needs a fast network between them.
    pub cluster: bool,
    /// When the backend was last to be asked.
    pub requested_at: Option<Timestamp>,
    /// How many times it was to be asked.
    pub attempts: u32,
    /// What the backend answered, if it refused.
    pub error: Option<LaunchError>,
    /// Since when none of its machines is listed.
    pub absent_since: Option<Timestamp>,
    /// The instances that it was made for, by index.
    #[serde(default)]
    pub instances: Vec<InstanceId>,
    /// How many requests may have been heard, and may have made machines: those whose answer was yes, and those without
    /// an answer.
    #[serde(default)]
    pub maybe_heard: u32,
    /// The last request was answered with yes. Unless it was, nobody knows whether all of it was heard: more machines
    /// than one call may ask for are several calls.
    #[serde(default)]
    pub accepted: bool,
    /// How many times the backend said to ask later; those do not count as attempts.
    #[serde(default)]
    pub limited: u32,
    /// When it first said so.
    #[serde(default)]
    pub limited_since: Option<Timestamp>,
    /// When it was over.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
}

/// The longest pause before a backend that said to ask later is asked again, as a power of two of seconds.
const MAX_PAUSE_SHIFT: u32 = 6;

impl LaunchState {
    /// The request goes out as soon as this is recorded: until an answer is, nobody knows whether it was heard.
    pub fn ask(&mut self) {
        self.maybe_heard = self.maybe_heard.saturating_add(1);
        self.accepted = false;
    }

    /// Takes down what the backend answered to the last request.
    pub fn hear(&mut self, answer: Result<(), LaunchError>) {
        self.accepted = answer.is_ok();
        if let Err(LaunchError { verdict: Verdict::Refused(_) | Verdict::Later, .. }) = answer {
            self.maybe_heard = self.maybe_heard.saturating_sub(1);
        }
        self.note(answer.err());
    }

    /// Takes down what kept the request from going out at all.
    pub fn hold_back(&mut self, error: LaunchError) {
        self.note(Some(error));
    }

    fn note(&mut self, error: Option<LaunchError>) {
        match error.as_ref().map(|error| error.verdict) {
            Some(Verdict::Later) => {
                self.attempts = self.attempts.saturating_sub(1);
                self.limited = self.limited.saturating_add(1);
                self.limited_since = self.limited_since.or(error.as_ref().and_then(|error| error.at));
            }
            None | Some(Verdict::Refused(_) | Verdict::Unanswered) => {}
        }
        self.error = error;
    }

    /// Where its machines are, or would be: the zone, or else the region.
    pub fn place(&self) -> &str {
        self.zone.as_deref().unwrap_or(&self.offer.region)
    }
}

impl Launch {
    /// When a backend that said to ask later is asked again: after longer and longer pauses, and not at the same time
    /// as other launches that were told so together.
    pub fn next_try_at(&self) -> Option<Timestamp> {
        let state = &self.state;
        let error = state.error.as_ref().filter(|error| error.verdict == Verdict::Later)?;
        if self.status.is_final() {
            return None;
        }
        let said_at = error.at.max(state.requested_at)?;
        let half_millis = 500_i64 << state.limited.min(MAX_PAUSE_SHIFT);
        // The identifier is random; a multiplication spreads it over the number's first bits.
        let (high, low) = self.id.0.as_u64_pair();
        let chance = (high ^ low ^ u64::from(state.limited)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
        let jitter = half_millis * i64::try_from(chance).unwrap_or_default() / (1 << 14);
        Some(said_at + SignedDuration::from_millis(half_millis + jitter))
    }

    /// Whether nothing of it can become the machine of that index any more.
    pub fn is_in_vain_for(&self, index: Option<u32>) -> bool {
        match self.status {
            LaunchStatus::Failed => true,
            LaunchStatus::Done => self.state.made.is_some_and(|made| index.is_some_and(|index| made <= index)),
            LaunchStatus::Wanted | LaunchStatus::Requested => false,
        }
    }
}

/// What a backend answered that did not sell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchError {
    /// What kind of answer it is, in one word.
    pub kind: String,
    /// What follows from it.
    #[serde(default)]
    pub verdict: Verdict,
    /// The backend's own word for it.
    #[serde(default)]
    pub code: Option<String>,
    /// What the backend said.
    pub message: String,
    /// The zones that the backend says have what is wanted.
    #[serde(default)]
    pub zones_with_capacity: Vec<String>,
    /// When it was said.
    #[serde(default)]
    pub at: Option<Timestamp>,
}

/// What follows from a backend's answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It said no, and nothing of the launch exists because of this request.
    Refused(Scope),
    /// It said to ask again later. Nothing of the launch exists because of this request.
    Later,
    /// It said nothing, so nobody knows.
    #[default]
    Unanswered,
}

/// What a refusal is about, and so what need not be tried again soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// This type in this zone; other zones may have it.
    Zone,
    /// Every type in this zone.
    Network,
    /// All that the reservation would have given.
    Reservation,
    /// This family of types in this region; other zones are the same, other regions are not.
    Region,
    /// Everything in this region.
    WholeRegion,
    /// This offer, in whichever zone.
    Offer,
    /// Everything that this backend sells.
    Backend,
    /// This launch and nothing else: another one may ask for the same.
    Launch,
}

impl LaunchError {
    /// The backend's own word for it, or else ours.
    pub fn word(&self) -> &str {
        self.code.as_deref().unwrap_or(&self.kind)
    }
}
