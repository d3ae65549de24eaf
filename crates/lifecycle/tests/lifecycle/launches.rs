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

/// What the backend answered to the last request, at a time.
fn answered(mut launch: Launch, verdict: Verdict, now: i64) -> Launch {
    launch.state.hear(Err(LaunchError {
        kind: "a kind".to_owned(),
        verdict,
        code: None,
        message: "no".to_owned(),
        zones_with_capacity: vec![],
        at: Some(at(now)),
    }));
    launch
}

fn with_error(verdict: Verdict) -> Launch {
    answered(requested(), verdict, 0)
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
fn what_was_perhaps_heard_in_part_is_asked_for_again() {
    // Of several calls the server died between two, or the answer to one was lost.
    let mut cut_off = requested();
    cut_off.state.ask();
    check(1, &cut_off, Seen::Listed(1), "requested");
    check(2, &cut_off, Seen::Listed(1), "requested, launch");
    check(2, &cut_off, Seen::Listed(2), "done");
    let unanswered = answered(cut_off.clone(), Verdict::Unanswered, 1);
    check(2, &unanswered, Seen::Listed(1), "requested, launch");
    // It was refused in the end, or is asked for no more: what stands is what there is.
    let refused = answered(cut_off.clone(), Verdict::Refused(Scope::Offer), 1);
    check(119, &refused, Seen::Listed(1), "requested");
    check(120, &refused, Seen::Listed(1), "done");
    check(120, &Launch { cancelled: true, ..cut_off.clone() }, Seen::Listed(1), "done");
    // Once it is heard whole, nothing is asked for.
    cut_off.state.hear(Ok(()));
    check(2, &cut_off, Seen::Listed(1), "requested");
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
        check(now, &with_error(Verdict::Unanswered), Seen::Unknown, "requested");
    }
}

#[test]
fn a_plain_refusal_is_the_end_and_a_transient_one_is_not() {
    for scope in [Scope::Zone, Scope::Region, Scope::Backend, Scope::Offer] {
        check(1, &with_error(Verdict::Refused(scope)), Seen::Listed(0), "failed");
        check(1, &with_error(Verdict::Refused(scope)), Seen::Unknown, "failed");
    }
    check(1, &with_error(Verdict::Unanswered), Seen::Listed(0), "requested");
    check(1, &with_error(Verdict::Later), Seen::Listed(0), "requested");
    check(2, &with_error(Verdict::Later), Seen::Listed(0), "requested, launch");
    let ended = decide(at(7), &with_error(Verdict::Refused(Scope::Zone)), Seen::Unknown, false).launch;
    assert_eq!(ended.state.ended_at, Some(at(7)));
}

#[test]
fn a_refusal_after_a_lost_reply_is_not_believed_while_machines_are_listed() {
    // The first request may have been heard; its repetition may be refused for another reason.
    let mut launch = requested();
    launch.state.attempts = 2;
    launch.state.maybe_heard = 2;
    let launch = answered(launch, Verdict::Refused(Scope::Region), 0);
    check(10, &launch, Seen::Listed(2), "done");
    check(10, &launch, Seen::Unknown, "requested");
    check(10, &launch, Seen::Listed(0), "requested");
    check(120, &launch, Seen::Listed(0), "failed");
    check_consistent(10, &launch, Seen::Listed(0), "failed");
}

#[test]
fn a_backend_that_says_to_ask_later_is_asked_for_the_same_with_longer_pauses_and_not_for_ever() {
    let mut launch = with_error(Verdict::Later);
    let (mut now, mut asked) = (0_i64, 0);
    let mut longest = 0;
    while !launch.status.is_final() {
        // What it lists is of no interest: it answered every time.
        let decision = decide(at(now), &launch, Seen::Unknown, false);
        launch = decision.launch;
        if decision.effect.is_some() {
            asked += 1;
            assert_eq!(launch.state.attempts, 1, "those do not count");
            launch = answered(launch, Verdict::Later, now);
        } else if let Some(next) = decision.look_again_at {
            let pause = next.duration_since(at(now)).as_secs() + 1;
            assert!(pause <= 65, "{pause} s");
            longest = longest.max(pause);
            now += pause;
        }
    }
    assert_eq!(launch.status, LaunchStatus::Failed);
    assert!((600..670).contains(&now), "{now}");
    assert!((10..30).contains(&asked) && longest > 32, "asked {asked} times, {longest} s at most");
}

