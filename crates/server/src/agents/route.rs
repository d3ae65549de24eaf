//! The ways to an agent.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use api::agent::{CloudMachine, HostInfo};
use backends::{AgentAccess, Backend, Jump, Login, Machine};
use lifecycle::instance::another_machine;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hosts::{self, AgentProgram, HostAccess, JoinError, JoinStep};
use crate::clock::Clock;

/// The way to an instance's agent.
#[derive(Debug)]
pub enum Route {
    /// Its backend knows how the machine is reached.
    Machine(Arc<dyn Backend>, Box<Machine>, Option<Box<HostAccess>>),
    /// It is a machine of the user's own.
    Host(Box<HostAccess>),
}

/// Why there is no way, for people.
#[derive(Debug)]
pub(super) struct NoWay {
    pub(super) error: String,
    /// It is no use to try again.
    pub(super) is_final: bool,
}

impl From<anyhow::Error> for NoWay {
    fn from(error: anyhow::Error) -> NoWay {
        NoWay { error: format!("{error:#}"), is_final: false }
    }
}

impl From<backends::Error> for NoWay {
    fn from(error: backends::Error) -> NoWay {
        NoWay { is_final: !error.kind.is_transient(), error: error.message }
    }
}

impl From<JoinError> for NoWay {
    fn from(error: JoinError) -> NoWay {
        NoWay { error: error.message, is_final: error.is_final }
    }
}

impl Route {
    /// Why what answers is not the machine that the way should lead to.
    pub(super) fn stranger(&self, told: Option<&CloudMachine>) -> Option<String> {
        match self {
            Route::Machine(_, machine, _) => {
                another_machine(told, Some(&machine.provider_id), machine.hostname.as_deref())
            }
            // Nobody has bought it.
            Route::Host(_) => None,
        }
    }

    /// Why a machine that was bought is of no use yet: its container engine may start after its SSH server.
    pub(super) fn lacks_docker(&self, host: &HostInfo) -> Option<String> {
        let Route::Machine(_, _, Some(_)) = self else { return None };
        let why = host.docker_error.as_deref().unwrap_or("no reason is known");
        host.docker.is_none().then(|| format!("Docker does not answer on the machine: {why}"))
    }

    /// Goes the way once. The keys that hosts show on it are the only ones that they may show from then on.
    pub(super) async fn open(
        &mut self,
        program: &AgentProgram,
        clock: &Clock,
        told: &(dyn Fn(JoinStep) + Send + Sync),
    ) -> Result<AgentStream, NoWay> {
        match self {
            Route::Machine(backend, machine, access) => {
                match backend.agent_access(machine).await? {
                    AgentAccess::UnixSocket(path) => {
                        let stream = tokio::net::UnixStream::connect(&path).await;
                        let stream = stream
                            .with_context(|| format!("connect to the agent's socket `{}`", path.display()))?;
                        Ok(AgentStream::Unix(stream))
                    }
                    AgentAccess::Ssh { address, login, jump, first_start, cloud } => {
                        let Some(access) = access else {
                            return Err(anyhow::anyhow!("nobody knows the key of the machine").into());
                        };
                        aim(access, address, login, jump)?;
                        access.first_start = first_start;
                        access.cloud = cloud;
                        let joined = join(access, program, clock, told).await;
                        // A machine that boots may refuse anything for a while.
                        joined.map_err(|error| NoWay { is_final: false, ..error })
                    }
                    AgentAccess::Simulated => {
                        Err(anyhow::anyhow!("the machine exists only in a simulation").into())
                    }
                }
            }
            Route::Host(access) => join(access, program, clock, told).await,
        }
    }

    /// Goes the way to an agent that is there already, and changes nothing on the machine. None: there is none.
    pub(super) async fn visit(&mut self, clock: &Clock) -> Result<Option<AgentStream>, NoWay> {
        let access = match self {
            Route::Machine(backend, machine, Some(access)) => {
                let AgentAccess::Ssh { address, login, jump, .. } = backend.agent_access(machine).await? else {
                    return Err(anyhow::anyhow!("the machine is not reached over SSH").into());
                };
                aim(access, address, login, jump)?;
                access
            }
            Route::Machine(_, _, None) => {
                return Err(anyhow::anyhow!("nobody knows the key of the machine").into());
            }
            Route::Host(access) => access,
        };
        let stream = hosts::visit(access, clock).await?;
        Ok(stream.map(|stream| AgentStream::Host(Box::new(stream))))
    }

    /// How the machine is joined over SSH, if it is.
    pub(super) fn host(&self) -> Option<&HostAccess> {
        match self {
            Route::Machine(_, _, access) => access.as_deref(),
            Route::Host(access) => Some(access),
        }
    }
}

async fn join(
    access: &mut HostAccess,
    program: &AgentProgram,
    clock: &Clock,
    told: &(dyn Fn(JoinStep) + Send + Sync),
) -> Result<AgentStream, NoWay> {
    let joined = hosts::join(access, program, clock, told).await?;
    for warning in &joined.warnings {
        tracing::warn!(instance.id = %access.instance, "{warning}");
    }
    access.known_keys.extend(joined.keys.clone());
    pin(&mut access.target, &joined.keys);
    access.was_joined = true;
    Ok(AgentStream::Host(Box::new(joined.stream)))
}

/// Points the way at where the backend says that the machine answers.
fn aim(access: &mut HostAccess, address: String, login: Login, jump: Option<Jump>) -> anyhow::Result<()> {
    let target = &mut access.target;
    target.host = address;
    target.user = login.user;
    target.port = login.port;
    target.jumps.clear();
    if let Some(jump) = jump {
        let key = tunnel::Key::parse(format!("the key for {}", jump.hostname), &jump.private_key)?;
        let mut on_the_way = tunnel::Target::new(jump.hostname, jump.user, vec![key]);
        on_the_way.port = jump.port;
        target.jumps.push(on_the_way);
    }
    target.known_host = None;
    let known = access.known_keys.clone();
    pin(&mut access.target, &known);
    Ok(())
}

/// From now on the hosts on the way may show no other keys than these.
fn pin(target: &mut tunnel::Target, keys: &BTreeMap<String, tunnel::HostKey>) {
    target.known_host = keys.get(&target.address()).cloned().or_else(|| target.known_host.take());
    for jump in &mut target.jumps {
        pin(jump, keys);
    }
}

/// The keys that the hosts on the way must show, by address.
pub(super) fn known_keys(target: &tunnel::Target) -> BTreeMap<String, String> {
    let mut keys: BTreeMap<String, String> = target.jumps.iter().flat_map(known_keys).collect();
    keys.extend(target.known_host.as_ref().map(|key| (target.address(), key.to_string())));
    keys
}

/// The bytes to and from an agent.
#[derive(Debug)]
pub(super) enum AgentStream {
    Unix(tokio::net::UnixStream),
    Host(Box<tunnel::Stream>),
}

macro_rules! either {
    ($this:ident, $stream:ident => $result:expr) => {
        match $this.get_mut() {
            AgentStream::Unix($stream) => {
                let $stream = Pin::new($stream);
                $result
            }
            AgentStream::Host($stream) => {
                let $stream = Pin::new($stream.as_mut());
                $result
            }
        }
    };
}

impl AsyncRead for AgentStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        either!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        either!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(context))
    }
}
