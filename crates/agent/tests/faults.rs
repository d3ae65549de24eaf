//! Crashes of the agent and of supervisors at every step: nothing runs twice, nothing is lost.

#![cfg(test)]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use api::agent::*;
use support::*;
use tokio::time::sleep;

/// Points that are passed only by a task that is stopped.
const OF_STOP: [&str; 3] = ["stopping:before", "stopping:after", "stop:after"];
/// Points at which the supervisor dies after its command may have started: the job is lost, and says so.
const LOSING: [&str; 4] = ["job:go", "job:started-marked", "job:started", "job:exited"];

fn fail_points() -> Vec<String> {
    let output = std::process::Command::new(binary()).arg("failpoints").output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn numbered_lines(count: u32) -> String {
    (1..=count).fold(String::new(), |mut text, number| {
        write!(text, "line {number} of a job that must not lose any\r\n").unwrap();
        text
    })
}

/// A job that notes each of its starts in `ledger` and prints numbered lines.
fn counted(ledger: &Path, count: u32) -> TaskSpec {
    script(&format!(
        "echo started >> {}; seq -f 'line %.0f of a job that must not lose any' 1 {count}",
        ledger.display()
    ))
}

fn starts(ledger: &Path) -> usize {
    std::fs::read_to_string(ledger).unwrap_or_default().lines().count()
}

fn arm(agent: &Agent, point: &str) {
    std::fs::write(agent.home.path().join("failpoint"), point).unwrap();
}

fn fired(agent: &Agent) -> bool {
    !exists(&agent.home.path().join("failpoint"))
}

/// Runs a task through a crash at `point` to its end.
async fn survive(point: &str) {
    let mut agent = Agent::new(&[]);
    let ledger = agent.home.path().join("ledger");
    let is_stop = OF_STOP.contains(&point);
    let mut spec = counted(&ledger, 20_000);
    if is_stop {
        spec = script(&format!("echo started >> {}; echo up; sleep 1000", ledger.display()));
    }
    spec.released = false;
    agent.hello().await;
    arm(&agent, point);
    agent.put(&spec).await;
    agent.order(&spec, "go").await;
    if is_stop {
        agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
        agent.stop(&spec, 300).await;
    }
    let log = agent.read_log(spec.id, 0).await;
    let state = agent.wait_sealed(&spec).await;
    let exit = state.exit.unwrap();
    assert!(log.gaps.is_empty(), "{point}: {:?}", log.gaps);
    assert_eq!(log.end, Some(state.log_end), "{point}");
    assert!(processes_of(spec.id).is_empty(), "{point}");
    if LOSING.contains(&point) {
        assert_eq!(exit.reason, ExitReason::ExecutorError, "{point}: {exit:?}");
        assert!(starts(&ledger) <= 1, "{point}");
    } else if is_stop {
        assert_eq!(exit.reason, ExitReason::Stopped, "{point}: {exit:?}");
        assert_eq!(starts(&ledger), 1, "{point}");
    } else if point == "job:panic" {
        assert_eq!(exit.reason, ExitReason::ExecutorError, "{point}: {exit:?}");
        assert!(exit.message.unwrap().contains("a test asked for it"));
        assert_eq!(starts(&ledger), 0, "{point}");
    } else {
        assert_eq!(exit.reason, ExitReason::Done, "{point}: {exit:?}\n{}", agent.log());
        assert_eq!(starts(&ledger), 1, "{point}");
        let expected = numbered_lines(20_000);
        assert!(log.bytes == expected.as_bytes(), "{point}: {} bytes", log.bytes.len());
    }
    agent.forget(&spec).await;
    eventually("fired", async || fired(&agent).then_some(())).await;
    assert_eq!(agent.state(spec.id).await, None, "{point}");
    assert!(agent.task_ids().is_empty(), "{point}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_point_neither_loses_nor_repeats() {
    let points = fail_points();
    let mut visited = 0;
    for point in points.iter().filter(|point| !point.starts_with("container:")) {
        println!("{point}");
        survive(point).await;
        visited += 1;
    }
    // A point that is dropped from the list is no longer tested; that must be noticed.
    assert!(visited >= 36, "only {visited} points were visited");
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_at_random_moments_lose_nothing() {
    const LINES: u32 = 100_000;
    let mut agent = Agent::new(&[]);
    let ledger = agent.home.path().join("ledger");
    let mut spec = counted(&ledger, LINES);
    // It goes on after each crash, so that they all fall into its life.
    let marks = tempfile::tempdir().unwrap();
    spec.argv[2] = format!(
        "echo started >> {}; for part in 0 1 2 3 4 5 6 7 8 9; do \
         seq -f 'line %.0f of a job that must not lose any' $((part*10000+1)) $((part*10000+10000)); \
         while [ ! -e {}/$part ]; do sleep 0.02; done; done",
        ledger.display(),
        marks.path().display()
    );
    agent.put(&spec).await;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut log = Log::default();
    let mut crashes = 0;
    while log.end.is_none() && crashes < 1000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut client = agent.client().await;
        tokio::select! {
            () = client.follow_log(spec.id, &mut log) => {}
            () = sleep(Duration::from_millis(random % 120)) => {
                agent.kill();
                std::fs::write(marks.path().join(crashes.to_string()), "").unwrap();
                crashes += 1;
            }
        }
    }
    let state = agent.wait_sealed(&spec).await;
    assert!(crashes >= 10, "{crashes}");
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done);
    assert!(log.gaps.is_empty());
    assert!(log.bytes == numbered_lines(LINES).as_bytes(), "{} bytes", log.bytes.len());
    assert_eq!(starts(&ledger), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_delivered_again_after_a_crash_of_the_supervisor() {
    let mut agent = Agent::new(&[]);
    let blob = agent.upload(archive("main.txt", "hello")).await;
    let mut spec = script("cat repo/main.txt");
    spec.code = Some(CodeDelivery {
        blob_sha256: Some(blob),
        repo_dir: "repo".to_owned(),
        skip_if_exists: false,
        git: None,
    });
    arm(&agent, "job:before-ready");
    let (state, log) = agent.run(&spec).await;
    assert!(fired(&agent));
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done, "{}", text(&log));
    assert_eq!(text(&log), "hello");
    // A newer spec finds nothing of an older one either.
    let mut newer = spec.clone();
    newer.id = api::ids::JobId(spec.run_id.0);
    newer.released = false;
    agent.put(&newer).await;
    agent.wait_for(&newer, "ready", |state| state.phase == TaskPhase::Ready).await;
    newer.generation = 2;
    newer.released = true;
    let (_, log) = agent.run(&newer).await;
    assert_eq!(text(&log), "hello");
}

#[tokio::test]
async fn a_supervisor_that_is_killed_is_told_and_its_command_ended() {
    let mut agent = Agent::new(&[]);
    let spec = script("trap '' HUP; echo up; setsid sleep 1000 & while true; do sleep 0.05; done");
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    let lock = agent.home.path().join(format!("tasks/{}/run/lock", spec.id));
    let pid = std::fs::read_to_string(lock).unwrap().trim().parse().unwrap();
    kill_process(pid);
    let exit = agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::ExecutorError);
    assert!(exit.message.unwrap().contains("ended without a word"));
    assert!(processes_of(spec.id).is_empty());
    assert_eq!(text(&agent.read_log(spec.id, 0).await.bytes), "up\n");
}

#[tokio::test]
async fn a_task_whose_records_cannot_be_read_does_not_run_on_unseen() {
    let mut agent = Agent::new(&[]);
    let spec = script("echo up; setsid sleep 1000 & sleep 1000");
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    agent.kill();
    let journal = agent.home.path().join(format!("tasks/{}/journal", spec.id));
    std::fs::remove_file(&journal).unwrap();
    std::fs::create_dir(&journal).unwrap();
    assert_eq!(agent.state(spec.id).await, None);
    assert_eq!(processes_of(spec.id), Vec::<i32>::new());
}

#[tokio::test]
async fn a_job_that_ends_while_the_agent_is_away_is_found_ended() {
    let mut agent = Agent::new(&[]);
    let mark = agent.home.path().join("mark");
    let spec =
        script(&format!("echo up; while [ ! -e {} ]; do sleep 0.02; done; echo bye; exit 4", mark.display()));
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    agent.kill();
    std::fs::write(&mark, "").unwrap();
    let exit_file = agent.home.path().join(format!("tasks/{}/run/exit.json", spec.id));
    eventually("end", async || exists(&exit_file).then_some(())).await;
    let exit = agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!((exit.reason, exit.exit_status), (ExitReason::Failed, Some(4)));
    assert_eq!(text(&agent.read_log(spec.id, 0).await.bytes), "up\nbye\n");
}

#[tokio::test]
async fn a_task_of_an_earlier_boot_was_interrupted() {
    let mut agent = Agent::new(&[]);
    let spec = script("echo up; sleep 1000");
    agent.put(&spec).await;
    agent.wait_for(&spec, "started", |state| state.started_at.is_some()).await;
    agent.kill();
    let dir = agent.home.path().join(format!("tasks/{}", spec.id));
    let pid = std::fs::read_to_string(dir.join("run/lock")).unwrap().trim().parse().unwrap();
    kill_process(pid);
    let journal = std::fs::read_to_string(dir.join("journal")).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let earlier = journal.replace(boot.trim(), "11111111-2222-3333-4444-555555555555");
    std::fs::write(dir.join("journal"), earlier).unwrap();
    let exit = agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::HostInterrupted);
    assert_eq!(exit.message.as_deref(), Some("the host rebooted"));
}

