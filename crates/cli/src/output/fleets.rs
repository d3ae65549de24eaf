//! Fleets and their instances.

use anstyle::{AnsiColor, Style};
use api::backends::BackendType;
use api::configurations::{FleetConfiguration, GpuSpec, InstanceGroupPlacement, SpotPolicy};
use api::fleets::{Fleet, FleetStatus};
use api::instances::{HealthStatus, Instance, InstanceStatus};

use super::format;
use super::runs::Times;
use super::{Cell, Table};
use crate::printer::{ERROR, SECONDARY, STRONG, SUCCESS};

/// The table of fleets, in the order given.
pub(crate) fn table(fleets: &[Fleet], verbose: bool, times: &Times) -> Table {
    let titles: &[&'static str] = if verbose {
        &["NAME", "NODES", "RESOURCES", "DRIVER", "SPOT", "BACKEND", "PRICE", "STATUS", "CREATED", "ERROR"]
    } else {
        &["NAME", "NODES", "GPU", "SPOT", "BACKEND", "PRICE", "STATUS", "CREATED"]
    };
    let mut table = Table::new(titles);
    for fleet in fleets {
        let row = fleet_row(fleet, verbose, times);
        table.row(titles.iter().map(|title| row.cell(title)).collect());
        let mut instances: Vec<&Instance> = fleet.instances.iter().collect();
        instances.sort_by_key(|instance| instance.instance_num);
        for instance in instances {
            let row = instance_row(instance, verbose, times);
            table.row(titles.iter().map(|title| row.cell(title)).collect());
        }
    }
    table
}

#[derive(Default)]
struct Row {
    name: Cell,
    nodes: String,
    resources: String,
    gpu: String,
    driver: String,
    spot: String,
    backend: String,
    price: String,
    status: Cell,
    created: String,
    error: String,
}

impl Row {
    fn cell(&self, title: &str) -> Cell {
        let text = match title {
            "NAME" => return self.name.clone(),
            "STATUS" => return self.status.clone(),
            "ERROR" => return Cell::styled(self.error.clone(), ERROR),
            "NODES" => &self.nodes,
            "RESOURCES" => &self.resources,
            "GPU" => &self.gpu,
            "DRIVER" => &self.driver,
            "SPOT" => &self.spot,
            "BACKEND" => &self.backend,
            "PRICE" => &self.price,
            _ => &self.created,
        };
        text.clone().into()
    }
}

fn fleet_row(fleet: &Fleet, verbose: bool, times: &Times) -> Row {
    let configuration = &fleet.spec.configuration;
    let merged = configuration.merged_profile(Some(&fleet.spec.profile));
    let is_ssh = configuration.ssh_config.is_some();
    let mut nodes = node_count(configuration);
    if verbose && configuration.placement == Some(InstanceGroupPlacement::Cluster) {
        nodes.push_str(" (cluster)");
    }
    // Machines over SSH are what they are, whatever was wanted of them.
    let resources = configuration.resources.as_ref().filter(|_| !is_ssh);
    let gpu = resources.and_then(|resources| resources.gpu.as_ref());
    let max_price = merged.max_price.filter(|_| !is_ssh);
    Row {
        name: Cell::styled(fleet.name.clone(), STRONG),
        nodes,
        resources: resources.map(format::requirements).unwrap_or_default(),
        gpu: gpu.map(wanted_gpu).unwrap_or_default(),
        spot: if is_ssh {
            String::new()
        } else {
            format::plain(&merged.spot_policy.unwrap_or(SpotPolicy::OnDemand))
        },
        backend: match &merged.backends {
            _ if is_ssh => "ssh".to_owned(),
            Some(backends) => backends.iter().map(|kind| wanted_backend(*kind)).collect::<Vec<_>>().join(", "),
            None => "*".to_owned(),
        },
        price: max_price.map(|price| format!("$0..{}", format::number(price, 4))).unwrap_or_default(),
        status: Cell::styled(fleet.status.as_str(), fleet_style(fleet.status)),
        created: times.show(fleet.created_at),
        ..Row::default()
    }
}

// Any number, none included, is no wish; of the others, only name, memory and count are short enough.
fn wanted_gpu(gpu: &GpuSpec) -> String {
    if matches!((gpu.count.min.unwrap_or(0), gpu.count.max), (0, None) | (_, Some(0))) {
        return String::new();
    }
    let short = GpuSpec { vendor: None, total_memory: None, compute_capability: None, ..gpu.clone() };
    let text = format::gpu_requirements(&short);
    if gpu.name.is_some() { text } else { format!("gpu:{text}") }
}

// Where a fleet names this backend, it means this machine: machines over SSH are named by `ssh_config`.
fn wanted_backend(kind: BackendType) -> &'static str {
    format::backend(kind, Some("local"))
}

/// How many nodes a fleet has or may have.
pub(crate) fn node_count(configuration: &FleetConfiguration) -> String {
    if let Some(ssh) = &configuration.ssh_config {
        return ssh.hosts.len().to_string();
    }
    let Some(nodes) = &configuration.nodes else { return String::new() };
    match nodes.max {
        Some(max) if max == nodes.min => max.to_string(),
        Some(max) => format!("{}..{max}", nodes.min),
        None => format!("{}..", nodes.min),
    }
}

