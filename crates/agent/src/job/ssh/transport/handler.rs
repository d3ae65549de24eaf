//! What the library asks us about one client.

use std::collections::HashMap;
use std::sync::Arc;

use russh::keys::ssh_key::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session as Link, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use tokio::sync::Notify;

use super::lane::name_of;
use super::{Connection, Lane, Opener, Outlet, Protocol};
use crate::job::ssh::agent_socket::AgentSocket;
use crate::job::ssh::forward::{Listeners, Target, carry};
use crate::job::ssh::pty::{TerminalRequest, Window};
use crate::job::ssh::session::{Program, Session};
use crate::job::ssh::visits::Visit;

/// How many channels one client may have.
const CHANNELS_LIMIT: usize = 256;

/// One client, as the library calls it.
pub(super) struct Peer {
    connection: Arc<Connection>,
    protocol: Arc<Protocol>,
    known: Arc<Notify>,
    sessions: HashMap<ChannelId, Session>,
    listeners: Listeners,
    /// Whether its key is one of the users'.
    is_user: bool,
    /// From its login on.
    visit: Option<Visit>,
}

type Answer<T = ()> = Result<T, russh::Error>;

impl Peer {
    /// A client that has yet to show its key; `known` is told once it has.
    pub(super) fn new(connection: Arc<Connection>, protocol: Arc<Protocol>, known: Arc<Notify>) -> Peer {
        Peer {
            connection,
            protocol,
            known,
            sessions: HashMap::new(),
            listeners: Listeners::default(),
            is_user: false,
            visit: None,
        }
    }

    fn judge(&self, key: &PublicKey) -> Auth {
        if self.protocol.is_authorized(key) { Auth::Accept } else { Auth::reject() }
    }

    fn opener(&self, link: &Link) -> Opener {
        Opener { connection: self.connection.clone(), handle: link.handle() }
    }

    fn has_room(&self) -> bool {
        self.connection.inlets().len() < CHANNELS_LIMIT
    }

    fn lane(&self, channel: Channel<Msg>, link: &Link) -> Lane {
        let (_, half) = channel.split();
        let inlet = self.connection.inlet(half.id());
        let outlet = Outlet::new(half, link.handle(), &inlet);
        Lane { inlet, outlet }
    }

    fn open_forwarding(&self, channel: Channel<Msg>, target: Target, reply: ChannelOpenHandle, link: &Link) {
        let lane = self.lane(channel, link);
        let (connection, id) = (self.connection.clone(), lane.outlet.id());
        tokio::spawn(async move {
            let Ok(stream) = target.connect(&connection.server).await else {
                connection.inlets().remove(&id);
                reply.reject(ChannelOpenFailure::ConnectFailed).await;
                return;
            };
            reply.accept().await;
            carry(lane, stream).await;
        });
    }

    fn start(&mut self, channel: ChannelId, program: &Program, link: &mut Link) -> Answer {
        let connection = &self.connection;
        let is_started = self.sessions.get_mut(&channel).is_some_and(|session| session.start(program, connection));
        answer(channel, is_started, link)
    }
}

fn answer(channel: ChannelId, is_granted: bool, link: &mut Link) -> Answer {
    if is_granted { link.channel_success(channel) } else { link.channel_failure(channel) }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for inlet in self.connection.inlets().drain().map(|(_, inlet)| inlet) {
            inlet.close();
        }
        self.connection.ended.cancel();
    }
}

impl Handler for Peer {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Answer<Auth> {
        Ok(self.judge(offer.public_key))
    }

    // Whatever name a client gives, it becomes the job's user: official clients say `root` for their tunnels.
    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Answer<Auth> {
        self.is_user = self.protocol.is_authorized(key.public_key);
        Ok(self.judge(key.public_key))
    }

    async fn auth_succeeded(&mut self, _link: &mut Link) -> Answer {
        self.visit = self.is_user.then(|| self.connection.server.visits.begin());
        self.known.notify_one();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        link: &mut Link,
    ) -> Answer {
        if !self.has_room() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let lane = self.lane(channel, link);
        self.sessions.insert(id, Session::new(lane));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _origin: &str,
        _origin_port: u32,
        reply: ChannelOpenHandle,
        link: &mut Link,
    ) -> Answer {
        match u16::try_from(port) {
            Ok(port) if self.has_room() => {
                self.open_forwarding(channel, Target::Tcp { host: host.to_owned(), port }, reply, link);
            }
            _ => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        link: &mut Link,
    ) -> Answer {
        if self.has_room() {
            self.open_forwarding(channel, Target::Unix { path: path.to_owned() }, reply, link);
        } else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        }
        Ok(())
    }

