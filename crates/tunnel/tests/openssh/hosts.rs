//! What a host says about itself.

use std::time::{Duration, SystemTime};

use tunnel::*;

use crate::support::*;

/// The clock of this machine, which is the clock of all of its servers.
#[expect(clippy::disallowed_methods, reason = "the host's clock cannot be injected")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_says_what_it_is() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let facts = probe(&sshd.session().await, now).await.unwrap();
    assert_eq!(facts.arch, run("uname", &["-m"]));
    assert_eq!((facts.system.as_str(), facts.uid), ("Linux", 0));
    assert_eq!(facts.host_name, run("uname", &["-n"]));
    assert_eq!(facts.boot_id, run("cat", &["/proc/sys/kernel/random/boot_id"]));
    assert!(facts.is_root() && facts.can_be_root());
    assert_eq!(facts.systemd, std::path::Path::new("/run/systemd/system").exists());
    assert_eq!(facts.docker_socket, std::path::Path::new("/var/run/docker.sock").exists());
    assert!(facts.homes.contains(&"/opt".to_owned()), "{:?}", facts.homes);
    assert_eq!(facts.clock_skew_seconds, 0);

    let ahead = probe(&sshd.session().await, || now() - Duration::from_hours(1)).await.unwrap();
    assert!((3595..=3600).contains(&ahead.clock_skew_seconds), "{}", ahead.clock_skew_seconds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_says_what_a_user_may_do() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let user = User::new("/bin/sh");
    let facts = probe(&sshd.session_of(&user).await, now).await.unwrap();
    assert_eq!(facts.sudo_problem, Some(SudoProblem::NeedsPassword));
    assert!(!facts.can_be_root() && !facts.in_docker_group() && !facts.docker_usable);
    assert!(facts.homes.contains(&user.home.to_str().unwrap().to_owned()), "{:?}", facts.homes);
    assert!(!facts.homes.contains(&"/opt".to_owned()), "{:?}", facts.homes);

    user.sudo("Defaults:% use_pty\n% ALL=(ALL) NOPASSWD: ALL");
    let facts = probe(&sshd.session_of(&user).await, now).await.unwrap();
    assert_eq!(facts.sudo_problem, None);
    assert!(facts.homes.contains(&"/opt".to_owned()), "{:?}", facts.homes);
}

#[tokio::test(flavor = "multi_thread")]
async fn sudo_runs_commands_with_a_terminal_of_its_own_and_says_when_it_cannot() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let user = User::new("/bin/bash");
    let session = sshd.session_of(&user).await;
    let id = || Command::new("id -u").privilege(Privilege::Sudo);
    let error = session.exec(id()).await.unwrap_err();
    let problem = SudoProblem::NeedsPassword;
    let expected = Error::Sudo { address: session.address().to_owned(), user: user.name.clone(), problem };
    assert_eq!(error, expected);
    assert!(error.to_string().contains("asks for a password"), "{error}");

    for rules in ["% ALL=(ALL) NOPASSWD: ALL", "Defaults:% use_pty\n% ALL=(ALL) NOPASSWD: ALL"] {
        user.sudo(rules);
        assert_eq!(session.exec(id()).await.unwrap().text().unwrap(), "0");
        // Every byte, those that a terminal would act upon included.
        let much: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
        let cat = Command::new("cat; echo end >&2; exit 9").privilege(Privilege::Sudo).stdin(much.clone());
        let output = session.exec(cat.at_most(much.len())).await.unwrap();
        assert!(output.stdout == much, "{rules}: {} bytes are others", output.stdout.len());
        assert_eq!((output.stderr.as_slice(), output.status), (&b"end\n"[..], Status::Exited(9)), "{rules}");
    }

    user.sudo("Defaults:% requiretty\n% ALL=(ALL) NOPASSWD: ALL");
    let error = session.exec(id()).await.unwrap_err();
    assert!(matches!(error, Error::Sudo { problem: SudoProblem::NeedsTerminal, .. }), "{error:?}");
}
