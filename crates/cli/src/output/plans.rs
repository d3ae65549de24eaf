//! What an apply would do: the properties of a plan and the changes it makes.

use api::configurations::{
    CreationPolicy, InstanceGroupPlacement, ProfileParams, RetryEvent, RunConfiguration, SpotPolicy,
};
use api::fleets::FleetPlan;
use api::jobs::{Requirements, Retry};
use api::runs::{RunPlan, RunSpec};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::Table;
use super::{fleets, format};

/// Instances that a run made stay this long, unless told.
const DEFAULT_IDLE_SECS: i64 = 300;

/// The properties of a run's plan.
pub(crate) fn run_properties(plan: &RunPlan, verbose: bool) -> Table {
    let spec = plan.effective_run_spec.as_ref().unwrap_or(&plan.run_spec);
    let merged = spec.configuration.merged_profile(spec.profile.as_ref());
    let mut table = Table::properties();
    table.property("Project", plan.project_name.as_str());
    table.property("User", plan.user.as_str());
    table.property("Type", run_type(&spec.configuration));
    if let Some(job) = plan.job_plans.first() {
        let requirements = &job.job_spec.requirements;
        add_requirements(requirements, &mut table);
        table.property("Retry policy", retry(job.job_spec.retry.as_ref()));
        add_policies(spec, &merged, verbose, &mut table);
        table.property("Max duration", off_or(job.job_spec.max_duration.map(|seconds| seconds as i64)));
        if let RunConfiguration::DevEnvironment(environment) = &spec.configuration {
            table
                .property("Inactivity duration", off_or(environment.inactivity_duration.map(|seconds| seconds.0)));
        }
        if requirements.reservation.is_some() || verbose {
            table.property("Reservation", requirements.reservation.as_deref().unwrap_or("no"));
        }
    }
    table
}

/// Resources, spot policy and price limit of a job.
pub(crate) fn add_requirements(requirements: &Requirements, table: &mut Table) {
    table.property("Resources", format::requirements(&requirements.resources));
    let spot_policy = match requirements.spot {
        None => "auto",
        Some(true) => "spot",
        Some(false) => "on-demand",
    };
    table.property("Spot policy", spot_policy);
    table.property("Max price", requirements.max_price.map_or("off".to_owned(), format::price));
}

fn add_policies(spec: &RunSpec, merged: &ProfileParams, verbose: bool, table: &mut Table) {
    let creation = merged.creation_policy.unwrap_or(CreationPolicy::ReuseOrCreate);
    if creation != CreationPolicy::ReuseOrCreate || verbose {
        table.property("Creation policy", format::plain(&creation));
    }
    let idle = merged.idle_duration.map_or(DEFAULT_IDLE_SECS, |seconds| seconds.0);
    table.property("Idle duration", if idle < 0 { "-".to_owned() } else { format::duration(idle) });
    if let Some(priority) = spec.configuration.common().priority.filter(|priority| verbose && *priority != 0) {
        table.property("Priority", priority.to_string());
    }
    if let Some(schedule) = &merged.schedule {
        table.property("Schedule", schedule.cron.join(", "));
    }
}

fn run_type(configuration: &RunConfiguration) -> String {
    match configuration {
        RunConfiguration::Task(task) => format!("task (nodes={})", task.total_nodes()),
        RunConfiguration::DevEnvironment(_) => "dev-environment".to_owned(),
        RunConfiguration::Service(_) => "service".to_owned(),
    }
}

fn retry(retry: Option<&Retry>) -> String {
    let Some(retry) = retry else { return "off".to_owned() };
    let duration = format::duration(retry.duration as i64);
    let events: Vec<String> = retry.on_events.iter().map(|event: &RetryEvent| format::plain(event)).collect();
    format!("{duration}[{}]", events.join(", "))
}

fn off_or(seconds: Option<i64>) -> String {
    seconds.map_or("off".to_owned(), format::duration)
}

