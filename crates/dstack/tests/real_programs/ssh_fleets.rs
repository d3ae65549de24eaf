//! Fleets of machines of the user's own: real hosts with real sshd, sudo and Docker, joined, used and left.

use std::time::Duration;

use serde_json::Value;

use crate::hosts::{Init, Lan, Options, Sudo, TINY_IMAGE, TestHost, User};
use crate::rig::{Rig, Setup, pause, wait_for};

const PATIENCE: Duration = Duration::from_mins(2);

/// A server whose agents run anywhere, and a network for hosts.
fn start(test: &str) -> Option<(Rig, Lan)> {
    let rig = Rig::start_with(test, Setup { containers: true, ..Setup::default() })?;
    Some((rig, Lan::start(test)?))
}

/// A configuration of a fleet of these hosts, with lines of its own.
pub(crate) fn fleet(lan: &Lan, user: &str, hosts: &[&TestHost], lines: &str) -> String {
    let key = lan.key();
    let mut text = format!(
        "type: fleet\nname: own\n{lines}\nssh_config:\n  user: {user}\n  identity_file: {}\n  network: {}\n  hosts:\n",
        key.display(),
        lan.subnet()
    );
    for host in hosts {
        text.push_str(&format!("    - {}\n", host.address()));
    }
    text
}

fn task(name: &str, nodes: usize, commands: &[&str]) -> String {
    let mut text = format!("type: task\nname: {name}\nnodes: {nodes}\nimage: {TINY_IMAGE}\ncommands:\n");
    for command in commands {
        text.push_str(&format!("  - {command}\n"));
    }
    text.push_str("resources: {cpu: 1.., memory: 64MB.., disk: 1GB..}\n");
    text
}

/// The instances of the fleet that are not over, as the API says them.
fn instances(rig: &Rig) -> Vec<Value> {
    let got = rig.run(&["fleet", "get", "own", "--json"]).expect_status(0);
    let fleet: Value = serde_json::from_slice(&got.stdout).unwrap();
    let all = fleet["instances"].as_array().unwrap().clone();
    all.into_iter().filter(|instance| instance["status"] != "terminated").collect()
}

/// Waits until the fleet's instances have these statuses.
#[track_caller]
fn wait_for_statuses(rig: &Rig, expected: &[&str]) {
    wait_for(&format!("the instances to be {expected:?}"), PATIENCE, || {
        let now = instances(rig);
        let now: Vec<&str> = now.iter().map(|instance| instance["status"].as_str().unwrap()).collect();
        (now == expected).then_some(())
    });
}

/// The last line of a node of a run. The shell of the small image greets before it.
fn last_line(rig: &Rig, run: &str, node: usize) -> String {
    let log = String::from_utf8(rig.log(run, node)).unwrap();
    log.trim_end().lines().last().unwrap_or_default().to_owned()
}

/// What a server has put on a host and not taken away.
fn traces(host: &TestHost) -> String {
    // The brackets keep the search from finding itself.
    let text = "ls -d /var/lib/dstack/* /usr/local/lib/dstack/* /etc/systemd/system/dstack-agent-* ~*/.dstack \
                2>/dev/null; pgrep -fa '[d]stack/agent-'; docker ps -aq 2>/dev/null; true";
    host.exec(text).text()
}

#[track_caller]
fn wait_until_clean(host: &TestHost) {
    let mut left = String::new();
    let clean = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("a clean host", PATIENCE, || {
            left = traces(host);
            left.trim().is_empty().then_some(())
        });
    }));
    assert!(clean.is_ok(), "the host still has {left}");
}

/// The processes of a host's agent.
pub(crate) fn agent_of(host: &TestHost) -> String {
    host.exec("pgrep -f '[d]stack/agent-.* host'").text()
}

