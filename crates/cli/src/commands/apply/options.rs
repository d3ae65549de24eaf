//! How what was typed changes a configuration. Options win over the configuration, which wins over the profile.

use api::configurations::{
    CreationPolicy, DiskSpec, PortMapping, Profile, ProfileParams, ProfileRetry, ResourcesSpec, RetryPolicy,
    RunConfiguration, Seconds, SpotPolicy,
};
use api::runs::RunSpec;

use crate::args::{ResourceArgs, SelectionArgs};

/// Replaces the resources that were typed.
pub(in crate::commands) fn set_resources(args: &ResourceArgs, resources: &mut ResourcesSpec) {
    if let Some(cpu) = args.cpu {
        resources.cpu = cpu;
    }
    if let Some(gpu) = &args.gpu {
        resources.gpu = Some(gpu.clone());
    }
    if let Some(memory) = args.memory {
        resources.memory = memory;
    }
    if let Some(size) = args.disk {
        resources.disk = Some(DiskSpec { size });
    }
}

/// The parameters with those that were typed.
pub(in crate::commands) fn with_selection(params: ProfileParams, args: &SelectionArgs) -> ProfileParams {
    let listed = |typed: &Vec<String>| (!typed.is_empty()).then(|| typed.clone());
    let typed = ProfileParams {
        backends: (!args.backends.is_empty()).then(|| args.backends.clone()),
        regions: listed(&args.regions),
        instance_types: listed(&args.instance_types),
        fleets: (!args.fleets.is_empty()).then(|| args.fleets.clone()),
        max_price: args.max_price,
        max_duration: args.max_duration,
        creation_policy: args.reuse.then_some(CreationPolicy::Reuse),
        idle_duration: if args.dont_destroy { Some(Seconds(-1)) } else { args.idle_duration },
        spot_policy: spot_policy(args),
        retry: retry(args),
        ..ProfileParams::default()
    };
    let configured = Profile::default();
    let mut profile = configured;
    profile.set_profile_params(params);
    api::configurations::merged_params(typed, Some(&profile))
}

fn spot_policy(args: &SelectionArgs) -> Option<SpotPolicy> {
    match args {
        SelectionArgs { spot: true, .. } => Some(SpotPolicy::Spot),
        SelectionArgs { on_demand: true, .. } => Some(SpotPolicy::OnDemand),
        SelectionArgs { spot_auto: true, .. } => Some(SpotPolicy::Auto),
        args => args.spot_policy,
    }
}

fn retry(args: &SelectionArgs) -> Option<ProfileRetry> {
    match (args.retry, args.no_retry, args.retry_duration) {
        (_, _, Some(duration)) => {
            Some(ProfileRetry::Policy(RetryPolicy { on_events: None, duration: Some(duration) }))
        }
        (true, ..) => Some(ProfileRetry::Enabled(true)),
        (_, true, _) => Some(ProfileRetry::Enabled(false)),
        (false, false, None) => None,
    }
}

/// The ports of a configuration with those that were typed in place of those for the same port of the container.
pub(super) fn with_ports(configured: &[PortMapping], typed: &[PortMapping]) -> Vec<PortMapping> {
    let is_kept = |port: &&PortMapping| typed.iter().all(|other| other.container_port != port.container_port);
    configured.iter().filter(is_kept).chain(typed).copied().collect()
}

/// A spec of a configuration and nothing else.
pub(in crate::commands) fn run_spec(
    configuration: RunConfiguration,
    profile: Option<Profile>,
    configuration_path: Option<String>,
) -> RunSpec {
    RunSpec {
        run_name: configuration.common().name.clone(),
        repo_id: None,
        repo_data: None,
        repo_code_hash: None,
        repo_dir: None,
        file_archives: Vec::new(),
        working_dir: None,
        configuration_path,
        configuration,
        profile,
        ssh_key_pub: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> PortMapping {
        PortMapping::parse(text).unwrap()
    }

    #[test]
    fn a_typed_port_replaces_that_of_the_same_container_port() {
        let ports = with_ports(&[port("80:8000"), port("8080")], &[port("9000:8000"), port("77")]);
        assert_eq!(ports, [port("8080"), port("9000:8000"), port("77")]);
    }

    #[test]
    fn what_is_typed_wins_and_the_rest_stays() {
        let params =
            ProfileParams { max_price: Some(9.0), regions: Some(vec!["a".to_owned()]), ..Default::default() };
        let args = SelectionArgs { max_price: Some(1.0), spot: true, ..Default::default() };
        let merged = with_selection(params, &args);
        assert_eq!(merged.max_price, Some(1.0));
        assert_eq!(merged.regions, Some(vec!["a".to_owned()]));
        assert_eq!(merged.spot_policy, Some(SpotPolicy::Spot));
    }
}