/// The properties of a fleet's plan.
pub(crate) fn fleet_properties(plan: &FleetPlan) -> Table {
    let spec = plan.effective_spec.as_ref().unwrap_or(&plan.spec);
    let configuration = &spec.configuration;
    let merged = configuration.merged_profile(Some(&spec.profile));
    let mut table = Table::properties();
    table.property("Project", plan.project_name.as_str());
    table.property("User", plan.user.as_str());
    table.property("Configuration", spec.configuration_path.as_deref().unwrap_or("?"));
    table.property("Type", "fleet");
    table.property("Fleet type", if configuration.ssh_config.is_some() { "ssh" } else { "cloud" });
    match &configuration.nodes {
        Some(nodes) => {
            let max = nodes.max.map(|max| format!(" max={max}")).unwrap_or_default();
            table.property("Nodes", format!("min={} target={}{max}", nodes.min, nodes.target));
        }
        None => table.property("Nodes", fleets::node_count(configuration)),
    }
    let placement = configuration.placement.unwrap_or(InstanceGroupPlacement::Any);
    table.property("Placement", format::plain(&placement));
    if let Some(backends) = &merged.backends {
        let names: Vec<&str> = backends.iter().map(|kind| format::backend(*kind, Some("local"))).collect();
        table.property("Backends", names.join(", "));
    }
    if let Some(regions) = &merged.regions {
        table.property("Regions", regions.join(", "));
    }
    if configuration.ssh_config.is_none() {
        if let Some(resources) = &configuration.resources {
            table.property("Resources", format::requirements(resources));
        }
        table.property("Spot policy", format::plain(&merged.spot_policy.unwrap_or(SpotPolicy::OnDemand)));
    }
    if let Some(reservation) = &merged.reservation {
        table.property("Reservation", reservation.as_str());
    }
    table
}

/// What differs between two specs, as lines of a list in the order of their keys. Empty: nothing.
pub(crate) fn changes<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, old, new) in changed(&json(old), &json(new)) {
        let title = match key.as_str() {
            "configuration" | "profile" => format!("{} properties", format::capitalised(&key)),
            "configuration_path" => "Configuration path".to_owned(),
            "repo_data" | "repo_code_hash" => "Repo state".to_owned(),
            "file_archives" => "Files".to_owned(),
            "ssh_key_pub" => "SSH key".to_owned(),
            _ => format::capitalised(&key.replace('_', " ")),
        };
        if key == "configuration" || key == "profile" {
            lines.push(format!("- {title}:"));
            lines.extend(changed(&old, &new).into_iter().map(|(key, ..)| format!("  - {key}")));
        } else {
            lines.push(format!("- {title}"));
        }
    }
    lines
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The keys of two JSON objects whose values differ, with both values. Equal values print alike, because one type
/// printed both.
fn changed(old: &str, new: &str) -> Vec<(String, String, String)> {
    let (old, new) = (fields(old), fields(new));
    let value = |fields: &Fields, key: &str| {
        let found = fields.0.iter().find(|(name, _)| name == key);
        found.map_or("null", |(_, value)| value.get()).to_owned()
    };
    let added = new.0.iter().filter(|(key, _)| old.0.iter().all(|(name, _)| name != key));
    let keys = old.0.iter().chain(added).map(|(key, _)| key.clone());
    keys.map(|key| (value(&old, &key), value(&new, &key), key))
        .filter(|(old, new, _)| old != new)
        .map(|(old, new, key)| (key, old, new))
        .collect()
}

fn fields(text: &str) -> Fields {
    serde_json::from_str(text).unwrap_or_default()
}

/// The keys of a JSON object in their order, which maps would lose.
#[derive(Default)]
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(entry) = map.next_entry()? {
            fields.0.push(entry);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Spec {
        path: &'static str,
        configuration: Inner,
    }

    #[derive(Serialize)]
    struct Inner {
        z: u32,
        b: Option<u32>,
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let old = Spec { path: "x", configuration: Inner { z: 1, b: Some(2) } };
        let new = Spec { path: "y", configuration: Inner { z: 2, b: None } };
        assert!(changes(&old, &old).is_empty());
        assert_eq!(changes(&old, &new), ["- Path", "- Configuration properties:", "  - z", "  - b"]);
    }
}
