//! Which instances a gang gets: all of its nodes, or none, and the reasons in words.

use api::ids::{FleetId, InstanceId, RunId};
use api::instances::{Gpu, InstanceStatus};
use api::jobs::Requirements;
use lifecycle::placement::{
    Gang, Growth, Market, Node, Outcome, Pool, PoolFleet, PoolInstance, place, profile_of,
};
use serde_json::json;

use crate::fixtures::{id, instance_type, run_spec};

/// A gang of equal nodes whose configuration has these keys.
pub(crate) fn gang(nodes: u32, keys: serde_json::Value) -> Gang {
    Gang {
        run_id: id::<RunId>(1),
        profile: profile_of(&run_spec(keys)),
        user_is_admin: false,
        needs_docker: false,
        may_buy: true,
        wants_reason: true,
        previous_fleet: None,
        nodes: (0..nodes).map(|job_num| node(job_num, json!({"cpu": "1..", "memory": "1GB.."}))).collect(),
    }
}

fn node(job_num: u32, resources: serde_json::Value) -> Node {
    let mut resources = resources;
    resources.as_object_mut().unwrap().insert("disk".to_owned(), serde_json::Value::Null);
    let requirements: Requirements = serde_json::from_value(json!({"resources": resources})).unwrap();
    Node { job_num, requirements }
}

/// A gang of one node that needs this of a machine.
fn single(resources: serde_json::Value) -> Gang {
    Gang { nodes: vec![node(0, resources)], ..gang(1, json!({})) }
}

/// A free machine with four CPUs.
pub(crate) fn free(number: u32) -> PoolInstance {
    PoolInstance {
        id: id::<InstanceId>(200 + u128::from(number)),
        name: format!("fleet-{number}"),
        instance_num: number,
        hostname: Some(format!("host-{number}")),
        status: InstanceStatus::Idle,
        unusable: false,
        incomplete_efa: None,
        admins_only: false,
        has_docker: Some(true),
        backend: Some(api::backends::BackendType::Aws),
        region: Some("r1".to_owned()),
        zone: Some("r1a".to_owned()),
        network_path: vec![],
        price: 1.0,
        instance_type: Some(instance_type(4)),
        is_bought: true,
        reservation: None,
        total_blocks: 1,
        free_blocks: vec![0],
    }
}

fn busy(number: u32) -> PoolInstance {
    PoolInstance { status: InstanceStatus::Busy, free_blocks: vec![], ..free(number) }
}

/// A machine of so many CPUs, split into blocks of which these are free.
fn split(number: u32, cpus: u32, total_blocks: u32, free_blocks: &[u32]) -> PoolInstance {
    let free_blocks = free_blocks.to_vec();
    PoolInstance { instance_type: Some(instance_type(cpus)), total_blocks, free_blocks, ..free(number) }
}

pub(crate) fn fleet(name: &str, instances: Vec<PoolInstance>) -> PoolFleet {
    PoolFleet {
        id: id::<FleetId>(400 + u128::from(name.as_bytes()[0])),
        name: name.to_owned(),
        project_name: "main".to_owned(),
        cluster: true,
        room: 0,
        can_grow: true,
        closing: false,
        only_type: None,
        limits: profile_of(&run_spec(json!({}))),
        instances,
    }
}

fn pool(instances: Vec<PoolInstance>) -> Pool {
    Pool { fleets: vec![fleet("fleet", instances)] }
}

/// `fleet: 0[0] 1[0] new` for a place, or the message.
fn told(outcome: &Outcome, pool: &Pool) -> String {
    match outcome {
        Outcome::NoCapacity { message } => message.clone().unwrap_or_default(),
        Outcome::AskOffers { fleets } => format!("asks {}", fleets.len()),
        Outcome::Placed { fleet_id, slots } => {
            let fleet = pool.fleets.iter().find(|fleet| fleet.id == *fleet_id).unwrap();
            let slots: Vec<String> = slots
                .iter()
                .map(|slot| match slot.instance_id {
                    None => "new".to_owned(),
                    Some(instance) => {
                        let found = fleet.instances.iter().find(|other| other.id == instance).unwrap();
                        format!("{}{:?}", found.instance_num, slot.blocks)
                    }
                })
                .collect();
            format!("{}: {}", fleet.name, slots.join(" "))
        }
    }
}

