//! Connections carried through a job's SSH server by OpenSSH's own client.
//!
//! Skipped, and said so, where `DSTACK_TEST_SSH` is not set.

#![cfg(test)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use futures_util::StreamExt;
use support::ssh::*;
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::process::Command;
use tokio::time::timeout;

/// Somebody who sends back what it gets.
async fn echo_tcp() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
    port
}

fn echo_unix(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
}

async fn echo(stream: impl AsyncRead + AsyncWrite) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

/// Sends much, and expects it back whole with its end.
async fn check_echo(stream: impl AsyncRead + AsyncWrite + Send + 'static) {
    let sent = noise(8_000_000);
    let expected = hash(&sent);
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    timeout(LONG, reader.read_to_end(&mut received)).await.expect("it goes on").unwrap();
    assert_eq!((received.len(), hash(&received)), (8_000_000, expected));
}

async fn connect(port: u16) -> TcpStream {
    eventually("a port that answers", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await
}

/// Starts a client that only carries connections.
fn carry(job: &Entrance, options: &[&str]) -> Background {
    let mut all = vec!["-N", "-o", "ExitOnForwardFailure=yes"];
    all.extend(options);
    Background::start(job.ssh(&all, &[]))
}

#[tokio::test]
async fn ports_of_the_job_are_reached_by_every_name_it_knows() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let there = echo_tcp().await;
    for host in ["localhost", "127.0.0.1"] {
        let here = free_port();
        let _client = carry(&job, &["-L", &format!("127.0.0.1:{here}:{host}:{there}")]);
        check_echo(connect(here).await).await;
    }
    let here = free_port();
    let _client = carry(&job, &["-L", &format!("127.0.0.1:{here}:no-such-host.invalid:{there}")]);
    let mut refused = connect(here).await;
    let ended = timeout(DEADLINE, refused.read(&mut [0])).await.expect("it is refused");
    assert!(matches!(ended, Ok(0) | Err(_)));
    job.close().await;
}

#[tokio::test]
async fn ports_of_the_client_are_reached_from_the_job() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let (there, here) = (free_port(), echo_tcp().await);
    let client = carry(&job, &["-R", &format!("{there}:127.0.0.1:{here}")]);
    check_echo(connect(there).await).await;
    drop(client);
    let is_closed = async || TcpStream::connect(("127.0.0.1", there)).await.is_err().then_some(());
    eventually("the port closes with its client", is_closed).await;
    let mut ssh = job.ssh(&["-N", "-R", &format!("0:127.0.0.1:{here}")], &[]);
    let mut client = ssh.stderr(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    let mut stderr = client.stderr.take().unwrap();
    while !told.contains(" for remote forward") {
        let mut buffer = [0; 1024];
        let length = timeout(DEADLINE, stderr.read(&mut buffer)).await.expect("a port is told").unwrap();
        assert!(length > 0, "{told}");
        told.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let port = told.split_once("Allocated port ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    check_echo(connect(port).await).await;
    job.close().await;
}

#[tokio::test]
async fn sockets_are_carried_both_ways() {
    if !is_available() {
        return;
    }
    let job = Entrance::open_with(|spec| spec.user = Some("nobody".to_owned())).await;
    // The job's user must be able to reach what is in here.
    let dir = tempfile::Builder::new().prefix("sockets").tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
    let there = dir.path().join("there");
    echo_unix(&there);
    std::os::unix::fs::chown(&there, Some(65534), None).unwrap();
    let here = job.path("here");
    let _client = carry(&job, &["-L", &format!("{}:{}", here.display(), there.display())]);
    eventually("a socket", async || here.exists().then_some(())).await;
    check_echo(UnixStream::connect(&here).await.unwrap()).await;
    let (offered, own) = (dir.path().join("offered"), job.path("own"));
    echo_unix(&own);
    let client = carry(&job, &["-R", &format!("{}:{}", offered.display(), own.display())]);
    eventually("a socket", async || offered.exists().then_some(())).await;
    let found = std::fs::metadata(&offered).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o177), (65534, 0));
    check_echo(UnixStream::connect(&offered).await.unwrap()).await;
    drop(client);
    eventually("the socket goes with its client", async || (!offered.exists()).then_some(())).await;
    job.close().await;
}