#[test]
fn launches_that_were_told_to_ask_later_at_once_do_not_ask_at_once_again() {
    let next_of = |number: u128| {
        let mut launch = with_error(Verdict::Later);
        launch.id = crate::fixtures::id(number);
        launch.state.limited = 5;
        launch.next_try_at().unwrap().duration_since(at(0)).as_millis()
    };
    let mut pauses: Vec<i128> = (300..320).map(next_of).collect();
    pauses.sort_unstable();
    pauses.dedup();
    assert!(pauses.len() > 10, "{pauses:?}");
    assert!(pauses.iter().all(|pause| (16_000..=32_000).contains(pause)), "{pauses:?}");
}

#[test]
fn a_crash_between_the_record_and_the_answer_counts_as_no_answer() {
    // The record says that it was asked, and nobody wrote down what was said.
    let ask = |now, launch: &Launch| {
        let mut asked = decide(at(now), launch, Seen::Listed(0), false).launch;
        asked.state.ask();
        asked
    };
    let launch = ask(0, &wanted());
    // The next request is refused, which says nothing about the first.
    let again = ask(2, &launch);
    let refused = answered(again, Verdict::Refused(Scope::Zone), 2);
    assert_eq!(refused.state.maybe_heard, 1);
    check(3, &refused, Seen::Listed(0), "requested");
    check(122, &refused, Seen::Listed(0), "failed");
    check(3, &refused, Seen::Listed(2), "done");
    // It is not refused but asked to wait: what is listed still counts.
    let again = ask(2, &launch);
    let limited = answered(again, Verdict::Later, 2);
    check(3, &limited, Seen::Listed(2), "done");
    check(3, &limited, Seen::Listed(0), "requested");
    check(10, &limited, Seen::Listed(0), "requested, launch");
    check(605, &limited, Seen::Listed(0), "failed");
}

#[test]
fn a_refusal_after_a_yes_does_not_undo_it() {
    // The list was old, so the backend was asked again; it should have remembered, and refused.
    let mut accepted = requested();
    accepted.state.hear(Ok(()));
    let mut again = decide(at(2), &accepted, Seen::Listed(0), false).launch;
    again.state.ask();
    let refused = answered(again, Verdict::Refused(Scope::Zone), 2);
    check(3, &refused, Seen::Listed(0), "requested");
    check(3, &refused, Seen::Listed(2), "done");
}

#[test]
fn a_refusal_after_being_asked_to_wait_is_the_end_at_once() {
    let waited = decide(at(5), &with_error(Verdict::Later), Seen::Unknown, false).launch;
    check(6, &answered(waited, Verdict::Refused(Scope::Zone), 5), Seen::Unknown, "failed");
    let cancelled = Launch { cancelled: true, ..with_error(Verdict::Later) };
    check(1, &cancelled, Seen::Unknown, "failed");
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

#[test]
fn a_launch_that_never_went_out_is_not_waited_for() {
    // The record says that it was to be asked for, and whoever wrote that was cut off.
    let launch = decide(at(0), &wanted(), Seen::Unknown, false).launch;
    assert_eq!(launch.state.maybe_heard, 0);
    check(1, &launch, Seen::Unknown, "requested, launch");
    check(1, &Launch { cancelled: true, ..launch.clone() }, Seen::Listed(0), "failed");
    // What had to be known before could not be found out.
    let mut held_back = launch;
    let no_answer = with_error(Verdict::Unanswered).state.error.unwrap();
    held_back.state.hold_back(no_answer.clone());
    check(1, &held_back, Seen::Listed(0), "requested");
    check(2, &held_back, Seen::Listed(0), "requested, launch");
    check(1, &Launch { cancelled: true, ..held_back.clone() }, Seen::Listed(0), "failed");
    let mut now = 0;
    while !held_back.status.is_final() {
        now += 64;
        held_back = decide(at(now), &held_back, Seen::Unknown, false).launch;
        held_back.state.hold_back(no_answer.clone());
    }
    assert_eq!(held_back.state.attempts, 8);
}
