//! Our command line against a real server and real agents on this machine.

use std::time::Duration;

use crate::rig::{FLEET, Rig, kill, wait_for};

/// Lines that each node writes in the tests of crashes, and how long one is: 2 MB for each node.
const LINES: usize = 40_000;

/// A task whose nodes write numbered lines for some seconds.
fn flood() -> String {
    format!(
        r#"
type: task
name: flood
nodes: 2
commands:
  - |
    python3 -u - <<'PY'
    import os, sys, time
    rank = os.environ["DSTACK_NODE_RANK"]
    for chunk in range(0, {LINES}, 400):
        sys.stdout.write("".join(f"rank {{rank}} line {{i:08d}} {{'x' * 30}}\n" for i in range(chunk, chunk + 400)))
        time.sleep(0.05)
    PY
resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}
"#
    )
}

/// What one node of the flood writes.
fn flooded(rank: u32) -> String {
    let lines = (0..LINES).map(|i| format!("rank {rank} line {i:08} {}\n", "x".repeat(30)));
    lines.collect()
}

/// Fails unless the whole log of each node is there, every byte once.
#[track_caller]
fn assert_flood_is_complete(rig: &Rig) {
    for rank in [0, 1] {
        let log = rig.run(&["logs", "flood", "--job", &rank.to_string()]).expect_status(0);
        let log = log.text().replace('\r', "");
        let expected = flooded(rank);
        let first_wrong = log.lines().zip(expected.lines()).position(|(got, expected)| got != expected);
        assert_eq!(first_wrong, None, "node {rank}: this line is the first wrong one");
        assert_eq!(log.len(), expected.len(), "node {rank}: the log has another length");
    }
}

/// Waits until both nodes of the flood have written something that the server has.
fn wait_for_flood(rig: &Rig) {
    for rank in ["0", "1"] {
        wait_for("the flood's first lines", Duration::from_mins(1), || {
            let log = rig.run(&["logs", "flood", "--job", rank]);
            (log.status == Some(0) && log.text().contains("line 00000400")).then_some(())
        });
    }
}

pub(crate) fn task(name: &str, nodes: u32, command: &str) -> String {
    format!(
        "type: task\nname: {name}\nnodes: {nodes}\ncommands:\n  - |\n    {command}\n\
         resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
    )
}

#[test]
fn two_nodes_tell_their_ranks() {
    let Some(rig) = Rig::start("two_nodes_tell_their_ranks") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let text =
        task("ranks", 2, "echo I am $DSTACK_NODE_RANK of $DSTACK_NODES_NUM, first is $DSTACK_MASTER_NODE_IP");
    let applied = rig.apply("task.dstack.yml", &text, &["-R"]).text();
    for rank in ["0", "1"] {
        let line = format!("[{rank}] I am {rank} of 2, first is ");
        assert!(applied.lines().any(|seen| seen.starts_with(&line)), "no line begins with `{line}`:\n{applied}");
    }
    assert_eq!(rig.run_status("ranks"), "done");
    let alone = rig.run(&["logs", "ranks", "--job", "1"]).expect_status(0).text();
    assert!(alone.starts_with("I am 1 of 2"), "one node alone has no prefix: {alone}");
    rig.run(&["delete", "-f", "fleet.dstack.yml", "-y"]).expect_status(0);
    let agents = rig.processes(&["dstack-agent"]);
    assert_eq!(agents, Vec::<u32>::new(), "no agent outlives its fleet");
}

#[test]
fn a_failing_node_fails_the_run_and_is_named() {
    let Some(rig) = Rig::start("a_failing_node_fails_the_run_and_is_named") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    rig.write("task.dstack.yml", &task("lame", 2, "if [ $DSTACK_NODE_RANK = 1 ]; then exit 7; fi; sleep 300"));
    let ended = rig.run(&["apply", "-f", "task.dstack.yml", "-R", "-y"]).expect_status(1);
    let said = ended.text() + &ended.stderr;
    assert!(said.contains("Exited (7), node 1"), "exit status and node are told:\n{said}");
    assert_eq!(rig.run_status("lame"), "failed");
}

#[test]
fn a_run_is_stopped_while_it_runs() {
    let Some(rig) = Rig::start("a_run_is_stopped_while_it_runs") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let text = task("long", 2, "echo started; sleep 3600; echo too late");
    rig.apply("task.dstack.yml", &text, &["-R", "-d"]);
    rig.wait_for_status("long", "running");
    // A node is running before its shell has come to the second command, and the log comes after.
    wait_for("the sleep of both nodes", Duration::from_mins(1), || {
        (rig.processes(&["sleep", "3600"]).len() >= 2).then_some(())
    });
    for node in [0, 1] {
        wait_for("what was written first", Duration::from_mins(1), || {
            rig.log("long", node).starts_with(b"started").then_some(())
        });
    }
    rig.run(&["stop", "long", "-y"]).expect_status(0);
    rig.wait_for_status("long", "terminated");
    assert_eq!(rig.processes(&["sleep", "3600"]), Vec::<u32>::new(), "nothing of the run is left");
    let log = rig.run(&["logs", "long"]).expect_status(0).text();
    assert!(log.contains("started") && !log.contains("too late"), "{log}");
}

#[test]
fn a_detached_run_is_followed_to_its_end() {
    let Some(rig) = Rig::start("a_detached_run_is_followed_to_its_end") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let text = task("slow", 1, "for i in 1 2 3 4; do echo step $i; sleep 0.5; done");
    rig.apply("task.dstack.yml", &text, &["-R", "-d"]);
    let followed = rig.run(&["logs", "slow", "-f"]).expect_status(0).text();
    assert_eq!(followed.replace('\r', ""), "step 1\nstep 2\nstep 3\nstep 4\n");
    rig.wait_for_status("slow", "done");
}

#[test]
fn the_server_may_die_while_nodes_write() {
    let Some(mut rig) = Rig::start("the_server_may_die_while_nodes_write") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    rig.apply("task.dstack.yml", &flood(), &["-R", "-d"]);
    wait_for_flood(&rig);
    rig.kill_server();
    rig.start_server();
    rig.wait_for_status("flood", "done");
    assert_flood_is_complete(&rig);
}

#[test]
fn the_agents_may_die_while_nodes_write() {
    let Some(rig) = Rig::start("the_agents_may_die_while_nodes_write") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    rig.apply("task.dstack.yml", &flood(), &["-R", "-d"]);
    wait_for_flood(&rig);
    for agent in rig.wait_for_agents(2) {
        kill(agent.pid, "KILL");
    }
    rig.wait_for_status("flood", "done");
    assert_flood_is_complete(&rig);
}
