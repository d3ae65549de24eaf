//! Jobs that do not end with their command, because people work in them.

#![cfg(test)]

mod support;

use api::agent::*;
use support::*;

const GREETING: &str = "hello in $DSTACK_WORKING_DIR\n";

/// A job that stays after a command.
fn staying(argv: &[&str]) -> TaskSpec {
    TaskSpec { stay: Some(Stay { greeting: GREETING.to_owned() }), ..process(argv) }
}

/// Waits until the log has a text, and answers all of it so far.
async fn wait_for_log(agent: &mut Agent, spec: &TaskSpec, wanted: &str) -> String {
    let logs = agent.home.path().join("tasks").join(spec.id.to_string());
    eventually(wanted, async || {
        let printed = text(&log_bytes(&logs));
        printed.contains(wanted).then_some(printed)
    })
    .await
}

/// What lies in the segments below a folder.
fn log_bytes(folder: &std::path::Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            bytes.extend(log_bytes(&path));
        } else if path.extension().is_some_and(|extension| extension == "log") {
            bytes.extend(std::fs::read(path).unwrap_or_default());
        }
    }
    bytes
}

#[tokio::test]
async fn a_job_without_a_command_greets_and_stays_until_it_is_stopped() {
    let mut agent = Agent::new(&[]);
    let spec = staying(&[]);
    agent.put(&spec).await;
    let state = agent.wait_for(&spec, "started", |state| state.started_at.is_some()).await;
    let place = state.resolved.working_dir.unwrap();
    wait_for_log(&mut agent, &spec, &format!("hello in {place}")).await;
    agent.wait_for(&spec, "nobody is there", |state| state.unvisited_millis.is_some()).await;
    agent.stop(&spec, 3600).await;
    let state = agent.wait_sealed(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Stopped);
    assert_eq!(state.unvisited_millis, None);
    assert!(processes_of(spec.id).into_iter().all(|pid| !is_alive(pid)));
}

#[tokio::test]
async fn what_a_command_left_running_keeps_its_terminal() {
    let mut agent = Agent::new(&[]);
    let left = "(n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done) & echo begun";
    let spec = staying(&["/bin/sh", "-c", left]);
    agent.put(&spec).await;
    let log = wait_for_log(&mut agent, &spec, "hello in").await;
    assert!(log.contains("begun"), "{log}");
    let after = log.matches("tick").count() + 3;
    wait_for_log(&mut agent, &spec, &format!("tick {after}\n")).await;
    assert_eq!(agent.state(spec.id).await.unwrap().phase, TaskPhase::Running);
    // It hears of the end, and needs not be killed.
    agent.stop(&spec, 3600).await;
    agent.wait_sealed(&spec).await;
    assert!(processes_of(spec.id).into_iter().all(|pid| !is_alive(pid)));
}

#[tokio::test]
async fn a_command_that_fails_ends_the_job_without_a_greeting() {
    let mut agent = Agent::new(&[]);
    let check = async |agent: &mut Agent, argv: &[&str], status: i32, said: &str| {
        let (state, log) = agent.run(&staying(argv)).await;
        let exit = state.exit.unwrap();
        assert_eq!((exit.reason, exit.exit_status), (ExitReason::Failed, Some(status)), "{argv:?}");
        let log = text(&log);
        assert!(log.contains(said) && !log.contains("hello"), "{log}");
    };
    check(&mut agent, &["/bin/sh", "-c", "echo no; exit 3"], 3, "no").await;
    check(&mut agent, &["/bin/sh", "-c", "echo dies; kill -KILL $$"], 137, "dies").await;
    check(&mut agent, &["/no/such/shell", "-c", "x"], 127, "cannot start `/no/such/shell`").await;
}

#[tokio::test]
async fn a_stop_interrupts_the_command_though_its_shell_goes_to_its_prompt() {
    let mut agent = Agent::new(&[]);
    for flags in [&["-i", "-c"][..], &["-c"]] {
        let argv = [&["/bin/sh"], flags, &["echo begun; sleep 1000010; echo on"]].concat();
        let spec = staying(&argv);
        agent.put(&spec).await;
        wait_for_log(&mut agent, &spec, "begun").await;
        agent.stop(&spec, 3600).await;
        let exit = agent.wait_sealed(&spec).await.exit.unwrap();
        assert_eq!(exit.reason, ExitReason::Stopped);
        assert!(!wait_for_log(&mut agent, &spec, "begun").await.contains("hello"));
    }
}

#[tokio::test]
async fn a_job_that_stays_does_not_stay_longer_than_it_may() {
    let mut agent = Agent::new(&[]);
    let spec = TaskSpec { max_duration_secs: Some(1), ..staying(&[]) };
    let (state, _) = agent.run(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::MaxDurationExceeded);
}

#[tokio::test]
async fn an_agent_that_comes_back_knows_how_long_nobody_has_been_there() {
    let mut agent = Agent::new(&[]);
    let spec = staying(&[]);
    agent.put(&spec).await;
    let is_old = |state: &TaskState| state.unvisited_millis.is_some_and(|millis| millis >= 700);
    let before = agent.wait_for(&spec, "some absence", is_old).await.unvisited_millis;
    agent.restart();
    let state = agent.wait_for(&spec, "the same absence", |state| state.unvisited_millis.is_some()).await;
    assert!(before <= state.unvisited_millis, "{before:?} {state:?}");
    // A job that does not stay is none of this.
    let other = process(&["/bin/sleep", "1000011"]);
    agent.put(&other).await;
    let state = agent.wait_for(&other, "started", |state| state.started_at.is_some()).await;
    assert_eq!(state.unvisited_millis, None);
    for spec in [&spec, &other] {
        agent.stop(spec, 0).await;
        agent.wait_sealed(spec).await;
    }
}