/// The place that a gang gets on these machines.
pub(crate) fn placed(gang: &Gang, machines: Vec<PoolInstance>) -> String {
    let pool = pool(machines);
    let mut left = pool.clone();
    told(&place(std::slice::from_ref(gang), &mut left, &Growth::Unknown)[0].1, &pool)
}

#[track_caller]
fn check(gang: &Gang, pool: &Pool, expected: &str) {
    check_with(gang, pool, &Growth::Unknown, expected);
}

#[track_caller]
fn check_with(gang: &Gang, pool: &Pool, market: &dyn Market, expected: &str) {
    let mut left = pool.clone();
    let placed = place(std::slice::from_ref(gang), &mut left, market);
    assert_eq!(told(&placed[0].1, pool), expected);
}

const NO_FLEETS: &str = "No matching fleet found. Possible reasons: \
                         https://dstack.ai/docs/guides/troubleshooting/#no-fleets";

#[test]
fn a_gang_is_placed_whole_or_not_at_all() {
    let two = gang(2, json!({}));
    check(&two, &pool(vec![free(0), free(1), free(2)]), "fleet: 0[0] 1[0]");
    check(
        &two,
        &pool(vec![free(0), busy(1)]),
        "No matching instance is free and no fleet may grow (2 nodes are needed in one fleet at once, 2 exist; \
         fleet-1: busy; fleet-0: free, but not enough of its peers are)",
    );
    // Half here and half there is no gang.
    let apart = Pool { fleets: vec![fleet("a", vec![free(0)]), fleet("b", vec![free(1)])] };
    let mut left = apart.clone();
    assert!(matches!(place(&[two], &mut left, &Growth::Unknown)[0].1, Outcome::NoCapacity { .. }));
    assert_eq!(left.fleets[0].instances[0].free_blocks, [0]);
}

#[test]
fn what_one_gang_takes_is_gone_for_the_next() {
    let gangs = [gang(2, json!({})), gang(2, json!({})), gang(1, json!({}))];
    let full = pool(vec![free(0), free(1), free(2)]);
    let mut left = full.clone();
    let placed = place(&gangs, &mut left, &Growth::Unknown);
    assert_eq!(told(&placed[0].1, &full), "fleet: 0[0] 1[0]");
    assert!(matches!(placed[1].1, Outcome::NoCapacity { .. }));
    assert_eq!(told(&placed[2].1, &full), "fleet: 2[0]");
}

#[test]
fn nodes_of_a_gang_share_a_zone() {
    let in_zone = |number, zone: &str, price| PoolInstance { zone: Some(zone.to_owned()), price, ..free(number) };
    // The cheapest machine is alone in its zone.
    let machines = vec![in_zone(0, "r1a", 0.5), in_zone(1, "r1b", 1.0), in_zone(2, "r1b", 1.0)];
    check(&gang(2, json!({})), &pool(machines.clone()), "fleet: 1[0] 2[0]");
    check(&gang(1, json!({})), &pool(machines), "fleet: 0[0]");
}