#[test]
fn a_task_runs_on_two_hosts_and_nothing_stays_on_them() {
    let Some((rig, lan)) = start("a_task_runs_on_two_hosts_and_nothing_stays_on_them") else { return };
    let options = Options { docker: true, user: User::named("ada"), ..Options::default() };
    let hosts = lan.hosts(&["one", "two"], &options);
    let text = fleet(&lan, "ada", &[&hosts[0], &hosts[1]], "placement: cluster");
    let applied = rig.apply("fleet.dstack.yml", &text, &[]);
    assert!(applied.text().contains("idle"), "{}", applied.text());
    let there = instances(&rig);
    let addresses: Vec<&str> = there.iter().map(|instance| instance["hostname"].as_str().unwrap()).collect();
    assert_eq!(addresses, [hosts[0].address().to_string(), hosts[1].address().to_string()]);
    assert!(there.iter().all(|instance| instance["backend"] == "remote" && instance["region"] == "remote"));

    let commands = [
        "echo rank $DSTACK_NODE_RANK of $DSTACK_NODES_NUM, master $DSTACK_MASTER_NODE_IP",
        "if [ $DSTACK_NODE_RANK = 0 ]; then echo hello | nc -l -p 7777; else until nc $DSTACK_MASTER_NODE_IP 7777; do sleep 0.1; done; fi",
    ];
    rig.apply("task.dstack.yml", &task("greet", 2, &commands), &["-R"]);
    let master = hosts[0].address();
    assert_eq!(last_line(&rig, "greet", 0), format!("rank 0 of 2, master {master}"));
    let second = String::from_utf8(rig.log("greet", 1)).unwrap();
    assert!(second.contains(&format!("rank 1 of 2, master {master}")) && second.contains("hello"), "{second}");

    // Without one of them, the other is not touched.
    let before = agent_of(&hosts[1]);
    rig.apply("fleet.dstack.yml", &fleet(&lan, "ada", &[&hosts[1]], "placement: cluster"), &[]);
    wait_for_statuses(&rig, &["idle"]);
    wait_until_clean(&hosts[0]);
    assert!(!before.is_empty());
    assert_eq!(agent_of(&hosts[1]), before);

    rig.run(&["fleet", "delete", "own", "-y"]).expect_status(0);
    wait_until_clean(&hosts[1]);
}

#[test]
fn a_host_with_systemd_comes_back_after_a_reboot() {
    let Some((mut rig, lan)) = start("a_host_with_systemd_comes_back_after_a_reboot") else { return };
    let host = lan.host("one", &Options { docker: true, init: Init::Systemd, ..Options::default() });
    rig.apply("fleet.dstack.yml", &fleet(&lan, "root", &[&host], ""), &[]);
    rig.apply("task.dstack.yml", &task("before", 1, &["echo before"]), &["-R"]);
    // Its job ends with it, and with a reason.
    rig.apply("task.dstack.yml", &task("during", 1, &["echo during; sleep 3600"]), &["-R", "-d"]);
    rig.wait_for_status("during", "running");
    host.reboot();
    rig.wait_for_status("during", "failed");
    wait_for_statuses(&rig, &["idle"]);
    // The server may have been away meanwhile.
    rig.kill_server();
    rig.start_server();
    rig.apply("task.dstack.yml", &task("after", 1, &["echo after"]), &["-R"]);
    assert_eq!(last_line(&rig, "after", 0), "after");
    assert_eq!(last_line(&rig, "during", 0), "during");
    rig.run(&["fleet", "delete", "own", "-y"]).expect_status(0);
    wait_until_clean(&host);
}

#[test]
fn hosts_that_cannot_be_joined_say_why() {
    let Some((rig, lan)) = start("hosts_that_cannot_be_joined_say_why") else { return };
    let ada = |sudo| User { sudo, ..User::named("ada") };
    let arm = "printf '#!/bin/sh\\necho aarch64\\n' > /usr/local/bin/uname\nchmod +x /usr/local/bin/uname\n";
    let hosts = [
        lan.host("asks", &Options { user: ada(Sudo::AsksPassword), ..Options::default() }),
        lan.host("bare", &Options { user: ada(Sudo::Free), ..Options::default() }),
        lan.host("arm", &Options { user: ada(Sudo::Free), set_up: arm.to_owned(), ..Options::default() }),
        lan.host("other", &Options::default()),
    ];
    rig.write("fleet.dstack.yml", &fleet(&lan, "ada", &hosts.each_ref(), ""));
    let applied = rig.run(&["apply", "-f", "fleet.dstack.yml", "-y"]).expect_status(1);
    let text = applied.text();
    let says = |host: &TestHost, words: &[&str]| {
        let address = host.address().to_string();
        let is_said = |line: &str| line.contains(&address) && words.iter().all(|word| line.contains(word));
        assert!(text.lines().any(is_said), "{address} {words:?}:\n{text}");
    };
    says(&hosts[0], &["sudo", "password", "NOPASSWD"]);
    says(&hosts[1], &["Docker does not answer"]);
    says(&hosts[2], &["aarch64"]);
    says(&hosts[3], &["does not let `ada` in"]);
    // What was wrong is mended, and the same file is applied again.
    hosts[0].exec("echo 'ada ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/zz").expect_status(0);
    let applied = rig.run(&["apply", "-f", "fleet.dstack.yml", "-y"]).expect_status(1);
    let address = hosts[0].address().to_string();
    let mended =
        applied.text().lines().any(|line| line.contains(&address) && line.contains("Docker does not answer"));
    assert!(mended, "{}", applied.text());
    rig.run(&["fleet", "delete", "own", "-y"]).expect_status(0);
    for host in &hosts {
        wait_until_clean(host);
    }
}