/// A small file system of its own under a directory.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> SmallDisk {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "dstack-test"])
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success(), "this test needs to mount");
        SmallDisk(path.to_owned())
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        let chunk = [0; 4096];
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_costs_output_but_neither_job_nor_agent() {
    let home = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(home.path(), "24m");
    let marks = tempfile::tempdir().unwrap();
    let mark = marks.path().join("mark");
    let mut agent = Agent::at(home, &[]);
    let spec = script(&format!(
        "echo first; while [ ! -e {0} ]; do sleep 0.02; done; seq 1 100000; \
         while [ -e {0} ]; do sleep 0.02; done; sleep 0.3; echo last",
        mark.display()
    ));
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    disk.fill();
    let mut other = script("echo other");
    other.id = api::ids::JobId(spec.run_id.0);
    // So often that there is no room for what is logged about it either.
    let mut refusals = 0;
    eventually("the last refusal", async || {
        let path = format!("/v1/tasks/{}", other.id);
        let refused = agent.insist::<TaskState>("PUT", &path, &other).await.unwrap_err();
        // An order that comes before the one refused is put away finds nobody.
        if refused.code != AgentErrorCode::UnknownTask {
            assert_eq!(refused.code, AgentErrorCode::Internal, "{refused:?}");
            assert!(refused.message.contains("No space left"), "{refused:?}");
            refusals += 1;
        }
        (refusals == 60).then_some(())
    })
    .await;
    std::fs::write(&mark, "").unwrap();
    let is_lost = |state: &TaskState| {
        state.log_end > 600_000 && state.warnings.iter().any(|text| text.contains("No space left"))
    };
    agent.wait_for(&spec, "lost output", is_lost).await;
    disk.clear();
    std::fs::remove_file(&mark).unwrap();
    let state = agent.wait_sealed(&spec).await;
    assert_eq!(state.exit.as_ref().unwrap().reason, ExitReason::Done);
    let log = agent.read_log(spec.id, 0).await;
    assert!(!log.gaps.is_empty());
    assert!(log.bytes.starts_with(b"first\r\n") && log.bytes.ends_with(b"last\r\n"));
    assert_eq!(log.end, Some(state.log_end));
    let (_, log) = agent.run(&other).await;
    assert_eq!(text(&log), "other\n", "with room again, what was refused is taken");
    drop(agent);
}

#[tokio::test]
async fn a_task_may_end_on_a_full_disk() {
    let home = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(home.path(), "16m");
    let mut agent = Agent::at(home, &[]);
    let spec = script("echo up; sleep 1000");
    agent.put(&spec).await;
    agent.wait_for(&spec, "started", |state| state.started_at.is_some()).await;
    disk.fill();
    agent.stop(&spec, 10).await;
    let state = agent.wait_sealed(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Stopped);
    agent.restart();
    assert_eq!(agent.wait_sealed(&spec).await.phase, TaskPhase::Sealed);
    drop(agent);
}
