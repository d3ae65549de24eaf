//! What the nodes of a gang are told of each other: where they are, and how they enter each other over SSH (one key for
//! the gang, the keys that their servers show, and the ports at which those listen).

use std::collections::HashMap;
use std::sync::Arc;

use api::agent::{ClusterInfo, GangAccess, SSH_PORT};
use api::ids::InstanceId;
use lifecycle::instance::Instance;
use lifecycle::job::Job;
use lifecycle::run::Run;
use store::{instances, jobs};

use super::task_spec;
use crate::accounts::KeyPair;
use crate::deps::Deps;
use crate::gangs::KnownGang;

/// The job's gang, once its first node remembers where all nodes are. A job without peers is a gang as well.
pub(super) async fn find(deps: &Deps, job: &Job) -> store::Result<Option<Arc<KnownGang>>> {
    if job.spec.jobs_per_replica <= 1 {
        return Ok(job.state.cluster.clone().map(|cluster| Arc::new(KnownGang::of(cluster))));
    }
    if let Some(known) = deps.gangs.get(job) {
        return Ok(Some(known));
    }
    let cluster = if job.job_num == 0 {
        job.state.cluster.clone()
    } else {
        let first = jobs::get_first(&deps.db, job.run_id, job.replica_num, job.submission_num).await?;
        first.and_then(|first| first.value.state.cluster)
    };
    Ok(cluster.map(|cluster| deps.gangs.remember(job, cluster)))
}

/// Where all nodes of the first node's gang are, if each has an address.
pub(super) async fn find_out(deps: &Deps, first: &Job, run: &Run) -> store::Result<Option<Arc<ClusterInfo>>> {
    let (replica_num, submission_num) = (first.replica_num, first.submission_num);
    // Of a large gang this is asked each time that one of its machines joins.
    if jobs::count_without_machine(&deps.db, first.run_id, replica_num, submission_num).await? > 0 {
        return Ok(None);
    }
    let machines: HashMap<InstanceId, Instance> = instances::list_of_run(&deps.db, first.run_id)
        .await?
        .into_iter()
        .map(|machine| (machine.value.id, machine.value))
        .collect();
    let mut cluster = ClusterInfo::default();
    for node in nodes_of(deps, first).await? {
        let Some(machine) = node.instance_id.and_then(|id| machines.get(&id)) else { return Ok(None) };
        let joined = machine.state.joined_at.is_some();
        let address = task_spec::address_of(&node, run, machine).filter(|_| joined);
        let Some(address) = address else { return Ok(None) };
        cluster.node_ips.push(address);
        cluster.gpus_per_node.push(task_spec::gpus_of(&node, machine));
    }
    Ok(Some(Arc::new(cluster)))
}

/// The gang as one of its nodes is told of it.
pub(super) fn as_seen_by(job: &Job, gang: &KnownGang) -> ClusterInfo {
    ClusterInfo { node_rank: job.job_num, ..(*gang.cluster).clone() }
}

/// The gang's key, if the job has peers. Each try of a gang has its own.
pub(super) fn key_of(deps: &Deps, job: &Job) -> Option<KeyPair> {
    let has_peers = job.spec.jobs_per_replica > 1;
    has_peers.then(|| deps.sealer.gang_key(job.run_id, job.replica_num, job.submission_num))
}

/// What a job is told of its gang with its task; nothing if it has no peers.
pub(super) async fn access_of(deps: &Deps, job: &Job, gang: &KnownGang) -> store::Result<Option<GangAccess>> {
    let Some(key) = key_of(deps, job) else { return Ok(None) };
    let host_key = |node: &Job| {
        let public = deps.sealer.job_host_key(node.id).public;
        // The comment says nothing to programs.
        public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    let all = async || Ok::<_, store::Error>(nodes_of(deps, job).await?.iter().map(host_key).collect());
    let host_keys = gang.host_keys.get_or_try_init(all).await?.clone();
    // Before that they may not be known yet, and they come with the release.
    let ports = if job.released_at.is_some() { ssh_ports_of(deps, job).await? } else { vec![] };
    Ok(Some(GangAccess { private_key: key.private, host_keys, ports }))
}

/// The ports of the nodes' SSH servers by rank; none if the job has no peers. All nodes of a gang that is released are
/// ready, so each has told its port.
pub(super) async fn ssh_ports_of(deps: &Deps, job: &Job) -> store::Result<Vec<u16>> {
    if job.spec.jobs_per_replica <= 1 {
        return Ok(vec![]);
    }
    let all = async || Ok(nodes_of(deps, job).await?.iter().map(port_of).collect());
    match find(deps, job).await? {
        Some(gang) => gang.ports.get_or_try_init(all).await.cloned(),
        None => all().await,
    }
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
