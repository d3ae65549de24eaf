//! Which machines a gang gets, and in which order, where it is known how they are connected.

use lifecycle::placement::{PoolInstance, neighbours_together};
use serde_json::json;

use crate::placement::{free, gang, placed};

/// A free machine under these switches.
fn under(number: u32, path: &str) -> PoolInstance {
    PoolInstance { network_path: path.split_whitespace().map(str::to_owned).collect(), ..free(number) }
}

/// The numbers of the machines that a gang gets, by rank.
#[track_caller]
fn check(nodes: u32, machines: Vec<PoolInstance>, expected: &[u32]) {
    let words = expected.iter().map(|number| format!(" {number}[0]")).collect::<Vec<_>>();
    assert_eq!(placed(&gang(nodes, json!({})), machines), format!("fleet:{}", words.concat()));
}

#[test]
fn neighbouring_ranks_are_neighbouring_machines() {
    let paths = ["a b x", "a c y", "a b x", "a c y", "a b w"];
    check(5, (0..).zip(paths).map(|(number, path)| under(number, path)).collect(), &[4, 0, 2, 1, 3]);
}

#[test]
fn a_gang_is_under_as_few_switches_as_can_be() {
    let paths = ["a b x", "a c y", "a b w", "a c y", "a b x", "a c z"];
    let machines: Vec<PoolInstance> = (0..).zip(paths).map(|(number, path)| under(number, path)).collect();
    check(2, machines.clone(), &[0, 4]);
    check(3, machines.clone(), &[2, 0, 4]);
    check(4, machines.clone(), &[2, 0, 1, 3]);
    check(6, machines.clone(), &[2, 0, 4, 1, 3, 5]);
    // What is busy is no place.
    let mut busy = machines;
    busy[4].free_blocks.clear();
    check(2, busy.clone(), &[1, 3]);
    check(3, busy, &[1, 3, 5]);
}

#[test]
fn where_nobody_tells_how_machines_are_connected_their_numbers_count() {
    check(3, vec![under(0, "a b x"), under(1, ""), under(2, "a a w")], &[0, 1, 2]);
    check(2, vec![free(0), free(1), free(2)], &[0, 1]);
}

#[test]
fn machines_that_came_in_any_order_are_put_in_order() {
    let check = |machines: &[(&str, u32)], expected: Option<&[usize]>| {
        let paths: Vec<Vec<String>> =
            machines.iter().map(|(path, _)| path.split_whitespace().map(str::to_owned).collect()).collect();
        let machines: Vec<(&[String], u32)> =
            paths.iter().zip(machines).map(|(path, (_, number))| (&path[..], *number)).collect();
        assert_eq!(neighbours_together(&machines).as_deref(), expected);
    };
    check(&[("a c y", 0), ("a b x", 1), ("a c y", 2), ("a b w", 3)], Some(&[3, 1, 0, 2]));
    check(&[("a b w", 3), ("a b x", 1), ("a c y", 0), ("a c y", 2)], None);
    // Under one switch, their numbers count.
    check(&[("a b x", 1), ("a b x", 0)], Some(&[1, 0]));
    check(&[("a c y", 0), ("", 1), ("a b x", 2)], None);
    check(&[], None);
}