#[test]
fn unusual_hosts_work_also_behind_another_one() {
    let Some((rig, lan)) = start("unusual_hosts_work_also_behind_another_one") else { return };
    let jump = lan.host("jump", &Options { user: User::named("guest"), ..Options::default() });
    let fish = User { shell: "/usr/bin/fish", ..User::named("ada") };
    let odd = Options {
        docker: true,
        user: fish,
        sshd_config: "MaxSessions 1\nAllowTcpForwarding no\nBanner /etc/issue.net",
        sudoers: "Defaults use_pty",
        set_up: "mkdir -p ~ada/.config/fish; echo 'echo I am a fish' > ~ada/.config/fish/config.fish\n".to_owned(),
        ..Options::default()
    };
    let csh = Options {
        docker: true,
        user: User { shell: "/bin/tcsh", sudo: Sudo::Denied, groups: &["docker"], ..User::named("ada") },
        set_up: "echo 'echo I am a csh' > ~ada/.cshrc\n".to_owned(),
        ..Options::default()
    };
    let hosts = [lan.host("odd", &odd), lan.host("csh", &csh)];
    for host in &hosts {
        host.hide_behind(&jump);
    }
    let key = lan.key().display().to_string();
    let proxy = format!("{{hostname: {}, user: guest, identity_file: {key}}}", jump.address());
    let text = fleet(&lan, "ada", &hosts.each_ref(), "placement: cluster");
    let text = text.replace("  hosts:\n", &format!("  proxy_jump: {proxy}\n  hosts:\n"));
    rig.apply("fleet.dstack.yml", &text, &[]);
    rig.apply("task.dstack.yml", &task("odd", 2, &["echo rank $DSTACK_NODE_RANK"]), &["-R"]);
    assert_eq!([0, 1].map(|node| last_line(&rig, "odd", node)), ["rank 0", "rank 1"]);
    rig.run(&["fleet", "delete", "own", "-y"]).expect_status(0);
    for host in &hosts {
        wait_until_clean(host);
    }
}

#[test]
fn a_run_outlives_a_cut_of_the_network_and_a_host_with_another_key_is_refused() {
    const TEST: &str = "a_run_outlives_a_cut_of_the_network_and_a_host_with_another_key_is_refused";
    let Some((rig, lan)) = start(TEST) else { return };
    let host = lan.host("one", &Options { docker: true, ..Options::default() });
    let text = fleet(&lan, "root", &[&host], "");
    rig.apply("fleet.dstack.yml", &text, &[]);
    // Somebody else's fleet may not have it.
    rig.write("second.dstack.yml", &text.replace("name: own", "name: second"));
    let refused = rig.run(&["apply", "-f", "second.dstack.yml", "-y"]).expect_status(1);
    let said = format!("{}{}", refused.text(), refused.stderr);
    assert!(said.contains("belongs to the fleet own already"), "{said}");

    let commands = ["for i in $(seq 400); do echo line $i; sleep 0.05; done"];
    rig.apply("task.dstack.yml", &task("long", 1, &commands), &["-R", "-d"]);
    rig.wait_for_status("long", "running");
    // It comes and goes, in the middle of greetings too.
    for moment in [50, 400, 100, 800, 200] {
        host.cut_network();
        pause(Duration::from_millis(moment));
        host.restore_network();
        pause(Duration::from_millis(moment));
    }
    host.cut_network();
    wait_for("the loss of the host", PATIENCE, || {
        instances(&rig)[0]["progress"]["message"].is_string().then_some(())
    });
    host.restore_network();
    rig.wait_for_status("long", "done");
    let log = String::from_utf8(rig.log("long", 0)).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("line ")).map(str::trim_end).collect();
    let expected: Vec<String> = (1..=400).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected);

    host.change_host_key();
    wait_for("the refusal of the key", PATIENCE, || {
        let progress = instances(&rig)[0]["progress"]["message"].as_str()?.to_owned();
        (progress.contains("key") && progress.contains("SHA256:")).then_some(())
    });
    // Whoever trusts it takes it out and adds it again.
    rig.run(&["fleet", "delete", "own", "-i", "0", "-y"]).expect_status(0);
}
