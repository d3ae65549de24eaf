//! What happens next to a fleet.

use api::fleets::FleetStatus;
use api::ids::{InstanceId, RunId};
use api::instances::{InstanceStatus, InstanceTerminationReason};
use lifecycle::fleet::{
    Buyer, Effect, Fleet, FleetDecision, LaunchPlan, OffersSeen, Purchase, Surroundings, decide,
};
use lifecycle::instance::{EndOrder, InVain, Instance};
use lifecycle::launch::{Launch, LaunchStatus, Scope};
use serde_json::json;

use crate::fixtures::{at, fleet, id, instance, launch, offer};
use crate::rounds::{at_place, home, market, refused, two_in_vain};

pub(crate) struct Case {
    pub(crate) now: i64,
    pub(crate) fleet: Fleet,
    /// Each with the blocks that jobs hold.
    pub(crate) instances: Vec<(Instance, u32)>,
    pub(crate) buyers: Vec<(InstanceId, Buyer)>,
    pub(crate) launches: Vec<Launch>,
    /// Those that came to nothing.
    pub(crate) failed: Vec<Launch>,
    /// Those of others.
    pub(crate) failed_lately: Vec<Launch>,
    pub(crate) unlike_runs: Vec<RunId>,
    pub(crate) offers: Vec<(Buyer, OffersSeen)>,
}

pub(crate) fn case(fleet: Fleet, instances: Vec<(Instance, u32)>) -> Case {
    Case {
        now: 10,
        fleet,
        instances,
        buyers: vec![],
        launches: vec![],
        failed: vec![],
        failed_lately: vec![],
        unlike_runs: vec![],
        offers: vec![],
    }
}

impl Case {
    pub(crate) fn decide(&self) -> FleetDecision {
        let around = Surroundings {
            instances: &self.instances,
            buyers: &self.buyers,
            open_launches: &self.launches,
            failed_launches: &self.failed,
            failed_lately: &self.failed_lately,
            unlike_runs: &self.unlike_runs,
            most_offers: 25,
            offers: &self.offers,
        };
        decide(at(self.now), &self.fleet, &around)
    }

    /// With something to buy for everybody.
    pub(crate) fn with_offers(self) -> Case {
        let buyers = self.buyers.iter().map(|(_, buyer)| *buyer).chain([Buyer::Fleet]);
        let offers = buyers.map(|buyer| (buyer, sold(&[1.0, 2.0]))).collect();
        Case { offers, ..self }
    }
}

pub(crate) fn sold(prices: &[f64]) -> OffersSeen {
    let obstacle = prices.is_empty().then(|| "No offers found: sold out".to_owned());
    OffersSeen::Known { offers: prices.iter().map(|price| plan(*price)).collect(), obstacle, opens_at: None }
}

pub(crate) fn of_run(number: u128, group: u32) -> Buyer {
    Buyer::Run { run_id: id(number), group }
}

pub(crate) fn plan(price: f64) -> LaunchPlan {
    LaunchPlan {
        backend_id: id(5),
        backend: "fake".to_owned(),
        offer: offer(price),
        zone: None,
        most_disk_mib: None,
        admins_only: false,
    }
}

pub(crate) fn told(decision: &FleetDecision) -> String {
    let mut words = vec![decision.fleet.status.as_str().to_owned()];
    words.extend(decision.effect.map(|Effect::AskOffers| format!("asks for {}", decision.ask_for.len())));
    let ends = decision.end_instances.iter().map(|(ended, order)| {
        let number = (200..300).find(|number| *ended == id(*number)).unwrap() - 200;
        format!("ends {number} {}", order.reason.as_str())
    });
    words.extend(ends);
    words.extend(decision.cancel_launches.iter().map(|_| "cancels".to_owned()));
    words.extend(decision.buy.iter().map(|purchase| {
        let Purchase { plan, instances, least, .. } = purchase;
        format!("buys {least}..{} at {}", instances.len(), plan.offer.price)
    }));
    words.extend((decision.add_instances > 0).then(|| format!("adds {}", decision.add_instances)));
    words.join(", ")
}

