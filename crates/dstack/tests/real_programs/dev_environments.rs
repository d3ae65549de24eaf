//! Dev environments: entered, worked in, and ended by their user or because nobody is there.

use std::time::Duration;

use serde_json::Value;

use crate::attached::Typist;
use crate::entered::Attached;
use crate::repos;
use crate::rig::{FLEET, IMAGE, Rig, Setup, wait_for};

const PATIENCE: Duration = Duration::from_mins(1);

const RESOURCES: &str = "resources: {cpu: 1.., memory: 64MB.., disk: 1GB..}\n";

fn log(rig: &Rig, run: &str) -> String {
    String::from_utf8_lossy(&rig.log(run, 0)).replace('\r', "")
}

#[track_caller]
fn wait_for_log(rig: &Rig, run: &str, text: &str) -> String {
    wait_for(text, PATIENCE, || Some(log(rig, run)).filter(|log| log.contains(text)))
}

/// How users reach a run's job, as the API says it.
fn connection_info(rig: &Rig, run: &str) -> Value {
    rig.get_run(run)["jobs"][0]["job_connection_info"].clone()
}

/// A dev environment in a container, with a file and a command before.
fn in_a_container(inactivity: &str) -> String {
    format!(
        "type: dev-environment\nname: dev\nide: vscode\nimage: {IMAGE}\nfiles: [notes.txt]\n\
         env: {{COLOR: \"it's blue\"}}\ninit:\n  - echo prepared $COLOR\n  - echo from init > /tmp/init\n\
         inactivity_duration: {inactivity}\nstop_duration: 5s\n{RESOURCES}"
    )
}

#[test]
fn a_dev_environment_ends_once_nobody_has_been_there() {
    let test = "a_dev_environment_ends_once_nobody_has_been_there";
    let Some(mut rig) = Rig::start_with(test, Setup { containers: true, ..Setup::default() }) else { return };
    if std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    rig.write("notes.txt", "a note\n");
    rig.apply("dev.dstack.yml", &in_a_container("1h"), &["-R", "-d"]);
    rig.wait_for_status("dev", "running");
    let said = wait_for_log(&rig, "dev", "To exit, press Ctrl+C.");
    let info = wait_for("the IDE's link", PATIENCE, || {
        Some(connection_info(&rig, "dev")).filter(|info| info["attached_ide_url"].is_string())
    });
    assert_eq!(info["ide_name"], "VS Code");
    let link = info["attached_ide_url"].as_str().unwrap();
    assert!(link.starts_with("vscode://vscode-remote/ssh-remote+dev/"), "{link}");
    assert!(said.contains("prepared it's blue") && said.contains(link) && said.contains("`ssh dev`"), "{said}");

    let attached = Attached::to(&rig, "dev");
    // The directory is what the link says, and every kind of shell has the variables.
    let dir = link.strip_prefix("vscode://vscode-remote/ssh-remote+dev").unwrap();
    let look = format!("cd {dir} && cat notes.txt /tmp/init && bash -lc 'echo $COLOR $DSTACK_RUN_NAME'");
    let entered = attached.ssh("dev", &look).expect_status(0).text();
    assert_eq!(entered, "a note\nfrom init\nit's blue dev\n");
    // Who has none of them, as a fresh login has, gets them back, and only the job's user does.
    let fresh = "env -i HOME=/root bash -lc 'echo $COLOR; pwd'; stat -c %a /dstack/profile";
    let entered = attached.ssh("dev", fresh).expect_status(0).text();
    assert_eq!(entered.lines().collect::<Vec<_>>(), ["it's blue", dir, "600"]);
    // Being attached is being there.
    wait_for("somebody to be there", PATIENCE, || {
        (rig.submission("dev", 0)["inactivity_secs"] == 0).then_some(())
    });

    drop(attached);
    let before = wait_for("nobody to be there for a while", PATIENCE, || {
        rig.submission("dev", 0)["inactivity_secs"].as_u64().filter(|seconds| 3 < *seconds)
    });
    let shown = rig.run(&["ps", "-v"]).expect_status(0).text();
    assert!(shown.contains("running (inactive for "), "{shown}");
    // A server that was away counts on from when the last user left, and a running environment gets another limit.
    rig.kill_server();
    rig.start_server();
    let updated = rig.apply("dev.dstack.yml", &in_a_container("2s"), &["-R", "-d"]);
    assert!(updated.text().contains("Run dev updated"), "{}", updated.text());
    rig.wait_for_status("dev", "failed");
    let ended = rig.submission("dev", 0);
    assert_eq!(ended["status"], "terminated");
    assert_eq!(ended["termination_reason"], "inactivity_duration_exceeded");
    let message = ended["termination_reason_message"].as_str().unwrap();
    let words: Vec<&str> = message.split(' ').collect();
    let seconds: u64 = words[5].parse().unwrap();
    assert_eq!(
        message,
        format!("The job was inactive for {seconds} seconds, exceeding the inactivity_duration of 2 seconds")
    );
    assert!(before <= seconds, "{before} s before: {message}");
    assert_eq!(ended["inactivity_secs"], seconds);
}