#[test]
fn nodes_of_a_gang_are_on_one_type_of_machine_where_backends_sell_them() {
    let small = |number, price| PoolInstance { price, ..free(number) };
    let large = |number, price| PoolInstance { instance_type: Some(instance_type(8)), price, ..free(number) };
    let two = gang(2, json!({}));
    check(&two, &pool(vec![small(0, 0.5), large(1, 1.0), large(2, 1.0)]), "fleet: 1[0] 2[0]");
    check(&two, &pool(vec![small(0, 0.5), large(1, 1.0), small(2, 2.0)]), "fleet: 0[0] 2[0]");
    let mut left = pool(vec![small(0, 1.0), large(1, 1.0)]);
    assert!(matches!(
        place(std::slice::from_ref(&two), &mut left, &Growth::Unknown)[0].1,
        Outcome::NoCapacity { .. }
    ));
    // What users bring, and who has no peers, may be of any.
    let own = |instance| PoolInstance { is_bought: false, ..instance };
    check(&two, &pool(vec![own(small(0, 1.0)), own(large(1, 1.0))]), "fleet: 0[0] 1[0]");
    check(&gang(1, json!({})), &pool(vec![small(0, 1.0), large(1, 1.0)]), "fleet: 0[0]");
    // What would be bought is of the type that the cluster is of.
    let growing = |only_type: &str| {
        let fleet = fleet("fleet", vec![large(0, 1.0)]);
        Pool { fleets: vec![PoolFleet { room: 2, only_type: Some(only_type.to_owned()), ..fleet }] }
    };
    let priced = Growth::Price(5.0);
    check_with(&two, &growing("cpu-8"), &priced, "fleet: 0[0] new");
    let mut other = growing("cpu-4");
    assert!(matches!(place(&[two], &mut other, &priced)[0].1, Outcome::NoCapacity { .. }));
}

#[test]
fn a_node_that_could_go_anywhere_leaves_the_special_machine_to_its_peer() {
    let big = PoolInstance { instance_type: Some(instance_type(8)), price: 0.5, ..free(0) };
    let mut two = gang(2, json!({}));
    two.nodes[1] = node(1, json!({"cpu": "8..", "memory": "1GB.."}));
    check(&two, &pool(vec![big.clone(), free(1)]), "fleet: 1[0] 0[0]");
    two.nodes.push(node(2, json!({"cpu": "8..", "memory": "1GB.."})));
    let mut left = pool(vec![big, free(1), free(2)]);
    assert!(matches!(place(&[two], &mut left, &Growth::Unknown)[0].1, Outcome::NoCapacity { .. }));
}

#[test]
fn several_nodes_need_a_cluster() {
    let mut apart = fleet("fleet", vec![free(0), free(1)]);
    apart.cluster = false;
    let pool = Pool { fleets: vec![apart] };
    check(&gang(1, json!({})), &pool, "fleet: 0[0]");
    check(
        &gang(2, json!({})),
        &pool,
        &format!("{NO_FLEETS} (a task with several nodes needs a fleet with `placement: cluster`)"),
    );
}

#[test]
fn without_a_fleet_the_official_words_are_said() {
    check(&gang(1, json!({})), &Pool::default(), NO_FLEETS);
    let mut closing = fleet("fleet", vec![free(0)]);
    closing.closing = true;
    check(&gang(1, json!({})), &Pool { fleets: vec![closing] }, NO_FLEETS);
}

#[test]
fn blocks_are_shared_by_single_jobs_and_never_by_gangs() {
    let quarters = |number, blocks: &[u32]| split(number, 8, 4, blocks);
    let needs = |cpus: &str| single(json!({"cpu": cpus, "memory": "1GB.."}));
    check(&needs("2.."), &pool(vec![quarters(0, &[0, 1, 2, 3])]), "fleet: 0[0]");
    check(&needs("3.."), &pool(vec![quarters(0, &[0, 1, 2, 3])]), "fleet: 0[0, 1]");
    check(&needs("8.."), &pool(vec![quarters(0, &[0, 1, 2, 3])]), "fleet: 0[0, 1, 2, 3]");
    check(&needs("3.."), &pool(vec![quarters(0, &[1, 3])]), "fleet: 0[1, 3]");
    check(
        &needs("5.."),
        &pool(vec![quarters(0, &[1, 3])]),
        "No matching instance is free and no fleet may grow (fleet-0: busy)",
    );
    check(
        &gang(2, json!({})),
        &pool(vec![quarters(0, &[0, 1, 2, 3]), quarters(1, &[0, 1, 2, 3])]),
        "fleet: 0[0, 1, 2, 3] 1[0, 1, 2, 3]",
    );
    let used = pool(vec![quarters(0, &[0, 1, 2, 3]), quarters(1, &[1, 2, 3])]);
    assert!(matches!(
        place(&[gang(2, json!({}))], &mut used.clone(), &Growth::Unknown)[0].1,
        Outcome::NoCapacity { .. }
    ));
    // A machine that is in use already is filled up before another one is begun.
    check(&needs("2.."), &pool(vec![quarters(0, &[0, 1, 2, 3]), quarters(1, &[2, 3])]), "fleet: 1[2]");
}

