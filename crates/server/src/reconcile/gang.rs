//! How the nodes of a gang enter each other over SSH: one key for the gang, the keys that their servers show, and the
//! ports at which those listen.

use api::agent::{GangAccess, SSH_PORT};
use lifecycle::job::Job;
use store::jobs;

use crate::accounts::KeyPair;
use crate::deps::Deps;

/// The gang's key, if the job has peers. Each try of a gang has its own.
pub(super) fn key_of(deps: &Deps, job: &Job) -> Option<KeyPair> {
    let has_peers = job.spec.jobs_per_replica > 1;
    has_peers.then(|| deps.sealer.gang_key(job.run_id, job.replica_num, job.submission_num))
}

/// What a job is told of its gang with its task; nothing if it has no peers.
pub(super) async fn access_of(deps: &Deps, job: &Job) -> store::Result<Option<GangAccess>> {
    let Some(key) = key_of(deps, job) else { return Ok(None) };
    let nodes = nodes_of(deps, job).await?;
    let host_key = |node: &Job| {
        let public = deps.sealer.job_host_key(node.id).public;
        // The comment says nothing to programs.
        public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    Ok(Some(GangAccess {
        private_key: key.private,
        host_keys: nodes.iter().map(host_key).collect(),
        // Before that they may not be known yet, and they come with the release.
        ports: if job.released_at.is_some() { nodes.iter().map(port_of).collect() } else { vec![] },
    }))
}

/// The ports of the nodes' SSH servers by rank; none if the job has no peers. All nodes of a gang that is released are
/// ready, so each has told its port.
pub(super) async fn ssh_ports_of(deps: &Deps, job: &Job) -> store::Result<Vec<u16>> {
    if job.spec.jobs_per_replica <= 1 {
        return Ok(vec![]);
    }
    Ok(nodes_of(deps, job).await?.iter().map(port_of).collect())
}

/// The latest submissions of the gang's nodes, by rank.
async fn nodes_of(deps: &Deps, job: &Job) -> store::Result<Vec<Job>> {
    let all = jobs::list_latest(&deps.db, job.run_id).await?.into_iter().map(|loaded| loaded.value);
    let mut nodes: Vec<Job> = all.filter(|node| node.replica_num == job.replica_num).collect();
    nodes.sort_by_key(|node| node.job_num);
    Ok(nodes)
}

/// Where a node's SSH server is for its peers: on the host's network at the port that it has found; on a network of
/// its own always at the usual one, whatever port of the host leads there. 0: it has no server.
fn port_of(node: &Job) -> u16 {
    let in_container = node.state.provisioning.as_ref().is_some_and(|data| data.dockerized);
    let Some(runtime) = &node.state.runtime else { return 0 };
    if in_container && runtime.network_mode == "bridge" {
        return SSH_PORT;
    }
    runtime.ports.as_ref().and_then(|ports| ports.get(&SSH_PORT)).copied().unwrap_or(0)
}
