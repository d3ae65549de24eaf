//! What a fleet buys next where a backend has refused.

use api::instances::InstanceStatus;
use lifecycle::fleet::{Buyer, Fleet, Home, LaunchPlan, OffersSeen, Purchase};
use lifecycle::launch::{Launch, LaunchError, LaunchStatus, Scope, Verdict};
use serde_json::json;

use crate::fixtures::{at, fleet, id, launch};
use crate::fleets::{Case, case, idle, in_status, nodes, of_run, pending, plan, told};

/// A purchase for some instances that was refused at a place.
pub(crate) fn refused(number: u128, plan: &LaunchPlan, scope: Scope, instances: &[u128]) -> Launch {
    let mut launch = launch(LaunchStatus::Failed);
    launch.id = id(300 + number);
    launch.created_at = at(i64::try_from(number).unwrap());
    launch.backend_id = plan.backend_id;
    launch.state.backend.clone_from(&plan.backend);
    launch.state.offer = plan.offer.clone();
    launch.state.zone.clone_from(&plan.zone);
    launch.state.instances = instances.iter().map(|number| id(200 + number)).collect();
    launch.state.error = Some(LaunchError {
        kind: "no_capacity".to_owned(),
        verdict: Verdict::Refused(scope),
        code: Some("SoldOut".to_owned()),
        message: "we have none".to_owned(),
        zones_with_capacity: vec![],
        at: Some(at(1)),
    });
    launch
}

/// A plan told in one line: its price, its type, its region and its zone.
pub(crate) fn at_place(price: f64, name: &str, region: &str, zone: &str) -> LaunchPlan {
    let mut plan = plan(price);
    name.clone_into(&mut plan.offer.instance.name);
    region.clone_into(&mut plan.offer.region);
    plan.zone = (!zone.is_empty()).then(|| zone.to_owned());
    plan
}

/// One type in three zones, a dearer one of the same family there, and both in another region.
pub(crate) fn market() -> Vec<LaunchPlan> {
    vec![
        at_place(1.0, "p5.large", "west", "west-a"),
        at_place(1.0, "p5.large", "west", "west-b"),
        at_place(1.0, "p5.large", "west", "west-c"),
        at_place(2.0, "p5.huge", "west", "west-a"),
        at_place(2.0, "p4.large", "west", "west-a"),
        at_place(3.0, "p5.large", "east", "east-a"),
    ]
}

/// Two nodes of a run that have been bought in vain.
pub(crate) fn two_in_vain(failed: Vec<Launch>) -> Case {
    let bound = |number| {
        let status = if failed.is_empty() { InstanceStatus::Pending } else { InstanceStatus::Provisioning };
        let (mut instance, busy) = in_status(number, status, 1);
        instance.launch_id = failed.last().map(|launch| launch.id);
        (instance, busy)
    };
    let buyer = of_run(31, 0);
    let offers = vec![(buyer, OffersSeen::Known { offers: market(), obstacle: None, opens_at: None })];
    let buyers = vec![(id(200), buyer), (id(201), buyer)];
    let cluster = fleet(json!({"nodes": "0..4", "placement": "cluster"}));
    let instances = vec![bound(0), bound(1)];
    Case { buyers, failed, offers, ..case(cluster, instances) }
}

/// Where a cluster of the usual machines is.
pub(crate) fn home(region: &str, zone: Option<&str>) -> Home {
    Home {
        backend: "fake".to_owned(),
        region: region.to_owned(),
        zone: zone.map(str::to_owned),
        instance_type: Some("cpu-4".to_owned()),
    }
}

/// Where the next purchase is made.
#[track_caller]
fn check_next(failed: Vec<Launch>, expected: &str) {
    let decision = two_in_vain(failed).decide();
    let told = match &decision.buy[..] {
        [Purchase { plan, instances, least: 2, .. }] if instances.len() == 2 => {
            format!("{} in {}", plan.offer.instance.name, plan.zone.as_deref().unwrap_or("any"))
        }
        [] => decision.end_instances.iter().map(|(_, end)| end.reason.as_str()).collect::<Vec<_>>().join(", "),
        bought => format!("{bought:?}"),
    };
    assert_eq!(told, expected);
}

