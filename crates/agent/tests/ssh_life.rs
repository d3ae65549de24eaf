//! The life of a job's SSH server, and what it keeps to itself.
//!
//! Skipped, and said so, where `DSTACK_TEST_SSH` is not set.

#![cfg(test)]

mod support;

use std::net::TcpListener;
use std::process::Stdio;

use api::agent::*;
use api::ids::JobId;
use support::ssh::*;
use support::*;
use tokio::time::timeout;

/// The job's SSH servers that live.
fn servers_of(job: JobId) -> Vec<i32> {
    let is_server = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.ends_with(b"\0ssh\0") && is_alive(*pid)
    };
    processes_of(job).into_iter().filter(is_server).collect()
}

/// The job's processes that live and run this program.
fn running(job: JobId, program: &str) -> Vec<i32> {
    let runs = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).replace('\0', " ").trim_end().ends_with(program) && is_alive(*pid)
    };
    processes_of(job).into_iter().filter(runs).collect()
}

#[tokio::test]
async fn a_job_can_be_entered_before_its_command_starts() {
    if !is_available() {
        return;
    }
    let mut job = Entrance::open_with(|spec| spec.released = false).await;
    assert_eq!(stdout(&job.run("echo early").await), "early\n");
    let spec = job.spec.clone();
    job.agent.order(&spec, "go").await;
    job.agent.wait_for(&spec, "started", |state| state.started_at.is_some()).await;
    assert_eq!(stdout(&job.run("echo late").await), "late\n");
    job.close().await;
}

#[tokio::test]
async fn whoever_is_in_a_job_leaves_it_with_its_command() {
    if !is_available() {
        return;
    }
    let go = tempfile::NamedTempFile::new().unwrap();
    let text = format!("while [ -e {} ]; do sleep 0.02; done; exit 7", go.path().display());
    let mut job = Entrance::open_with(|spec| spec.argv = script(&text).argv).await;
    let spec = job.spec.clone();
    let mut on_terminal = job.ssh(&["-tt"], &["sleep 1000002"]).spawn().unwrap();
    let stubborn = "trap '' HUP TERM INT; sleep 1000003 & wait; sleep 1000003";
    let mut on_pipe = job.ssh(&[], &[stubborn]).stdout(Stdio::null()).spawn().unwrap();
    for program in ["sleep 1000002", "sleep 1000003"] {
        let is_there = async || (!running(spec.id, program).is_empty()).then_some(());
        eventually("the sessions", is_there).await;
    }
    go.close().unwrap();
    let exit = job.agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!((exit.reason, exit.exit_status), (ExitReason::Failed, Some(7)));
    assert!(processes_of(spec.id).iter().all(|pid| !is_alive(*pid)));
    for client in [&mut on_terminal, &mut on_pipe] {
        assert!(!timeout(DEADLINE, client.wait()).await.expect("the client ends").unwrap().success());
    }
}

#[tokio::test]
async fn an_interrupted_shell_ends_though_somebody_is_in_the_job() {
    if !is_available() {
        return;
    }
    let mut job = Entrance::open_with(|spec| {
        spec.argv = process(&["/bin/sh", "-i", "-c", "sleep 1000000; echo on"]).argv;
    })
    .await;
    let spec = job.spec.clone();
    let _client = Background::start(job.ssh(&["-tt"], &["sleep 1000004"]));
    let _stubborn = Background::start(job.ssh(&[], &["trap '' HUP TERM INT; sleep 1000006; sleep 1000006"]));
    for program in ["sleep 1000004", "sleep 1000006"] {
        let is_there = async || (!running(spec.id, program).is_empty()).then_some(());
        eventually("the sessions", is_there).await;
    }
    job.agent.wait_for(&spec, "started", |state| state.started_at.is_some()).await;
    job.agent.stop(&spec, 3600).await;
    let exit = job.agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::Stopped);
}