#[track_caller]
fn check(case: &Case, expected: &str) {
    assert_eq!(told(&case.decide()), expected);
}

pub(crate) fn nodes(nodes: &str) -> Fleet {
    fleet(json!({"nodes": nodes}))
}

pub(crate) fn in_status(number: u32, status: InstanceStatus, busy: u32) -> (Instance, u32) {
    (instance(number, status), busy)
}

pub(crate) fn pending(number: u32) -> (Instance, u32) {
    in_status(number, InstanceStatus::Pending, 0)
}

pub(crate) fn idle(number: u32) -> (Instance, u32) {
    in_status(number, InstanceStatus::Idle, 0)
}

pub(crate) fn busy(number: u32) -> (Instance, u32) {
    in_status(number, InstanceStatus::Busy, 1)
}

#[test]
fn a_fleet_keeps_its_least_size() {
    check(&case(nodes("0..4"), vec![]), "active");
    check(&case(nodes("2..4"), vec![]), "active, adds 2");
    check(&case(nodes("2..4"), vec![idle(0)]), "active, adds 1");
    check(&case(nodes("2..4"), vec![idle(0), busy(1)]), "active");
    // What ends is replaced.
    check(&case(nodes("2..4"), vec![idle(0), in_status(1, InstanceStatus::Terminating, 0)]), "active, adds 1");
}

#[test]
fn a_fleet_of_given_hosts_neither_grows_nor_shrinks() {
    let given = fleet(json!({"ssh_config": {"user": "me", "identity_file": "~/.ssh/id", "hosts": ["10.0.0.1"]}}));
    check(&case(given.clone(), vec![]), "active");
    check(&case(given, vec![idle(0), idle(1)]), "active");
}

#[test]
fn a_fleet_buys_all_its_missing_machines_at_once() {
    let missing = || case(nodes("0..4"), vec![busy(0), pending(1), pending(2)]);
    check(&missing(), "active, asks for 1");
    check(&missing().with_offers(), "active, buys 1..2 at 1");
    let decision = missing().with_offers().decide();
    assert_eq!(decision.buy[0].instances, [id(201), id(202)]);
}

fn for_a_job(number: u32) -> (Instance, u32) {
    in_status(number, InstanceStatus::Pending, 1)
}

#[test]
fn each_gang_is_bought_whole_and_by_itself() {
    let (first, second) = (of_run(31, 0), of_run(32, 0));
    let instances = vec![pending(0), for_a_job(1), for_a_job(2), for_a_job(3)];
    let buyers = vec![(id(201), second), (id(202), first), (id(203), second)];
    let both = Case { buyers, ..case(nodes("0..4"), instances) };
    check(&both, "active, asks for 3");
    // Who waits comes before what is kept in store.
    assert_eq!(both.decide().ask_for, [second, first, Buyer::Fleet]);
    let both = both.with_offers();
    check(&both, "active, buys 2..2 at 1, buys 1..1 at 1, buys 1..1 at 1");
    let bought = both.decide().buy;
    assert_eq!(bought[0].instances, [id(201), id(203)]);
    assert_eq!((&bought[1].instances[..], &bought[2].instances[..]), (&[id(202)][..], &[id(200)][..]));
}

#[test]
fn what_suits_one_buyer_need_not_suit_another() {
    let (cheap, dear, second_group) = (of_run(31, 0), of_run(32, 0), of_run(32, 1));
    let instances = vec![for_a_job(0), for_a_job(1), for_a_job(2)];
    let buyers = vec![(id(200), cheap), (id(201), dear), (id(202), second_group)];
    let offers = vec![(cheap, sold(&[0.1])), (dear, sold(&[20.0])), (second_group, sold(&[0.1]))];
    let all = Case { buyers, offers, ..case(nodes("0..4"), instances) };
    check(&all, "active, buys 1..1 at 0.1, buys 1..1 at 20, buys 1..1 at 0.1");
    // Only who gets nothing is given up, and who is not known waits.
    let offers = vec![(cheap, sold(&[])), (dear, OffersSeen::Unknown), (second_group, sold(&[0.1]))];
    let some = Case { offers, ..all };
    check(&some, "active, ends 0 no_offers, buys 1..1 at 0.1");
    assert_eq!(some.decide().look_again_at, Some(at(25)));
}

