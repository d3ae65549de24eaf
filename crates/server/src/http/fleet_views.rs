//! Fleets and instances in the official wire form.

use api::configurations::SshHost;
use api::fleets::{Fleet as WireFleet, FleetSpec};
use api::instances::{Instance as WireInstance, InstanceStatus, InstanceTerminationReason};
use jiff::{SignedDuration, Timestamp};
use lifecycle::fleet::Fleet;
use lifecycle::instance::Instance;

use crate::pool::is_silent;

/// How long an instance that came to nothing is shown with its fleet, so that whoever applied it learns why.
const SHOW_FAILED: SignedDuration = SignedDuration::from_mins(10);

/// When views are made.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The time.
    pub now: Timestamp,
    /// An agent that has been silent since before this is shown as unreachable.
    pub silent_before: Timestamp,
}

/// A fleet. `instances` are its instances, terminated ones too, by number and age, each with its busy blocks.
pub fn fleet(moment: Moment, row: &Fleet, instances: &[(&Instance, u32)], project_name: &str) -> WireFleet {
    let shown = instances
        .iter()
        .enumerate()
        .filter(|(index, (instance, _))| {
            let later = instances.get(index + 1).map(|(instance, _)| instance.instance_num);
            is_shown(moment.now, instance, later == Some(instance.instance_num))
        })
        .map(|(_, (row_of_instance, busy))| instance(moment, row_of_instance, *busy, project_name, &row.name));
    WireFleet {
        id: row.id,
        name: row.name.clone(),
        project_name: project_name.to_owned(),
        spec: without_keys(row.spec.clone()),
        created_at: row.created_at,
        status: row.status,
        status_message: row.state.status_message.clone(),
        instances: shown.collect(),
    }
}

/// Whether a fleet shows an instance: until it is gone, and a while longer if it never came to be.
fn is_shown(now: Timestamp, instance: &Instance, is_replaced: bool) -> bool {
    if instance.status != InstanceStatus::Terminated {
        return true;
    }
    let failed = matches!(
        instance.state.termination_reason,
        Some(
            InstanceTerminationReason::NoOffers
                | InstanceTerminationReason::ProvisioningTimeout
                | InstanceTerminationReason::Error
        )
    );
    let ended_at = instance.state.finished_at.or(instance.state.last_processed_at).unwrap_or(instance.created_at);
    failed && !is_replaced && now.duration_since(ended_at) < SHOW_FAILED
}

/// What of a fleet's spec others may see.
pub fn without_keys(mut spec: FleetSpec) -> FleetSpec {
    let Some(ssh) = &mut spec.configuration.ssh_config else { return spec };
    ssh.ssh_key = None;
    let proxies = ssh.proxy_jump.iter_mut();
    let hosts = ssh.hosts.iter_mut().filter_map(|host| match host {
        SshHost::Params(host) => Some(host),
        SshHost::Hostname(_) => None,
    });
    let host_proxies = hosts.filter_map(|host| {
        host.ssh_key = None;
        host.proxy_jump.as_mut()
    });
    for proxy in proxies.chain(host_proxies) {
        proxy.ssh_key = None;
    }
    spec
}

/// An instance.
pub fn instance(
    moment: Moment,
    row: &Instance,
    busy_blocks: u32,
    project_name: &str,
    fleet_name: &str,
) -> WireInstance {
    let state = &row.state;
    WireInstance {
        id: row.id,
        project_name: project_name.to_owned(),
        backend: state.backend.as_deref().map(backends::wire_type_of),
        instance_type: state.instance_type.clone(),
        name: state.name.clone(),
        fleet_id: Some(row.fleet_id),
        fleet_name: Some(fleet_name.to_owned()),
        instance_num: row.instance_num,
        job_name: None,
        hostname: state.hostname.clone(),
        status: row.status,
        unreachable: row.status != InstanceStatus::Terminated && is_silent(row, moment.silent_before),
        health_status: "healthy".to_owned(),
        termination_reason: termination_reason(row).map(|reason| reason.as_str().to_owned()),
        termination_reason_message: state
            .termination_message
            .clone()
            .or_else(|| row.end.as_ref().and_then(|end| end.message.clone())),
        created: row.created_at,
        finished_at: state.finished_at,
        region: state.region.clone(),
        availability_zone: state.zone.clone(),
        price: state.price,
        total_blocks: (state.total_blocks > 0).then_some(state.total_blocks),
        busy_blocks,
        gpu_driver: state.gpu_driver.clone(),
    }
}

// The reason is known from the order on, before the reconciler has written it down.
fn termination_reason(row: &Instance) -> Option<InstanceTerminationReason> {
    row.state.termination_reason.or_else(|| row.end.as_ref().map(|end| end.reason))
}
