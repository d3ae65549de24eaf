//! Nodes that start together, or in their order, or not at all.

use std::fs;
use std::time::Duration;

use crate::local::task;
use crate::rig::{FLEET, Rig, kill, now_nanos, pause, wait_for};

/// How long a node that must wait is watched.
const WATCH: Duration = Duration::from_secs(2);

/// Notes a node's rank and the time in the ledger.
const NOTE: &str = "echo $DSTACK_NODE_RANK $(date +%s%N) >> $LEDGER";

fn ledgered(rig: &Rig, text: &str) -> String {
    text.replace("$LEDGER", &rig.dir.join("ledger").display().to_string())
}

/// The noted ranks with their times, the earliest first.
fn noted(rig: &Rig) -> Vec<(u32, u128)> {
    let text = fs::read_to_string(rig.dir.join("ledger")).unwrap_or_default();
    let mut noted: Vec<(u32, u128)> = text
        .lines()
        .map(|line| {
            let (rank, time) = line.split_once(' ').expect("a rank and a time");
            (rank.parse().unwrap(), time.parse().unwrap())
        })
        .collect();
    noted.sort_by_key(|(_, time)| *time);
    noted
}

fn ranks(noted: &[(u32, u128)]) -> Vec<u32> {
    let mut ranks: Vec<u32> = noted.iter().map(|(rank, _)| *rank).collect();
    ranks.sort_unstable();
    ranks
}

#[test]
fn no_node_starts_before_the_last_is_ready() {
    let Some(rig) = Rig::start("no_node_starts_before_the_last_is_ready") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let slow = rig.wait_for_agents(2).pop().expect("there are two");
    // As slow as an agent can be.
    kill(slow.pid, "STOP");
    rig.apply("task.dstack.yml", &task("gang", 2, &ledgered(&rig, NOTE)), &["-R", "-d"]);
    wait_for("one node that waits for the other", Duration::from_mins(1), || {
        let run = rig.get_run("gang").to_string();
        run.contains("the other nodes to be ready").then_some(())
    });
    pause(WATCH);
    assert_eq!(noted(&rig), [], "a node that is ready waits for its peer");
    let released = now_nanos();
    kill(slow.pid, "CONT");
    rig.wait_for_status("gang", "done");
    let noted = noted(&rig);
    assert_eq!(ranks(&noted), [0, 1]);
    assert!(released < noted[0].1, "the first start comes after the last node is ready");
}

#[test]
fn an_agent_that_dies_between_ready_and_go_starts_nobody_early() {
    let Some(rig) = Rig::start("an_agent_that_dies_between_ready_and_go_starts_nobody_early") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let agent = rig.wait_for_agents(2).pop().expect("there are two");
    let armed = agent.home.join("failpoint");
    fs::write(&armed, "ready:after").unwrap();
    rig.apply("task.dstack.yml", &task("gang", 2, &ledgered(&rig, NOTE)), &["-R", "-d"]);
    let mut before = now_nanos();
    wait_for("the crash", Duration::from_mins(1), || {
        let seen = now_nanos();
        let crashed = !armed.exists();
        if !crashed {
            before = seen;
        }
        crashed.then_some(())
    });
    rig.wait_for_status("gang", "done");
    let noted = noted(&rig);
    assert_eq!(ranks(&noted), [0, 1], "each node starts once");
    assert!(before < noted[0].1, "nobody had started when the agent died");
    assert_eq!(rig.submissions("gang"), [1, 1]);
}

#[test]
fn groups_have_their_own_commands_and_know_each_others_addresses() {
    let Some(rig) = Rig::start("groups_have_their_own_commands_and_know_each_others_addresses") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let text = "
type: task
name: groups
groups:
  - name: head
    nodes: 1
    resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}
    commands:
      - echo I am head, the worker is ${{ groups[1].nodes[0].IP_ADDRESS }}
  - name: worker
    nodes: 1
    resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}
    commands:
      - echo I am worker, the head is ${{ groups[0].nodes[0].IP_ADDRESS }} and so is $DSTACK_MASTER_NODE_IP
";
    rig.apply("task.dstack.yml", text, &["-R"]);
    let address = |node| {
        let place = rig.submission("groups", node);
        place["job_provisioning_data"]["internal_ip"].as_str().expect("the node has an address").to_owned()
    };
    let (head, worker) = (address(0), address(1));
    assert_ne!(head, worker);
    assert_eq!(String::from_utf8_lossy(&rig.log("groups", 0)), format!("I am head, the worker is {worker}\r\n"));
    assert_eq!(
        String::from_utf8_lossy(&rig.log("groups", 1)),
        format!("I am worker, the head is {head} and so is {head}\r\n")
    );
}

/// Runs two nodes that end at once, in an order, and gives who started when.
fn starts_in_order(rig: &Rig, order: &str) -> Vec<u32> {
    let _of_the_run_before = fs::remove_file(rig.dir.join("ledger"));
    // The lines' own order tells: to ask for the time takes a program that a busy machine may keep waiting.
    let text = task(order, 2, &ledgered(rig, "echo $DSTACK_NODE_RANK 0 >> $LEDGER"))
        + &format!("startup_order: {order}\n");
    rig.apply("task.dstack.yml", &text, &["-R"]);
    assert_eq!(rig.run_status(order), "done", "a peer that has ended holds nobody up");
    noted(rig).iter().map(|(rank, _)| *rank).collect()
}

#[test]
fn nodes_start_in_the_order_that_was_asked_for() {
    let Some(rig) = Rig::start("nodes_start_in_the_order_that_was_asked_for") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    assert_eq!(starts_in_order(&rig, "master-first"), [0, 1]);
    assert_eq!(starts_in_order(&rig, "workers-first"), [1, 0]);
}

#[test]
fn a_gang_is_tried_again_as_a_whole() {
    let Some(rig) = Rig::start("a_gang_is_tried_again_as_a_whole") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    // Node 1 fails the first time; node 0 would run for ever if it were left alone.
    let command = format!(
        "{NOTE}; if [ -e $LEDGER.tried ]; then echo again; exit 0; fi; \
         if [ $DSTACK_NODE_RANK = 0 ]; then sleep 3600; fi; \
         until [ $(wc -l < $LEDGER) = 2 ]; do sleep 0.05; done; touch $LEDGER.tried; exit 7"
    );
    let text = task("gang", 2, &ledgered(&rig, &command)) + "retry: {on_events: [error], duration: 1h}\n";
    rig.apply("task.dstack.yml", &text, &["-R", "-d"]);
    rig.wait_for_status("gang", "done");
    assert_eq!(rig.submissions("gang"), [2, 2], "both nodes are tried twice");
    assert_eq!(ranks(&noted(&rig)), [0, 0, 1, 1]);
    for node in [0, 1] {
        assert_eq!(String::from_utf8_lossy(&rig.log("gang", node)), "again\r\n", "node {node}");
    }
    let run = rig.get_run("gang");
    let reasons: Vec<&str> = (0..2)
        .map(|node| run["jobs"][node]["job_submissions"][0]["termination_reason"].as_str().unwrap_or("none"))
        .collect();
    assert_eq!(reasons[1], "container_exited_with_error", "the cause is told");
    assert_ne!(reasons[0], "container_exited_with_error", "its consequence is told apart: {reasons:?}");
}