#[test]
fn what_is_bought_next_for_a_cluster_is_where_the_first_is() {
    let cluster = || fleet(json!({"nodes": "0..4", "placement": "cluster"}));
    let buyers = vec![(id(200), of_run(31, 0)), (id(201), of_run(31, 1))];
    let two = Case { buyers, ..case(cluster(), vec![for_a_job(0), for_a_job(1)]) }.with_offers();
    check(&two, "active, buys 1..1 at 1");
    assert_eq!(two.decide().look_again_at, Some(at(10)));
    let mut open = launch(LaunchStatus::Wanted);
    open.state.zone = Some("fake-1b".to_owned());
    let mut bought = for_a_job(0);
    bought.0.launch_id = Some(open.id);
    let next = Case { launches: vec![open], ..case(cluster(), vec![bought, for_a_job(1)]) };
    assert_eq!(next.decide().fleet.state.home, Some(home("fake-1", Some("fake-1b"))));
}

#[test]
fn what_was_made_for_a_job_that_is_over_is_not_bought() {
    let made_for_job = |number| {
        let (mut instance, busy) = pending(number);
        instance.state.made_for_job = true;
        (instance, busy)
    };
    check(&case(nodes("0..4"), vec![made_for_job(0)]).with_offers(), "active, ends 0 job_finished");
    check(&case(nodes("1..4"), vec![made_for_job(0)]).with_offers(), "active, buys 1..1 at 1");
    check(&case(nodes("0..4"), vec![pending(0)]).with_offers(), "active, buys 1..1 at 1");
}

#[test]
fn backends_that_cannot_be_asked_are_no_reason_to_give_up() {
    let offers = vec![(Buyer::Fleet, OffersSeen::Unknown)];
    let unknown = Case { offers, ..case(nodes("1..4"), vec![pending(0)]) };
    check(&unknown, "active");
    assert_eq!(unknown.decide().look_again_at, Some(at(25)));
}

#[test]
fn what_nobody_sells_is_given_up_with_the_reason() {
    let offers = vec![(Buyer::Fleet, sold(&[]))];
    let sold_out = Case { offers, ..case(nodes("1..4"), vec![pending(0)]) };
    check(&sold_out, "active, ends 0 no_offers");
    let order = sold_out.decide().end_instances[0].1.clone();
    assert_eq!(order.message.as_deref(), Some("No offers found: sold out"));
    // Whoever looks at the fleet sees it too, until it has what it wants.
    let fleet = sold_out.decide().fleet;
    assert_eq!(fleet.state.status_message.as_deref(), Some("No offers found: sold out"));
    assert_eq!(case(fleet.clone(), vec![idle(0)]).decide().fleet.state.status_message, None);
    assert!(case(fleet, vec![]).decide().fleet.state.status_message.is_some());
}

#[test]
fn purchases_that_come_to_nothing_are_tried_again_with_longer_pauses() {
    let mut fleet = nodes("1..4");
    let mut now = 0;
    for pause in [60, 120, 300, 600, 1800, 1800] {
        let buying = Case { now, ..case(fleet.clone(), vec![pending(0)]) }.with_offers();
        check(&buying, "active, buys 1..1 at 1");
        fleet = buying.decide().fleet;
        // It came to nothing: the instance is gone.
        check(&Case { now: now + pause - 1, ..case(fleet.clone(), vec![]) }, "active");
        check(&Case { now: now + pause - 1, ..case(fleet.clone(), vec![pending(0)]) }, "active");
        now += pause;
        check(&Case { now, ..case(fleet.clone(), vec![]) }, "active, adds 1");
    }
}

