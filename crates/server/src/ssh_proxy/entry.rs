//! Who may enter which job through the proxy, and the way into it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::agent::SSH_PORT;
use api::ids::{InstanceId, JobId};
use api::jobs::JobStatus;
use api::users::GlobalRole;
use futures_util::SinkExt as _;
use russh::client::{self, Config};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, SshId};
use store::{jobs, members, runs, users};
use tokio::sync::oneshot;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::{CancellationToken, PollSender};
use uuid::Uuid;

use super::gate::Gated;
use super::guest::Links;
use super::relay::join;
use super::{UNANSWERED_LIMIT, WINDOW};
use crate::agents::Entered;
use crate::deps::Deps;

/// What official clients put behind the job's name for their tunnels. Whatever the name, it becomes the job's user.
const ROOT_SUFFIX: &str = "_root";

/// How long the way into a job may take to open.
const ENTER_TIMEOUT: Duration = Duration::from_secs(15);

/// After how much silence the job is asked whether it still answers.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A job that somebody may enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    job: JobId,
    instance: InstanceId,
}

/// The name that users give to enter a job.
pub fn upstream_id(job: JobId) -> String {
    job.0.simple().to_string()
}

/// The job that a name stands for.
fn job_of(name: &str) -> Option<JobId> {
    let name = name.strip_suffix(ROOT_SUFFIX).unwrap_or(name);
    let job = JobId(Uuid::try_parse(name).ok()?);
    // One job has one name.
    (upstream_id(job) == name).then_some(job)
}

/// The job that the owner of a key may enter by a name: one that runs, of a run of theirs.
pub(super) async fn admit(deps: &Deps, name: &str, key: &PublicKey) -> store::Result<Option<Entry>> {
    let Some(id) = job_of(name) else { return Ok(None) };
    let Some(job) = jobs::get(&deps.db, id).await? else { return Ok(None) };
    let job = job.value;
    let has_server = job.state.runtime.as_ref().and_then(|runtime| runtime.ports.as_ref());
    let has_server = has_server.is_some_and(|ports| ports.contains_key(&SSH_PORT));
    let Some(instance) = job.instance_id.filter(|_| job.status == JobStatus::Running && has_server) else {
        return Ok(None);
    };
    let Some(run) = runs::get(&deps.db, job.run_id).await? else { return Ok(None) };
    let Some(owner) = users::get(&deps.db, run.value.user_id).await? else { return Ok(None) };
    let is_member =
        owner.role == GlobalRole::Admin || members::role(&deps.db, job.project_id, owner.id).await?.is_some();
    if !owner.active || owner.deleted || !is_member {
        return Ok(None);
    }
    let others = users::list_public_keys(&deps.db, owner.id).await?;
    let others = others.into_iter().map(|row| row.public_key);
    let known = run.value.spec.ssh_key_pub.into_iter().chain([owner.ssh_public_key]).chain(others);
    let is_known = known.into_iter().any(|text| is_same(&text, key));
    Ok(is_known.then_some(Entry { job: id, instance }))
}

fn is_same(text: &str, key: &PublicKey) -> bool {
    PublicKey::from_openssh(text.trim()).is_ok_and(|known| known.key_data() == key.key_data())
}