#[tokio::test]
async fn the_client_chooses_as_it_goes_through_socks() {
    if !is_available() {
        return;
    }
    let job = Entrance::open().await;
    let (there, here) = (echo_tcp().await, free_port());
    let _client = carry(&job, &["-D", &format!("127.0.0.1:{here}")]);
    let mut stream = connect(here).await;
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    let name = b"localhost";
    let mut request = vec![5, 1, 0, 3, name.len() as u8];
    request.extend_from_slice(name);
    request.extend_from_slice(&there.to_be_bytes());
    stream.write_all(&request).await.unwrap();
    let mut answer = [0; 10];
    timeout(DEADLINE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer[1], 0);
    check_echo(stream).await;
    job.close().await;
}

#[tokio::test]
async fn the_clients_agent_answers_in_the_job() {
    if !is_available() {
        return;
    }
    let job = Entrance::open_with(|spec| spec.user = Some("nobody".to_owned())).await;
    let socket = job.path("agent");
    let mut agent = Command::new("ssh-agent");
    agent.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null());
    let _agent = Background::start(agent);
    eventually("the agent", async || socket.exists().then_some(())).await;
    let mut add = Command::new("ssh-add");
    add.arg(job.path("user")).env("SSH_AUTH_SOCK", &socket);
    assert!(finish(add).await.status.success());
    let mut ssh =
        job.ssh(&["-A"], &["ssh-add -l; stat -c '%a %u' $(dirname $SSH_AUTH_SOCK); echo $SSH_AUTH_SOCK"]);
    ssh.env("SSH_AUTH_SOCK", &socket);
    let output = finish(ssh).await;
    let text = stdout(&output);
    assert!(text.contains("SHA256:") && text.contains("\n700 65534\n"), "{text} {}", stderr(&output));
    let path = text.lines().last().unwrap().to_owned();
    eventually("nothing of it stays", async || (!exists(Path::new(&path).parent().unwrap())).then_some(())).await;
    let without = job.run("echo [$SSH_AUTH_SOCK]").await;
    assert_eq!(stdout(&without), "[]\n");
    job.close().await;
}

type LogSocket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn open_log(port: u16, query: &str) -> LogSocket {
    let url = format!("ws://localhost:{port}/logs_ws{query}");
    tokio_tungstenite::client_async(url, connect(port).await).await.unwrap().0
}

/// Everything that comes on the log's socket until it closes.
async fn read_log(mut socket: LogSocket) -> String {
    let mut bytes = Vec::new();
    loop {
        let message = timeout(DEADLINE, socket.next()).await.expect("the log goes on");
        match message {
            Some(Ok(message)) if message.is_binary() => bytes.extend_from_slice(&message.into_data()),
            Some(Ok(message)) if message.is_close() => {}
            None => return text(&bytes),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn official_clients_follow_the_log_to_its_very_end() {
    if !is_available() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script = script(&format!("echo one; while [ ! -e {} ]; do sleep 0.02; done; seq 1 200000", go.display()));
    let mut job = Entrance::open_with(|spec| {
        spec.argv = script.argv;
        spec.user = Some("nobody".to_owned());
    })
    .await;
    let spec = job.spec.clone();
    job.agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    let here = free_port();
    let _client = carry(&job, &["-L", &format!("127.0.0.1:{here}:localhost:10999")]);
    // An entry of the log's index begins with what is written a while after the last one.
    let later = eventually("a later time", async || {
        let state = job.agent.hello().await;
        let started = state.tasks[0].started_at.unwrap();
        (state.now.as_millisecond() > started.as_millisecond() + 500).then_some(state.now)
    })
    .await;
    let (all, rest) = (open_log(here, "").await, open_log(here, &format!("?start_time={later}")).await);
    std::fs::write(go, "").unwrap();
    let (all, rest) = tokio::join!(read_log(all), read_log(rest));
    let numbers: Vec<String> = (1..=200_000).map(|number| number.to_string()).collect();
    let numbers = format!("{}\n", numbers.join("\n"));
    assert!(all == format!("one\n{numbers}"));
    assert!(rest == numbers);
    let exit = job.agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!(exit.exit_status, Some(0));
}