#[test]
fn a_machine_that_does_not_suit_says_why() {
    let with = |change: &dyn Fn(&mut PoolInstance)| {
        let mut instance = free(0);
        change(&mut instance);
        pool(vec![instance])
    };
    let cases: [(Gang, Pool, &str); 19] = [
        (gang(1, json!({})), with(&|it| it.unusable = true), "it does not answer or is ending"),
        (
            gang(1, json!({})),
            with(&|it| it.admins_only = true),
            "it is the server's own machine, which only global admins may use",
        ),
        (
            Gang { needs_docker: true, ..gang(1, json!({})) },
            with(&|it| it.has_docker = Some(false)),
            "it has no container engine",
        ),
        (gang(1, json!({"backends": ["gcp"]})), with(&|_| {}), "its backend is not in `backends`"),
        (gang(1, json!({"regions": ["r2"]})), with(&|_| {}), "its region is not in `regions`"),
        (
            gang(1, json!({"availability_zones": ["r1b"]})),
            with(&|_| {}),
            "its zone is not in `availability_zones`",
        ),
        (gang(1, json!({"instance_types": ["big"]})), with(&|_| {}), "its type is not in `instance_types`"),
        (single(json!({"cpu": "8..", "memory": "1GB.."})), with(&|_| {}), "`cpu` 8.. is needed, 4 is there"),
        (single(json!({"cpu": "arm:1..", "memory": "1GB.."})), with(&|_| {}), "`cpu` arm is needed, x86 is there"),
        (
            single(json!({"cpu": "1..", "memory": "64GB.."})),
            with(&|_| {}),
            "`memory` 64GB.. is needed, 16GB is there",
        ),
        (
            single(json!({"cpu": "1..", "memory": "1GB..", "gpu": "1"})),
            with(&|_| {}),
            "`gpu` count 1 is needed, 0 is there",
        ),
        (
            single(json!({"cpu": "1..", "memory": "1GB..", "gpu": "H100:1"})),
            with(&|it| gpus(it, "A100")),
            "`gpu` H100 is needed, A100 is there",
        ),
        (
            single(json!({"cpu": "1..", "memory": "1GB..", "gpu": "96GB..:1"})),
            with(&|it| gpus(it, "A100")),
            "`gpu` memory 96GB.. is needed, 80GB is there",
        ),
        (
            single(json!({"cpu": "1..", "memory": "1GB..", "gpu": {"compute_capability": "9.0", "count": 1}})),
            with(&|it| gpus(it, "A100")),
            "`gpu` compute capability 9.0 is needed, A100 has 8.0",
        ),
        (gang(1, json!({"reservation": "res-1"})), with(&|_| {}), "it is not of `reservation` res-1"),
        (
            gang(1, json!({"reservation": "res-1"})),
            with(&|one| one.reservation = Some("res-2".to_owned())),
            "it is not of `reservation` res-1",
        ),
        (gang(1, json!({})), with(&|it| it.instance_type = None), "its hardware is not known yet"),
        (gang(1, json!({"instances": ["other"]})), with(&|_| {}), "it is not in `instances`"),
        (gang(1, json!({})), with(&|it| it.free_blocks.clear()), "busy"),
    ];
    for (gang, pool, reason) in cases {
        let head = match &gang.profile.instances {
            Some(_) => "Failed to use specified instances",
            None => "No matching instance is free and no fleet may grow",
        };
        check(&gang, &pool, &format!("{head} (fleet-0: {reason})"));
    }
}