#[test]
fn a_refusal_leaves_out_what_it_is_about_and_nothing_else() {
    let after = |scope| vec![refused(0, &market()[0], scope, &[0, 1])];
    check_next(after(Scope::Zone), "p5.large in west-b");
    check_next(after(Scope::Offer), "p5.huge in west-a");
    check_next(after(Scope::Network), "p5.large in west-b");
    check_next(after(Scope::Region), "p4.large in west-a");
    check_next(after(Scope::Reservation), "p5.large in east-a");
    check_next(after(Scope::WholeRegion), "p5.large in east-a");
    check_next(after(Scope::Backend), "no_offers, no_offers");
    // A quota that is too small for the larger one leaves the smaller one.
    let mut huge = market()[3].clone();
    huge.offer.instance.resources.cpus = 8;
    check_next(vec![refused(0, &huge, Scope::Region, &[0, 1])], "p5.large in west-a");
    // No address is left in the zone, for whatever type.
    let zones = || (0..3).map(|place| refused(place as u128, &market()[place], Scope::Network, &[0, 1]));
    check_next(zones().collect(), "p5.large in east-a");
}

#[test]
fn a_purchase_that_is_over_before_it_began_is_made_anew_at_the_same_place_and_not_for_ever() {
    let west_b = |number| refused(number, &market()[1], Scope::Launch, &[0, 1]);
    let before = refused(0, &market()[0], Scope::Zone, &[0, 1]);
    check_next(vec![before.clone(), west_b(1)], "p5.large in west-b");
    check_next(vec![west_b(1)], "p5.large in west-b");
    check_next(vec![before.clone(), west_b(1), west_b(2)], "p5.large in west-b");
    check_next(vec![before, west_b(1), west_b(2), west_b(3)], "p5.large in west-c");
}

#[test]
fn a_round_goes_from_zone_to_zone_then_to_the_next_offer_and_ends_when_nothing_is_left() {
    let mut failed: Vec<Launch> = vec![];
    let mut seen: Vec<String> = vec![];
    loop {
        let decision = two_in_vain(failed.clone()).decide();
        let Some(purchase) = decision.buy.first() else {
            let message = decision.end_instances[0].1.message.clone().unwrap();
            let expected = "Tried 4 offers in vain: p5.large in west-a, west-b, west-c, east-a: SoldOut (we have none); \
                            p5.huge in west-a: SoldOut (we have none); p4.large in west-a: SoldOut (we have none)";
            assert_eq!(message, expected);
            break;
        };
        assert_eq!(decision.fleet.state.home, None, "nothing was bought where nothing was sold");
        assert_eq!(decision.fleet.state.not_before, None);
        seen.push(format!("{} {}", purchase.plan.offer.instance.name, purchase.plan.zone.as_deref().unwrap()));
        failed.push(refused(failed.len() as u128, &purchase.plan, Scope::Zone, &[0, 1]));
    }
    let expected = ["p5.large west-a", "p5.large west-b", "p5.large west-c", "p5.huge west-a", "p4.large west-a"];
    assert_eq!(seen[..5], expected);
    assert_eq!(seen[5..], ["p5.large east-a"]);
}

#[test]
fn a_zone_that_is_said_to_have_room_comes_first() {
    let hinted = |zones: &[&str]| {
        let mut failed = refused(0, &market()[0], Scope::Zone, &[0, 1]);
        let zones = zones.iter().map(|&zone| zone.to_owned()).collect();
        failed.state.error.as_mut().unwrap().zones_with_capacity = zones;
        vec![failed]
    };
    check_next(hinted(&["west-c"]), "p5.large in west-c");
    check_next(hinted(&["west-c", "west-b"]), "p5.large in west-b");
    check_next(hinted(&["east-a"]), "p5.large in west-b");
}

#[test]
fn a_zone_that_was_sold_out_a_moment_ago_comes_last() {
    // Of purchases for others: the numbers of these instances are not theirs.
    let others = |places: &[usize], scope| {
        places.iter().map(|place| refused(*place as u128, &market()[*place], scope, &[7])).collect::<Vec<_>>()
    };
    let first = |failed_lately, failed| {
        let decision = Case { failed_lately, ..two_in_vain(failed) }.decide();
        let plan = &decision.buy[0].plan;
        format!("{} in {}", plan.offer.instance.name, plan.zone.as_deref().unwrap())
    };
    assert_eq!(first(vec![], vec![]), "p5.large in west-a");
    assert_eq!(first(others(&[0], Scope::Zone), vec![]), "p5.large in west-b");
    assert_eq!(first(others(&[0, 1], Scope::Zone), vec![]), "p5.large in west-c");
    // Nothing is left out, and no other offer comes before it.
    assert_eq!(first(others(&[0, 1, 2], Scope::Zone), vec![]), "p5.large in west-a");
    // It is about one type, and about room only.
    assert_eq!(first(others(&[3], Scope::Zone), vec![]), "p5.large in west-a");
    assert_eq!(first(others(&[0], Scope::Region), vec![]), "p5.large in west-a");
    // What its own round was told says more.
    let mut hinting = refused(9, &market()[2], Scope::Zone, &[0, 1]);
    hinting.state.error.as_mut().unwrap().zones_with_capacity = vec!["west-a".to_owned()];
    assert_eq!(first(others(&[0], Scope::Zone), vec![hinting]), "p5.large in west-a");
}