#[test]
fn a_clusters_own_store_is_bought_whole_or_not_at_all() {
    let least = |keys, instances: Vec<(Instance, u32)>| {
        let decision = case(fleet(keys), instances).with_offers().decide();
        (decision.buy[0].least, decision.buy[0].instances.len())
    };
    let cluster = |nodes| json!({"nodes": nodes, "placement": "cluster"});
    let new = |count| (0..count).map(pending).collect::<Vec<_>>();
    assert_eq!(least(cluster(json!(4)), new(4)), (4, 4));
    assert_eq!(least(cluster(json!("2..4")), new(2)), (2, 2));
    assert_eq!(least(cluster(json!({"min": 2, "target": 4, "max": 8})), new(4)), (2, 4));
    // What is lost of a cluster is replaced.
    assert_eq!(least(cluster(json!(4)), vec![idle(0), idle(1), idle(2), pending(3)]), (1, 1));
    assert_eq!(least(json!({"nodes": 4}), new(4)), (1, 4));
}

/// A cluster with a machine of type `cpu-4` and a node that waits for one, who is offered these types, each dearer than
/// the one before.
fn growing_cluster(failed: Vec<Launch>, types: &[&str]) -> Case {
    let (mut waiting, held) = for_a_job(1);
    waiting.launch_id = failed.last().map(|launch| launch.id);
    let buyer = of_run(31, 0);
    let of_type = |(price, name): (f64, &&str)| at_place(price, name, "fake-2", "");
    let offers = [1.0, 2.0, 3.0].into_iter().zip(types).map(of_type).collect();
    let offers = vec![(buyer, OffersSeen::Known { offers, obstacle: None, opens_at: None })];
    let cluster = fleet(json!({"nodes": "0..4", "placement": "cluster"}));
    let instances = vec![busy(0), (waiting, held)];
    Case { buyers: vec![(id(201), buyer)], failed, offers, ..case(cluster, instances) }
}

#[test]
fn a_cluster_that_is_there_stays_of_one_type() {
    let sold_out = || vec![refused(1, &at_place(1.0, "cpu-4", "fake-1", ""), Scope::Zone, &[1])];
    for failed in [Vec::new, sold_out] {
        check(&growing_cluster(failed(), &["cpu-4"]), "active, buys 1..1 at 1");
        check(&growing_cluster(failed(), &["cpu-8", "cpu-4"]), "active, buys 1..1 at 2");
        let other = growing_cluster(failed(), &["cpu-8"]);
        check(&other, "active, ends 1 no_offers");
        let told = other.decide().end_instances[0].1.message.clone().unwrap();
        assert!(told.contains(". The cluster's machines are `cpu-4`, and no other type is bought"), "{told}");
        // Whose nodes need different machines asked for them.
        check(&Case { unlike_runs: vec![id(31)], ..other }, "active, buys 1..1 at 1");
    }
    let store = growing_cluster(vec![], &["cpu-8"]);
    let offers = vec![(Buyer::Fleet, store.offers[0].1.clone())];
    let store = Case { buyers: vec![], offers, ..store };
    check(&store, "active, ends 1 no_offers");
    let told = store.decide().fleet.state.status_message.unwrap();
    assert!(told.starts_with("No offers found. The cluster's machines are `cpu-4`"), "{told}");
    // Nothing binds machines that are not near each other, nor those of users.
    check(&Case { fleet: nodes("0..4"), ..growing_cluster(vec![], &["cpu-8"]) }, "active, buys 1..1 at 1");
    let mut own = growing_cluster(vec![], &["cpu-8"]);
    own.instances[0].0.launch_id = None;
    check(&own, "active, buys 1..1 at 1");
}

#[test]
fn which_type_a_cluster_is_of_is_open_until_one_is_there() {
    let mut open = launch(LaunchStatus::Requested);
    "cpu-8".clone_into(&mut open.state.offer.instance.name);
    let mut case = growing_cluster(vec![], &["cpu-4"]);
    let (first, _) = &mut case.instances[0];
    first.status = InstanceStatus::Provisioning;
    (first.state.provider_id, first.launch_id) = (None, Some(open.id));
    check(&Case { launches: vec![open], ..case }, "active");
}