fn gpus(instance: &mut PoolInstance, name: &str) {
    let gpu = Gpu { name: name.to_owned(), memory_mib: 80 * 1024, vendor: Some("nvidia".to_owned()) };
    instance.instance_type.as_mut().unwrap().resources.gpus = vec![gpu];
}

#[test]
fn price_and_spot_are_kept() {
    let with = |max_price: Option<f64>, spot: Option<bool>| {
        let mut gang = gang(1, json!({}));
        gang.nodes[0].requirements.max_price = max_price;
        gang.nodes[0].requirements.spot = spot;
        gang
    };
    let mut on_spot = free(0);
    on_spot.instance_type.as_mut().unwrap().resources.spot = true;
    let refused = |reason: &str| format!("No matching instance is free and no fleet may grow (fleet-0: {reason})");
    check(&with(Some(1.0), None), &pool(vec![free(0)]), "fleet: 0[0]");
    check(&with(Some(0.9), None), &pool(vec![free(0)]), &refused("it costs $1 an hour, over `max_price`"));
    check(&with(None, Some(true)), &pool(vec![on_spot.clone()]), "fleet: 0[0]");
    check(&with(None, Some(true)), &pool(vec![free(0)]), &refused("it does not fit `spot_policy`"));
    check(&with(None, Some(false)), &pool(vec![on_spot]), &refused("it does not fit `spot_policy`"));
}

#[test]
fn machines_of_the_same_reservation_are_used() {
    let reserved = PoolInstance { reservation: Some("res-1".to_owned()), ..free(0) };
    check(&gang(1, json!({"reservation": "res-1"})), &pool(vec![reserved.clone()]), "fleet: 0[0]");
    // Who asks for none may have any.
    check(&gang(1, json!({})), &pool(vec![reserved]), "fleet: 0[0]");
}

#[test]
fn admins_may_use_the_servers_own_machine() {
    let own = PoolInstance { admins_only: true, ..free(0) };
    check(&Gang { user_is_admin: true, ..gang(1, json!({})) }, &pool(vec![own]), "fleet: 0[0]");
}

#[test]
fn instances_are_selected_by_name_host_or_number() {
    let machines = || pool(vec![free(0), free(1), free(2)]);
    check(&gang(1, json!({"instances": ["fleet-1"]})), &machines(), "fleet: 1[0]");
    check(&gang(1, json!({"instances": [{"hostname": "host-2"}]})), &machines(), "fleet: 2[0]");
    check(&gang(1, json!({"instances": [{"fleet": "fleet", "instance": 2}]})), &machines(), "fleet: 2[0]");
    check(&gang(2, json!({"instances": ["fleet-2", "fleet-1"]})), &machines(), "fleet: 1[0] 2[0]");
}

#[test]
fn fleets_are_selected_by_name_and_project() {
    let both = || Pool { fleets: vec![fleet("a", vec![free(0)]), fleet("b", vec![free(1)])] };
    check(&gang(1, json!({"fleets": ["b"]})), &both(), "b: 1[0]");
    check(&gang(1, json!({"fleets": ["main/b"]})), &both(), "b: 1[0]");
    check(&gang(1, json!({"fleets": ["c"]})), &both(), &format!("{NO_FLEETS} (there is no fleet `c`)"));
    let full = Pool { fleets: vec![fleet("b", vec![busy(1)])] };
    check(&gang(1, json!({"fleets": ["b"]})), &full, "Failed to use specified fleets (fleet-1: busy)");
}