#[test]
fn no_more_offers_are_tried_than_allowed_and_all_zones_are_one() {
    let many: Vec<LaunchPlan> =
        (0..40).map(|number| at_place(f64::from(number), &format!("t{number}"), "west", "west-a")).collect();
    let failed: Vec<Launch> = (0..25).map(|n| refused(n as u128, &many[n], Scope::Zone, &[0, 1])).collect();
    let buyer = of_run(31, 0);
    let offers = |offers| vec![(buyer, OffersSeen::Known { offers, obstacle: None, opens_at: None })];
    let full = Case { offers: offers(many.clone()), ..two_in_vain(failed.clone()) };
    let message = full.decide().end_instances[0].1.message.clone().unwrap();
    assert!(message.starts_with("Tried 25 offers in vain: t0 in west-a: SoldOut"), "{message}");
    assert!(message.ends_with("; and 19 more. No more than 25 offers are tried in a row"), "{message}");
    // Another zone of an offer that was tried is not another offer.
    let mut with_zone = many;
    with_zone.push(at_place(50.0, "t3", "west", "west-b"));
    let decision = Case { offers: offers(with_zone), ..two_in_vain(failed) }.decide();
    assert_eq!(decision.buy[0].plan.zone.as_deref(), Some("west-b"));
}

#[test]
fn what_others_tried_is_no_matter() {
    let others = refused(0, &market()[0], Scope::Zone, &[7, 8]);
    let fresh = |number| in_status(number, InstanceStatus::Pending, 1);
    let case = Case { failed: vec![others], ..two_in_vain(vec![]) };
    let case = Case { instances: vec![fresh(0), fresh(1)], ..case };
    assert_eq!(case.decide().buy[0].plan.zone.as_deref(), Some("west-a"));
}

#[test]
fn a_round_for_the_fleets_own_store_is_counted_once_and_the_pause_comes_after_it() {
    let own = |now, fleet: Fleet, failed: Vec<Launch>, offers: Vec<LaunchPlan>| {
        let (mut instance, _) = pending(0);
        instance.launch_id = failed.last().map(|launch: &Launch| launch.id);
        let offers = vec![(Buyer::Fleet, OffersSeen::Known { offers, obstacle: None, opens_at: None })];
        Case { now, failed, offers, ..case(fleet, vec![(instance, 0)]) }.decide()
    };
    let first = own(0, nodes("1..4"), vec![], market());
    assert_eq!((first.fleet.state.failures, first.fleet.state.not_before), (1, Some(at(60))));
    let mut failed = vec![refused(0, &market()[0], Scope::Offer, &[0])];
    let second = own(5, first.fleet, failed.clone(), market());
    assert_eq!(second.buy[0].plan.offer.instance.name, "p5.huge");
    assert_eq!((second.fleet.state.failures, second.fleet.state.not_before), (1, Some(at(60))));
    failed.push(refused(1, &market()[3], Scope::Backend, &[0]));
    let over = own(50, second.fleet, failed, market());
    assert_eq!(told(&over), "active, ends 0 no_offers");
    assert_eq!((over.fleet.state.failures, over.fleet.state.not_before), (1, Some(at(110))));
    assert!(over.fleet.state.status_message.unwrap().starts_with("Tried 2 offers in vain"));
    assert!(over.events[0].starts_with("No offer for 1 machine is left, next tries from "), "{:?}", over.events);
}

#[test]
fn a_backend_that_refuses_everything_is_told_by_the_fleet() {
    let decision = two_in_vain(vec![refused(0, &market()[0], Scope::Backend, &[0, 1])]).decide();
    let told = decision.fleet.state.status_message.clone();
    assert_eq!(told.as_deref(), Some("`fake` refuses to sell: SoldOut (we have none)"));
    // It stays told when the run is gone, until something is bought.
    assert_eq!(case(decision.fleet.clone(), vec![]).decide().fleet.state.status_message, told);
    assert_eq!(case(decision.fleet, vec![idle(0)]).decide().fleet.state.status_message, None);
}