#[tokio::test]
async fn a_server_that_fails_comes_back_and_the_job_goes_on() {
    if !is_available() {
        return;
    }
    let mut job = Entrance::open().await;
    let spec = job.spec.clone();
    let before = servers_of(spec.id);
    assert_eq!(before.len(), 1);
    kill_process(before[0]);
    let output = eventually("the server", async || {
        let output = job.run("echo again").await;
        (servers_of(spec.id) != before && output.status.success()).then_some(output)
    })
    .await;
    assert_eq!(stdout(&output), "again\n");
    assert_eq!(job.agent.state(spec.id).await.unwrap().phase, TaskPhase::Running);
    job.close().await;
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed() {
    if !is_available() {
        return;
    }
    let job = Entrance::open_with(|spec| {
        if let Some(ssh) = &mut spec.ssh {
            ssh.keep_alive_secs = 1;
        }
    })
    .await;
    let client = Background::start(job.ssh(&["-tt"], &["sleep 1000005"]));
    let session = async || running(job.spec.id, "sleep 1000005").first().copied();
    let session = eventually("the session", session).await;
    let pid = nix::unistd::Pid::from_raw(client.0.id().unwrap().try_into().unwrap());
    // It answers no more, as one whose machine sleeps.
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    eventually("the session ends", async || (!is_alive(session)).then_some(())).await;
    job.close().await;
}

#[tokio::test]
async fn a_port_that_is_taken_moves_a_server_and_ends_only_a_job_that_needs_it() {
    if !is_available() {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let take = |required: bool| {
        move |spec: &mut TaskSpec| {
            if let Some(ssh) = &mut spec.ssh {
                (ssh.port, ssh.required) = (port, required);
            }
        }
    };
    let mut job = Entrance::open_with(take(false)).await;
    let state = job.agent.state(job.spec.id).await.unwrap();
    let moved = state.resolved.ports[&port];
    assert!(moved != port && moved != 0, "another one is taken and told: {moved}");
    assert_eq!(state.warnings, Vec::<String>::new());
    drop(std::net::TcpStream::connect(("127.0.0.1", moved)).unwrap());
    job.close().await;
    let mut job = Entrance::open_with(take(true)).await;
    let spec = job.spec.clone();
    let exit = job.agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::PortsBindingFailed);
    let message = exit.message.unwrap();
    assert!(message.contains(&format!("cannot listen on port {port}")), "{message}");
}

#[tokio::test]
async fn the_private_key_is_nowhere_to_be_read() {
    if !is_available() {
        return;
    }
    let mut job = Entrance::open_with(|spec| spec.user = Some("nobody".to_owned())).await;
    let spec = job.spec.clone();
    job.agent.wait_for(&spec, "started", |state| state.started_at.is_some()).await;
    assert_eq!(stdout(&job.run("echo in").await), "in\n");
    let ssh = spec.ssh.clone().unwrap();
    let secret = ssh.host_key.lines().nth(2).unwrap();
    let found = std::process::Command::new("grep").args(["-rlF", secret]).arg(job.agent.home.path()).output();
    assert_eq!(String::from_utf8_lossy(&found.unwrap().stdout), "");
    let server = servers_of(spec.id)[0];
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(format!("/proc/{server}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains(secret));
    }
    // The server is the same user's, and yet closed to it.
    let output = job.run(&format!("cat /proc/{server}/environ; head -c 1 /proc/{server}/mem; echo")).await;
    assert_eq!(stdout(&output), "\n");
    assert!(!format!("{spec:?}").contains(secret));
    job.close().await;
}

#[tokio::test]
async fn an_image_without_a_shell_still_has_files_and_ports() {
    if !is_available() {
        return;
    }
    // A world in which no shell can be run; the agent itself needs none.
    let hide = "for shell in bash dash sh; do mount --bind /dev/null /usr/bin/$shell || exit 9; done; exec \"$@\"";
    let wrapper: Vec<String> =
        ["unshare", "--mount", "/bin/bash", "-c", hide, "agent"].map(str::to_owned).to_vec();
    let can_hide = std::process::Command::new("unshare").args(["--mount", "true"]).status();
    if !can_hide.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: only root can hide shells");
        return;
    }
    let mut job = Entrance::open_in(wrapper, |_| {}).await;
    let output = job.run("echo never").await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(127), ""));
    assert!(stderr(&output).contains("image has no shell"), "{}", stderr(&output));
    let file = job.path("file");
    std::fs::write(&file, "text").unwrap();
    let output = job.sftp(&[], &format!("put {} there\n", file.display())).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(job.work().await.join("there")).unwrap(), "text");
    let ours = TcpListener::bind("127.0.0.1:0").unwrap();
    let forwarded = format!("127.0.0.1:{}", ours.local_addr().unwrap().port());
    let mut ssh = job.ssh(&["-W", &forwarded], &[]);
    let client = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let accepted = tokio::task::spawn_blocking(move || ours.accept());
    let (mut stream, _) = timeout(DEADLINE, accepted).await.unwrap().unwrap().unwrap();
    std::io::Write::write_all(&mut stream, b"through").unwrap();
    drop(stream);
    let output = timeout(DEADLINE, client.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(stdout(&output), "through");
    job.close().await;
}

#[tokio::test]
async fn keys_of_every_common_kind_open_the_job() {
    if !is_available() {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    let mut public = Vec::new();
    for kind in ["rsa", "ecdsa", "ed25519"] {
        public.push(make_key(&keys.path().join(kind), kind).await.1);
    }
    let job = Entrance::open_with(|spec| {
        if let Some(ssh) = &mut spec.ssh {
            ssh.authorized_keys = public;
            ssh.authorized_keys.push("a line that is no key".to_owned());
        }
    })
    .await;
    for kind in ["rsa", "ecdsa", "ed25519"] {
        std::fs::copy(keys.path().join(kind), job.path("user")).unwrap();
        std::fs::copy(keys.path().join(kind).with_extension("pub"), job.path("user.pub")).unwrap();
        let output = job.run("echo in").await;
        assert_eq!(stdout(&output), "in\n", "{kind}: {}", stderr(&output));
    }
    job.close().await;
}