#[test]
fn where_a_cluster_is_to_be_is_open_until_something_is_bought_there() {
    // Another run's purchase is on its way to `west-a`, so only that zone is offered, which refused this run.
    let mut open = launch(LaunchStatus::Requested);
    open.id = id(399);
    open.state.zone = Some("west-a".to_owned());
    let (mut other, other_busy) = in_status(2, InstanceStatus::Provisioning, 1);
    other.launch_id = Some(open.id);
    let waits = two_in_vain(vec![refused(0, &market()[0], Scope::Zone, &[0, 1])]);
    let mut instances = waits.instances.clone();
    instances.push((other, other_busy));
    let offers = vec![(
        of_run(31, 0),
        OffersSeen::Known { offers: market()[..1].to_vec(), obstacle: None, opens_at: None },
    )];
    let waits = Case { instances, offers, launches: vec![open], ..waits };
    check(&waits, "active");
    check(&Case { launches: vec![], ..waits }, "active, ends 0 no_offers, ends 1 no_offers");
}

#[test]
fn machines_that_joined_end_the_pauses() {
    let mut fleet = nodes("1..4");
    fleet.state.failures = 3;
    fleet.state.not_before = Some(at(1_000));
    let decision = case(fleet.clone(), vec![idle(0)]).decide();
    assert_eq!((decision.fleet.state.failures, decision.fleet.state.not_before), (0, None));
    let decision = case(fleet, vec![in_status(0, InstanceStatus::Provisioning, 0)]).decide();
    assert_eq!(decision.fleet.state.failures, 3);
}

#[test]
fn a_job_that_waits_is_bought_for_without_a_pause() {
    let mut fleet = nodes("0..4");
    fleet.state.not_before = Some(at(1_000));
    let buyers = vec![(id(200), of_run(31, 0))];
    let waiting = Case { buyers, ..case(fleet.clone(), vec![for_a_job(0), pending(1)]) }.with_offers();
    check(&waiting, "active, buys 1..1 at 1");
    // What fails for a run puts nothing off for the fleet.
    assert_eq!(waiting.decide().fleet.state.failures, 0);
    check(&case(fleet, vec![pending(0)]).with_offers(), "active");
}

#[test]
fn too_many_instances_are_ended_but_none_with_jobs() {
    check(&case(nodes("0..2"), vec![idle(0), idle(1), idle(2)]), "active, ends 2 max_instances_limit");
    check(&case(nodes("0..2"), vec![idle(0), busy(1), busy(2)]), "active, ends 0 max_instances_limit");
    check(&case(nodes("0..2"), vec![busy(0), busy(1), busy(2)]), "active");
    // A job waits for the machine already.
    let reserved = in_status(2, InstanceStatus::Provisioning, 1);
    check(&case(nodes("0..2"), vec![busy(0), busy(1), reserved]), "active");
}

#[test]
fn nothing_is_bought_for_an_instance_that_is_too_many() {
    let shrunk = || case(nodes("0..2"), vec![idle(0), idle(1), pending(2)]);
    check(&shrunk(), "active, ends 2 max_instances_limit");
    check(&shrunk().with_offers(), "active, ends 2 max_instances_limit");
    let partly = case(nodes("0..3"), vec![idle(0), idle(1), pending(2), pending(3)]).with_offers();
    check(&partly, "active, ends 3 max_instances_limit, buys 1..1 at 1");
}

