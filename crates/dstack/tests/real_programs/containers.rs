//! Tasks in containers, by a real engine.

use std::fs;
use std::path::Path;

use crate::rig::{FLEET, Rig, program};

/// The task that the README shows, in the image that `cargo xtask test` makes.
fn example_in_a_container() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/distributed/task.dstack.yml");
    let text = fs::read_to_string(path).expect("the example is there");
    text.replace("nodes: 2\n", "nodes: 2\nimage: dstack-test:latest\n")
}

#[test]
fn two_containers_add_up_their_vectors() {
    let test = "two_containers_add_up_their_vectors";
    if program("DSTACK_TEST_DOCKER", test).is_none() {
        return;
    }
    let Some(rig) = Rig::start_with_agent("DSTACK_TEST_AGENT_STATIC", test) else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let applied = rig.apply("task.dstack.yml", &example_in_a_container(), &["-R"]).text();
    for rank in [0, 1] {
        let line = format!("[{rank}] rank {rank} of 2: all-reduce is right");
        assert!(applied.lines().any(|seen| seen.starts_with(&line)), "no line begins with `{line}`:\n{applied}");
    }
    rig.run(&["delete", "-f", "fleet.dstack.yml", "-y"]).expect_status(0);
}
