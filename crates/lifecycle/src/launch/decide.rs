//! What happens next to a launch.

use jiff::{SignedDuration, Timestamp};

use super::{Launch, LaunchStatus, Verdict};

/// How soon a launch whose answer was lost is looked for again, in seconds.
const WATCH_SECS: i64 = 2;

/// How long after the last request a machine may still appear in an inconsistent list, in seconds.
const APPEARANCE_SECS: i64 = 120;

/// How often a backend that does not answer is asked for the same machines, at most.
const ATTEMPTS: u32 = 8;

/// What the backend lists of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The backend could not be asked, which is never a reason to act.
    Unknown,
    /// It lists this many of its machines.
    Listed(u32),
}

/// What to do, once the decision is recorded. It is safe to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Ask the backend for the machines.
    Launch,
}

/// What happens next to a launch.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchDecision {
    /// The launch as it is from now on.
    pub launch: Launch,
    /// What to do, once that is recorded.
    pub effect: Option<Effect>,
    /// When to look again, unless something happens before.
    pub look_again_at: Option<Timestamp>,
}

/// Decides from the launch and what its backend lists of it.
pub fn decide(now: Timestamp, launch: &Launch, seen: Seen, consistent_list: bool) -> LaunchDecision {
    let mut decision = LaunchDecision { launch: launch.clone(), effect: None, look_again_at: None };
    match launch.status {
        LaunchStatus::Wanted if launch.cancelled => decision.launch.status = LaunchStatus::Failed,
        LaunchStatus::Wanted => request(now, &mut decision),
        LaunchStatus::Requested => await_machines(now, seen, consistent_list, &mut decision),
        LaunchStatus::Done | LaunchStatus::Failed => {}
    }
    if !decision.launch.status.is_final() {
        let next = now + SignedDuration::from_secs(WATCH_SECS);
        decision.look_again_at = Some(decision.look_again_at.map_or(next, |at| at.min(next)));
    }
    decision
}

fn request(now: Timestamp, decision: &mut LaunchDecision) {
    decision.launch.status = LaunchStatus::Requested;
    decision.launch.state.requested_at = Some(now);
    decision.launch.state.attempts += 1;
    decision.effect = Some(Effect::Launch);
}

fn await_machines(now: Timestamp, seen: Seen, consistent_list: bool, decision: &mut LaunchDecision) {
    let state = &decision.launch.state;
    // A plain refusal leaves nothing behind; that is the backend's promise. It says nothing about an earlier request
    // whose answer was lost.
    let refused = state.error.as_ref().is_some_and(|error| matches!(error.verdict, Verdict::Refused(_)));
    if refused && state.attempts <= 1 {
        decision.launch.status = LaunchStatus::Failed;
        return;
    }
    let Seen::Listed(listed) = seen else { return };
    if listed >= state.count {
        finish(listed, decision);
        return;
    }
    let requested_at = state.requested_at.unwrap_or(decision.launch.created_at);
    let settled_at = requested_at + SignedDuration::from_secs(if consistent_list { 0 } else { APPEARANCE_SECS });
    if listed > 0 {
        // Some are there, so the request was heard; the rest may still appear.
        if settled_at <= now {
            finish(listed, decision);
        }
        return;
    }
    let asked_in_vain = refused || decision.launch.cancelled || state.attempts >= ATTEMPTS;
    if asked_in_vain {
        if settled_at <= now {
            decision.launch.status = LaunchStatus::Failed;
        }
        return;
    }
    // Nobody knows whether the request was heard, so it is repeated: the token makes that harmless.
    let delay = SignedDuration::from_secs(1 << state.attempts.min(6));
    if requested_at + delay <= now {
        request(now, decision);
    } else {
        decision.look_again_at = Some(requested_at + delay);
    }
}

fn finish(made: u32, decision: &mut LaunchDecision) {
    decision.launch.status = LaunchStatus::Done;
    decision.launch.state.made = Some(made);
}
