//! Hosts behind hosts, and what forwarding is forbidden where.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tunnel::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_reached_over_two_others() {
    if !enabled() {
        return;
    }
    let (first, second) = (Sshd::start().await, Sshd::start().await);
    // What the host itself forbids does not matter for reaching it.
    let host = Sshd::with("AllowTcpForwarding no\nMaxSessions 1").await;
    let target = Target { jumps: vec![first.target(), second.target()], ..host.target() };
    let session = Session::connect(&target, &limits()).await.unwrap();
    let seen = [first.session().await, second.session().await].map(|session| session.host_key().clone());
    assert_eq!(session.jump_host_keys(), seen);
    let much = noise(4 * 1024 * 1024);
    let output = session.exec(Command::new("cat").stdin(much.clone()).at_most(much.len())).await.unwrap();
    assert!(output.success().unwrap() == much, "the bytes are others");
    let connection = session.exec(Command::new("echo $SSH_CONNECTION")).await.unwrap().text().unwrap();
    assert!(connection.ends_with(&format!(" {}", host.port)), "{connection}");

    let mut wrong = target.clone();
    wrong.jumps[1].known_host = Some(session.host_key().clone());
    let error = Session::connect(&wrong, &limits()).await.unwrap_err();
    assert!(matches!(&error, Error::HostKeyChanged { address, .. } if *address == second.target().address()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_host_that_does_not_let_through_is_named() {
    if !enabled() {
        return;
    }
    let (open, closed, host) =
        (Sshd::start().await, Sshd::with("AllowTcpForwarding no").await, Sshd::start().await);
    let target = Target { jumps: vec![closed.target()], ..host.target() };
    let (jump, to) = (closed.target().address(), host.target().address());
    let error = Session::connect(&target, &limits()).await.unwrap_err();
    assert_eq!(error, Error::JumpForbidden { jump, to });

    let target = Target { port: free_port(), jumps: vec![open.target()], ..host.target() };
    let (jump, to) = (open.target().address(), target.address());
    let error = Session::connect(&target, &limits()).await.unwrap_err();
    assert_eq!(error, Error::JumpFailed { jump, to });

    let mut stranger = open.target();
    stranger.keys.clear();
    let target = Target { jumps: vec![stranger.clone()], ..host.target() };
    let error = Session::connect(&target, &limits()).await.unwrap_err();
    assert!(matches!(&error, Error::NoKeyAccepted { address, .. } if *address == stranger.address()), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_forbids_forwarding_still_runs_commands() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::with("AllowTcpForwarding no").await;
    let session = sshd.session().await;
    let to = format!("127.0.0.1:{}", sshd.port);
    let error = session.direct_tcpip("127.0.0.1", sshd.port).await.unwrap_err();
    assert_eq!(error, Error::ForwardForbidden { address: session.address().to_owned(), to });
    let mut stream = session.stream(Command::new("exec cat")).await.unwrap();
    stream.write_all(b"still there").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_sockets_of_a_host_are_reached() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let path = sshd.dir.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = tcp.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    tokio::spawn(async move {
        let (mut stream, _) = unix.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let path = path.to_str().unwrap();
    let streams =
        [session.direct_tcpip("127.0.0.1", port).await.unwrap(), session.direct_streamlocal(path).await.unwrap()];
    for stream in streams {
        let much = noise(2 * 1024 * 1024);
        let (mut read, mut write) = tokio::io::split(stream);
        let sent = much.clone();
        let sending = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut echo = Vec::new();
        let ((), result) = tokio::join!(sending, read.read_to_end(&mut echo));
        result.unwrap();
        assert!(echo == much, "the bytes are others");
    }
    let missing = session.direct_streamlocal("/nonexistent/socket").await.unwrap_err();
    assert!(matches!(missing, Error::ForwardFailed { .. }), "{missing:?}");
    let closed = session.direct_tcpip("127.0.0.1", free_port()).await.unwrap_err();
    assert!(matches!(closed, Error::ForwardFailed { .. }), "{closed:?}");
}
