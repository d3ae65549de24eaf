//! A hostile tenant, root in its container: whatever it tries, the agent stays up, nothing of the host shows, and only
//! its own job fails.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::hosts::{Lan, Options};
use crate::rig::{IMAGE, Rig, Setup, wait_for};
use crate::ssh_fleets::{agent_of, fleet};

const PATIENCE: Duration = Duration::from_mins(2);

/// What only the host knows.
const MARKER: &str = "marker-of-the-host-3f9a1c";

/// What the tenant runs.
const TENANT: &str = include_str!("tenant.py");

/// How its attempts are named, what is said of the end of each, and the status with which it comes to its own end.
const ATTEMPTS: [(&str, &str, Option<i32>); 5] = [
    ("sockets", "container_exited_with_error", Some(4)),
    ("links", "ended without a word", None),
    ("words", "container_exited_with_error", Some(6)),
    ("fill", "container_exited_with_error", Some(7)),
    ("trace", "ended without a word", None),
];

/// Where the tenant's container runs, as far as the tenant may know it.
struct Target {
    /// A file with the marker, in a folder of such files.
    secret: String,
    /// The agent's socket.
    socket: String,
    /// Ports of the host that might be open.
    ports: String,
}

/// A text that an agent which followed a link would show: an end, with the marker in it, as the supervisor tells it.
fn end_with_marker() -> String {
    let exit = serde_json::json!({
        "reason": "failed", "exit_status": 1, "signal": null, "oom_killed": false, "message": MARKER,
        "finished_at": "2024-01-01T00:00:00Z"
    });
    let status = serde_json::json!({
        "stage": "ended", "pid": 1, "working_dir": MARKER, "username": MARKER, "started_at": null, "log_end": 4096,
        "warnings": [MARKER], "exit": exit
    });
    status.to_string()
}

/// Names under which the host has the marker: the secret, and what looks like a log.
fn planted() -> [&'static str; 4] {
    ["secret", "00000000000000000000.log", "00000000000000000008.log", "00000000000000000300.log"]
}

fn task(name: &str, target: &Target, attempt: &str) -> String {
    let program = TENANT.lines().map(|line| format!("    {line}\n")).collect::<Vec<String>>().concat();
    format!(
        "type: task\nname: {name}\nimage: {IMAGE}\nenv:\n  - HOST_SECRET={}\n  - HOST_SOCKET={}\n  - HOST_PORTS={}\n\
         commands:\n  - |\n    cat > /tmp/tenant.py <<'END_OF_TENANT'\n{program}    END_OF_TENANT\n    \
         python3 /tmp/tenant.py {attempt}\nresources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n",
        target.secret, target.socket, target.ports
    )
}

/// Everything that a user can ask about a run.
fn told(rig: &Rig, run: &str) -> String {
    let log = String::from_utf8_lossy(&rig.log(run, 0)).into_owned();
    let event = rig.run(&["event", "--within-run", run]).expect_status(0).text();
    let ps = rig.run(&["ps", "-a", "-v"]).expect_status(0).text();
    [log, event, ps, rig.get_run(run).to_string()].join("\n")
}

/// Plays the tenant in all its ways; answers the log of its look around.
fn play(rig: &Rig, target: &Target, agent: &dyn Fn() -> String) -> String {
    let before = agent();
    assert!(before.contains(|c: char| c.is_ascii_digit()), "there is an agent");
    for (attempt, reason, status) in ATTEMPTS {
        rig.write("task.dstack.yml", &task(attempt, target, attempt));
        rig.run(&["apply", "-f", "task.dstack.yml", "-R", "-y", "-d"]).expect_status(0);
        rig.wait_for_status(attempt, "failed");
        assert_eq!(agent(), before, "the agent after `{attempt}`");
        let told = told(rig, attempt);
        assert!(!told.contains(MARKER), "`{attempt}` shows what is the host's:\n{told}");
        assert!(told.contains(reason), "`{attempt}` ends with its reason:\n{told}");
        // Otherwise it had failed on the way, and tried less than it was meant to.
        assert_eq!(rig.submission(attempt, 0)["exit_status"], serde_json::json!(status), "`{attempt}`:\n{told}");
    }
    let honest = format!(
        "type: task\nname: honest\nimage: {IMAGE}\ncommands:\n  - echo fine\n\
         resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
    );
    rig.apply("task.dstack.yml", &honest, &["-R"]);
    assert_eq!(String::from_utf8_lossy(&rig.log("honest", 0)), "fine\r\n");
    assert_eq!(agent(), before);
    let machine = |run: &str| rig.submission(run, 0)["job_provisioning_data"]["instance_id"].clone();
    assert!(ATTEMPTS.iter().all(|(attempt, ..)| machine(attempt) == machine("honest")), "there is one machine");
    let log = fs::read_to_string(rig.dir.join("server.log")).unwrap();
    assert!(!log.contains(MARKER), "the server's log");
    // What was written before something was taken away arrives.
    for attempt in ["words", "fill", "trace"] {
        let log = rig.log(attempt, 0);
        assert!(log.starts_with(b"before\r\n"), "`{attempt}`: {}", String::from_utf8_lossy(&log));
    }
    String::from_utf8_lossy(&rig.log("sockets", 0)).into_owned()
}

