//! Commands: what they print and how they end, under every login shell.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tunnel::*;

use crate::support::*;

/// A word that shells disagree about.
const AWKWARD: &str = "it's \"a\" $HOME `x` \\ \\n !! !x ~ * {a,b} # %s 100% é\ttab\n\nsecond; line | & <>";

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_what_it_printed_and_how_it_ended() {
    if !enabled() {
        return;
    }
    let session = Sshd::start().await;
    let session = session.session().await;
    let output = session.exec(Command::new("echo out; echo err >&2; exit 3")).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), &output.status),
        (&b"out\n"[..], &b"err\n"[..], &Status::Exited(3))
    );
    let error = output.success().unwrap_err().to_string();
    assert_eq!(error, "`echo out; echo err >&2; exit 3` failed with exit status 3: err");

    let output = session.exec(Command::new("kill -s KILL $$")).await.unwrap();
    assert_eq!(output.status, Status::Signaled("KILL".to_owned()));

    let output = session.exec(Command::program(["printf", "%s|", AWKWARD, ""])).await.unwrap();
    assert_eq!(output.text().unwrap(), format!("{AWKWARD}||"));
}

#[tokio::test(flavor = "multi_thread")]
async fn much_goes_both_ways_at_once() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let much = noise(24 * 1024 * 1024);
    let command = Command::new("cat").stdin(much.clone()).at_most(much.len());
    let output = session.exec(command.within(PATIENCE)).await.unwrap();
    assert!(output.success().unwrap() == much, "the bytes are others");
    // A command that reads nothing of much does not hang.
    let output = session.exec(Command::new("exit 7").stdin(much)).await.unwrap();
    assert_eq!(output.status, Status::Exited(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_goes_too_far_is_stopped() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let error = session.exec(Command::new("yes").at_most(100_000)).await.unwrap_err();
    assert_eq!(error, Error::OutputTooLong { command: "yes".to_owned(), limit: 100_000 });

    let user = User::new("/bin/bash");
    user.sudo("Defaults:% use_pty\n% ALL=(ALL) NOPASSWD: ALL");
    let session_of_user = sshd.session_of(&user).await;
    let cases = [
        (session, Privilege::User),
        (session_of_user.clone(), Privilege::User),
        (session_of_user, Privilege::Sudo),
    ];
    for (index, (session, privilege)) in cases.into_iter().enumerate() {
        let mark = user.home.join(format!("pid{index}"));
        let script = format!("sleep 600 & echo $$ $! >{}; wait", mark.display());
        let limit = Duration::from_secs(5);
        let command = Command::new(script).named("slow").privilege(privilege).within(limit);
        let error = session.exec(command).await.unwrap_err();
        assert_eq!(error, Error::CommandTimedOut { command: "slow".to_owned(), limit });
        for pid in std::fs::read_to_string(mark).unwrap().split_whitespace() {
            let process = Path::new("/proc").join(pid);
            eventually("the command and what it started end on the host", || !process.exists()).await;
        }
    }
}

/// Whether a shell is installed, said loudly if not.
fn has_shell(shell: &str) -> bool {
    let is_there = Path::new(shell).exists();
    if !is_there {
        eprintln!("SKIPPED: install `{shell}` to test with it");
    }
    is_there
}

#[tokio::test(flavor = "multi_thread")]
async fn login_shells_that_print_and_differ_change_nothing() {
    if !enabled() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let banner = dir.path().join("banner");
    std::fs::write(&banner, "Authorized use only!\n").unwrap();
    let sshd = Sshd::with(&format!("Banner {}", banner.display())).await;
    let noisy = "echo Welcome; printf 'no line end'; echo trouble >&2\n";
    for (shell, file, text) in [
        ("/bin/bash", ".bashrc", noisy),
        ("/usr/bin/dash", ".profile", noisy),
        ("/usr/bin/fish", ".config/fish/config.fish", noisy),
        ("/usr/bin/tcsh", ".tcshrc", "echo Welcome\necho -n 'no line end'\n"),
    ] {
        if !has_shell(shell) {
            continue;
        }
        let user = User::new(shell);
        user.write(file, text);
        let session = sshd.session_of(&user).await;
        let input = noise(300_000);
        let script = format!("printf '%s' {} >&2; cat; exit 5", shell_word(AWKWARD));
        let output = session.exec(Command::new(script).stdin(input.clone())).await.unwrap();
        assert_eq!(output.status, Status::Exited(5), "{shell}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), AWKWARD, "{shell}");
        assert!(output.stdout == input, "{shell}: the bytes are others");

        let mut stream = session.stream(Command::new("exec cat")).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "ping", "{shell}");
    }
}

fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_shell_that_reads_gets_none_of_the_input() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let user = User::new("/bin/bash");
    user.write(".bashrc", "read -t 1 swallowed\n");
    let session = sshd.session_of(&user).await;
    let output = session.exec(Command::new("cat").stdin("a\nb\n")).await.unwrap();
    assert_eq!(output.text().unwrap(), "a\nb");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_run_commands_is_told_so() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let user = User::new("/usr/sbin/nologin");
    let session = sshd.session_of(&user).await;
    let expected = format!(
        "the login shell of `{}` on `{}` does not run commands: This account is currently not available.",
        user.name,
        session.address()
    );
    assert_eq!(session.exec(Command::new("true")).await.unwrap_err().to_string(), expected);
    assert_eq!(session.stream(Command::new("true")).await.unwrap_err().to_string(), expected);
    drop(session);

    let forced = Sshd::with("ForceCommand echo only this").await;
    let error = forced.session().await.exec(Command::new("true")).await.unwrap_err();
    assert!(matches!(&error, Error::ShellRefused { said, .. } if said == "only this"), "{error:?}");

    let endless = Sshd::with("ForceCommand yes").await;
    let error = endless.session().await.exec(Command::new("true")).await.unwrap_err();
    assert!(matches!(&error, Error::ShellRefused { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_how_its_command_ended() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let mut stream = session.stream(Command::new("echo hello; read line; echo sad >&2; exit 4")).await.unwrap();
    let mut hello = [0; 6];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello\n");
    stream.write_all(b"go\n").await.unwrap();
    let exit = timeout(PATIENCE, stream.exit()).await.unwrap().unwrap();
    assert_eq!(exit, Exit { status: Status::Exited(4), stderr: "sad".to_owned() });

    // Writing to a command that has ended is an error, and no wait for a window that nobody opens.
    let mut stream = session.stream(Command::new("exec sleep 1")).await.unwrap();
    let much = noise(16 * 1024 * 1024);
    let error = timeout(PATIENCE, stream.write_all(&much)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_stream_ends_its_command() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let mut stream = session.stream(Command::new("echo $$; exec cat")).await.unwrap();
    let mut pid = String::new();
    while !pid.ends_with('\n') {
        pid.push(char::from(stream.read_u8().await.unwrap()));
    }
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists());
    drop(stream);
    eventually("the command ends on the host", || !process.exists()).await;
}
