//! What the library asks us about one user's connection: who they are, and what of the job they want.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, Pty, Sig, client};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::entry::{self, Entry, Far};
use super::relay::{Gates, Link, join};
use crate::deps::Deps;

/// How many channels one user may have.
const CHANNELS_LIMIT: usize = 256;

/// How long the job may take to open a channel: it may have to connect somewhere first.
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);

/// What both sides of one connection share.
#[derive(Clone)]
pub(super) struct Links {
    pub(super) gates: Gates,
    /// To the user.
    pub(super) handle: Handle,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

/// One user, as the library calls us.
pub(super) struct Guest {
    deps: Deps,
    gates: Gates,
    /// Told once the user is known.
    known: Arc<Notify>,
    /// Cancelled when the job's side has ended.
    far_ended: CancellationToken,
    entry: Option<Entry>,
    far: Option<Arc<client::Handle<Far>>>,
    links: Arc<Mutex<HashMap<ChannelId, Arc<Link>>>>,
}

type Answer<T = ()> = Result<T, russh::Error>;

fn lock(links: &Mutex<HashMap<ChannelId, Arc<Link>>>) -> MutexGuard<'_, HashMap<ChannelId, Arc<Link>>> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    pub(super) fn new(deps: Deps, gates: Gates, known: Arc<Notify>, far_ended: CancellationToken) -> Guest {
        Guest { deps, gates, known, far_ended, entry: None, far: None, links: Arc::default() }
    }

    /// Every refusal is the same, whatever is wrong.
    async fn judge(&mut self, name: &str, key: &PublicKey) -> Auth {
        match entry::admit(&self.deps, name, key).await {
            Ok(Some(entry)) => {
                self.entry = Some(entry);
                Auth::Accept
            }
            Ok(None) => Auth::reject(),
            Err(error) => {
                tracing::warn!("cannot find out who enters through the SSH proxy: {error}");
                Auth::reject()
            }
        }
    }

    fn link(&self, channel: ChannelId) -> Option<Arc<Link>> {
        lock(&self.links).get(&channel).cloned()
    }

    /// Opens a channel of the job for one of the user's.
    async fn open<F>(
        &self,
        near: Channel<Msg>,
        reply: ChannelOpenHandle,
        handle: Handle,
        opening: impl FnOnce(Arc<client::Handle<Far>>) -> F,
    ) where
        F: Future<Output = Result<Channel<client::Msg>, russh::Error>> + Send + 'static,
    {
        let Some(far) = self.far.clone().filter(|_| lock(&self.links).len() < CHANNELS_LIMIT) else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let (opening, links) = (opening(far), self.links.clone());
        let gates = self.gates.clone();
        // Others are not held up by it.
        tokio::spawn(async move {
            let far = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
                Ok(Ok(far)) => far,
                Ok(Err(russh::Error::ChannelOpenFailure(reason))) => return reply.reject(reason).await,
                Ok(Err(_)) | Err(_) => return reply.reject(ChannelOpenFailure::ConnectFailed).await,
            };
            let id = near.id();
            let (accepted, begin) = oneshot::channel();
            // Requests may come as soon as it is accepted.
            lock(&links).insert(id, join(near, far, handle, &gates, begin));
            reply.accept().await;
            let _ = accepted.send(());
        });
    }

    /// Hands a request on and answers as the job does.
    async fn ask<'a, F>(
        &self,
        channel: ChannelId,
        session: &mut Session,
        request: impl FnOnce(Arc<Link>) -> F,
    ) -> Answer
    where
        F: Future<Output = bool> + Send + 'a,
    {
        let is_granted = match self.link(channel) {
            Some(link) => request(link).await,
            None => false,
        };
        if is_granted { session.channel_success(channel) } else { session.channel_failure(channel) }
    }
}