/// Enters a job as this server. What the job opens towards the user goes to `links`.
pub(super) async fn enter(
    deps: &Deps,
    entry: Entry,
    links: Links,
    cut: CancellationToken,
) -> Result<client::Handle<Far>, String> {
    let entering = async {
        let Entered { input, output, .. } = deps.agents.enter(entry.instance, entry.job).await.map_err(words)?;
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let writer = SinkWriter::new(CopyToBytes::new(PollSender::new(input).sink_map_err(closed)));
        let stream = tokio::io::join(StreamReader::new(output), writer);
        let stream = Gated::new(stream, links.gates.far.clone(), cut.clone());
        let shown = PublicKey::from_openssh(deps.sealer.job_host_key(entry.job).public.trim()).map_err(words)?;
        let far = Far { shown, links, ended: cut };
        let mut handle = client::connect_stream(config(), stream, far).await.map_err(words)?;
        // What is wrong with it is not told: the text could hold a part of the key.
        let key = PrivateKey::from_openssh(&deps.sealer.job_entry_key(entry.job).private);
        let key = key.map_err(|_| "this server's key cannot be understood".to_owned())?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        let login = handle.authenticate_publickey("root", key).await.map_err(words)?;
        if !login.success() {
            return Err("it does not know this server, because it was started before the server could do this; \
                        start the run again"
                .to_owned());
        }
        Ok(handle)
    };
    let late = || format!("it did not answer within {} s", ENTER_TIMEOUT.as_secs());
    tokio::time::timeout(ENTER_TIMEOUT, entering).await.unwrap_or_else(|_| Err(late()))
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn config() -> Arc<Config> {
    Arc::new(Config {
        client_id: SshId::Standard("SSH-2.0-dstack".into()),
        window_size: WINDOW,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEP_ALIVE),
        keepalive_max: UNANSWERED_LIMIT,
        ..Config::default()
    })
}

/// What the library tells about the job's side.
#[derive(Debug)]
pub(super) struct Far {
    shown: PublicKey,
    links: Links,
    ended: CancellationToken,
}

impl Drop for Far {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Far {
    /// Joins a channel that the job opens to one that is opened towards the user.
    fn pass_on<F>(&self, far: Channel<client::Msg>, reply: client::ChannelOpenHandle, opening: F)
    where
        F: Future<Output = Result<Channel<russh::server::Msg>, russh::Error>> + Send + 'static,
    {
        let links = self.links.clone();
        tokio::spawn(async move {
            let near = match opening.await {
                Ok(near) => near,
                Err(russh::Error::ChannelOpenFailure(reason)) => return reply.reject(reason).await,
                Err(_) => return reply.reject(russh::ChannelOpenFailure::ConnectFailed).await,
            };
            reply.accept().await;
            let (accepted, begin) = oneshot::channel();
            // The user has accepted, or there would be no channel.
            let _ = accepted.send(());
            join(near, far, links.handle.clone(), &links.gates, begin);
        });
    }
}

impl client::Handler for Far {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        Ok(key.key_data() == self.shown.key_data())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        address: &str,
        port: u32,
        origin: &str,
        origin_port: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let (near, address, origin) = (self.links.handle.clone(), address.to_owned(), origin.to_owned());
        self.pass_on(channel, reply, async move {
            near.channel_open_forwarded_tcpip(address, port, origin, origin_port).await
        });
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<client::Msg>,
        path: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let (near, path) = (self.links.handle.clone(), path.to_owned());
        self.pass_on(channel, reply, async move { near.channel_open_forwarded_streamlocal(path).await });
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let near = self.links.handle.clone();
        self.pass_on(channel, reply, async move { near.channel_open_agent().await });
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<client::Msg>,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_two_names_and_no_others() {
        let job = JobId(Uuid::from_u128(0xabc));
        let name = upstream_id(job);
        assert_eq!(name, "00000000000000000000000000000abc");
        assert_eq!(job_of(&name), Some(job));
        assert_eq!(job_of(&format!("{name}_root")), Some(job));
        let others = [
            "",
            "root",
            "_root",
            "00000000000000000000000000000ABC",
            "00000000-0000-0000-0000-000000000abc",
            "{00000000000000000000000000000abc}",
            "00000000000000000000000000000abc_root_root",
            "00000000000000000000000000000abc_ada",
        ];
        for other in others {
            assert_eq!(job_of(other), None, "{other}");
        }
    }

    #[test]
    fn keys_are_compared_by_what_they_are() {
        let text = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let key = PublicKey::from_openssh(&format!("{text} ada@home")).unwrap();
        assert!(is_same(&format!(" {text} other\n"), &key));
        let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB3g8DO9hAyYdvNjbI6LYOXXh1GR5LcbSyTJyBGL9nIr";
        assert!(!is_same(other, &key) && !is_same("", &key) && !is_same("nonsense", &key));
    }
}
