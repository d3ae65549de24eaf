//! Jobs entered through their SSH server by OpenSSH's own client.
//!
//! Skipped, and said so, where `DSTACK_TEST_SSH` is not set.

#![cfg(test)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use support::ssh::*;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// What a client shows.
struct Shown {
    out: tokio::process::ChildStdout,
    text: String,
}

impl Shown {
    fn new(out: tokio::process::ChildStdout) -> Shown {
        Shown { out, text: String::new() }
    }

    async fn wait_for(&mut self, expected: &str) {
        while !self.text.contains(expected) {
            let mut buffer = [0; 4096];
            let read = timeout(DEADLINE, self.out.read(&mut buffer)).await;
            let length = read.unwrap_or_else(|_| panic!("no `{expected}` in: {}", self.text)).unwrap();
            assert!(length > 0, "no `{expected}` in: {}", self.text);
            self.text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    async fn read_to_end(&mut self) -> String {
        let mut rest = Vec::new();
        timeout(DEADLINE, self.out.read_to_end(&mut rest)).await.unwrap().unwrap();
        self.text.push_str(&String::from_utf8_lossy(&rest));
        self.text.clone()
    }
}

/// How much is carried where it is about much.
const MUCH: usize = 100_000_000;

#[tokio::test]
async fn a_command_runs_in_the_job_and_its_end_is_told() {
    if !is_available() {
        return;
    }
    let mut job = Entrance::open_with(|spec| {
        spec.env.insert("GREETING".to_owned(), "it's me".to_owned());
    })
    .await;
    let output = job.run("echo out; echo err >&2; exit 42").await;
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("out\n", "err\n"));
    assert_eq!(output.status.code(), Some(42));
    let killed = job.run("kill -TERM $$").await;
    // The client says so where a signal was told, and has no status of its own for it.
    assert_eq!(killed.status.code(), Some(255), "{}", stderr(&killed));
    let output = job.run("echo $GREETING; echo $DSTACK_RUN_NAME; pwd; echo $USER $LOGNAME $HOME").await;
    let work = job.work().await;
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["it's me", "train", work.to_str().unwrap()]);
    assert_eq!(lines[3], format!("root root {}", std::env::var("HOME").unwrap()));
    let connection = stdout(&job.run("echo $SSH_CONNECTION").await);
    assert!(connection.trim().ends_with(&format!("127.0.0.1 {}", job.port)), "{connection}");
    let sent = finish(job.ssh(&["-o", "SetEnv=COLOUR=blue"], &["echo $COLOUR"])).await;
    assert_eq!(stdout(&sent), "blue\n");
    job.close().await;
}

#[tokio::test]
async fn much_goes_both_ways_at_once_and_nothing_is_lost() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let sent = noise(MUCH);
    let expected = hash(&sent);
    let mut ssh = job.ssh(&["-o", "RekeyLimit=16M"], &["cat"]);
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let feeding = tokio::spawn(async move { stdin.write_all(&sent).await });
    let mut received = Vec::new();
    timeout(LONG, out.read_to_end(&mut received)).await.expect("it goes on").unwrap();
    feeding.await.unwrap().unwrap();
    assert_eq!((received.len(), hash(&received)), (MUCH, expected));
    assert!(timeout(DEADLINE, child.wait()).await.unwrap().unwrap().success());
    job.close().await;
}

