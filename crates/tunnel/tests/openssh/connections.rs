//! The connection itself: many channels, few channels, new keys, silence, and the end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tunnel::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_channels_live_at_once() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::with("MaxSessions 30").await;
    let session = sshd.session().await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(session.stream(Command::new("exec cat")).await.unwrap());
    }
    let mut tasks = JoinSet::new();
    for (index, stream) in streams.into_iter().enumerate() {
        tasks.spawn(async move {
            let sent = noise(200_000 + index);
            let (mut read, mut write) = tokio::io::split(stream);
            let sending = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut echo = Vec::new();
            let ((), result) = tokio::join!(sending, read.read_to_end(&mut echo));
            result.unwrap();
            assert!(echo == sent, "the bytes of {index} are others");
        });
    }
    timeout(PATIENCE, tasks.join_all()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_allows_one_session_gets_commands_one_after_the_other() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::with("MaxSessions 1").await;
    let session = sshd.session().await;
    let mut tasks = JoinSet::new();
    for index in 0..6 {
        let session = session.clone();
        tasks.spawn(async move {
            let output = session.exec(Command::new(format!("echo {index}"))).await.unwrap();
            assert_eq!(output.text().unwrap(), index.to_string());
        });
    }
    timeout(PATIENCE, tasks.join_all()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_never_free_is_refused_in_time() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::with("MaxSessions 1").await;
    let limits = Limits { open: Duration::from_secs(3), ..limits() };
    let session = Session::connect(&sshd.target(), &limits).await.unwrap();
    let stream = session.stream(Command::new("exec cat")).await.unwrap();
    let error = session.exec(Command::new("true")).await.unwrap_err();
    assert_eq!(error, Error::SessionRefused { address: session.address().to_owned(), open: 1 });
    drop(stream);
    session.exec(Command::new("true")).await.unwrap().success().unwrap();

    let none = Sshd::with("MaxSessions 0").await;
    let session = none.session().await;
    let error = session.exec(Command::new("true")).await.unwrap_err();
    assert_eq!(error, Error::SessionRefused { address: session.address().to_owned(), open: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_renewed_under_load() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::with("RekeyLimit 1M\nLogLevel DEBUG1").await;
    let session = sshd.session().await;
    let much = noise(16 * 1024 * 1024);
    let cat = || Command::new("cat").stdin(much.clone()).at_most(much.len()).within(PATIENCE);
    let (one, two) = tokio::join!(session.exec(cat()), session.exec(cat()));
    for output in [one, two] {
        assert!(output.unwrap().success().unwrap() == much, "the bytes are others");
    }
    let log = std::fs::read_to_string(sshd.dir.path().join("log")).unwrap();
    let renewed = log.matches("set_newkeys: rekeying").count();
    assert!(10 < renewed, "the keys were renewed {renewed} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_falls_silent_is_noticed() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let dead_after = Duration::from_secs(3);
    let limits = Limits { dead_after, ..limits() };
    for writes in [false, true] {
        let proxy = Proxy::to(sshd.port).await;
        let target = Target { port: proxy.port, ..sshd.target() };
        let session = Session::connect(&target, &limits).await.unwrap();
        let mut stream = session.stream(Command::new("exec cat >/dev/null")).await.unwrap();
        proxy.set(Mode::Freeze);
        let since = Instant::now();
        if writes {
            // More than all buffers on the way hold, so that even questions cannot be written.
            let much = noise(64 * 1024 * 1024);
            let error = timeout(PATIENCE, stream.write_all(&much)).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        let error = timeout(PATIENCE, session.closed()).await.unwrap();
        let reason = "the host does not answer any more".to_owned();
        assert_eq!(error, Error::Lost { address: target.address(), reason });
        assert!(dead_after / 2 <= since.elapsed(), "writes {writes}: {:?}", since.elapsed());
        let read = stream.read_u8().await.unwrap_err();
        assert!(read.to_string().contains("does not answer any more"), "{read}");
        let error = session.exec(Command::new("true")).await.unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_host_is_kept() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    // Much shorter than what the command takes.
    let limits = Limits { dead_after: Duration::from_secs(3), ..limits() };
    let session = Session::connect(&sshd.target(), &limits).await.unwrap();
    session.exec(Command::new("sleep 8").within(PATIENCE)).await.unwrap().success().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_says_so_everywhere() {
    if !enabled() {
        return;
    }
    let (sshd, behind) = (Sshd::start().await, Sshd::start().await);
    let proxy = Proxy::to(sshd.port).await;
    let jump = Target { port: proxy.port, ..sshd.target() };
    let address = jump.address();
    let target = Target { jumps: vec![jump], ..behind.target() };
    let session = Session::connect(&target, &limits()).await.unwrap();
    let running = session.stream(Command::new("exec cat")).await.unwrap();
    proxy.set(Mode::Cut);
    let result = timeout(PATIENCE, running.exit()).await.unwrap();
    // The host behind is well; what is lost is the way to it.
    let is_cause = |error: &Error| matches!(error, Error::Lost { address: lost, .. } if *lost == address);
    let error = result.unwrap_err();
    assert!(is_cause(&error), "{error:?}");
    let error = timeout(PATIENCE, session.closed()).await.unwrap();
    assert!(is_cause(&error), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closes_with_its_last_owner() {
    if !enabled() {
        return;
    }
    let (sshd, behind) = (Sshd::start().await, Sshd::start().await);
    let proxy = Proxy::to(sshd.port).await;
    let jump = Target { port: proxy.port, ..sshd.target() };
    let target = Target { jumps: vec![jump], ..behind.target() };
    let session = Session::connect(&target, &limits()).await.unwrap();
    let mut stream = session.stream(Command::new("exec cat")).await.unwrap();
    drop(session);
    stream.write_all(b"still").await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!((&answer, proxy.connections()), (b"still", 1));
    drop(stream);
    eventually("the connection closes", || proxy.connections() == 0).await;
}