    async fn channel_open_confirmation(&mut self, id: ChannelId, _: u32, _: u32, _: &mut Link) -> Answer {
        // From now on bytes may come, so there must be a place for them.
        self.connection.inlet(id);
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], link: &mut Link) -> Answer {
        let inlet = self.connection.inlets().get(&channel).cloned();
        let has_room = inlet.as_ref().is_none_or(|inlet| inlet.push(data));
        if !has_room {
            let told = "the program reads its input too slowly: too much of it waits\r\n";
            link.extended_data(channel, 1, told)?;
            link.close(channel)?;
            self.forget(channel);
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _link: &mut Link) -> Answer {
        if let Some(inlet) = self.connection.inlets().get(&channel) {
            inlet.finish();
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _link: &mut Link) -> Answer {
        self.forget(channel);
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
        link: &mut Link,
    ) -> Answer {
        let window = Window { rows, columns, width, height };
        let modes = modes.iter().map(|(mode, value)| (*mode as u8, *value)).collect();
        let request = TerminalRequest { term: term.to_owned(), window, modes };
        let session = self.sessions.get_mut(&channel);
        answer(channel, session.is_some_and(|session| session.ask_terminal(request)), link)
    }

    async fn env_request(&mut self, channel: ChannelId, name: &str, value: &str, link: &mut Link) -> Answer {
        let session = self.sessions.get_mut(&channel);
        answer(channel, session.is_some_and(|session| session.set_variable(name, value)), link)
    }

    async fn shell_request(&mut self, channel: ChannelId, link: &mut Link) -> Answer {
        self.start(channel, &Program::Shell, link)
    }

    async fn exec_request(&mut self, channel: ChannelId, command: &[u8], link: &mut Link) -> Answer {
        self.start(channel, &Program::Command(command.to_vec()), link)
    }

    async fn subsystem_request(&mut self, channel: ChannelId, name: &str, link: &mut Link) -> Answer {
        match name {
            "sftp" => self.start(channel, &Program::Sftp, link),
            _ => link.channel_failure(channel),
        }
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _link: &mut Link,
    ) -> Answer {
        if let Some(session) = self.sessions.get_mut(&channel) {
            session.resize(Window { rows, columns, width, height });
        }
        Ok(())
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, _link: &mut Link) -> Answer {
        if let Some(session) = self.sessions.get(&channel) {
            session.signal(name_of(&signal), &self.connection.server);
        }
        Ok(())
    }

    async fn agent_request(&mut self, channel: ChannelId, link: &mut Link) -> Answer<bool> {
        let is_session = self.sessions.contains_key(&channel);
        let is_granted = is_session && AgentSocket::offer(&self.connection, &self.opener(link));
        Ok(is_granted)
    }

    async fn tcpip_forward(&mut self, address: &str, port: &mut u32, link: &mut Link) -> Answer<bool> {
        let opener = self.opener(link);
        let Ok(wanted) = u16::try_from(*port) else {
            return Ok(false);
        };
        let listening = self.listeners.listen_tcp(address, wanted, opener).await;
        if let Some(got) = listening {
            *port = u32::from(got);
        }
        Ok(listening.is_some())
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _link: &mut Link) -> Answer<bool> {
        Ok(u16::try_from(port).is_ok_and(|port| self.listeners.stop_tcp(address, port)))
    }

    async fn streamlocal_forward(&mut self, path: &str, link: &mut Link) -> Answer<bool> {
        let opener = self.opener(link);
        Ok(self.listeners.listen_unix(path, opener))
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _link: &mut Link) -> Answer<bool> {
        Ok(self.listeners.stop_unix(path))
    }
}

impl Peer {
    fn forget(&mut self, channel: ChannelId) {
        self.sessions.remove(&channel);
        if let Some(inlet) = self.connection.inlets().remove(&channel) {
            inlet.close();
        }
    }
}