#[tokio::test]
async fn files_arrive_whole_through_sftp_and_scp_and_rsync() {
    if !is_available() {
        return;
    }
    let mut job = Entrance::open().await;
    let bytes = noise(MUCH);
    let (there, back) = (job.work().await.join("there"), job.path("back"));
    let file = job.path("file");
    std::fs::write(&file, &bytes).unwrap();
    let script = format!("put {} there\nget there {}\nls -l\n", file.display(), back.display());
    let output = job.sftp(&["-o", "RekeyLimit=16M"], &script).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("100000000"), "{}", stdout(&output));
    let expected = hash(&bytes);
    assert_eq!(hash(std::fs::read(&there).unwrap()), expected);
    assert_eq!(hash(std::fs::read(&back).unwrap()), expected);
    let mut scp = job.client("scp", "-P");
    scp.arg("-p").arg(&file).arg("root@127.0.0.1:copy");
    let output = finish(scp).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(hash(std::fs::read(there.with_file_name("copy")).unwrap()), expected);
    let shell = job.client("ssh", "-p");
    let shell: Vec<&str> =
        std::iter::once("ssh").chain(shell.as_std().get_args().filter_map(|a| a.to_str())).collect();
    let tree = job.path("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/c"), "text").unwrap();
    let mut rsync = tokio::process::Command::new("rsync");
    rsync.arg("-a").args(["-e", &shell.join(" ")]).arg(&tree).arg("root@127.0.0.1:.");
    let output = finish(rsync).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(there.with_file_name("tree").join("a/b/c")).unwrap(), "text");
    job.close().await;
}

#[tokio::test]
async fn twenty_channels_share_one_connection() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let control = format!("ControlPath={}", job.path("mux").display());
    let mut master = job.ssh(&["-M", "-N", "-o", &control], &[]);
    let _master = Background::start(std::mem::replace(&mut master, tokio::process::Command::new("true")));
    eventually("the master", async || job.path("mux").exists().then_some(())).await;
    // Each waits for all others, so that they really are there at once.
    let gate = job.path("gate");
    std::fs::create_dir(&gate).unwrap();
    let wait = |number: usize| {
        format!(
            "touch {gate}/{number}; while [ $(ls {gate} | wc -l) -lt 20 ]; do sleep 0.1; done; echo {number}",
            gate = gate.display()
        )
    };
    let all = (0..20).map(|number| {
        let ssh = job.ssh(&["-o", &control], &[&wait(number)]);
        async move { stdout(&finish(ssh).await) }
    });
    let outputs = futures_util::future::join_all(all).await;
    let expected: Vec<String> = (0..20).map(|number| format!("{number}\n")).collect();
    assert_eq!(outputs, expected);
    job.close().await;
}

#[tokio::test]
async fn a_terminal_has_its_size_and_tells_interrupts() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let screen =
        nix::pty::openpty(&nix::pty::Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 }, None);
    let screen = screen.unwrap();
    let name = nix::unistd::ttyname(&screen.slave).unwrap();
    let ssh = job.ssh(&["-tt"], &["trap 'echo caught' INT; tty; stty size; while sleep 0.1; do stty size; done"]);
    // The client is told of its terminal's size only where that is its controlling one.
    let mut client = tokio::process::Command::new("setsid");
    client.arg("--ctty").arg(ssh.as_std().get_program()).args(ssh.as_std().get_args());
    client.env("TERM", "xterm-256color").kill_on_drop(true);
    client.stdin(screen.slave.try_clone().unwrap()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = client.spawn().unwrap();
    let mut shown = Shown::new(client.stdout.take().unwrap());
    shown.wait_for("/dev/pts/").await;
    shown.wait_for("31 97").await;
    let mut stty = tokio::process::Command::new("stty");
    stty.arg("-F").arg(name).args(["rows", "44", "cols", "111"]);
    assert!(stty.status().await.unwrap().success());
    shown.wait_for("44 111").await;
    nix::unistd::write(&screen.master, b"\x03").unwrap();
    shown.wait_for("caught").await;
    drop(client);
    job.close().await;
}