impl Handler for Guest {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, name: &str, offer: PublicKeyOffer<'_>) -> Answer<Auth> {
        Ok(self.judge(name, offer.public_key).await)
    }

    async fn auth_publickey(&mut self, name: &str, key: VerifiedPublicKey<'_>) -> Answer<Auth> {
        Ok(self.judge(name, key.public_key).await)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Answer {
        self.known.notify_one();
        let Some(entry) = self.entry else { return Err(russh::Error::Disconnect) };
        let links = Links { gates: self.gates.clone(), handle: session.handle() };
        match entry::enter(&self.deps, entry, links, self.far_ended.clone()).await {
            Ok(far) => self.far = Some(Arc::new(far)),
            Err(error) => {
                let told = format!("The job cannot be entered: {error}");
                session.disconnect(Disconnect::ByApplication, &told, "")?;
            }
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Answer {
        self.open(channel, reply, session.handle(), |far| async move { far.channel_open_session().await }).await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        origin: &str,
        origin_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Answer {
        let (host, origin) = (host.to_owned(), origin.to_owned());
        let opening = |far: Arc<client::Handle<Far>>| async move {
            far.channel_open_direct_tcpip(host, port, origin, origin_port).await
        };
        self.open(channel, reply, session.handle(), opening).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Answer {
        let path = path.to_owned();
        let opening =
            |far: Arc<client::Handle<Far>>| async move { far.channel_open_direct_streamlocal(path).await };
        self.open(channel, reply, session.handle(), opening).await;
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Answer {
        lock(&self.links).remove(&channel);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Answer {
        self.ask(channel, session, |link| async move {
            link.ask(link.far().request_pty(true, term, columns, rows, width, height, modes)).await
        })
        .await
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Answer {
        session.channel_failure(channel)
    }

    async fn env_request(&mut self, channel: ChannelId, name: &str, value: &str, session: &mut Session) -> Answer {
        // Clients set dozens of them and ask for no answer.
        self.ask(channel, session, |link| async move { link.far().set_env(false, name, value).await.is_ok() })
            .await
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Answer {
        self.ask(channel, session, |link| async move { link.ask(link.far().request_shell(true)).await }).await
    }

    async fn exec_request(&mut self, channel: ChannelId, command: &[u8], session: &mut Session) -> Answer {
        self.ask(channel, session, |link| async move { link.ask(link.far().exec(true, command)).await }).await
    }

    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, session: &mut Session) -> Answer {
        self.ask(channel, session, |link| async move { link.ask(link.far().request_subsystem(true, name)).await })
            .await
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &mut Session,
    ) -> Answer {
        if let Some(link) = self.link(channel) {
            let _ = link.far().window_change(columns, rows, width, height).await;
        }
        Ok(())
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, _: &mut Session) -> Answer {
        if let Some(link) = self.link(channel) {
            let _ = link.far().signal(signal).await;
        }
        Ok(())
    }

    async fn agent_request(&mut self, channel: ChannelId, _: &mut Session) -> Answer<bool> {
        let Some(link) = self.link(channel) else { return Ok(false) };
        Ok(link.ask(link.far().agent_forward(true)).await)
    }

    async fn tcpip_forward(&mut self, address: &str, port: &mut u32, _: &mut Session) -> Answer<bool> {
        let Some(far) = self.far.clone() else { return Ok(false) };
        match tokio::time::timeout(OPEN_TIMEOUT, far.tcpip_forward(address, *port)).await {
            Ok(Ok(got)) => {
                // Only who asks for any port is told which.
                if *port == 0 {
                    *port = got;
                }
                Ok(true)
            }
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _: &mut Session) -> Answer<bool> {
        let Some(far) = self.far.clone() else { return Ok(false) };
        let cancelling = tokio::time::timeout(OPEN_TIMEOUT, far.cancel_tcpip_forward(address, port));
        Ok(matches!(cancelling.await, Ok(Ok(()))))
    }

    async fn streamlocal_forward(&mut self, path: &str, _: &mut Session) -> Answer<bool> {
        let Some(far) = self.far.clone() else { return Ok(false) };
        let forwarding = tokio::time::timeout(OPEN_TIMEOUT, far.streamlocal_forward(path));
        Ok(matches!(forwarding.await, Ok(Ok(()))))
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _: &mut Session) -> Answer<bool> {
        let Some(far) = self.far.clone() else { return Ok(false) };
        let cancelling = tokio::time::timeout(OPEN_TIMEOUT, far.cancel_streamlocal_forward(path));
        Ok(matches!(cancelling.await, Ok(Ok(()))))
    }
}