#[test]
fn the_preferred_place_comes_first() {
    let priced = |number, price| PoolInstance { price, ..free(number) };
    let starting = |number| PoolInstance { status: InstanceStatus::Provisioning, ..free(number) };
    // The cheapest, then the lowest number.
    check(&gang(1, json!({})), &pool(vec![priced(0, 2.0), priced(1, 1.0), priced(2, 1.0)]), "fleet: 1[0]");
    // What is there comes before what still starts.
    check(&gang(1, json!({})), &pool(vec![starting(0), priced(1, 9.0)]), "fleet: 1[0]");
    let two = |price| Pool { fleets: vec![fleet("a", vec![priced(0, 1.0)]), fleet("b", vec![priced(1, price)])] };
    check(&gang(1, json!({})), &two(2.0), "a: 0[0]");
    check(&gang(1, json!({})), &two(0.5), "b: 1[0]");
    // The fleet that the run knows comes before a cheaper one.
    let known = Gang { previous_fleet: Some(fleet("a", vec![]).id), ..gang(1, json!({})) };
    check(&known, &two(0.5), "a: 0[0]");
    // What is there comes before what must be bought.
    let mut growing = fleet("a", vec![]);
    growing.room = 4;
    let pool = Pool { fleets: vec![growing, fleet("b", vec![priced(1, 9.0)])] };
    check(&gang(1, json!({})), &pool, "b: 1[0]");
}

#[test]
fn a_fleet_grows_for_a_gang_as_far_as_it_may() {
    let growing = |room, instances| {
        let mut fleet = fleet("fleet", instances);
        fleet.room = room;
        Pool { fleets: vec![fleet] }
    };
    check(&gang(2, json!({})), &growing(2, vec![]), "fleet: new new");
    check(&gang(2, json!({})), &growing(1, vec![free(0)]), "fleet: 0[0] new");
    check(
        &gang(2, json!({})),
        &growing(1, vec![]),
        "No matching instance is free and no fleet may grow (2 nodes are needed in one fleet at once, 0 exist)",
    );
    let reuse = gang(1, json!({"creation_policy": "reuse"}));
    check(&reuse, &growing(2, vec![]), "Could not reuse any instance for this job");
    check(&reuse, &growing(2, vec![free(0)]), "fleet: 0[0]");
    // A run that could not be bought for a moment ago takes only what is there.
    let patient = Gang { may_buy: false, ..gang(1, json!({})) };
    check(&patient, &growing(2, vec![]), "No matching instance is free and no fleet may grow");
    check(&patient, &growing(2, vec![free(0)]), "fleet: 0[0]");
    let mut given = growing(2, vec![]);
    given.fleets[0].can_grow = false;
    check(&gang(1, json!({})), &given, "No matching instance is free and no fleet may grow");
    // Named machines cannot be bought.
    check(&gang(1, json!({"instances": ["x"]})), &growing(2, vec![]), "Failed to use specified instances");
    // Room that one gang takes is gone for the next.
    let mut left = growing(3, vec![]);
    let placed = place(&[gang(2, json!({})), gang(2, json!({})), gang(1, json!({}))], &mut left, &Growth::Unknown);
    let told: Vec<bool> = placed.iter().map(|(_, outcome)| matches!(outcome, Outcome::Placed { .. })).collect();
    assert_eq!(told, [true, false, true]);
}

#[test]
fn a_plan_shows_free_and_busy_machines_that_suit() {
    let machines = pool(vec![free(0), busy(1), PoolInstance { unusable: true, ..free(2) }]);
    let candidates = gang(1, json!({})).candidates(&machines);
    let told: Vec<(bool, u32)> = candidates.iter().map(|candidate| (candidate.free, candidate.blocks)).collect();
    assert_eq!(told, [(true, 1), (false, 1)]);
    assert_eq!(gang(1, json!({})).obstacle(&machines), None);
    assert!(gang(2, json!({})).obstacle(&machines).is_some());
}

