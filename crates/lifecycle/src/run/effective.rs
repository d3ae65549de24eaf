//! What a submission means: the request with the server's defaults, and what is wrong with it.

use api::configurations::{
    AcceleratorVendor, Common, CpuArchitecture, GpuSpec, ProfileRetry, ResourcesSpec, RunConfiguration,
    check_resource_name,
};
use api::repos::RepoData;
use api::runs::RunSpec;

use crate::placement::profile_of;

/// The identifier of the repository that holds nothing.
const VIRTUAL_REPO: &str = "none";

/// Accelerators by vendor, in upper case, by which a vendor is known.
const NVIDIA: &[&str] = &[
    "A10", "A16", "A40", "A100", "A10G", "A4000", "A4500", "A5000", "A6000", "H100", "H100NVL", "H200", "H200NVL",
    "B200", "GB200", "B300", "GB300", "L4", "L40", "L40S", "P100", "T4", "V100", "GH200",
];
const AMD: &[&str] =
    &["MI100", "MI210", "MI250", "MI250X", "MI300A", "MI300X", "MI308X", "MI325X", "MI350X", "MI355X"];
const INTEL: &[&str] = &["GAUDI", "GAUDI2", "GAUDI3"];
const TENSTORRENT: &[&str] = &["N150", "N300", "P100A", "P150", "P300", "TT-GALAXY-WH", "TT-GALAXY-BH"];
const TPU_GENERATIONS: &[&str] = &["V2", "V3", "V4", "V5P", "V5LITEPOD", "V6E"];

/// Fills what a request leaves out. The name stays unset until the run is submitted.
pub fn fill_defaults(mut spec: RunSpec, user_ssh_public_key: &str) -> RunSpec {
    spec.repo_id.get_or_insert_with(|| VIRTUAL_REPO.to_owned());
    spec.repo_data.get_or_insert(RepoData::Virtual {});
    spec.ssh_key_pub.get_or_insert_with(|| user_ssh_public_key.to_owned());
    settle_nodes(&mut spec);
    let common = spec.configuration.common();
    let has_image = common.image.is_some() || *common.docker == Some(true);
    let common = spec.configuration.common_mut();
    common.priority.get_or_insert(0);
    infer_vendor(common.resources, has_image);
    if let RunConfiguration::Task(task) = &mut spec.configuration {
        for group in task.groups.iter_mut().flatten() {
            infer_vendor(&mut group.resources, has_image);
        }
    }
    spec
}

/// Says how many nodes a task has that does not say it itself: clients of before node groups need the number.
pub fn settle_nodes(spec: &mut RunSpec) {
    if let RunConfiguration::Task(task) = &mut spec.configuration
        && task.groups.is_none()
    {
        task.nodes.get_or_insert(1);
    }
}

fn infer_vendor(resources: &mut ResourcesSpec, has_image: bool) {
    let Some(gpu) = &mut resources.gpu else { return };
    if gpu.vendor.is_some() || gpu.count.max == Some(0) {
        return;
    }
    gpu.vendor = match &gpu.name {
        None if has_image => None,
        None => Some(AcceleratorVendor::Nvidia),
        Some(names) => common_vendor(names),
    };
}

/// The vendor of all of these accelerators, if each is known and it is one vendor.
fn common_vendor(names: &[String]) -> Option<AcceleratorVendor> {
    let mut vendors = names.iter().map(|name| vendor_of(name));
    let first = vendors.next()??;
    vendors.all(|vendor| vendor == Some(first)).then_some(first)
}

fn vendor_of(name: &str) -> Option<AcceleratorVendor> {
    let name = name.to_ascii_uppercase();
    let is = |list: &[&str]| list.contains(&name.as_str());
    let is_tpu = name.rsplit_once('-').is_some_and(|(generation, cores)| {
        TPU_GENERATIONS.contains(&generation)
            && !cores.is_empty()
            && cores.bytes().all(|byte| byte.is_ascii_digit())
    });
    if is(NVIDIA) || name.starts_with("RTX") {
        Some(AcceleratorVendor::Nvidia)
    } else if is(AMD) {
        Some(AcceleratorVendor::Amd)
    } else if is(INTEL) {
        Some(AcceleratorVendor::Intel)
    } else if is(TENSTORRENT) {
        Some(AcceleratorVendor::Tenstorrent)
    } else {
        is_tpu.then_some(AcceleratorVendor::Google)
    }
}

/// Checks what is checked only on submission. The errors are the official ones where there are any.
pub fn check_submission(effective: &RunSpec) -> Result<(), String> {
    if let Some(name) = &effective.run_name {
        check_resource_name(name)?;
    }
    let common = effective.configuration.common();
    if let Some(name) = common.env.from_caller().next() {
        return Err(format!(
            "The value of the environment variable `{name}` is not known: send it with the request"
        ));
    }
    for resources in all_resources(&effective.configuration) {
        check_image(common, resources)?;
    }
    let profile = profile_of(effective);
    if let Some(ProfileRetry::Policy(policy)) = &profile.retry
        && policy.duration.is_some_and(|duration| duration.0 < 0)
    {
        return Err("`retry.duration` must not be negative".to_owned());
    }
    Ok(())
}

