//! The official command line 0.22.5 against our server: what it prints and how it ends, as recorded from the
//! official server.

use std::path::PathBuf;
use std::time::Duration;

use crate::rig::{Ended, FLEET, Rig, TOKEN, end, program, wait_for};

/// The official command line with a home of its own.
struct Official<'a> {
    rig: &'a Rig,
    client: PathBuf,
}

impl Official<'_> {
    fn run(&self, args: &[&str]) -> Ended {
        end(self.rig.command(&self.client, "official-home").args(args))
    }

    /// Runs a command, expects it to end well, and answers what it printed, normalised.
    #[track_caller]
    fn says(&self, args: &[&str]) -> String {
        normal(&self.run(args).expect_status(0).text())
    }
}

/// Text without what differs from day to day and from machine to machine: the spaces of tables, times, and how
/// much this machine has.
fn normal(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().map(normal_word).collect();
        // `5 secs ago`, `1 min ago`: whatever the unit is.
        let mut normal: Vec<&str> = Vec::new();
        for word in words {
            normal.push(word);
            if let [.., "N", _unit, "ago"] = normal[..] {
                normal.truncate(normal.len() - 3);
                normal.push("now");
            }
        }
        normal.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

fn normal_word(word: &str) -> &str {
    let is_of = |chars: &str| word.chars().all(|c| c.is_ascii_digit() || chars.contains(c));
    let is_open = word.contains("..");
    match word {
        _ if word.contains(':') && is_of(":[]") => "TIME",
        _ if word.starts_with("[20") && is_of("[-") => "[DATE",
        _ if is_of("") => "N",
        _ if word.starts_with("cpu=x86:") && !is_open => "CPU",
        _ if word.starts_with("mem=") && !is_open => "MEM",
        _ if word.starts_with("disk=") && !is_open => "DISK",
        _ => word,
    }
}

#[test]
fn the_official_client_works_with_our_server() {
    let test = "the_official_client_works_with_our_server";
    let Some(client) = program("DSTACK_TEST_OFFICIAL_CLI", test) else { return };
    let Some(rig) = Rig::start(test) else { return };
    std::fs::create_dir_all(rig.dir.join("official-home")).unwrap();
    let official = Official { rig: &rig, client };

    let url = rig.url();
    let added = official.says(&["project", "add", "--name", "main", "--url", &url, "--token", TOKEN, "-y"]);
    assert!(added.contains("Configuration updated at"), "{added}");
    assert_eq!(official.says(&["ps"]), "NAME BACKEND GPU PRICE STATUS SUBMITTED");

    fleets_come(&official);
    runs_come_and_go(&official);
    dev_environments_come_and_go(&official);
    secrets_come_and_go(&official);
    fleets_go(&official);
}

fn fleets_come(official: &Official<'_>) {
    official.rig.write("fleet.dstack.yml", FLEET);
    assert_eq!(
        official.says(&["apply", "-f", "fleet.dstack.yml", "-y"]),
        "Project main
User admin
Configuration fleet.dstack.yml
Type fleet
Fleet type cloud
Nodes min=2 target=2 max=2
Placement cluster
Resources cpu=1.. mem=0.25GB.. disk=1GB.. gpu=0..
Spot policy on-demand

# BACKEND REGION INSTANCE RESOURCES SPOT PRICE
N ssh local local CPU MEM DISK no $0

Fleet pair does not exist yet.
NAME NODES GPU SPOT BACKEND PRICE STATUS CREATED
pair N on-demand * active TIME
instance=0 - ssh (local) idle TIME
instance=1 - ssh (local) idle TIME"
    );
    assert_eq!(
        official.says(&["fleet"]),
        "NAME NODES GPU SPOT BACKEND PRICE STATUS CREATED
pair N on-demand * active now
instance=0 - ssh (local) idle now
instance=1 - ssh (local) idle now"
    );
    assert_eq!(
        official.says(&["fleet", "-v"]),
        "NAME NODES RESOURCES DRIVER SPOT BACKEND PRICE STATUS CREATED ERROR
pair N (cluster) cpu=1.. mem=0.25GB.. disk=1GB.. gpu=0.. on-demand * active now
instance=0 CPU MEM DISK ssh (local) idle now
instance=1 CPU MEM DISK ssh (local) idle now"
    );
    let again = official.says(&["apply", "-f", "fleet.dstack.yml", "-y"]);
    assert!(again.ends_with("No configuration changes detected. Use --force to apply anyway."), "{again}");

    let offers = official.says(&["offer"]);
    assert!(offers.contains("# BACKEND RESOURCES INSTANCE TYPE PRICE\n"), "{offers}");
    let offers = official.run(&["offer", "--json"]).expect_status(0);
    let offers: serde_json::Value = serde_json::from_slice(&offers.stdout).expect("`--json` prints JSON");
    assert_eq!((&offers["project"], &offers["user"]), (&"main".into(), &"admin".into()));
    assert!(offers["offers"].is_array(), "{offers}");
}

fn runs_come_and_go(official: &Official<'_>) {
    // It ends when it is told to, so that everybody has seen it run.
    let seen = official.rig.dir.join("seen");
    let task = format!(
        "type: task\nname: hello\ncommands:\n  - echo hello from $DSTACK_RUN_NAME\n  \
         - until [ -e {} ]; do sleep 0.05; done\n  - echo second line\n\
         resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n",
        seen.display()
    );
    official.rig.write("hello.dstack.yml", &task);
    assert_eq!(
        official.says(&["apply", "-f", "hello.dstack.yml", "-R", "-y", "-d"]),
        "Project main
User admin
Type task (nodes=1)
Resources cpu=x86:1.. mem=0.25GB.. disk=1GB.. gpu=nvidia:0..
Spot policy on-demand
Max price off
Retry policy off
Creation policy reuse
Idle duration 5m
Max duration off

# BACKEND RESOURCES INSTANCE TYPE PRICE
N ssh (local) CPU MEM DISK local $0 idle
N ssh (local) CPU MEM DISK local $0 idle

Run hello submitted, detaching..."
    );
    official.rig.wait_for_status("hello", "running");
    official.rig.write("seen", "");
    official.rig.wait_for_status("hello", "done");
    assert_eq!(
        official.says(&["ps"]),
        "NAME BACKEND GPU PRICE STATUS SUBMITTED\nhello ssh (local) - $0 exited (0) now"
    );
    let logs = official.run(&["logs", "hello"]).expect_status(0).text();
    assert_eq!(logs.replace('\r', ""), "hello from hello\nsecond line\n");

    let long = "type: task\nname: long\nnodes: 2\ncommands:\n  - sleep 3600\n\
                resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}\n";
    official.rig.write("long.dstack.yml", long);
    official.says(&["apply", "-f", "long.dstack.yml", "-R", "-y", "-d"]);
    official.rig.wait_for_status("long", "running");
    assert_eq!(official.says(&["stop", "long", "-y"]), "Stopped");
    official.rig.wait_for_status("long", "terminated");
    assert_eq!(
        official.says(&["ps", "-a"]),
        "NAME BACKEND GPU PRICE STATUS SUBMITTED
long - - stopped now
job=0 ssh (local) - $0 stopped now
job=1 ssh (local) - $0 stopped now
hello ssh (local) - $0 exited (0) now"
    );

    let run = official.run(&["run", "get", "hello", "--json"]).expect_status(0);
    let run: serde_json::Value = serde_json::from_slice(&run.stdout).expect("`--json` prints JSON");
    assert_eq!(run["status"], "done");
    assert_eq!(run["run_spec"]["configuration"]["type"], "task");

    events_tell_the_story(official);
    assert_eq!(official.says(&["delete", "-f", "hello.dstack.yml", "-y"]), "Run hello deleted");

    let missing = official.run(&["logs", "nosuch"]).expect_status(1);
    assert_eq!(normal(&missing.text()), "Run nosuch not found");
}

fn dev_environments_come_and_go(official: &Official<'_>) {
    let text = |inactivity: &str| {
        format!(
            "type: dev-environment\nname: dev\nide: vscode\ninactivity_duration: {inactivity}\ninit: [echo prepared]\n\
             resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
        )
    };
    official.rig.write("dev.dstack.yml", &text("1h"));
    let applied = official.says(&["apply", "-f", "dev.dstack.yml", "-R", "-y", "-d"]);
    for line in ["Type dev-environment", "Inactivity duration 1h", "Run dev submitted, detaching..."] {
        assert!(applied.lines().any(|said| said == line), "{applied}");
    }
    official.rig.wait_for_status("dev", "running");
    assert!(official.says(&["ps"]).ends_with("dev ssh (local) - $0 running now"));
    // Seconds pass until the first of them is shown.
    wait_for("the time of absence", Duration::from_mins(1), || {
        official.says(&["ps", "-v"]).contains("running (inactive for ").then_some(())
    });
    let logs = official.run(&["logs", "dev"]).expect_status(0).text().replace('\r', "");
    assert!(logs.contains("prepared\n") && logs.contains("To open in VS Code, use link below:"), "{logs}");
    let run = official.run(&["run", "get", "dev", "--json"]).expect_status(0);
    let run: serde_json::Value = serde_json::from_slice(&run.stdout).expect("`--json` prints JSON");
    let info = &run["jobs"][0]["job_connection_info"];
    assert_eq!((&info["ide_name"], &info["attached_ssh_command"][1]), (&"VS Code".into(), &"dev".into()));
    official.rig.write("dev.dstack.yml", &text("2h"));
    let updated = official.says(&["apply", "-f", "dev.dstack.yml", "-R", "-y", "-d"]);
    assert!(
        updated.contains("can be updated in-place") && updated.ends_with("Run dev updated, detaching..."),
        "{updated}"
    );
    assert_eq!(official.says(&["stop", "dev", "-y"]), "Stopped");
    official.rig.wait_for_status("dev", "terminated");
    assert_eq!(official.says(&["delete", "-f", "dev.dstack.yml", "-y"]), "Run dev deleted");
}

fn events_tell_the_story(official: &Official<'_>) {
    // The run and its job are reconciled side by side, so only the order within each of them is certain.
    let events = official.says(&["event", "--within-run", "hello"]);
    let (of_jobs, of_runs): (Vec<&str>, Vec<&str>) =
        events.lines().partition(|line| line.starts_with("[DATE TIME [job "));
    assert_eq!(
        of_jobs.join("\n"),
        "[DATE TIME [job hello-0-0] Job created on run submission. Status: SUBMITTED
[DATE TIME [job hello-0-0, instance pair-0] Job assigned to instance. Instance blocks: 1/1 busy
[DATE TIME [job hello-0-0] Job status changed SUBMITTED -> PROVISIONING
[DATE TIME [job hello-0-0] Job status changed PROVISIONING -> PULLING
[DATE TIME [job hello-0-0] Job status changed PULLING -> RUNNING
[DATE TIME [job hello-0-0] Job status changed RUNNING -> TERMINATING. Termination reason: DONE_BY_RUNNER
[DATE TIME [job hello-0-0] Job status changed TERMINATING -> DONE
[DATE TIME [job hello-0-0, instance pair-0] Job unassigned from instance. Instance blocks: 0/1 busy"
    );
    assert_eq!(
        of_runs.join("\n"),
        "[DATE TIME [👤admin] [run hello] Run submitted. Status: SUBMITTED
[DATE TIME [run hello] Run status changed SUBMITTED -> PROVISIONING
[DATE TIME [run hello] Run status changed PROVISIONING -> RUNNING
[DATE TIME [run hello] Run status changed RUNNING -> TERMINATING. Termination reason: ALL_JOBS_DONE
[DATE TIME [run hello] Run status changed TERMINATING -> DONE"
    );
    assert!(events.ends_with(of_runs[of_runs.len() - 1]), "the run ends last: {events}");
}

fn secrets_come_and_go(official: &Official<'_>) {
    assert_eq!(official.says(&["secret", "set", "hf_token", "abc123"]), "OK");
    assert_eq!(official.says(&["secret"]), "NAME VALUE\nhf_token ******");
    assert_eq!(official.says(&["secret", "get", "hf_token"]), "NAME VALUE\nhf_token abc123");
    assert_eq!(official.says(&["secret", "delete", "hf_token", "-y"]), "OK");
    assert_eq!(official.says(&["secret"]), "NAME VALUE");
}

fn fleets_go(official: &Official<'_>) {
    assert_eq!(official.says(&["delete", "-f", "fleet.dstack.yml", "-y"]), "Fleet pair deleted");
    official.says(&["apply", "-f", "fleet.dstack.yml", "-y"]);
    assert_eq!(official.says(&["fleet", "delete", "pair", "-y"]), "Fleet pair deleted");
}
