//! What the nodes of a gang are told of each other: where they are, and how they enter each other over SSH (one key for
//! the gang, the keys that their servers show, and the ports at which those listen). Before that, each rank gets its place
//! in the network.

use std::collections::HashMap;
use std::sync::Arc;

use api::agent::{ClusterInfo, GangAccess, SSH_PORT};
use api::ids::InstanceId;
use api::jobs::JobStatus;
use lifecycle::events::Target;
use lifecycle::instance::Instance;
use lifecycle::job::Job;
use lifecycle::placement::neighbours_together;
use lifecycle::run::Run;
use store::leases::Table;
use store::{Tx, Versioned, instances, jobs};

use super::{record, task_spec};
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
    let rows = rows_of(deps, first).await?;
    let mut cluster = ClusterInfo::default();
    for node in rows.iter().map(|row| &row.value) {
        let Some(machine) = node.instance_id.and_then(|id| machines.get(&id)) else { return Ok(None) };
        let joined = machine.state.joined_at.is_some();
        let address = task_spec::address_of(node, run, machine).filter(|_| joined);
        let Some(address) = address else { return Ok(None) };
        cluster.node_ips.push(address);
        cluster.gpus_per_node.push(task_spec::gpus_of(node, machine));
    }
    if put_neighbours_together(deps, run, &rows, &machines).await? {
        // The first node may be elsewhere now.
        return Err(store::Error::Stale);
    }
    Ok(Some(Arc::new(cluster)))
}

/// Lets nodes whose machines were bought for them change places, once it is known where those are in the network; says
/// whether they did. Nodes get their machines before there are any.
async fn put_neighbours_together(
    deps: &Deps,
    run: &Run,
    rows: &[Versioned<Job>],
    machines: &HashMap<InstanceId, Instance>,
) -> store::Result<bool> {
    let placed: Option<Vec<&Instance>> = rows
        .iter()
        .map(|row| machines.get(&row.value.instance_id?).filter(|machine| may_change(&row.value, machine)))
        .collect();
    let Some(placed) = placed else { return Ok(false) };
    let are_alike = rows.windows(2).all(|pair| pair[0].value.spec.requirements == pair[1].value.spec.requirements);
    let are_of_one_fleet = placed.windows(2).all(|pair| pair[0].fleet_id == pair[1].fleet_id);
    if !are_alike || !are_of_one_fleet {
        return Ok(false);
    }
    let paths: Vec<(&[String], u32)> =
        placed.iter().map(|machine| (&machine.state.network_path[..], machine.instance_num)).collect();
    let Some(order) = neighbours_together(&paths) else { return Ok(false) };
    let moved = || rows.iter().zip(&order).enumerate().filter(|(rank, (_, place))| rank != *place);
    let mut tx = deps.db.begin().await?;
    for (_, (row, _)) in moved() {
        instances::unassign(&mut tx, row.value.id).await?;
    }
    for (_, (row, place)) in moved() {
        change_machine(deps, &mut tx, run, row, placed[*place]).await?;
    }
    tx.commit().await?;
    deps.wake.ring(Table::Jobs);
    deps.wake.tell_watchers();
    Ok(true)
}

/// Whether a node can have another machine: it was given nothing to do on this one, which nobody else uses.
fn may_change(job: &Job, machine: &Instance) -> bool {
    let is_before_start = job.status == JobStatus::Provisioning && job.state.phase.is_none() && !job.state.given;
    let has_all = job.state.blocks.len() == machine.state.total_blocks.max(1) as usize;
    is_before_start && has_all && job.end.is_none() && machine.is_kept()
}

async fn change_machine(
    deps: &Deps,
    tx: &mut Tx,
    run: &Run,
    row: &Versioned<Job>,
    machine: &Instance,
) -> store::Result<()> {
    let mut row = row.clone();
    row.value.instance_id = Some(machine.id);
    row.value.state.blocks = (0..machine.state.total_blocks.max(1)).collect();
    task_spec::describe(&mut row.value, run, machine);
    jobs::save_placed(&mut *tx, &row, deps.clock.now()).await?;
    for block in &row.value.state.blocks {
        instances::assign(&mut *tx, machine.id, *block, row.value.id).await?;
    }
    let name = &machine.state.name;
    let message =
        format!("Job moved to instance {name}, so that neighbouring ranks are neighbours in the network");
    let targets = [
        Target::job(row.value.project_id, row.value.run_id, row.value.id, &row.value.spec.job_name),
        Target::instance(machine.project_id, machine.fleet_id, machine.id, name),
    ];
    record::events(deps, tx, &[message], &targets).await
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
    Ok(rows_of(deps, job).await?.into_iter().map(|row| row.value).collect())
}

async fn rows_of(deps: &Deps, job: &Job) -> store::Result<Vec<Versioned<Job>>> {
    let all = jobs::list_latest(&deps.db, job.run_id).await?.into_iter();
    let mut rows: Vec<Versioned<Job>> = all.filter(|row| row.value.replica_num == job.replica_num).collect();
    rows.sort_by_key(|row| row.value.job_num);
    Ok(rows)
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