fn instance_row(instance: &Instance, verbose: bool, times: &Times) -> Row {
    // Until a machine over SSH is joined, nobody knows what it has.
    let is_joined = !matches!(instance.status, InstanceStatus::Pending | InstanceStatus::Provisioning);
    let kind = instance.instance_type.as_ref().filter(|_| is_joined || !is_over_ssh(instance));
    let is_bought = instance.backend.is_some_and(|backend| backend != BackendType::Remote);
    Row {
        name: format!("   instance={}", instance.instance_num).into(),
        resources: kind.map(|kind| format::resources(&kind.resources, false)).unwrap_or_default(),
        gpu: kind.map(|kind| format::gpus(&kind.resources).unwrap_or_else(|| "-".to_owned())).unwrap_or_default(),
        driver: instance.gpu_driver.as_ref().map(|driver| driver.version.clone()).unwrap_or_default(),
        spot: match kind {
            Some(kind) if is_bought => if kind.resources.spot { "spot" } else { "on-demand" }.to_owned(),
            _ => String::new(),
        },
        backend: match (instance.backend, &instance.region) {
            (Some(backend), Some(region)) => {
                let zone = instance.availability_zone.as_deref().filter(|_| verbose);
                format::place(backend, region, zone)
            }
            (Some(backend), None) => format::backend(backend, None).to_owned(),
            (None, _) => "-".to_owned(),
        },
        price: instance.price.filter(|_| is_bought).map(format::price).unwrap_or_default(),
        status: Cell::styled(instance_status(instance), instance_style(instance.status)),
        created: times.show(instance.created),
        error: instance_error(instance),
        ..Row::default()
    }
}

/// Whether the user named the machine, and nobody sold it.
pub(crate) fn is_over_ssh(instance: &Instance) -> bool {
    let region = instance.region.as_deref();
    instance.backend.is_some_and(|kind| kind == BackendType::Remote && format::backend(kind, region) == "ssh")
}

/// An instance's status for people.
pub(crate) fn instance_status(instance: &Instance) -> String {
    let is_there = matches!(instance.status, InstanceStatus::Idle | InstanceStatus::Busy);
    let mut status = match instance.total_blocks {
        Some(total) if is_there && 1 < total => format!("{}/{total} busy", instance.busy_blocks),
        _ => instance.status.as_str().to_owned(),
    };
    if is_there && instance.unreachable {
        status.push_str(" (unreachable)");
    } else if is_there && instance.health_status != "healthy" {
        status = format!("{status} ({})", instance.health_status);
    }
    status
}

/// Why an instance ended, if it did, or else what is wrong with it.
pub(crate) fn instance_error(instance: &Instance) -> String {
    if matches!(instance.status, InstanceStatus::Pending | InstanceStatus::Provisioning) {
        return instance.purchase.clone().unwrap_or_default();
    }
    if instance.status != InstanceStatus::Terminated {
        return failed_checks(instance);
    }
    match (&instance.termination_reason, &instance.termination_reason_message) {
        (Some(reason), Some(message)) if !message.is_empty() => format!("{reason} ({message})"),
        (Some(reason), _) => reason.clone(),
        (None, Some(message)) => message.clone(),
        (None, None) => String::new(),
    }
}

/// What an instance lacks: `efa 31/32`.
fn failed_checks(instance: &Instance) -> String {
    let found = instance.health.iter().flat_map(|health| &health.events);
    let failed = found.filter(|event| event.status != HealthStatus::Healthy);
    failed.map(|event| event.message.as_str()).collect::<Vec<_>>().join(", ")
}

fn fleet_style(status: FleetStatus) -> Style {
    match status {
        FleetStatus::Submitted | FleetStatus::Terminating | FleetStatus::Terminated => SECONDARY,
        FleetStatus::Active => Style::new(),
        FleetStatus::Failed => ERROR,
    }
}

fn instance_style(status: InstanceStatus) -> Style {
    match status {
        InstanceStatus::Pending | InstanceStatus::Terminating | InstanceStatus::Terminated => SECONDARY,
        InstanceStatus::Provisioning => AnsiColor::Cyan.on_default(),
        InstanceStatus::Idle => SUCCESS,
        InstanceStatus::Busy => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(status: &str) -> Instance {
        let event = |status: &str, message: &str| json!({"timestamp": "2026-11-26T08:00:00Z", "status": status, "message": message});
        let events = [
            event("failure", "efa 31/32"),
            event("healthy", "gpus 8/8"),
            event("warning", "hugepages 0 of 2048 KiB"),
        ];
        serde_json::from_value(json!({
            "id": "5f0c2f3c-9a0f-4f0e-8a9e-0123456789ab", "project_name": "main", "backend": "aws",
            "instance_type": null, "name": "fleet-0", "fleet_id": null, "fleet_name": "fleet", "instance_num": 0,
            "hostname": "10.0.0.1", "status": status, "health_status": "failure", "created": "2026-11-26T08:00:00Z",
            "region": "us-east-2", "price": 1.0,
            "health": {"collected_at": "2026-11-26T08:00:00Z", "status": "failure", "events": events},
        }))
        .unwrap()
    }

    #[test]
    fn an_instance_says_what_it_lacks() {
        let idle = instance("idle");
        assert_eq!(instance_status(&idle), "idle (failure)");
        assert_eq!(instance_error(&idle), "efa 31/32, hugepages 0 of 2048 KiB");
        let mut gone = instance("terminated");
        gone.termination_reason = Some("idle_timeout".to_owned());
        assert_eq!(instance_error(&gone), "idle_timeout");
        // Other servers do not say what was looked at.
        assert_eq!(instance_error(&Instance { health: None, ..idle }), "");
        let said = "us-east-2a: InsufficientInstanceCapacity; next us-east-2b";
        let waiting = Instance { purchase: Some(said.to_owned()), ..instance("provisioning") };
        assert_eq!(instance_error(&waiting), said);
    }
}