#[tokio::test]
async fn a_shell_is_a_login_in_the_jobs_environment() {
    if !is_available() {
        return;
    }
    let job = Entrance::open_with(|spec| {
        spec.env.insert("PATH".to_owned(), "/opt/own/bin:/usr/bin:/bin".to_owned());
    })
    .await;
    let mut ssh = job.ssh(&["-tt"], &[]);
    ssh.env("TERM", "xterm-256color");
    let mut client = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut shown = Shown::new(client.stdout.take().unwrap());
    let mut keys = client.stdin.take().unwrap();
    keys.write_all(b"echo path=$PATH name=$DSTACK_RUN_NAME tty=$SSH_TTY; exit 3\n").await.unwrap();
    let text = shown.read_to_end().await;
    assert!(text.contains("/opt/own/bin:/usr/bin:/bin:") && text.contains("name=train tty=/dev/pts/"), "{text}");
    assert_eq!(timeout(DEADLINE, client.wait()).await.unwrap().unwrap().code(), Some(3));
    let mut ssh = job.ssh(&["-T"], &[]);
    let mut client = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut keys = client.stdin.take().unwrap();
    keys.write_all(b"echo from a pipe; test -t 0 || echo no terminal\n").await.unwrap();
    drop(keys);
    let output = timeout(DEADLINE, client.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(stdout(&output), "from a pipe\nno terminal\n");
    job.close().await;
}

#[tokio::test]
async fn a_program_that_answers_more_than_it_reads_goes_on() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let line = format!("{}\n", "x".repeat(63));
    let sent = line.repeat(160_000);
    let mut ssh = job.ssh(&[], &["awk '{ for (i = 0; i < 10; i++) print }'"]);
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let feeding = tokio::spawn(async move { stdin.write_all(sent.as_bytes()).await });
    let mut received = Vec::new();
    timeout(LONG, out.read_to_end(&mut received)).await.expect("it goes on").unwrap();
    feeding.await.unwrap().unwrap();
    assert_eq!(received.len(), 160_000 * 64 * 10);
    job.close().await;
}

#[tokio::test]
async fn a_program_that_reads_nothing_holds_up_nobody_else() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let control = format!("ControlPath={}", job.path("mux").display());
    let mut ssh = job.ssh(&["-o", "ControlMaster=yes", "-o", &control], &["sleep 1000001"]);
    let mut stalled = ssh.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = stalled.stdin.take().unwrap();
    // More than may wait before the connection is read slowly.
    timeout(LONG, stdin.write_all(&noise(12_000_000))).await.unwrap().unwrap();
    let output = finish(job.ssh(&["-o", &control], &["echo alive"])).await;
    assert_eq!(stdout(&output), "alive\n");
    drop(stalled);
    job.close().await;
}

#[tokio::test]
async fn a_stranger_is_refused_and_never_asked_for_a_password() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    make_key(&job.path("stranger"), "ed25519").await;
    std::fs::rename(job.path("stranger"), job.path("user")).unwrap();
    std::fs::rename(job.path("stranger.pub"), job.path("user.pub")).unwrap();
    let mut ssh = tokio::process::Command::new("ssh");
    ssh.args(job.options()).args(["-v", "-p", &job.port.to_string(), "root@127.0.0.1", "true"]);
    ssh.env_remove("SSH_AUTH_SOCK").stdin(Stdio::null()).kill_on_drop(true);
    let output = finish(ssh).await;
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(255));
    assert!(told.contains("Permission denied (publickey)"), "{told}");
    assert!(!told.contains("keyboard-interactive,") && !told.contains("password"), "{told}");
    job.close().await;
}

#[tokio::test]
async fn files_of_sftp_belong_to_the_jobs_user() {
    if !is_available() {
        return;
    }
    let mut job = Entrance::open_with(|spec| spec.user = Some("nobody".to_owned())).await;
    let file = job.path("file");
    std::fs::write(&file, "text").unwrap();
    let output = job.sftp(&[], &format!("put {} there\n", file.display())).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let owner = std::fs::metadata(job.work().await.join("there")).unwrap().uid();
    assert_eq!(owner, 65534);
    assert_eq!(stdout(&job.run("id -u; id -G").await), "65534\n65534\n");
    let refused = job.sftp(&[], "ls /root\n").await;
    assert!(!refused.status.success());
    job.close().await;
}
