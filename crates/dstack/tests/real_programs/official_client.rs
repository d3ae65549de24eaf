//! The official command line 0.22.5 against our server: what it prints and how it ends, as recorded from the
//! official server.

use std::path::PathBuf;

use crate::rig::{Ended, FLEET, Rig, TOKEN, end, program};

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

/// Text without what differs from day to day: spaces of tables, times, and ends of lines.
fn normal(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let words: Vec<String> = line.split_whitespace().map(normal_word).collect();
        words.join(" ").replace("N sec ago", "NOW").replace("N secs ago", "NOW").replace("now", "NOW")
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

fn normal_word(word: &str) -> String {
    let is_time =
        word.contains(':') && word.chars().all(|c| c.is_ascii_digit() || c == ':' || c == '[' || c == ']');
    let is_number = word.chars().all(|c| c.is_ascii_digit());
    match (is_time, is_number) {
        (true, _) => "TIME".to_owned(),
        (_, true) => "N".to_owned(),
        _ => word.to_owned(),
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
    secrets_come_and_go(&official);
    fleets_go(&official);
}

fn fleets_come(official: &Official<'_>) {
    official.rig.write("fleet.dstack.yml", FLEET);
    let applied = official.says(&["apply", "-f", "fleet.dstack.yml", "-y"]);
    println!("{applied}");
    for row in ["Project main", "User admin", "Type fleet", "Fleet type cloud", "Placement cluster"] {
        assert!(applied.lines().any(|line| line == row), "`{row}` is missing:\n{applied}");
    }
    assert!(applied.contains("Fleet pair does not exist yet."), "{applied}");
    let listed = official.says(&["fleet"]);
    println!("{listed}");
    assert!(listed.starts_with("NAME NODES GPU SPOT BACKEND PRICE STATUS CREATED"), "{listed}");
    let again = official.says(&["apply", "-f", "fleet.dstack.yml", "-y"]);
    assert!(again.contains("No configuration changes detected. Use --force to apply anyway."), "{again}");
    let verbose = official.says(&["fleet", "-v"]);
    assert!(
        verbose.starts_with("NAME NODES RESOURCES DRIVER SPOT BACKEND PRICE STATUS CREATED ERROR"),
        "{verbose}"
    );

    let offers = official.says(&["offer"]);
    assert!(offers.contains("# BACKEND RESOURCES INSTANCE TYPE PRICE"), "{offers}");
    let offers = official.run(&["offer", "--json"]).expect_status(0);
    let offers: serde_json::Value = serde_json::from_slice(&offers.stdout).expect("`--json` prints JSON");
    assert_eq!(offers["project"], "main");
    assert!(offers["offers"].is_array(), "{offers}");
}

fn runs_come_and_go(official: &Official<'_>) {
    let task = "type: task\nname: hello\ncommands:\n  - echo hello from $DSTACK_RUN_NAME\n  - echo second line\n\
                resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}\n";
    official.rig.write("hello.dstack.yml", task);
    let applied = official.says(&["apply", "-f", "hello.dstack.yml", "-R", "-y", "-d"]);
    println!("{applied}");
    assert!(applied.contains("# BACKEND RESOURCES INSTANCE TYPE PRICE"), "{applied}");
    assert!(applied.ends_with("Run hello submitted, detaching..."), "{applied}");
    official.rig.wait_for_status("hello", "done");
    let listed = official.says(&["ps"]);
    println!("{listed}");
    assert!(listed.contains("hello") && listed.contains("exited (0)"), "{listed}");
    let logs = official.run(&["logs", "hello"]).expect_status(0).text();
    assert_eq!(logs.replace('\r', ""), "hello from hello\nsecond line\n");

    let long = "type: task\nname: long\nnodes: 2\ncommands:\n  - sleep 3600\n\
                resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}\n";
    official.rig.write("long.dstack.yml", long);
    official.says(&["apply", "-f", "long.dstack.yml", "-R", "-y", "-d"]);
    official.rig.wait_for_status("long", "running");
    assert_eq!(official.says(&["stop", "long", "-y"]), "Stopped");
    official.rig.wait_for_status("long", "terminated");
    let listed = official.says(&["ps", "-a"]);
    println!("{listed}");
    assert!(listed.contains("stopped"), "{listed}");

    let run = official.run(&["run", "get", "hello", "--json"]).expect_status(0);
    let run: serde_json::Value = serde_json::from_slice(&run.stdout).expect("`--json` prints JSON");
    assert_eq!(run["status"], "done");
    assert_eq!(run["run_spec"]["configuration"]["type"], "task");

    let events = official.says(&["event", "--within-run", "hello"]);
    println!("{events}");
    assert!(events.contains("[run hello] Run submitted. Status: SUBMITTED"), "{events}");
    assert_eq!(official.says(&["delete", "-f", "hello.dstack.yml", "-y"]), "Run hello deleted");

    let missing = official.run(&["logs", "nosuch"]).expect_status(1);
    assert_eq!(normal(&missing.text()), "Run nosuch not found");
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
