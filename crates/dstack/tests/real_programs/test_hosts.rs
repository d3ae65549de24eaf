//! Hosts for tests are what the tests take them for.

use std::time::Duration;

use crate::hosts::{Init, Lan, Options, Sudo, TINY_IMAGE, TestHost, User};
use crate::rig::{Ended, wait_for};

const PATIENCE: Duration = Duration::from_mins(1);

/// Expects a command to end well, and answers its last line: what comes before may be what a shell said at its start.
#[track_caller]
fn last_line(ended: Ended) -> String {
    ended.expect_status(0).text().trim_end().lines().last().unwrap_or_default().to_owned()
}

/// Tells a host's boots apart: the kernel's own number is the same for all, but PID 1 starts with each.
fn boot_id(host: &TestHost) -> String {
    last_line(host.exec("cut -d ' ' -f 22 /proc/1/stat"))
}

#[test]
fn a_host_answers_over_ssh_and_loses_sessions_and_network_as_ordered() {
    let Some(lan) = Lan::start("a_host_answers_over_ssh_and_loses_sessions_and_network_as_ordered") else {
        return;
    };
    let host = lan.host("one", &Options { memory: Some("512m"), ..Options::default() });
    assert!(lan.subnet().starts_with(&host.address().to_string()[..6]), "{} in {}", host.address(), lan.subnet());
    assert_eq!(last_line(host.ssh("echo $(id -un) on $(hostname)")), "root on one");
    assert_eq!(last_line(host.ssh("cat /sys/fs/cgroup/memory/memory.limit_in_bytes")), (512 << 20).to_string());
    assert_ne!(host.ssh("command -v docker").status, Some(0), "a host without an engine has no client either");
    assert_ne!(host.ssh("timeout 2 bash -c '< /dev/tcp/1.1.1.1/53'").status, Some(0), "there is no internet");

    let mut session = host.ssh_command("echo up; read line; echo $line");
    session.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut session = session.spawn().unwrap();
    wait_for("the session", PATIENCE, || {
        (host.exec("pgrep -f '^bash -c echo up'").status == Some(0)).then_some(())
    });
    host.cut_network();
    assert!(!host.sshd_answers());
    host.restore_network();
    assert!(host.sshd_answers());
    assert!(session.try_wait().unwrap().is_none(), "a cut ends no connection by itself");

    let key = host.host_key();
    host.kill_sshd();
    assert!(!host.sshd_answers());
    assert_eq!(session.wait().unwrap().code(), Some(255), "the session ended with sshd");
    host.start_sshd();
    assert_eq!(host.host_key(), key);
    host.change_host_key();
    assert_ne!(host.host_key(), key);
    let before = boot_id(&host);
    host.power_off();
    assert!(!host.sshd_answers());
    host.power_on();
    assert_ne!(boot_id(&host), before);
    assert_eq!(last_line(host.ssh("echo back")), "back");
}