/// Checks that a request names both or neither of the repository's identifier and state.
pub fn check_repo(spec: &RunSpec) -> Result<(), String> {
    match (&spec.repo_id, &spec.repo_data) {
        (Some(_), None) => Err("repo_id must not be set if repo_data is not set".to_owned()),
        (None, Some(_)) => Err("repo_data must not be set if repo_id is not set".to_owned()),
        (Some(_), Some(_)) | (None, None) => Ok(()),
    }
}

fn all_resources(configuration: &RunConfiguration) -> Vec<&ResourcesSpec> {
    match configuration {
        RunConfiguration::Task(task) => task.node_groups().iter().map(|group| group.resources).collect(),
        RunConfiguration::DevEnvironment(_) | RunConfiguration::Service(_) => {
            vec![configuration.common().resources]
        }
    }
}

fn check_image(common: Common<'_>, resources: &ResourcesSpec) -> Result<(), String> {
    let arm = resources.cpu.arch == Some(CpuArchitecture::Arm);
    if *common.docker == Some(true) {
        return if arm { Err("`docker: true` is not supported on ARM CPU".to_owned()) } else { Ok(()) };
    }
    if common.image.is_some() {
        return Ok(());
    }
    if arm {
        return Err("`image` must be set when ARM CPU requested".to_owned());
    }
    let vendor = resources.gpu.as_ref().and_then(|gpu: &GpuSpec| gpu.vendor);
    match vendor {
        None | Some(AcceleratorVendor::Nvidia | AcceleratorVendor::Google) => Ok(()),
        Some(other) => Err(format!(
            "`image` must be set when the requested accelerator is not supported by the default image: ['{other}']"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(configuration: &serde_json::Value) -> RunSpec {
        serde_json::from_value(json!({ "configuration": configuration })).unwrap()
    }

    #[track_caller]
    fn check_vendor(extra: &serde_json::Value, expected: Option<AcceleratorVendor>) {
        let mut configuration = json!({ "type": "task", "commands": ["x"] });
        configuration.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let effective = fill_defaults(spec(&configuration), "key");
        let gpu = effective.configuration.common().resources.gpu.clone();
        assert_eq!(gpu.and_then(|gpu| gpu.vendor), expected);
    }

    #[test]
    fn the_vendor_is_inferred_from_names_or_the_default_image() {
        check_vendor(&json!({}), Some(AcceleratorVendor::Nvidia));
        check_vendor(&json!({ "image": "x" }), None);
        check_vendor(&json!({ "resources": { "gpu": "0" } }), None);
        check_vendor(&json!({ "resources": { "gpu": "h100:8" } }), Some(AcceleratorVendor::Nvidia));
        check_vendor(&json!({ "resources": { "gpu": "H100,RTX4090" } }), Some(AcceleratorVendor::Nvidia));
        check_vendor(&json!({ "resources": { "gpu": "H100,MI300X" } }), None);
        check_vendor(&json!({ "resources": { "gpu": "MI300X" }, "image": "x" }), Some(AcceleratorVendor::Amd));
        check_vendor(&json!({ "resources": { "gpu": "v5litepod-8" } }), Some(AcceleratorVendor::Google));
        check_vendor(&json!({ "resources": { "gpu": "unheard" } }), None);
    }

    #[test]
    fn defaults_are_those_of_the_original() {
        let effective = fill_defaults(spec(&json!({ "type": "task", "commands": ["x"] })), "ssh-ed25519 A me\n");
        assert_eq!(effective.repo_id.as_deref(), Some("none"));
        assert_eq!(effective.repo_data, Some(RepoData::Virtual {}));
        assert_eq!(effective.ssh_key_pub.as_deref(), Some("ssh-ed25519 A me\n"));
        assert_eq!(*effective.configuration.common().priority, Some(0));
        let RunConfiguration::Task(task) = &effective.configuration else { panic!("a task stays one") };
        assert_eq!(task.nodes, Some(1));
    }

    #[track_caller]
    fn check_refused(configuration: &serde_json::Value, expected: &str) {
        let effective = fill_defaults(spec(configuration), "");
        assert_eq!(check_submission(&effective), Err(expected.to_owned()));
    }

    #[test]
    fn submissions_are_refused_in_the_official_words() {
        check_refused(
            &json!({ "type": "task", "commands": ["x"], "resources": { "gpu": "MI300X:1" } }),
            "`image` must be set when the requested accelerator is not supported by the default image: ['amd']",
        );
        check_refused(
            &json!({ "type": "task", "commands": ["x"], "resources": { "cpu": "arm:4" } }),
            "`image` must be set when ARM CPU requested",
        );
        check_refused(
            &json!({ "type": "task", "commands": ["x"], "env": ["A"] }),
            "The value of the environment variable `A` is not known: send it with the request",
        );
        let mut named = spec(&json!({ "type": "task", "commands": ["x"] }));
        named.run_name = Some("Bad_Name".to_owned());
        assert_eq!(
            check_submission(&named),
            Err("Resource name should match regex '^[a-z][a-z0-9-]{1,40}$'".to_owned())
        );
    }
}
