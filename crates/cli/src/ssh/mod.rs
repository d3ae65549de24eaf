//! Entering jobs over SSH: the user's key, an entry in their SSH configuration, and forwarded ports.
//!
//! OpenSSH's client does the work. An entry names the job, pins its key, and has `dstack ssh-proxy` carry the bytes
//! through the server, so that the user needs no way to the machine where the job runs.

mod config;
mod forward;
mod keys;
mod owner;

use std::path::PathBuf;

use anyhow::{Context, bail};
use api::client::{RunTunnel, RunTunnelTarget};
use api::configurations::{PortMapping, RunConfiguration};
use api::runs::Run;

use crate::session::{Project, Session};
use config::{Entry, SshConfig};
use forward::Forwarding;
pub(crate) use forward::{Forward, check};
pub(crate) use owner::{Owner, VARIABLE as OWNER_VARIABLE};

/// What the user wants of the way in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The private key to use instead of the one that the server knows.
    pub(crate) identity: Option<PathBuf>,
    /// The local address of forwarded ports.
    pub(crate) host: Option<String>,
    /// Ports beside those of the run, and other local ports for those of the run.
    pub(crate) ports: Vec<PortMapping>,
}

/// What the connection that stays open is for.
struct Wanted<'a> {
    ports: Vec<PortMapping>,
    host: Option<&'a str>,
    /// The job shares our network.
    is_here: bool,
    /// The connection itself is wanted.
    stays: bool,
}

/// An open way into a job. Dropping it takes the entry away and ends the forwarding.
#[derive(Debug)]
pub(crate) struct Attachment {
    config: SshConfig,
    owner: Owner,
    /// What stands behind `ssh`.
    pub(crate) alias: String,
    /// The ports that are forwarded.
    pub(crate) forwards: Vec<Forward>,
    /// The IDE's name and the link that opens the job in it, if it is a dev environment for one.
    pub(crate) ide: Option<(String, String)>,
    /// What did not work although there is a way in.
    pub(crate) warnings: Vec<String>,
    forwarding: Option<Forwarding>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // What cannot be taken away now is taken away by the next one.
        let _ = self.config.remove(&self.alias, &self.owner);
    }
}

impl Attachment {
    /// Opens the way into the last submission of a job. None: the server names no SSH server in it.
    pub(crate) async fn make(
        session: &Session,
        project: &Project,
        run: &Run,
        target: RunTunnelTarget,
        wishes: &Wishes,
    ) -> anyhow::Result<Option<Attachment>> {
        let is_it = |job: &&api::jobs::Job| {
            job.job_spec.replica_num == target.replica && job.job_spec.job_num == target.job
        };
        let Some(job) = run.jobs.iter().find(is_it) else { return Ok(None) };
        let host_key = job.job_connection_info.as_ref().and_then(|info| info.ssh_host_key.as_deref());
        let (Some(host_key), Some(submission)) = (host_key, job.job_submissions.last()) else { return Ok(None) };
        let run_name = run.run_spec.run_name.as_deref().context("the run has no name")?;
        let identity = keys::identity(session, project, run.run_spec.ssh_key_pub.as_deref(), wishes).await?;
        let tunnel = RunTunnel::open(&project.client, &project.name, run_name, target).await?;
        let is_here = tunnel.is_in_our_network();
        tunnel.close().await;
        let entry = Entry {
            alias: if target == RunTunnelTarget::default() { run_name } else { &job.job_spec.job_name }.to_owned(),
            project: project.name.clone(),
            run: run_name.to_owned(),
            target,
            submission: submission.id,
            identity,
            host_key: host_key.to_owned(),
        };
        let (config, owner) = (SshConfig::of(session), Owner::of_process());
        config.add(&entry, &session.program, &owner)?;
        let mut attachment = Attachment {
            config,
            owner,
            alias: entry.alias,
            forwards: Vec::new(),
            ide: job
                .job_connection_info
                .as_ref()
                .and_then(|info| info.ide_name.clone().zip(info.attached_ide_url.clone())),
            warnings: Vec::new(),
            forwarding: None,
        };
        if let Err(error) = attachment.config.include() {
            let path = attachment.config.path();
            let warning = format!("Only `ssh -F {} {}` works: {error:#}", path.display(), attachment.alias);
            attachment.warnings.push(warning);
        }
        let ports = forward::wanted(job.job_spec.app_specs.as_deref().unwrap_or_default(), &wishes.ports)?;
        // Who is attached to a dev environment is there, and it must not end for want of anybody.
        let stays = matches!(run.run_spec.configuration, RunConfiguration::DevEnvironment(_));
        let has_ports = !ports.is_empty();
        let wanted = Wanted { ports, host: wishes.host.as_deref(), is_here, stays };
        if (stays || has_ports)
            && let Err(error) = attachment.forward(session, wanted).await
        {
            let lost = if has_ports { "No ports are forwarded" } else { "Being attached keeps nothing alive" };
            attachment.warnings.push(format!("{lost}: {error:#}"));
        }
        Ok(Some(attachment))
    }

    async fn forward(&mut self, session: &Session, wanted: Wanted<'_>) -> anyhow::Result<()> {
        let Wanted { ports, host, is_here, stays } = wanted;
        let host = host.unwrap_or(forward::LOCALHOST);
        // What the job will listen at must not be taken from it.
        let (direct, ports) =
            ports.into_iter().partition::<Vec<_>, _>(|port| is_here && forward::is_direct(*port));
        self.forwards = direct.into_iter().map(|port| Forward::direct(host, port)).collect();
        if ports.is_empty() && !stays {
            return Ok(());
        }
        let forwards = forward::choose(&ports, host)?;
        let command = forward::Command {
            config: self.config.path(),
            alias: self.alias.clone(),
            forwards: forwards.clone(),
            variables: session.variables.clone(),
        };
        self.forwarding = Some(Forwarding::start(command).await?);
        self.forwards.extend(forwards);
        Ok(())
    }
}

/// A name that may stand in an SSH configuration and on a command line as it is.
fn plain<'a>(name: &'a str, what: &str) -> anyhow::Result<&'a str> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_plain || name.is_empty() || name.starts_with('-') {
        bail!("the {what} `{name}` cannot be a name of a host");
    }
    Ok(name)
}
