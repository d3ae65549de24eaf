//! What happens next to a launch.

use jiff::{SignedDuration, Timestamp};

use super::{Launch, LaunchStatus, Verdict};

/// How soon a launch whose answer was lost is looked for again, in seconds.
const WATCH_SECS: i64 = 2;

/// How long after the last request a machine may still appear in an inconsistent list, in seconds.
const APPEARANCE_SECS: i64 = 120;

/// How often a backend that does not answer is asked for the same machines, at most.
const ATTEMPTS: u32 = 8;

/// How long a backend that says to ask later is asked for the same machines, in seconds.
const LIMITED_SECS: i64 = 600;

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
        LaunchStatus::Requested if launch.state.maybe_heard == 0 => {
            not_heard(now, &mut decision);
        }
        LaunchStatus::Requested => await_machines(now, seen, consistent_list, &mut decision),
        LaunchStatus::Done | LaunchStatus::Failed => return decision,
    }
    if decision.launch.status.is_final() {
        decision.launch.state.ended_at = Some(now);
    } else {
        let watch_at = now + SignedDuration::from_secs(WATCH_SECS);
        decision.look_again_at.get_or_insert(watch_at);
    }
    decision
}

fn request(now: Timestamp, decision: &mut LaunchDecision) {
    let state = &mut decision.launch.state;
    decision.launch.status = LaunchStatus::Requested;
    state.requested_at = Some(now);
    state.attempts += 1;
    decision.effect = Some(Effect::Launch);
}

/// Nothing can have been made yet, so what was said last is all there is to know.
fn not_heard(now: Timestamp, decision: &mut LaunchDecision) {
    let is_over = is_asked_no_more(now, &decision.launch);
    match decision.launch.state.error.as_ref().map(|error| error.verdict) {
        // A plain refusal leaves nothing behind; that is the backend's promise.
        Some(Verdict::Refused(_)) => decision.launch.status = LaunchStatus::Failed,
        _ if is_over => decision.launch.status = LaunchStatus::Failed,
        Some(Verdict::Later) => ask_later(now, decision),
        // Before the request went out, something else was to be asked and got no answer.
        Some(Verdict::Unanswered) => ask_again(now, decision),
        // Whoever was about to ask was cut off before.
        None => request(now, decision),
    }
}

/// Whether the backend need not be asked once more.
fn is_asked_no_more(now: Timestamp, launch: &Launch) -> bool {
    launch.cancelled || launch.state.attempts >= ATTEMPTS || asked_too_long(now, launch)
}

/// The same is asked for again, after longer and longer pauses.
fn ask_again(now: Timestamp, decision: &mut LaunchDecision) {
    let launch = &decision.launch;
    let requested_at = launch.state.requested_at.unwrap_or(launch.created_at);
    let delay = SignedDuration::from_secs(1 << launch.state.attempts.min(6));
    let repeat_at = (requested_at + delay).max(launch.next_try_at().unwrap_or(requested_at));
    if repeat_at <= now {
        request(now, decision);
    } else {
        let watch_at = now + SignedDuration::from_secs(WATCH_SECS);
        decision.look_again_at = Some(repeat_at.min(watch_at));
    }
}

/// The backend said to ask later: the launch stays as it is, and the backend is spared meanwhile.
fn ask_later(now: Timestamp, decision: &mut LaunchDecision) {
    match decision.launch.next_try_at().filter(|at| now < *at) {
        Some(at) => decision.look_again_at = Some(at),
        None => request(now, decision),
    }
}

fn asked_too_long(now: Timestamp, launch: &Launch) -> bool {
    launch.state.limited_since.is_some_and(|since| since + SignedDuration::from_secs(LIMITED_SECS) <= now)
}

/// Some request may have been heard, so what the backend lists decides.
fn await_machines(now: Timestamp, seen: Seen, consistent_list: bool, decision: &mut LaunchDecision) {
    let state = &decision.launch.state;
    let Seen::Listed(listed) = seen else { return };
    if listed >= state.count {
        finish(listed, decision);
        return;
    }
    let requested_at = state.requested_at.unwrap_or(decision.launch.created_at);
    let settled_at = requested_at + SignedDuration::from_secs(if consistent_list { 0 } else { APPEARANCE_SECS });
    if listed > 0 && state.accepted {
        // All that was asked for was heard; the rest may still appear.
        if settled_at <= now {
            finish(listed, decision);
        }
        return;
    }
    let verdict = state.error.as_ref().map(|error| error.verdict);
    let refused = matches!(verdict, Some(Verdict::Refused(_)));
    if refused || is_asked_no_more(now, &decision.launch) {
        match listed {
            _ if now < settled_at => {}
            0 => decision.launch.status = LaunchStatus::Failed,
            listed => finish(listed, decision),
        }
        return;
    }
    // Nobody knows whether the request was heard, or all of it, so it is repeated: the token makes that harmless.
    ask_again(now, decision);
}

fn finish(made: u32, decision: &mut LaunchDecision) {
    decision.launch.status = LaunchStatus::Done;
    decision.launch.state.made = Some(made);
}