#[test]
fn idle_instances_end_after_their_time_but_never_below_the_least_size() {
    let idle_for = |number, secs| {
        let (mut instance, busy) = idle(number);
        instance.state.idle_duration_secs = Some(secs);
        (instance, busy)
    };
    let at_time = |now, nodes_text, instances| Case { now, ..case(nodes(nodes_text), instances) };
    check(&at_time(300, "0..4", vec![idle_for(0, 300)]), "active");
    assert_eq!(at_time(300, "0..4", vec![idle_for(0, 300)]).decide().look_again_at, Some(at(301)));
    check(&at_time(301, "0..4", vec![idle_for(0, 300)]), "active, ends 0 idle_timeout");
    check(&at_time(301, "1..4", vec![idle_for(0, 300)]), "active");
    let three = vec![idle_for(0, 300), idle_for(1, 300), idle_for(2, 300)];
    check(&at_time(301, "1..4", three.clone()), "active, ends 0 idle_timeout, ends 1 idle_timeout");
    check(&at_time(301, "3..4", three), "active");
    // Negative is for ever, unset is three days.
    check(&at_time(1_000_000, "0..4", vec![idle_for(0, -1)]), "active");
    check(&at_time(72 * 3600, "0..4", vec![idle(0)]), "active");
    check(&at_time(72 * 3600 + 1, "0..4", vec![idle(0)]), "active, ends 0 idle_timeout");
    check(&at_time(1_000, "0..4", vec![busy(0)]), "active");
}

#[test]
fn a_cluster_stays_where_its_first_machine_is() {
    let home_of = |keys, instances| case(fleet(keys), instances).decide().fleet.state.home;
    let cluster = || json!({"nodes": "0..4", "placement": "cluster"});
    assert_eq!(home_of(cluster(), vec![idle(0)]), Some(home("fake-1", None)));
    assert_eq!(home_of(cluster(), vec![]), None);
    assert_eq!(home_of(json!({"nodes": "0..4"}), vec![idle(0)]), None);
    // The first machine is leaving, so the next one says where.
    let leaving = in_status(0, InstanceStatus::Terminating, 0);
    let mut second = idle(1);
    second.0.state.region = Some("fake-2".to_owned());
    assert_eq!(home_of(cluster(), vec![leaving, second]), Some(home("fake-2", None)));
}

#[test]
fn a_cluster_stays_where_it_has_bought_until_the_machine_is_known() {
    let home = home("fake-1", Some("fake-1b"));
    let mut cluster = fleet(json!({"nodes": "0..4", "placement": "cluster"}));
    cluster.state.home = Some(home.clone());
    let mut bought = for_a_job(0);
    bought.0.launch_id = Some(launch(LaunchStatus::Done).id);
    let home_with = |instances| case(cluster.clone(), instances).decide().fleet.state.home;
    assert_eq!(home_with(vec![bought.clone(), for_a_job(1)]), Some(home));
    // Nothing is left of what was bought.
    bought.0.status = InstanceStatus::Terminating;
    assert_eq!(home_with(vec![bought, for_a_job(1)]), None);
}

#[test]
fn a_launch_that_no_instance_claims_is_cancelled() {
    let open = || launch(LaunchStatus::Requested);
    let claimed = in_status(0, InstanceStatus::Provisioning, 1);
    check(&Case { launches: vec![open()], ..case(nodes("0..4"), vec![claimed.clone()]) }, "active");
    check(&Case { launches: vec![open()], ..case(nodes("0..4"), vec![]) }, "active, cancels");
    let mut unwanted = claimed;
    unwanted.0.end = Some(EndOrder { reason: InstanceTerminationReason::TerminatedByUser, message: None });
    check(&Case { launches: vec![open()], ..case(nodes("0..4"), vec![unwanted]) }, "active, cancels");
    let cancelled = Launch { cancelled: true, ..open() };
    check(&Case { launches: vec![cancelled], ..case(nodes("0..4"), vec![]) }, "active");
}