#[test]
fn hosts_are_reached_over_each_other_by_users_of_all_kinds() {
    let Some(lan) = Lan::start("hosts_are_reached_over_each_other_by_users_of_all_kinds") else { return };
    let jump =
        lan.host("jump", &Options { user: User { shell: "/bin/tcsh", ..User::root() }, ..Options::default() });
    let strict = Options {
        user: User { shell: "/usr/bin/fish", sudo: Sudo::AsksPassword, groups: &["docker"], ..User::named("joe") },
        sshd_config: "MaxSessions 1\nBanner /etc/banner",
        sudoers: "Defaults use_pty",
        small_disks: &[("/small", "1m")],
        set_up: "echo Beware > /etc/banner".to_owned(),
        ..Options::default()
    };
    let [one, two] = lan.hosts(&["one", "two"], &strict).try_into().expect("two names make two hosts");
    assert_eq!(last_line(one.ssh("echo $fish_pid > /dev/null; id -un; id -Gn")), "joe docker");
    assert_eq!(last_line(jump.ssh("echo $shell")), "/bin/tcsh");
    assert_ne!(one.ssh("sudo -n true").status, Some(0), "sudo asks");
    assert_ne!(one.ssh("head -c 2000000 /dev/zero > /small/file").status, Some(0), "the disk is full");
    let greeting = one.exec("ssh-keyscan -T 5 localhost 2>/dev/null | cut -d ' ' -f 2,3").expect_status(0).text();
    assert_eq!(greeting.trim(), one.host_key());
    assert_eq!(last_line(one.exec("sshd -T | grep -i maxsessions")), "maxsessions 1");

    let denied = Options { user: User { sudo: Sudo::Denied, ..User::named("ann") }, ..Options::default() };
    let denied = lan.host("denied", &denied);
    assert_ne!(denied.ssh("sudo -n true").status, Some(0));
    assert_eq!(last_line(denied.ssh_as_root("id -un")), "root");

    two.hide_behind(&jump);
    assert!(!two.sshd_answers());
    let greets = |host: &TestHost| format!("bash -c 'head -c 4 < /dev/tcp/{}/22'", host.address());
    assert_eq!(last_line(jump.ssh(&greets(&two))), "SSH-");
    assert_eq!(last_line(one.ssh(&greets(&jump))), "SSH-");
    assert_ne!(one.ssh(&greets(&two)).status, Some(0));
    assert_eq!(lan.key().file_name().unwrap(), "id_ed25519");
}

#[test]
fn an_engine_in_a_host_runs_the_tiny_image_also_on_the_hosts_network() {
    let Some(lan) = Lan::start("an_engine_in_a_host_runs_the_tiny_image_also_on_the_hosts_network") else {
        return;
    };
    let user = User { groups: &["docker"], ..User::named("joe") };
    let host = lan.host("one", &Options { docker: true, user, ..Options::default() });
    let run = |flags: &str, command: &str| host.ssh(&format!("docker run --rm {flags} {TINY_IMAGE} {command}"));
    assert_eq!(last_line(run("", "echo hello")), "hello");
    let address = format!("inet {}/24", host.address());
    let addresses = run("--network host", "ip address show dev eth0").expect_status(0).text();
    assert!(addresses.contains(&address), "{addresses}");
    let limited = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(last_line(run("--memory 64m --cpus 1 --pids-limit 50", limited)), (64 << 20).to_string());
    assert_eq!(last_line(host.ssh("sudo -n id -un")), "root");
    host.reboot();
    assert_eq!(last_line(run("", "echo hello again")), "hello again");
}

#[test]
fn systemd_is_pid_1_where_wanted_and_a_reboot_brings_back_what_is_enabled() {
    let test = "systemd_is_pid_1_where_wanted_and_a_reboot_brings_back_what_is_enabled";
    let Some(lan) = Lan::start(test) else { return };
    let options = Options { init: Init::Systemd, docker: true, user: User::named("joe"), ..Options::default() };
    let host = lan.host("one", &options);
    assert_eq!(last_line(host.ssh("cat /proc/1/comm")), "systemd");
    let unit = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n";
    let write = format!("printf '{}' | sudo tee /etc/systemd/system/test.service", unit.replace('\n', "\\n"));
    host.ssh(&write).expect_status(0);
    host.ssh("sudo systemctl daemon-reload && sudo systemctl enable --now test").expect_status(0);
    let main = "systemctl show --property MainPID --value test";
    let first = last_line(host.ssh(main));
    let before = boot_id(&host);
    host.reboot();
    assert_ne!(boot_id(&host), before);
    assert_eq!(last_line(host.ssh("systemctl is-active ssh test docker | sort -u")), "active");
    assert_ne!(last_line(host.ssh(main)), "0", "it was {first} before");
    assert_eq!(last_line(host.ssh("systemctl --failed --plain --no-legend | wc -l")), "0");
    assert_eq!(last_line(host.ssh(&format!("sudo docker run --rm {TINY_IMAGE} echo hello"))), "hello");
    host.kill_sshd();
    assert!(!host.sshd_answers());
    host.start_sshd();
    assert_eq!(last_line(host.ssh("loginctl --no-legend list-sessions | wc -l")), "1");
}
