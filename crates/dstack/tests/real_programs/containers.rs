//! Tasks in containers, by a real engine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::rig::{FLEET, IMAGE, Rig, Setup, end, wait_for};

/// A server whose tasks may go into containers.
fn start(test: &str) -> Option<Rig> {
    Rig::start_with(test, Setup { containers: true, ..Setup::default() })
}

/// Asks the engine, and answers what it prints.
#[track_caller]
fn docker(args: &[&str]) -> String {
    end(Command::new("docker").args(args)).expect_status(0).text().trim().to_owned()
}

/// A task in a container that sees a folder of the rig as `/shared`.
pub(crate) fn contained(rig: &Rig, name: &str, nodes: u32, command: &str) -> String {
    let shared = rig.dir.join("shared");
    fs::create_dir_all(&shared).unwrap();
    format!(
        "type: task\nname: {name}\nnodes: {nodes}\nimage: {IMAGE}\ncommands:\n  - |\n    {command}\n\
         volumes: [\"{}:/shared\"]\nresources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n",
        shared.display()
    )
}

/// The container of a job.
fn container_of(rig: &Rig, run: &str) -> String {
    let id = rig.submission(run, 0)["id"].as_str().expect("a submission has an identifier").to_owned();
    let filter = format!("label=ai.dstack.task-id={id}");
    wait_for("the job's container", Duration::from_mins(1), || {
        Some(docker(&["ps", "-q", "--filter", &filter])).filter(|found| !found.is_empty())
    })
}

/// The task that the README shows, in the image that tests have.
fn example_in_a_container() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/distributed/task.dstack.yml");
    let text = fs::read_to_string(path).expect("the example is there");
    text.replace("nodes: 2\n", &format!("nodes: 2\nimage: {IMAGE}\n"))
}

#[test]
fn two_containers_add_up_their_vectors() {
    let Some(rig) = start("two_containers_add_up_their_vectors") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let applied = rig.apply("task.dstack.yml", &example_in_a_container(), &["-R"]).text();
    for rank in [0, 1] {
        let line = format!("[{rank}] rank {rank} of 2: all-reduce is right");
        assert!(applied.lines().any(|seen| seen.starts_with(&line)), "no line begins with `{line}`:\n{applied}");
    }
}

#[test]
fn a_container_is_stopped_while_it_runs() {
    let Some(rig) = start("a_container_is_stopped_while_it_runs") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let command = "trap 'echo told to end; exit 0' TERM INT; echo up; while true; do sleep 0.1; done";
    rig.apply("task.dstack.yml", &contained(&rig, "long", 1, command), &["-R", "-d"]);
    wait_for("the first words", Duration::from_mins(1), || rig.log("long", 0).starts_with(b"up").then_some(()));
    let container = container_of(&rig, "long");
    rig.run(&["stop", "long", "-y"]).expect_status(0);
    rig.wait_for_status("long", "terminated");
    assert_eq!(String::from_utf8_lossy(&rig.log("long", 0)), "up\r\ntold to end\r\n");
    wait_for("the container's end", Duration::from_mins(1), || {
        docker(&["ps", "-aq", "--filter", &format!("id={container}")]).is_empty().then_some(())
    });
}

#[test]
fn two_jobs_share_a_machine_by_its_blocks() {
    let Some(rig) = start("two_jobs_share_a_machine_by_its_blocks") else { return };
    let fleet = "type: fleet\nname: halves\nnodes: 1\nblocks: 2\n\
                 resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}\n";
    rig.apply("fleet.dstack.yml", fleet, &[]);
    // Each ends when it has seen the other.
    let command = "touch /shared/$DSTACK_RUN_NAME; until [ $(ls /shared | wc -l) = 2 ]; do sleep 0.05; done";
    for name in ["left", "right"] {
        let text = contained(&rig, name, 1, command).replace("cpu: 1..", "cpu: 1");
        rig.apply("task.dstack.yml", &text, &["-R", "-d"]);
    }
    for name in ["left", "right"] {
        rig.wait_for_status(name, "done");
    }
    let place = |name: &str| {
        let submission = rig.submission(name, 0);
        let machine = submission["job_provisioning_data"]["instance_id"].as_str();
        machine.expect("a job that ran has a machine").to_owned()
    };
    assert_eq!(place("left"), place("right"));
}

#[test]
fn a_container_that_takes_too_much_memory_is_told() {
    let Some(rig) = start("a_container_that_takes_too_much_memory_is_told") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let command = "until [ -e /shared/go ]; do sleep 0.05; done; python3 -c 'x = bytearray(1 << 30)'";
    rig.write("task.dstack.yml", &contained(&rig, "greedy", 1, command));
    rig.run(&["apply", "-f", "task.dstack.yml", "-R", "-y", "-d"]).expect_status(0);
    rig.wait_for_status("greedy", "running");
    // Less than its share of this machine, which may be large.
    docker(&["update", "--memory", "128m", "--memory-swap", "128m", &container_of(&rig, "greedy")]);
    rig.write("shared/go", "");
    rig.wait_for_status("greedy", "failed");
    let event = rig.run(&["event", "--within-run", "greedy"]).expect_status(0).text();
    assert!(event.contains("The job ran out of memory and was killed"), "{event}");
    let ps = rig.run(&["ps", "-a"]).expect_status(0).text();
    assert!(ps.contains("exited (137)"), "{ps}");
}
