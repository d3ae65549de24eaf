//! What IDEs do with a job's SSH server, done with OpenSSH's own client, and who counts as being there.
//!
//! Skipped, and said so, where `DSTACK_TEST_SSH` is not set.

#![cfg(test)]

mod support;

use std::process::Stdio;

use api::agent::*;
use support::ssh::*;
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Child;
use tokio::time::timeout;

/// A server that an IDE brings: it answers on a port and on a socket, and outlives who started it.
const SERVER: &str = r#"
import os, signal, socket, sys, threading
signal.signal(signal.SIGHUP, signal.SIG_IGN)
folder = sys.argv[1]
def answer(stream):
    while True:
        data = stream.recv(65536)
        if not data: break
        stream.sendall(data)
    stream.close()
def serve(listener):
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
tcp = socket.create_server(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind(folder + "/ide.sock")
unix.listen()
threading.Thread(target=serve, args=(unix,), daemon=True).start()
with open(folder + "/port.new", "w") as file: file.write(str(tcp.getsockname()[1]))
os.rename(folder + "/port.new", folder + "/port")
serve(tcp)
"#;

/// The script that an IDE sends to a shell: it starts the server unless there is one, and says where it answers.
fn script(folder: &str) -> String {
    format!(
        r#"
set -e
if [ ! -e {folder}/port ] || ! kill -0 "$(cat {folder}/pid)" 2>/dev/null; then
    rm -f {folder}/port {folder}/ide.sock
    nohup setsid python3 {folder}/server.py {folder} >{folder}/log 2>&1 </dev/null &
    echo $! >{folder}/pid
    while [ ! -e {folder}/port ]; do sleep 0.05; done
    echo "started=="
fi
echo "listeningOn==$(cat {folder}/port)=="
"#
    )
}

/// A job that people work in.
async fn open() -> Entrance {
    Entrance::open_with(|spec| {
        spec.argv = Vec::new();
        spec.stay = Some(Stay { greeting: "here\n".to_owned() });
        spec.env.insert("TOKEN".to_owned(), "it's a $secret\nof two lines".to_owned());
    })
    .await
}

/// A client that keeps a shell as IDEs do, with its input open.
struct Ide {
    client: Child,
    port: u16,
    has_started: bool,
}

impl Ide {
    async fn connect(job: &Entrance, options: &[&str]) -> Ide {
        let mut all = vec!["-T", "-o", "ConnectTimeout=15"];
        all.extend(options);
        let mut ssh = job.ssh(&all, &["bash"]);
        let mut client = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let folder = job.dir.path().display().to_string();
        client.stdin.as_mut().unwrap().write_all(script(&folder).as_bytes()).await.unwrap();
        let mut said = String::new();
        let output = client.stdout.as_mut().unwrap();
        while !said.ends_with("==\n") || !said.contains("listeningOn==") {
            let mut buffer = [0; 1024];
            let length = timeout(LONG, output.read(&mut buffer)).await.expect("the script goes on").unwrap();
            assert!(length > 0, "{said}");
            said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        let port = said.split("listeningOn==").nth(1).unwrap().split("==").next().unwrap().parse().unwrap();
        Ide { client, port, has_started: said.contains("started==") }
    }
}

async fn check_echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut back = vec![0; word.len()];
        timeout(LONG, stream.read_exact(&mut back)).await.expect("an answer").unwrap();
        assert_eq!(back, word.as_bytes());
    }
}

