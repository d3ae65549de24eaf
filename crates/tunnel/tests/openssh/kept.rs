//! Connections that are made again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tunnel::*;

use crate::support::*;

fn kept(target: Target) -> Kept {
    let retry = Retry { first: Duration::from_millis(20), longest: Duration::from_millis(200) };
    Kept::new(target, limits(), retry, Arc::new(|limit| limit / 2))
}

async fn whoami(session: &Session) -> String {
    session.exec(Command::new("id -un")).await.unwrap().text().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_is_made_again() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let proxy = Proxy::to(sshd.port).await;
    let kept = kept(Target { port: proxy.port, ..sshd.target() });
    for _ in 0..3 {
        let session = timeout(PATIENCE, kept.wait()).await.unwrap();
        assert_eq!(whoami(&session).await, "root");
        proxy.set(Mode::Cut);
        timeout(PATIENCE, session.closed()).await.unwrap();
        let mut states = kept.watch();
        let is_down = |state: &State| matches!(state, State::Down { .. });
        timeout(PATIENCE, states.wait_for(is_down)).await.unwrap().unwrap();
        proxy.set(Mode::Forward);
    }
    timeout(PATIENCE, kept.wait()).await.unwrap();
    drop(kept);
    eventually("the connection closes with its keeper", || proxy.connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_set_up_anew_meanwhile_is_not_taken_for_the_old_one() {
    if !enabled() {
        return;
    }
    let (old, new) = (Sshd::start().await, Sshd::start().await);
    // The same address leads to one host first and to the other one later.
    let mut target = old.target();
    target.keys.push(new.key.clone());
    let proxy = Proxy::to(old.port).await;
    let kept = kept(Target { port: proxy.port, ..target });
    let first = timeout(PATIENCE, kept.wait()).await.unwrap();
    proxy.redirect(new.port);
    timeout(PATIENCE, first.closed()).await.unwrap();
    let mut states = kept.watch();
    let is_refused = |state: &State| matches!(state, State::Down { error: Error::HostKeyChanged { .. }, .. });
    timeout(PATIENCE, states.wait_for(is_refused)).await.unwrap().unwrap();
    // Whoever asks is told at once, or as soon as the next try has failed the same way.
    let error = timeout(PATIENCE, kept.session()).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::HostKeyChanged { known, .. } if *known == first.host_key().fingerprint()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_there_yet_is_tried_until_it_is() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let proxy = Proxy::to(sshd.port).await;
    proxy.set(Mode::Cut);
    let hour = Duration::from_hours(1);
    let retry = Retry { first: hour, longest: hour };
    let target = Target { port: proxy.port, ..sshd.target() };
    let kept = Kept::new(target, limits(), retry, Arc::new(|_| 0));
    let error = timeout(PATIENCE, kept.session()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::HungUp { .. }), "{error:?}");
    proxy.set(Mode::Forward);
    // Nobody waits for an hour who knows better.
    kept.retry_now();
    let session = timeout(PATIENCE, kept.session()).await.unwrap().unwrap();
    assert_eq!(whoami(&session).await, "root");
}