/// What the tenant found when it looked around, by the first word of a line.
fn found<'a>(log: &'a str, word: &str) -> Vec<&'a str> {
    let lines = log.lines().filter_map(|line| line.trim_end().strip_prefix(word));
    lines.map(str::trim).collect()
}

#[test]
fn a_tenant_that_is_root_in_its_container_gets_nothing_of_the_host() {
    let test = "a_tenant_that_is_root_in_its_container_gets_nothing_of_the_host";
    let Some(rig) = Rig::start_with(test, Setup { containers: true, ..Setup::default() }) else { return };
    let fleet = "type: fleet\nname: one\nnodes: 1\nresources: {cpu: 1.., memory: 256MB.., disk: 1GB..}\n";
    rig.apply("fleet.dstack.yml", fleet, &[]);
    let agent = rig.wait_for_agents(1).remove(0);
    let secrets = rig.dir.join("secrets");
    fs::create_dir(&secrets).unwrap();
    for name in planted() {
        fs::write(secrets.join(name), end_with_marker()).unwrap();
    }
    let port = rig.url().rsplit(':').next().unwrap().to_owned();
    let target = Target {
        secret: secrets.join("secret").display().to_string(),
        socket: agent.home.join("agent.sock").display().to_string(),
        ports: format!("22 2375 {port}"),
    };
    let log = play(&rig, &target, &|| format!("{:?}", rig.agents()));
    assert_eq!(found(&log, "unix"), ["/dstack/task/job.sock"]);
    assert!(
        found(&log, "tcp").iter().any(|line| line.ends_with(&format!("{port} ConnectionRefusedError"))),
        "{log}"
    );
    assert_eq!(found(&log, "write"), ["OSError", "FileNotFoundError", "FileNotFoundError"]);
    assert_eq!(found(&log, "orders"), ["False"]);
    for name in planted() {
        assert_eq!(fs::read_to_string(secrets.join(name)).unwrap(), end_with_marker(), "`{name}` is as it was");
    }
    // However deep and full the folders were, nothing of them stays.
    wait_for("the end of all folders", PATIENCE, || {
        fs::read_dir(agent.home.join("tasks")).unwrap().next().is_none().then_some(())
    });
}

#[test]
fn a_tenant_on_the_network_of_its_host_gets_nothing_of_it() {
    let test = "a_tenant_on_the_network_of_its_host_gets_nothing_of_it";
    let Some(rig) = Rig::start_with(test, Setup { containers: true, ..Setup::default() }) else { return };
    let Some(lan) = Lan::start(test) else { return };
    let host = lan.host("one", &Options { docker: true, ..Options::default() });
    // The small image has no Python.
    let mut save = Command::new("docker").args(["save", IMAGE]).stdout(Stdio::piped()).spawn().unwrap();
    end_with_input(&mut host.ssh_command("docker load"), save.stdout.take().unwrap());
    assert!(save.wait().unwrap().success());
    rig.apply("fleet.dstack.yml", &fleet(&lan, "root", &[&host], ""), &[]);
    let plant: String =
        planted().map(|name| format!("echo '{}' > /root/secrets/{name}\n", end_with_marker())).concat();
    host.exec(&format!("set -e\nmkdir /root/secrets\n{plant}")).expect_status(0);
    let socket = host.exec("ls /var/lib/dstack/*/home/agent.sock").text();
    assert!(socket.contains("agent.sock"), "the agent has a socket");
    let target = Target {
        secret: "/root/secrets/secret".to_owned(),
        socket: socket.lines().next().unwrap().to_owned(),
        ports: "22 2375".to_owned(),
    };
    let log = play(&rig, &target, &|| agent_of(&host));
    let unix: Vec<&str> = found(&log, "unix").into_iter().filter(|path| !path.starts_with('@')).collect();
    assert_eq!(unix, ["/dstack/task/job.sock"]);
    // It is on the host's network: `sshd` is there, and has no more to say than to everybody.
    assert!(found(&log, "tcp").iter().any(|line| line.starts_with("127.0.0.1 22 b'SSH-2.0-")), "{log}");
    assert_eq!(found(&log, "write"), ["OSError", "FileNotFoundError", "FileNotFoundError"]);
    let is_as_it_was = format!("[ \"$(cat /root/secrets/secret)\" = '{}' ]", end_with_marker());
    host.exec(&is_as_it_was).expect_status(0);
    wait_for("the end of all folders", PATIENCE, || {
        let left = host.exec("find /var/lib/dstack/*/home/tasks -mindepth 1 | wc -l");
        (left.text().trim() == "0").then_some(())
    });
    let log = host.exec("cat /var/lib/dstack/*/agent.log").text();
    assert!(log.contains("listening on") && !log.contains(MARKER), "the agent's log: {log}");
}

/// Runs a command on the other end of a pipe, and expects it to end well.
#[track_caller]
fn end_with_input(command: &mut Command, input: impl Into<Stdio>) {
    let status = command.stdin(input).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
