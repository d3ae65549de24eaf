//! `dstack attach`: the way into one job over SSH, its ports, and with `--logs` its log as it is written, until the
//! run is finished.

use anyhow::bail;
use api::client::endpoints;
use api::runs::{GetRunRequest, Run, RunStatus};

use super::apply::configure;
use super::apply::follow::{Follower, Purpose};
use crate::Outcome;
use crate::args::AttachArgs;
use crate::session::Session;
use crate::ssh::{self, Wishes};

pub(super) async fn run(session: &mut Session, args: &AttachArgs) -> anyhow::Result<Outcome> {
    ssh::check(&args.ports)?;
    let find = async |session: &mut Session| find(session, args).await;
    let Ok(follower) = super::unless_interrupted(session, find).await? else {
        session.printer.line("\nDetached")?;
        return Ok(Outcome::Done);
    };
    Box::pin(follower.run(session)).await
}

/// Finds the run and the job of it that is meant.
async fn find(session: &mut Session, args: &AttachArgs) -> anyhow::Result<Follower> {
    let since = super::since(session, args.since.as_deref())?;
    let project = session.project(args.project.project.as_deref())?;
    let request = GetRunRequest { run_name: Some(args.run_name.clone()), id: None };
    let run = project.client.call(&endpoints::GET_RUN, &project.name, &request).await;
    let run = super::named(run, || format!("Run {} not found", args.run_name))?;
    let job = args.job.unwrap_or(0);
    let replica = args.replica.unwrap_or_else(|| running_replica(&run));
    let is_it = |spec: &api::jobs::JobSpec| spec.job_num == job && spec.replica_num == replica;
    if !run.jobs.is_empty() && run.jobs.iter().all(|other| !is_it(&other.job_spec)) {
        bail!("Failed to attach to run {}: it has no replica={replica} job={job}", args.run_name);
    }
    if run.status.is_finished() && run.status != RunStatus::Done {
        bail!("Run {} is {}", args.run_name, run.status.as_str());
    }
    let identity = args.ssh_identity.as_deref();
    let wishes = Wishes {
        identity: identity.map(|path| configure::absolute(session, &session.directory, path).into()),
        host: args.host.clone(),
        ports: args.ports.clone(),
    };
    Ok(Follower::new(project, run, Purpose::Attached { replica, job, logs: args.logs, since }, wishes))
}

fn running_replica(run: &Run) -> u32 {
    let is_running = |job: &&api::jobs::Job| {
        job.job_submissions.last().is_some_and(|last| last.status == api::jobs::JobStatus::Running)
    };
    run.jobs.iter().find(is_running).map_or(0, |job| job.job_spec.replica_num)
}