async fn connect(port: u16) -> TcpStream {
    eventually("a port that answers", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await
}

/// Connects through a port of `ssh -D` (SOCKS 5).
async fn connect_by_name(proxy: u16, host: &str, port: u16) -> TcpStream {
    let mut stream = connect(proxy).await;
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [5, 0]);
    let mut request = vec![5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
    request.extend(host.bytes());
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await.unwrap();
    let mut answer = [0; 10];
    timeout(LONG, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(answer[..2], [5, 0], "{answer:?}");
    stream
}

#[tokio::test]
async fn an_ide_starts_its_server_and_finds_it_again() {
    if !is_available() {
        return;
    }
    let mut job = open().await;
    let spec = job.spec.clone();
    std::fs::write(job.path("server.py"), SERVER).unwrap();
    let proxy = free_port();
    let mut ide = Ide::connect(&job, &["-D", &format!("127.0.0.1:{proxy}")]).await;
    assert!(ide.has_started);
    check_echo(connect_by_name(proxy, "localhost", ide.port).await).await;
    check_echo(connect_by_name(proxy, "127.0.0.1", ide.port).await).await;
    // A second window comes while the first is there.
    let here = job.path("here.sock");
    let forward = format!("{}:{}", here.display(), job.path("ide.sock").display());
    let second = Ide::connect(&job, &["-L", &forward]).await;
    assert!(!second.has_started && second.port == ide.port);
    let stream = eventually("the local socket", async || UnixStream::connect(&here).await.ok()).await;
    check_echo(stream).await;
    drop(second);
    // The laptop sleeps, and the server lives on.
    ide.client.kill().await.unwrap();
    for _ in 0..3 {
        let here = free_port();
        let again = Ide::connect(&job, &["-L", &format!("127.0.0.1:{here}:localhost:{}", ide.port)]).await;
        assert!(!again.has_started && again.port == ide.port, "the same server is found again");
        check_echo(connect(here).await).await;
    }
    let server: i32 = std::fs::read_to_string(job.path("pid")).unwrap().trim().parse().unwrap();
    assert!(is_alive(server));
    job.agent.stop(&spec, 20).await;
    job.agent.wait_sealed(&spec).await;
    assert!(!is_alive(server) || !processes_of(spec.id).contains(&server));
    assert!(processes_of(spec.id).into_iter().all(|pid| !is_alive(pid)));
}

#[tokio::test]
async fn shells_of_every_kind_have_the_jobs_variables() {
    if !is_available() {
        return;
    }
    let job = open().await;
    let print = r#"printf '<%s %s>' "$DSTACK_RUN_NAME" "$TOKEN""#;
    let expected = "<train it's a $secret\nof two lines>";
    for shell in ["sh -c", "bash -c", "bash -lc", "bash -ic", "bash -lic", "sh -lc"] {
        let output = job.run(&format!("{shell} '{}'", print.replace('\'', r"'\''"))).await;
        assert!(stdout(&output).contains(expected), "{shell}: {} {}", stdout(&output), stderr(&output));
    }
    // A login without a command, as a terminal has it.
    let mut ssh = job.ssh(&["-T"], &[]);
    let mut client = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(print.as_bytes()).await.unwrap();
    drop(input);
    let output = timeout(LONG, client.wait_with_output()).await.expect("the shell ends").unwrap();
    assert!(stdout(&output).contains(expected), "{}", stdout(&output));
    job.close().await;
}

fn is_empty(state: &TaskState) -> bool {
    state.unvisited_millis.is_some()
}

fn is_visited(state: &TaskState) -> bool {
    state.unvisited_millis.is_none()
}

#[tokio::test]
async fn users_are_there_from_their_login_until_the_last_has_left() {
    if !is_available() {
        return;
    }
    let mut job = open().await;
    let spec = job.spec.clone();
    job.agent.wait_for(&spec, "nobody yet", is_empty).await;
    let first = Background::start(job.ssh(&["-N"], &[]));
    job.agent.wait_for(&spec, "the first", is_visited).await;
    let mut ssh = job.ssh(&[], &["echo in; sleep 1000020"]);
    ssh.stdout(Stdio::piped());
    let mut session = Background::start(ssh);
    let mut output = session.0.stdout.take().unwrap();
    timeout(LONG, output.read_exact(&mut [0; 3])).await.expect("the second is in").unwrap();
    drop(first);
    // Whoever comes and goes meanwhile changes nothing.
    assert_eq!(stdout(&job.run("echo by").await), "by\n");
    assert!(is_visited(&job.agent.state(spec.id).await.unwrap()));
    drop(session);
    job.agent.wait_for(&spec, "all have left", is_empty).await;
    job.close().await;
}

#[tokio::test]
async fn a_short_visit_counts_and_a_stranger_does_not() {
    if !is_available() {
        return;
    }
    let mut job = open().await;
    let spec = job.spec.clone();
    let is_long = |state: &TaskState| state.unvisited_millis.is_some_and(|millis| millis > 1500);
    let before = job.agent.wait_for(&spec, "some absence", is_long).await.unvisited_millis;
    // Neither who only connects, nor who has another key.
    let silent = connect(job.port).await;
    make_key(&job.path("other"), "ed25519").await;
    let other = format!("IdentityFile={}", job.path("other").display());
    std::fs::rename(job.path("user"), job.path("kept")).unwrap();
    let output = finish(job.ssh(&["-o", &other], &["true"])).await;
    assert!(!output.status.success() && stderr(&output).contains("Permission denied"), "{}", stderr(&output));
    let state = job.agent.state(spec.id).await.unwrap();
    assert!(before <= state.unvisited_millis, "{before:?} {state:?}");
    drop(silent);
    std::fs::rename(job.path("kept"), job.path("user")).unwrap();
    assert_eq!(stdout(&job.run("echo in").await), "in\n");
    let is_anew = |state: &TaskState| is_empty(state) && state.unvisited_millis < before;
    job.agent.wait_for(&spec, "absence begins anew", is_anew).await;
    job.close().await;
}

#[tokio::test]
async fn nobody_is_left_in_a_job_whose_server_failed() {
    if !is_available() {
        return;
    }
    let mut job = open().await;
    let spec = job.spec.clone();
    let _client = Background::start(job.ssh(&["-N"], &[]));
    job.agent.wait_for(&spec, "the client", is_visited).await;
    let is_server = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.ends_with(b"\0ssh\0") && is_alive(*pid)
    };
    for server in processes_of(spec.id).into_iter().filter(is_server) {
        kill_process(server);
    }
    job.agent.wait_for(&spec, "nobody is left", is_empty).await;
    // Whoever comes back is there again.
    let _again = Background::start(job.ssh(&["-N"], &[]));
    job.agent.wait_for(&spec, "the next", is_visited).await;
    job.close().await;
}
