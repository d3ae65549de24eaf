//! Crashes of every program at every moment: nothing runs twice, nothing is lost, nobody waits for ever.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::process::Command;
use std::time::Duration;

use crate::local::task;
use crate::rig::{Agent, FLEET, Rig, Setup, kill, pause, seq, wait_for};

/// How often something crashes while the nodes write.
const CRASHES: usize = 50;

/// Lines between two crashes, and how long one is with its end: 20 MB for each node in all.
const LINES: usize = 4_000;
const LINE: usize = 100;

/// The longest wait between the order to write and the crash.
const MOMENT_MILLIS: u64 = 150;

/// Chance that a seed repeats.
struct Chance(u64);

impl Chance {
    /// From `DSTACK_TEST_SEED`, or a new seed; either is told, so that a failure can be repeated.
    fn new() -> Chance {
        let given = env::var("DSTACK_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = given.unwrap_or_else(|| RandomState::new().hash_one(0));
        eprintln!("DSTACK_TEST_SEED={seed}");
        Chance(seed)
    }

    /// A number below a limit.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// Two nodes that note their start and write a part of their lines each time a file appears.
fn paced_writers(rig: &Rig) -> String {
    format!(
        r#"
type: task
name: writers
nodes: 2
commands:
  - echo $DSTACK_NODE_RANK >> {dir}/ledger
  - |
    python3 - <<'PY'
    import os, sys, time
    rank = os.environ["DSTACK_NODE_RANK"]
    for part in range({CRASHES}):
        while not os.path.exists(f"{dir}/part-{{part}}"):
            time.sleep(0.01)
        for number in range(part * {LINES}, (part + 1) * {LINES}):
            sys.stdout.write(f"node {{rank}} line {{number:07d}} ".ljust({LINE} - 1, "x") + "\n")
        sys.stdout.flush()
    PY
resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}
"#,
        dir = rig.dir.display()
    )
}

/// What a terminal makes of a node's lines.
fn written_by(rank: usize) -> Vec<u8> {
    let lines = (0..CRASHES * LINES).map(|number| {
        let head = format!("node {rank} line {number:07} ");
        format!("{head:x<width$}\r\n", width = LINE - 1)
    });
    lines.collect::<String>().into_bytes()
}

/// Fails unless the whole log of each node is there, every byte once and in order.
#[track_caller]
fn assert_all_was_kept(rig: &Rig) {
    for rank in [0, 1] {
        let (log, written) = (rig.log("writers", rank), written_by(rank));
        let first_wrong = log.iter().zip(&written).position(|(got, expected)| got != expected);
        if let Some(at) = first_wrong {
            let around = &log[at.saturating_sub(LINE)..log.len().min(at + 2 * LINE)];
            panic!("node {rank}: byte {at} is the first wrong one: {}", String::from_utf8_lossy(around));
        }
        assert_eq!(log.len(), written.len(), "node {rank}: the log has another length");
    }
}

/// Fails unless each node has started once and each job was submitted once.
#[track_caller]
fn assert_each_node_started_once(rig: &Rig, run: &str, ledger: &str) {
    let ledger = fs::read_to_string(rig.dir.join(ledger)).unwrap_or_default();
    let mut starts: Vec<&str> = ledger.lines().collect();
    starts.sort_unstable();
    assert_eq!(starts, ["0", "1"], "run `{run}`: one start of each node");
    assert_eq!(rig.submissions(run), [1, 1], "run `{run}`: one submission of each job");
}

#[test]
fn fifty_crashes_change_nothing() {
    let Some(mut rig) = Rig::start("fifty_crashes_change_nothing") else { return };
    let mut chance = Chance::new();
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    rig.apply("task.dstack.yml", &paced_writers(&rig), &["-R", "-d"]);
    rig.wait_for_status("writers", "running");
    let mut kills = [0; 3];
    for part in 0..CRASHES {
        // A bit for the server, and one for each agent.
        let victims = 1 + chance.below(7);
        let agents = rig.wait_for_agents(2);
        rig.write(&format!("part-{part}"), "");
        pause(Duration::from_millis(chance.below(MOMENT_MILLIS)));
        for (number, agent) in agents.iter().enumerate() {
            if victims & (2 << number) != 0 {
                kill(agent.pid, "KILL");
                kills[number + 1] += 1;
            }
        }
        if victims & 1 != 0 {
            rig.kill_server();
            rig.start_server();
            kills[0] += 1;
        }
    }
    rig.wait_for_status("writers", "done");
    assert_all_was_kept(&rig);
    assert_each_node_started_once(&rig, "writers", "ledger");
    assert!(kills.iter().all(|count| CRASHES / 5 < *count), "server and agents were killed: {kills:?}");
}

/// The points of the server at which it dies: the near ones all, the far ones here and there.
fn server_points() -> impl Iterator<Item = u32> {
    (1..30).chain((30..150).step_by(7))
}

/// Submits a run, whatever happens to the server meanwhile. False: the server died before it said yes.
fn submit(rig: &Rig, name: &str) -> bool {
    let flags = ["apply", "-f", name, "-y", "-R", "-d"];
    rig.run(&flags).status == Some(0)
}

/// Brings a run to its end with a server that dies again and again.
fn survive(rig: &mut Rig, run: &str, points: &mut dyn Iterator<Item = u32>) -> usize {
    let file = format!("{run}.dstack.yml");
    let ledger = rig.dir.join(format!("{run}.ledger"));
    let command = format!("echo $DSTACK_NODE_RANK >> {}; seq 1 2000", ledger.display());
    rig.write(&file, &task(run, 2, &command));
    let order = rig.dir.join("crash-order");
    let mut crashes = 0;
    let mut is_submitted = false;
    loop {
        let point = points.next();
        if let Some(point) = point {
            fs::write(&order, point.to_string()).unwrap();
        }
        is_submitted = is_submitted || submit(rig, &file) || is_known(rig, run);
        let is_over = wait_for("an end, of the server or of the run", Duration::from_mins(2), || {
            if rig.server_ended() {
                return Some(false);
            }
            let got = rig.run(&["run", "get", run, "--json"]);
            let is_over = [r#""status": "done""#, r#""status":"done""#];
            let text = got.text();
            (got.status == Some(0) && is_over.iter().any(|over| text.contains(over))).then_some(true)
        });
        if is_over {
            // It may be about to die; what follows is looked at in peace.
            rig.restart_server_in_peace(&order);
            return crashes;
        }
        crashes += 1;
        rig.start_server();
    }
}

/// Whether the server has a run; false also where it does not answer.
fn is_known(rig: &Rig, run: &str) -> bool {
    rig.run(&["run", "get", run, "--json"]).status == Some(0)
}

#[test]
fn a_server_that_dies_between_any_two_statements_loses_nothing() {
    let test = "a_server_that_dies_between_any_two_statements_loses_nothing";
    let Some(mut rig) = Rig::new(test, Setup::default()) else { return };
    rig.doom_server();
    rig.start_server();
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let mut points = server_points().peekable();
    let mut crashes = 0;
    let mut runs = 0;
    while points.peek().is_some() {
        let run = format!("sweep-{runs}");
        runs += 1;
        crashes += survive(&mut rig, &run, &mut points);
        rig.wait_for_status(&run, "done");
        assert_each_node_started_once(&rig, &run, &format!("{run}.ledger"));
        for node in [0, 1] {
            assert!(rig.log(&run, node) == seq(2000).as_bytes(), "run `{run}`, node {node}: the log is whole");
        }
    }
    eprintln!("{crashes} crashes in {runs} runs");
    assert!(30 <= crashes, "{crashes} crashes in {runs} runs: is the server built with its points?");
}

#[test]
fn a_server_that_dies_while_it_starts_starts_the_next_time() {
    let test = "a_server_that_dies_while_it_starts_starts_the_next_time";
    let Some(mut rig) = Rig::new(test, Setup::default()) else { return };
    let order = rig.doom_server();
    // Its first start makes the database, the later ones find it half made.
    let mut points = 1;
    loop {
        fs::write(&order, points.to_string()).unwrap();
        if rig.start_doomed_server() {
            break;
        }
        points += 1;
    }
    assert!(5 < points, "the server died {points} times: is it built with its points?");
    rig.restart_server_in_peace(&order);
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    rig.apply("task.dstack.yml", &task("after", 2, "echo here"), &["-R"]);
    assert_eq!(rig.run_status("after"), "done");
}

/// Points that only a task passes which is stopped.
const OF_STOP: [&str; 3] = ["stopping:before", "stopping:after", "stop:after"];

/// Points at which the supervisor dies when its command may have started: the job is lost, and says so.
const LOSING: [&str; 5] = ["job:go", "job:started-marked", "job:started", "job:exited", "job:panic"];

fn agent_points() -> Vec<String> {
    let agent = env::var_os("DSTACK_TEST_AGENT").expect("the rig has an agent");
    let output = Command::new(agent).arg("failpoints").output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Runs two nodes through a crash of one agent, or of its supervisor, at a point.
fn crash_agent_at(rig: &Rig, agent: &Agent, point: &str, number: usize) {
    let run = format!("point-{number}");
    let ledger = format!("{run}.ledger");
    let is_stop = OF_STOP.contains(&point);
    let rest = if is_stop { "sleep 1000" } else { "seq 1 2000" };
    let command = format!("echo $DSTACK_NODE_RANK >> {}/{ledger}; {rest}", rig.dir.display());
    let armed = agent.home.join("failpoint");
    fs::write(&armed, point).unwrap();
    rig.apply(&format!("{run}.dstack.yml"), &task(&run, 2, &command), &["-R", "-d"]);
    if is_stop {
        wait_for("both starts", Duration::from_mins(1), || {
            let starts = fs::read_to_string(rig.dir.join(&ledger)).unwrap_or_default();
            (starts.lines().count() == 2).then_some(())
        });
        rig.run(&["stop", &run, "-y"]).expect_status(0);
        rig.wait_for_status(&run, "terminated");
    } else if LOSING.contains(&point) {
        rig.wait_for_status(&run, "failed");
    } else {
        rig.wait_for_status(&run, "done");
        for node in [0, 1] {
            assert!(rig.log(&run, node) == seq(2000).as_bytes(), "{point}, node {node}: the log is whole");
        }
    }
    if LOSING.contains(&point) {
        let starts = fs::read_to_string(rig.dir.join(&ledger)).unwrap_or_default();
        let distinct: BTreeSet<&str> = starts.lines().collect();
        assert_eq!(distinct.len(), starts.lines().count(), "{point}: no node started twice: {starts}");
        assert_eq!(rig.submissions(&run), [1, 1], "{point}");
    } else {
        assert_each_node_started_once(rig, &run, &ledger);
    }
    // Some points come when the server has let the task go.
    wait_for(&format!("the crash at `{point}`"), Duration::from_mins(1), || (!armed.exists()).then_some(()));
}

#[test]
fn an_agent_that_dies_at_any_point_loses_nothing() {
    let Some(rig) = Rig::start("an_agent_that_dies_at_any_point_loses_nothing") else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let agent = rig.wait_for_agents(2).pop().expect("there are two");
    let mut visited = 0;
    for point in agent_points().iter().filter(|point| !point.starts_with("container:")) {
        crash_agent_at(&rig, &agent, point, visited);
        visited += 1;
    }
    assert!(36 <= visited, "only {visited} points were visited");
}