/// What each fleet sells, by its name; nobody has asked the others.
struct Sold(Vec<(&'static str, Growth)>);

impl Market for Sold {
    fn growth(&self, _gang: &Gang, _node: &Node, fleet: &PoolFleet) -> Growth {
        let known = self.0.iter().find(|(name, _)| *name == fleet.name);
        known.map_or(Growth::NotAsked, |(_, growth)| growth.clone())
    }
}

#[test]
fn a_fleet_grows_only_if_it_can_buy_what_is_needed() {
    let growing = |name: &str, instances| PoolFleet { room: 2, ..fleet(name, instances) };
    let both = Pool { fleets: vec![growing("a", vec![]), growing("b", vec![])] };
    let nothing = || Growth::Nothing("`fake`: `gpu` H100 is needed".to_owned());
    let sold = |a, b| Sold(vec![("a", a), ("b", b)]);
    let one = gang(1, json!({}));
    // The cheaper one, and not the older one.
    check_with(&one, &both, &sold(Growth::Price(2.0), Growth::Price(1.0)), "b: new");
    check_with(&one, &both, &sold(nothing(), Growth::Price(9.0)), "b: new");
    check_with(&gang(2, json!({})), &both, &sold(nothing(), Growth::Price(9.0)), "b: new new");
    // What is not known is no refusal, but what is known is preferred to it.
    check_with(&one, &both, &sold(nothing(), Growth::Unknown), "b: new");
    check_with(&one, &both, &sold(Growth::Unknown, Growth::Price(9.0)), "b: new");
    check_with(
        &one,
        &both,
        &sold(nothing(), nothing()),
        "No matching instance is free and no offers found (fleet a: `fake`: `gpu` H100 is needed; \
         fleet b: `fake`: `gpu` H100 is needed)",
    );
    // A run that was in a fleet before does not insist on it when it sells nothing.
    let known = Gang { previous_fleet: Some(fleet("a", vec![]).id), ..gang(1, json!({})) };
    check_with(&known, &both, &sold(nothing(), Growth::Price(9.0)), "b: new");
    check_with(&known, &both, &sold(Growth::Price(9.0), Growth::Price(1.0)), "a: new");
}

#[test]
fn offers_are_asked_for_only_when_something_must_be_bought() {
    let growing = |name: &str, instances| PoolFleet { room: 2, ..fleet(name, instances) };
    let nobody_asked = Sold(vec![]);
    let pool = Pool { fleets: vec![growing("a", vec![]), growing("b", vec![free(0)])] };
    check_with(&gang(1, json!({})), &pool, &nobody_asked, "b: 0[0]");
    check_with(&gang(2, json!({})), &pool, &nobody_asked, "asks 2");
    // Who may not buy need not know.
    let patient = Gang { may_buy: false, ..gang(2, json!({})) };
    check_with(
        &patient,
        &pool,
        &nobody_asked,
        "No matching instance is free and no fleet may grow (2 nodes are needed in one fleet at once, 1 exist; \
         fleet-0: free, but not enough of its peers are)",
    );
    // What comes after depends on it, and is not looked at yet.
    let gangs = [gang(1, json!({})), gang(1, json!({})), gang(1, json!({}))];
    assert_eq!(place(&gangs, &mut pool.clone(), &nobody_asked).len(), 2);
    // Who was told why before is not told again.
    let told = Gang { wants_reason: false, ..patient };
    let outcomes = place(&[told], &mut pool.clone(), &nobody_asked);
    assert_eq!(outcomes[0].1, Outcome::NoCapacity { message: None });
}

#[test]
fn a_machine_that_lacks_efa_devices_takes_no_node_of_a_gang() {
    let lacking = || PoolInstance { incomplete_efa: Some("31 of 32 EFA devices".to_owned()), ..free(0) };
    let both = pool(vec![lacking(), free(1)]);
    let nothing = Growth::Nothing("nobody sells any".to_owned());
    let mut left = both.clone();
    let placed = place(&[gang(2, json!({}))], &mut left, &nothing);
    let message = told(&placed[0].1, &both);
    assert!(
        message.contains("fleet-0: it has 31 of 32 EFA devices, and a job with several nodes needs all of them"),
        "{message}"
    );
    check(&gang(2, json!({})), &pool(vec![lacking(), free(1), free(2)]), "fleet: 1[0] 2[0]");
    check(&gang(1, json!({})), &pool(vec![lacking()]), "fleet: 0[0]");
}