#[test]
fn an_unwanted_fleet_ends_when_all_it_had_is_gone() {
    let unwanted = |status| Fleet { wanted: false, status, ..nodes("1..4") };
    let instances = || vec![idle(0), busy(1)];
    let ends = "terminating, ends 0 terminated_by_user, ends 1 terminated_by_user";
    for status in [FleetStatus::Submitted, FleetStatus::Active, FleetStatus::Terminating] {
        check(&case(unwanted(status), instances()), ends);
        check(&case(unwanted(status), vec![]), "terminated");
        let launches = vec![launch(LaunchStatus::Requested)];
        check(&Case { launches, ..case(unwanted(status), vec![]) }, "terminating, cancels");
    }
    let ordered = || {
        let (mut instance, busy) = idle(0);
        instance.end = Some(EndOrder { reason: InstanceTerminationReason::TerminatedByUser, message: None });
        (instance, busy)
    };
    check(&case(unwanted(FleetStatus::Terminating), vec![ordered()]), "terminating");
}

#[test]
fn final_is_final() {
    for status in [FleetStatus::Terminated, FleetStatus::Failed] {
        for wanted in [true, false] {
            let over = Fleet { status, wanted, ..nodes("1..4") };
            let decision = case(over.clone(), vec![idle(0), pending(1)]).with_offers().decide();
            assert_eq!((told(&decision), decision.fleet), (status.as_str().to_owned(), over));
        }
    }
}

#[test]
fn what_is_sold_from_some_moment_on_is_asked_for_then() {
    let next = |opens_at: i64| {
        let mut fleet = nodes("1..4");
        // After many failures it pauses for half an hour.
        fleet.state.failures = 9;
        let nothing = OffersSeen::Known { offers: vec![], obstacle: None, opens_at: Some(at(opens_at)) };
        let asked =
            Case { now: 10_000, offers: vec![(Buyer::Fleet, nothing)], ..case(fleet, vec![pending(0)]) }.decide();
        asked.fleet.state.not_before.unwrap().duration_since(at(0)).as_secs()
    };
    assert_eq!(next(20_000), 11_800, "it may be had before, after all");
    assert_eq!(next(11_000), 11_000);
    // It should be there already, or the clocks differ.
    assert_eq!([next(10_001), next(10_000), next(9_100)], [10_015; 3]);
    assert_eq!(next(9_099), 11_800, "nobody knows when");
}

/// Of two machines of one purchase the first is taken back, and the other one still seems to boot.
fn half_taken_back(other: impl FnOnce(&mut Instance)) -> Case {
    let made = Launch {
        status: lifecycle::launch::LaunchStatus::Done,
        state: lifecycle::launch::LaunchState {
            error: None,
            made: Some(2),
            ..refused(0, &market()[0], Scope::Zone, &[0, 1]).state
        },
        ..refused(0, &market()[0], Scope::Zone, &[0, 1])
    };
    let mut case = two_in_vain(vec![made.clone()]);
    let [(first, _), (second, _)] = &mut case.instances[..] else { panic!("there are two") };
    let gave_up = |instance: &mut Instance| {
        instance.status = InstanceStatus::Pending;
        instance.state.unsold = Some(made.id);
        instance.state.in_vain = vec![InVain { launch: made.id, why: Some("no room".to_owned()) }];
    };
    gave_up(first);
    second.state.provider_id = Some("i-2".to_owned());
    second.state.backend = Some("fake".to_owned());
    second.state.region = Some("west".to_owned());
    second.state.zone = Some("west-a".to_owned());
    other(second);
    if second.state.provider_id.is_none() {
        gave_up(second);
    }
    case
}

#[test]
fn a_gang_that_is_taken_back_one_by_one_is_bought_elsewhere_as_a_whole() {
    check(&half_taken_back(|_| ()), "active");
    // It has joined, so the cluster stays where it is, and nothing is left there for the first.
    let joined = half_taken_back(|second| {
        second.state.joined_at = Some(at(5));
        second.status = InstanceStatus::Idle;
    });
    assert!(joined.decide().buy.iter().all(|purchase| purchase.plan.zone.as_deref() != Some("west-a")));
    let both = half_taken_back(|second| second.state.provider_id = None).decide();
    let [Purchase { plan, instances, .. }] = &both.buy[..] else { panic!("{:?}", both.buy) };
    assert_eq!((plan.zone.as_deref(), instances.len()), (Some("west-b"), 2));
}
