//! The real store and the real reconcilers with a pretended cloud and simulated agents, in which everything goes wrong
//! that can: orders and answers are lost, lists are old or incomplete, machines vanish, agents fall silent or forget,
//! users change their minds, and the server crashes between any two steps.
//!
//! Everything follows from one seed, so a failure can be had again: `SIM_SEED=17 cargo test -p server --test
//! simulation`. `SIM_SEEDS` says how many seeds there are.
#![cfg(test)]

mod agents;
mod checks;
mod cloud;
mod drive;
mod ending;
mod hosts;
mod interruption;
mod rounds;
mod seeds;
mod steps;
mod trace;
mod users;
mod world;

use lifecycle::planted::Bug;

use crate::seeds::{catch, judged, many_seeds, replayed, run_seed, run_seed_on_postgres};

#[test]
fn nothing_is_lost_doubled_or_left_behind() {
    let marks = many_seeds();
    let interesting = [
        "a request meanwhile",
        "a spare is used at the last moment",
        "agent: away for a while",
        "agent: away for long",
        "agent: connection broken",
        "agent: forgets its tasks",
        "bought another offer",
        "bought in another zone",
        "cloud silent",
        "crash",
        "crash after a cloud's effect",
        "crash after an order's effect",
        "crash before a cloud's effect",
        "crash before an order's effect",
        "crash between two steps",
        "gang done",
        "gang runs",
        "job tried again",
        "launch: arrives late",
        "launch: lost after its effect",
        "launch: lost before its effect",
        "launch: invalid",
        "launch: no addresses",
        "launch: no capacity",
        "launch: not permitted",
        "launch: quota",
        "launch: rate limited",
        "launch: rate limited for a while",
        "list: a machine left out",
        "list: no answer",
        "list: stale",
        "log whole",
        "machine taken back after a notice",
        "machine vanishes",
        "offers unknown",
        "order: lost after its effect",
        "order: lost before its effect",
        "run failed",
        "run terminated",
        "run waits for a retry",
        "single run done",
        "terminate: lost after its effect",
        "terminate: lost before its effect",
        "two at once",
        "two owners of one row",
        "user aborts",
        "user deletes a fleet",
        "user resizes a fleet",
        "user stops",
    ];
    let missing: Vec<_> = interesting.iter().filter(|mark| !marks.contains_key(**mark)).collect();
    assert!(missing.is_empty() || replayed().is_some(), "these never happened: {missing:?}");
}

#[test]
fn the_same_seed_gives_the_same_story() {
    for seed in [1, 2, 3] {
        let (first, second) = (run_seed(seed), run_seed(seed));
        assert_eq!(first.hash, second.hash, "seed {seed} told two stories");
    }
}

#[test]
fn postgres_tells_the_same_story() {
    let Ok(url) = std::env::var("DSTACK_TEST_POSTGRES_URL") else { return };
    for seed in 0..10 {
        let on_postgres = run_seed_on_postgres(&url, seed);
        assert_eq!(on_postgres.hash, run_seed(seed).hash, "seed {seed} differs:\n{}", on_postgres.tail);
        judged(seed, on_postgres);
    }
}

macro_rules! caught {
    ($($name:ident $bug:ident)*) => {$(
        #[test]
        fn $name() {
            catch(Bug::$bug);
        }
    )*};
}

caught! {
    silence_that_is_taken_for_absence_is_caught SilenceTakenForAbsence
    an_absence_that_is_believed_at_once_is_caught OneAbsenceBelieved
    a_terminate_that_is_not_repeated_is_caught TerminateNotRepeated
    an_effect_before_its_record_is_caught EffectBeforeRecord
    a_start_before_all_are_ready_is_caught GoBeforeAllAreReady
    half_a_gang_is_caught HalfAGangKept
    a_peers_exit_that_is_taken_for_the_cause_is_caught PeersExitTakenForCause
    a_finished_run_that_is_judged_again_is_caught FinishedRunJudgedAgain
}