#[test]
fn a_dev_environment_has_its_repository_until_it_is_stopped() {
    let test = "a_dev_environment_has_its_repository_until_it_is_stopped";
    let Some(rig) = Rig::start(test) else { return };
    if std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let (url, work) = repos::prepare(&rig);
    repos::git(&work, &["push", "-q", rig.dir.join("origin/app.git").to_str().unwrap(), "main:other"]);
    rig.run(&["init", "-P", &url, "-t", repos::TOKEN]).expect_status(0);
    let text = format!(
        "type: dev-environment\nname: dev\nide: cursor\nrepos: [{{url: \"{url}\", path: code}}]\n\
         init:\n  - git -C code branch -r > branches\n  - (while true; do echo alive; sleep 0.1; done) &\n{RESOURCES}"
    );
    rig.apply("dev.dstack.yml", &text, &["-R", "-d"]);
    rig.wait_for_status("dev", "running");
    wait_for_log(&rig, "dev", "cursor://vscode-remote/ssh-remote+dev/");
    let attached = Attached::to(&rig, "dev");
    let entered = attached.ssh("dev", "cat code/main.txt branches").expect_status(0).text();
    assert!(entered.starts_with("committed\n"), "{entered}");
    assert!(entered.contains("origin/main") && entered.contains("origin/other"), "{entered}");
    // What was started outlives its session, and not the run.
    let start = "nohup setsid sleep 1000077 >daemon.log 2>&1 </dev/null & echo $!";
    attached.ssh("dev", start).expect_status(0);
    wait_for("the daemon", PATIENCE, || (!rig.processes(&["sleep 1000077"]).is_empty()).then_some(()));
    // What `init` left running still has its terminal.
    let so_far = log(&rig, "dev").matches("alive").count();
    wait_for("more words of it", PATIENCE, || (so_far < log(&rig, "dev").matches("alive").count()).then_some(()));
    let stopped = rig.run(&["stop", "dev", "-y"]).expect_status(0).text();
    assert!(stopped.contains("Stopped") || stopped.is_empty(), "{stopped}");
    rig.wait_for_status("dev", "terminated");
    assert_eq!(rig.submission("dev", 0)["termination_reason"], "terminated_by_user");
    assert_eq!(rig.processes(&["sleep 1000077"]), Vec::<u32>::new());
    assert_ne!(attached.ssh("dev", "true").status, Some(0));
}

#[test]
fn who_applies_a_dev_environment_sees_the_link_and_stays_there() {
    let test = "who_applies_a_dev_environment_sees_the_link_and_stays_there";
    let Some(rig) = Rig::start(test) else { return };
    if std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let text = format!("type: dev-environment\nname: dev\nide: zed\ninactivity_duration: 1h\n{RESOURCES}");
    rig.write("dev.dstack.yml", &text);
    let mut typist = Typist::apply(&rig, "dev.dstack.yml");
    typist.waits_for("Submit the run dev?");
    typist.types("y\n");
    typist.waits_for("dev provisioning completed (running)");
    typist.waits_for("To open in Zed, use link below:");
    typist.waits_for("zed://ssh/dev/");
    typist.waits_for("To connect via SSH, use: `ssh dev`");
    wait_for("the user to be there", PATIENCE, || {
        (rig.submission("dev", 0)["inactivity_secs"] == 0).then_some(())
    });
    typist.types("\x03");
    typist.waits_for("Stop the run dev before detaching?");
    typist.types("y\n");
    typist.waits_for("Stopped");
    assert_eq!(typist.ends(), Some(0));
    rig.wait_for_status("dev", "terminated");
}
