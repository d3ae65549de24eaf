//! Fleets and instances in the official wire form.

use api::configurations::SshHost;
use api::fleets::{Fleet as WireFleet, FleetSpec};
use api::instances::{
    HealthCheck, HealthEvent, HealthStatus, Instance as WireInstance, InstanceStatus, InstanceTerminationReason,
};
use jiff::{SignedDuration, Timestamp};
use lifecycle::fleet::Fleet;
use lifecycle::instance::{Check, Instance};

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
        health_status: health_status(row).as_str().to_owned(),
        health: health(row),
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
        progress: None,
        purchase: None,
    }
}

/// How an instance is. What is not there any more is not ill.
fn health_status(row: &Instance) -> HealthStatus {
    health(row).map_or(HealthStatus::Healthy, |check| check.status)
}

/// What was found when an instance was last looked at, while it is there.
pub fn health(row: &Instance) -> Option<HealthCheck> {
    let is_there = matches!(row.status, InstanceStatus::Idle | InstanceStatus::Busy);
    let collected_at = row.state.health_at.filter(|_| is_there)?;
    let event =
        |check: &Check| HealthEvent { timestamp: collected_at, status: check.status, message: check.text() };
    let events: Vec<HealthEvent> = row.state.health.checks.iter().map(event).collect();
    (!events.is_empty()).then(|| HealthCheck { collected_at, status: row.state.health.status(), events })
}

// The reason is known from the order on, before the reconciler has written it down.
fn termination_reason(row: &Instance) -> Option<InstanceTerminationReason> {
    row.state.termination_reason.or_else(|| row.end.as_ref().map(|end| end.reason))
}

#[cfg(test)]
mod tests {
    use api::ids::{ProjectId, UserId};
    use lifecycle::fleet::FleetState;
    use lifecycle::instance::InstanceState;
    use serde_json::Value;
    use uuid::Uuid;

    use super::*;

    const PROJECT: ProjectId = ProjectId(Uuid::from_u128(1));

    /// The rows that an official answer would have been made from.
    fn rows_of(wire: &WireFleet) -> (Fleet, Vec<(Instance, u32)>) {
        let fleet = Fleet {
            id: wire.id,
            project_id: PROJECT,
            user_id: UserId(Uuid::from_u128(2)),
            name: wire.name.clone(),
            created_at: wire.created_at,
            status: wire.status,
            wanted: true,
            spec: wire.spec.clone(),
            state: FleetState::default(),
        };
        let instances = wire.instances.iter().map(|instance| {
            let row = Instance {
                id: instance.id,
                project_id: PROJECT,
                fleet_id: wire.id,
                instance_num: instance.instance_num,
                created_at: instance.created,
                status: instance.status,
                end: None,
                launch_id: None,
                launch_index: None,
                state: InstanceState {
                    name: instance.name.clone(),
                    backend: instance.backend.map(|_| "fake".to_owned()),
                    region: instance.region.clone(),
                    zone: instance.availability_zone.clone(),
                    price: instance.price,
                    instance_type: instance.instance_type.clone(),
                    hostname: instance.hostname.clone(),
                    total_blocks: instance.total_blocks.unwrap_or_default(),
                    gpu_driver: instance.gpu_driver.clone(),
                    ..InstanceState::default()
                },
            };
            (row, instance.busy_blocks)
        });
        (fleet, instances.collect())
    }

    fn comparable(mut value: Value) -> Value {
        match &mut value {
            Value::Object(map) => {
                for (key, item) in map.iter_mut() {
                    let is_backend = key == "backend" && item.is_string();
                    *item = if is_backend { "some".into() } else { comparable(item.take()) };
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| *item = comparable(item.take())),
            Value::String(text) => {
                if let Ok(time) = text.parse::<Timestamp>() {
                    *text = time.to_string();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        value
    }

    fn moment() -> Moment {
        let now: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        Moment { now, silent_before: now - SignedDuration::from_secs(15) }
    }

    #[test]
    fn fleets_are_shown_as_the_original_shows_them() {
        let recorded: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/golden/fleet_views.json")).unwrap();
        assert!(recorded.len() > 5);
        for answer in recorded {
            let wire: WireFleet = serde_json::from_value(answer.clone()).unwrap();
            let (row, instances) = rows_of(&wire);
            let instances: Vec<(&Instance, u32)> = instances.iter().map(|(row, busy)| (row, *busy)).collect();
            let view = fleet(moment(), &row, &instances, &wire.project_name);
            assert_eq!(comparable(serde_json::to_value(&view).unwrap()), comparable(answer));
        }
    }

    #[test]
    fn an_instance_that_is_there_shows_what_was_found() {
        let recorded: Vec<WireFleet> =
            serde_json::from_str(include_str!("../../tests/golden/fleet_views.json")).unwrap();
        let (_, instances) = recorded.iter().map(rows_of).find(|(_, instances)| !instances.is_empty()).unwrap();
        let mut row = instances[0].0.clone();
        let shown = |row: &Instance| instance(moment(), row, 0, "main", "fleet");
        row.status = InstanceStatus::Idle;
        assert_eq!((shown(&row).health_status.as_str(), shown(&row).health), ("healthy", None));
        let found =
            |name: &str, status, detail: &str| Check { name: name.to_owned(), status, detail: detail.to_owned() };
        row.state.health.checks =
            vec![found("efa", HealthStatus::Failure, "31/32"), found("gpus", HealthStatus::Healthy, "8/8")];
        row.state.health_at = Some(moment().now);
        let wire = serde_json::to_value(shown(&row)).unwrap();
        let at = "2026-11-24T00:00:00Z";
        let event = |status: &str, message: &str| serde_json::json!({"timestamp": at, "status": status, "message": message});
        let events = [event("failure", "efa 31/32"), event("healthy", "gpus 8/8")];
        let expected = serde_json::json!({"collected_at": at, "status": "failure", "events": events});
        assert_eq!((&wire["health_status"], &wire["health"]), (&"failure".into(), &expected));
        row.status = InstanceStatus::Terminated;
        assert_eq!((shown(&row).health_status.as_str(), shown(&row).health), ("healthy", None));
    }

    #[track_caller]
    fn check_shown(reason: InstanceTerminationReason, minutes_ago: i64, is_replaced: bool, expected: bool) {
        let recorded: Vec<WireFleet> =
            serde_json::from_str(include_str!("../../tests/golden/fleet_views.json")).unwrap();
        let (_, instances) = recorded.iter().map(rows_of).find(|(_, instances)| !instances.is_empty()).unwrap();
        let mut row = instances[0].0.clone();
        assert!(is_shown(moment().now, &row, false));
        row.status = InstanceStatus::Terminated;
        row.state.termination_reason = Some(reason);
        row.state.finished_at = Some(moment().now - SignedDuration::from_mins(minutes_ago));
        assert_eq!(is_shown(moment().now, &row, is_replaced), expected);
    }

    #[test]
    fn an_instance_that_never_came_to_be_is_shown_for_a_while() {
        check_shown(InstanceTerminationReason::NoOffers, 1, false, true);
        check_shown(InstanceTerminationReason::NoOffers, 11, false, false);
        check_shown(InstanceTerminationReason::NoOffers, 1, true, false);
        check_shown(InstanceTerminationReason::IdleTimeout, 1, false, false);
        check_shown(InstanceTerminationReason::TerminatedByUser, 1, false, false);
    }
}
