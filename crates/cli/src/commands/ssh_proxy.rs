//! `dstack ssh-proxy`: what OpenSSH's client runs as its `ProxyCommand` to reach a job through the server.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use api::client::{RunTunnel, RunTunnelTarget};
use tokio::fs::File;
use tokio::time::sleep;

use crate::Outcome;
use crate::args::SshProxyArgs;
use crate::session::Session;
use crate::ssh::{OWNER_VARIABLE, Owner};

/// How often it is looked whether whoever needs the connection is still there.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(session: &mut Session, args: &SshProxyArgs) -> anyhow::Result<Outcome> {
    let owner = session.variable(OWNER_VARIABLE).and_then(Owner::parse);
    let result = tokio::select! {
        result = join(session, args) => result,
        // An `ssh` that outlives a killed `dstack attach` would keep its ports.
        () = gone(owner) => Ok(()),
    };
    let Err(error) = result else { return Ok(Outcome::Done) };
    // Its output is the connection, and one line is what `ssh` shows well.
    let text = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    session.printer.note(&format!("dstack ssh-proxy: {text}"))?;
    Ok(Outcome::NoWay)
}

async fn join(session: &mut Session, args: &SshProxyArgs) -> anyhow::Result<()> {
    let pipe = session.pipe.take();
    let project = session.project(args.project.project.as_deref())?;
    let target = RunTunnelTarget { replica: args.replica, job: args.job };
    let tunnel = RunTunnel::open(&project.client, &project.name, &args.run_name, target).await?;
    if let Some(pipe) = pipe {
        let (reader, writer) = tokio::io::split(pipe);
        return Ok(tunnel.join(reader, writer).await?);
    }
    // The standard library's own handles look for the ends of lines.
    let reader = std::io::stdin().as_fd().try_clone_to_owned().context("read stdin")?;
    let writer = std::io::stdout().as_fd().try_clone_to_owned().context("write stdout")?;
    let [reader, writer] = [reader, writer].map(|fd| File::from_std(std::fs::File::from(fd)));
    Ok(tunnel.join(reader, writer).await?)
}

async fn gone(owner: Option<Owner>) {
    let Some(owner) = owner else { return std::future::pending().await };
    while !owner.is_gone() {
        sleep(WATCH_INTERVAL).await;
    }
}
