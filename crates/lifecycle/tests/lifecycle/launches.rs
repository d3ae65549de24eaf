//! What happens next to a launch.

use lifecycle::launch::{Effect, Launch, LaunchDecision, LaunchError, LaunchStatus, Scope, Seen, Verdict, decide};

use crate::fixtures::{at, launch};

fn told(decision: &LaunchDecision) -> String {
    let effect = match decision.effect {
        Some(Effect::Launch) => ", launch",
        None => "",
    };
    format!("{}{effect}", decision.launch.status.as_str())
}

/// A backend whose lists may be old.
#[track_caller]
fn check(now: i64, launch: &Launch, seen: Seen, expected: &str) {
    assert_eq!(told(&decide(at(now), launch, seen, false)), expected);
}

/// A backend whose lists are the truth.
#[track_caller]
fn check_consistent(now: i64, launch: &Launch, seen: Seen, expected: &str) {
    assert_eq!(told(&decide(at(now), launch, seen, true)), expected);
}

fn wanted() -> Launch {
    launch(LaunchStatus::Wanted)
}

/// Two machines, asked for once at the time 0.
fn requested() -> Launch {
    launch(LaunchStatus::Requested)
}

fn with_error(kind: &str, verdict: Verdict) -> Launch {
    let mut launch = requested();
    launch.state.error = Some(LaunchError {
        kind: kind.to_owned(),
        verdict,
        code: None,
        message: "no".to_owned(),
        zones_with_capacity: vec![],
        at: Some(at(0)),
    });
    launch
}

#[test]
fn a_wanted_launch_is_recorded_as_requested_before_it_is_asked_for() {
    check(1, &wanted(), Seen::Unknown, "requested, launch");
    let decision = decide(at(1), &wanted(), Seen::Unknown, true);
    assert_eq!((decision.launch.state.attempts, decision.launch.state.requested_at), (1, Some(at(1))));
}

#[test]
fn a_launch_that_nobody_wants_any_more_is_never_asked_for() {
    check(1, &Launch { cancelled: true, ..wanted() }, Seen::Unknown, "failed");
}

#[test]
fn a_launch_is_done_when_all_its_machines_are_listed() {
    check(1, &requested(), Seen::Listed(2), "done");
    check(1, &Launch { cancelled: true, ..requested() }, Seen::Listed(2), "done");
    // The rest may still appear.
    check(1, &requested(), Seen::Listed(1), "requested");
    check(119, &requested(), Seen::Listed(1), "requested");
    check(120, &requested(), Seen::Listed(1), "done");
    check_consistent(1, &requested(), Seen::Listed(1), "done");
    // How many there are is remembered: the others were not sold.
    assert_eq!(decide(at(120), &requested(), Seen::Listed(1), false).launch.state.made, Some(1));
}

#[test]
fn a_lost_reply_is_asked_again_with_longer_pauses() {
    let mut launch = requested();
    let mut now = 0;
    for pause in [2, 4, 8, 16, 32, 64, 64] {
        check(now + pause - 1, &launch, Seen::Listed(0), "requested");
        now += pause;
        check(now, &launch, Seen::Listed(0), "requested, launch");
        launch = decide(at(now), &launch, Seen::Listed(0), false).launch;
    }
    assert_eq!(launch.state.attempts, 8);
    // What was asked for last may still appear.
    check(now + 119, &launch, Seen::Listed(0), "requested");
    check(now + 120, &launch, Seen::Listed(0), "failed");
}

#[test]
fn a_backend_that_cannot_be_asked_is_no_reason_to_act() {
    for now in [1, 1_000, 1_000_000] {
        check(now, &requested(), Seen::Unknown, "requested");
        check(now, &with_error("unavailable", Verdict::Unanswered), Seen::Unknown, "requested");
    }
}

#[test]
fn a_plain_refusal_is_the_end_and_a_transient_one_is_not() {
    for scope in [Scope::Zone, Scope::Region, Scope::Backend, Scope::Offer] {
        check(1, &with_error("refused", Verdict::Refused(scope)), Seen::Listed(0), "failed");
        check(1, &with_error("refused", Verdict::Refused(scope)), Seen::Unknown, "failed");
    }
    check(1, &with_error("unavailable", Verdict::Unanswered), Seen::Listed(0), "requested");
    check(2, &with_error("rate_limited", Verdict::Later), Seen::Listed(0), "requested, launch");
}

#[test]
fn a_refusal_after_a_lost_reply_is_not_believed_while_machines_are_listed() {
    // The first request may have been heard; its repetition may be refused for another reason.
    let mut launch = with_error("quota_exceeded", Verdict::Refused(Scope::Region));
    launch.state.attempts = 2;
    check(10, &launch, Seen::Listed(2), "done");
    check(10, &launch, Seen::Unknown, "requested");
    check(10, &launch, Seen::Listed(0), "requested");
    check(120, &launch, Seen::Listed(0), "failed");
    check_consistent(10, &launch, Seen::Listed(0), "failed");
}

#[test]
fn a_cancelled_launch_is_not_repeated_and_waits_for_what_may_appear() {
    let cancelled = || Launch { cancelled: true, ..requested() };
    check(60, &cancelled(), Seen::Listed(0), "requested");
    check(120, &cancelled(), Seen::Listed(0), "failed");
    check_consistent(1, &cancelled(), Seen::Listed(0), "failed");
}

#[test]
fn final_is_final() {
    for status in [LaunchStatus::Done, LaunchStatus::Failed] {
        for seen in [Seen::Unknown, Seen::Listed(0), Seen::Listed(2)] {
            let over = Launch { cancelled: true, ..launch(status) };
            let decision = decide(at(1_000), &over, seen, false);
            assert_eq!((decision.launch, decision.effect, decision.look_again_at), (over, None, None));
        }
    }
}
