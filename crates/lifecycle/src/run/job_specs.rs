//! What each job of a run does, made from the run's configuration.
//!
//! One difference to the original is meant: nothing is put before the user's commands. The supervisor makes the
//! virtual environment itself, so no command of ours ever runs with the user's rights on somebody's machine.

use api::configurations::{
    Common, CpuArchitecture, Mount, NodeGroupView, OffDuration, PortMapping, ProfileParams, RepoExistsAction,
    RepoSpec, ResourcesSpec, RunConfiguration, Runtime, SpotPolicy, VolumeMount, VolumeNames,
};
use api::jobs::{AppSpec, JobSpec, Requirements, Retry, UnixUser};
use api::runs::RunSpec;

use super::dev_environment;
use super::interpolation::{check_commands, resolve_volume_name};
use crate::placement::profile_of;

/// The grace between the polite signal and the kill unless the configuration says otherwise, in seconds.
const STOP_DURATION_SECS: u64 = 300;

/// Where uploaded code goes unless the submission says otherwise.
const REPO_DIR: &str = "/workflow";

/// Ports that the original keeps for itself.
const RESERVED_PORTS: std::ops::RangeInclusive<u16> = 10_000..=10_999;

/// The most nodes of a run. Each is a row, and all of them are placed together.
const MOST_NODES: u64 = 10_000;

/// The most text that the nodes of a run are given together, in bytes: each job keeps commands and variables of its
/// own.
const MOST_TEXT: u64 = 64 * 1024 * 1024;

/// The name of a run that has none yet, in plans.
const UNNAMED: &str = "dry-run";

/// The jobs of one replica of a run, by number. `effective` has the server's defaults.
pub fn job_specs(effective: &RunSpec, default_image: &str) -> Result<Vec<JobSpec>, String> {
    let run_name = effective.run_name.as_deref().unwrap_or(UNNAMED);
    let profile = profile_of(effective);
    let groups = node_groups(&effective.configuration)?;
    let common = effective.configuration.common();
    check_size(&effective.configuration, &groups)?;
    let jobs_per_replica = groups.iter().map(|group| group.nodes).fold(0_u32, u32::saturating_add);
    let mut specs = vec![];
    for (node_group_index, group) in (0_u32..).zip(&groups) {
        let commands = match &effective.configuration {
            RunConfiguration::DevEnvironment(environment) => dev_environment::commands(environment, run_name),
            RunConfiguration::Task(_) | RunConfiguration::Service(_) => argv(common, group.commands)?,
        };
        check_commands(&commands, &effective.configuration)?;
        for node_group_job_index in 0..group.nodes {
            let job_num = u32::try_from(specs.len()).unwrap_or(u32::MAX);
            let whole = JobSpec {
                replica_num: 0,
                job_num,
                job_name: format!("{run_name}-{job_num}-0"),
                jobs_per_replica,
                replica_group: "0".to_owned(),
                app_specs: Some(app_specs(group.ports)),
                user: common.user.as_deref().map(unix_user),
                commands: commands.clone(),
                env: common.env.known().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                home_dir: Some(common.home_dir.clone()),
                image_name: image_name(common, default_image),
                privileged: *common.privileged,
                single_branch: Some(common.single_branch.unwrap_or(has_one_branch(&effective.configuration))),
                max_duration: profile.max_duration.and_then(seconds),
                stop_duration: profile.stop_duration.map_or(Some(STOP_DURATION_SECS), seconds),
                utilization_policy: profile.utilization_policy.clone(),
                registry_auth: common.registry_auth.clone(),
                requirements: requirements(common, group, &profile, 1 < jobs_per_replica),
                retry: retry(&profile),
                volumes: Some(volumes(common.volumes, job_num)?),
                ssh_key: None,
                working_dir: common.working_dir.clone().or_else(|| effective.working_dir.clone()),
                repo_data: effective.repo_data.clone(),
                repo_code_hash: effective.repo_code_hash.clone(),
                repo_dir: Some(repo_dir(effective, common.repos.first())),
                repo_exists_action: common.repos.first().map(|repo| exists_action(repo.if_exists).to_owned()),
                file_archives: effective.file_archives.clone(),
                service_port: None,
                probes: vec![],
                node_group_index,
                node_group_name: group.name.to_owned(),
                node_group_job_index,
            };
            specs.push(whole);
        }
    }
    Ok(specs)
}

/// The groups of nodes of a replica; a dev environment has one node.
fn node_groups(configuration: &RunConfiguration) -> Result<Vec<NodeGroupView<'_>>, String> {
    match configuration {
        RunConfiguration::Task(task) => Ok(task.node_groups()),
        RunConfiguration::DevEnvironment(environment) => Ok(vec![NodeGroupView {
            name: "0",
            nodes: 1,
            resources: &environment.resources,
            commands: &environment.init,
            ports: &environment.ports,
        }]),
        RunConfiguration::Service(_) => {
            Err(format!("`type: {}` is not supported by this server yet", configuration.kind()))
        }
    }
}

/// Whether only one branch of the repository is cloned unless the configuration says otherwise. Who works in the job may
/// want the others.
fn has_one_branch(configuration: &RunConfiguration) -> bool {
    !matches!(configuration, RunConfiguration::DevEnvironment(_))
}

/// Checks that the jobs are not too many or too large to be made.
fn check_size(configuration: &RunConfiguration, groups: &[NodeGroupView<'_>]) -> Result<(), String> {
    let nodes: u64 = groups.iter().map(|group| u64::from(group.nodes)).sum();
    if MOST_NODES < nodes {
        let has_groups = matches!(configuration, RunConfiguration::Task(task) if task.groups.is_some());
        let key = if has_groups { "`nodes` of all `groups` together" } else { "`nodes`" };
        return Err(format!("{key} must be at most {MOST_NODES}, found {nodes}"));
    }
    let env: usize = configuration.common().env.known().map(|(name, value)| name.len() + value.len()).sum();
    let texts = groups.iter().map(|group| {
        let commands: usize = group.commands.iter().map(String::len).sum();
        u64::from(group.nodes).saturating_mul((commands + env) as u64)
    });
    if MOST_TEXT < texts.fold(0, u64::saturating_add) {
        return Err(format!(
            "`commands` and `env` of {nodes} nodes are larger than {} MB together: put what is long into `files`",
            MOST_TEXT / 1024 / 1024
        ));
    }
    Ok(())
}

/// The command and its arguments. Empty: the image's own.
fn argv(common: Common<'_>, commands: &[String]) -> Result<Vec<String>, String> {
    if let Some(entrypoint) = common.entrypoint {
        let mut argv =
            split_words(entrypoint).ok_or_else(|| format!("`entrypoint` has an open quote: {entrypoint}"))?;
        argv.extend(commands.iter().cloned());
        return Ok(argv);
    }
    if commands.is_empty() {
        return Ok(vec![]);
    }
    Ok(shell_argv(common, commands.iter().map(|command| grouped(command)).collect::<Vec<_>>().join(" && ")))
}

/// The shell that suits the image, with a script.
pub(super) fn shell_argv(common: Common<'_>, script: String) -> Vec<String> {
    let shell = match common.shell.as_deref() {
        Some("sh") => "/bin/sh",
        Some("bash") => "/bin/bash",
        Some(path) => path,
        None if common.image.is_some() => "/bin/sh",
        None => "/bin/bash",
    };
    let flags: &[&str] = if *common.runtime == Some(Runtime::Process) { &["-c"] } else { &["-i", "-c"] };
    std::iter::once(shell).chain(flags.iter().copied()).map(str::to_owned).chain([script]).collect()
}

// `a & && b` is no shell command, `{ a & } && b` is.
pub(super) fn grouped(command: &str) -> String {
    if command.trim_end().ends_with('&') { format!("{{ {command} }}") } else { command.to_owned() }
}

/// The same command where it runs as plain processes: an interactive shell would read the rc files of the machine's
/// owner, and stop at a terminal that is not there.
pub fn for_processes(argv: &[String]) -> Vec<String> {
    match argv {
        [shell, interactive, c, script] if interactive == "-i" && c == "-c" => {
            vec![shell.clone(), c.clone(), script.clone()]
        }
        _ => argv.to_vec(),
    }
}

/// Splits a line into words as a POSIX shell does, without expanding anything. None: a quote is open.
fn split_words(line: &str) -> Option<Vec<String>> {
    let mut words = vec![];
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

fn quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match chars.next()? {
            '"' => return Some(()),
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

fn app_specs(ports: &[PortMapping]) -> Vec<AppSpec> {
    let kept = ports.iter().filter(|port| !RESERVED_PORTS.contains(&port.container_port));
    kept.enumerate()
        .map(|(index, port)| AppSpec {
            port: port.container_port,
            map_to_port: port.local_port,
            app_name: format!("app_{index}"),
            url_path: None,
            url_query_params: None,
        })
        .collect()
}

/// `user[:group]`, each by number or by name.
fn unix_user(text: &str) -> UnixUser {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let by_number = |text: &str| text.parse::<u32>().ok();
    let (uid, gid) = (by_number(user), group.and_then(by_number));
    UnixUser {
        uid,
        gid,
        username: uid.is_none().then(|| user.to_owned()),
        groupname: group.filter(|_| gid.is_none()).map(str::to_owned),
    }
}

fn image_name(common: Common<'_>, default_image: &str) -> String {
    match common.image {
        Some(image) => image.clone(),
        // The flavour with the CUDA compiler differs in one word.
        None if *common.nvcc == Some(true) => default_image.replacen("-base-", "-devel-", 1),
        None => default_image.to_owned(),
    }
}

fn seconds(duration: OffDuration) -> Option<u64> {
    duration.seconds().and_then(|seconds| u64::try_from(seconds).ok())
}

fn requirements(
    common: Common<'_>,
    group: &NodeGroupView<'_>,
    profile: &ProfileParams,
    multinode: bool,
) -> Requirements {
    Requirements {
        resources: with_architecture(common, group.resources.clone()),
        max_price: profile.max_price,
        spot: wanted_spot(profile),
        reservation: profile.reservation.clone(),
        multinode: Some(multinode),
        backend_options: profile.backend_options.clone(),
    }
}

// The default images exist for one architecture only. What a custom image is made for is known to its registry,
// which is not asked.
fn with_architecture(common: Common<'_>, mut resources: ResourcesSpec) -> ResourcesSpec {
    if common.image.is_none() && *common.runtime != Some(Runtime::Process) {
        resources.cpu.arch.get_or_insert(CpuArchitecture::X86);
    }
    resources
}

/// Only spot, only on demand, or either.
pub fn wanted_spot(profile: &ProfileParams) -> Option<bool> {
    match profile.spot_policy {
        None | Some(SpotPolicy::OnDemand) => Some(false),
        Some(SpotPolicy::Spot) => Some(true),
        Some(SpotPolicy::Auto) => None,
    }
}

fn retry(profile: &ProfileParams) -> Option<Retry> {
    let (on_events, duration) = profile.retry.as_ref()?.resolve()?;
    Some(Retry { on_events, duration: u64::try_from(duration).unwrap_or_default() })
}

fn volumes(mounts: &[Mount], job_num: u32) -> Result<Vec<Mount>, String> {
    mounts
        .iter()
        .map(|mount| match mount {
            Mount::Instance(mount) => Ok(Mount::Instance(mount.clone())),
            Mount::Volume(mount) => {
                let names = mount.name.names().iter().map(|name| resolve_volume_name(name, job_num));
                let names = names.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
                Ok(Mount::Volume(VolumeMount { name: VolumeNames::AnyOf(names), path: mount.path.clone() }))
            }
        })
        .collect()
}

/// Where the code goes. A configuration that names a repository says where; one of an older client does not.
fn repo_dir(effective: &RunSpec, repo: Option<&RepoSpec>) -> String {
    let named = repo.map(|repo| repo.path.clone()).or_else(|| effective.repo_dir.clone());
    named.unwrap_or_else(|| REPO_DIR.to_owned())
}

fn exists_action(action: RepoExistsAction) -> &'static str {
    match action {
        RepoExistsAction::Error => "error",
        RepoExistsAction::Skip => "skip",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::effective::fill_defaults;
    use super::*;

    const IMAGE: &str = "dstackai/base:0.16-base-ubuntu24.04";

    fn specs_of(configuration: &Value) -> Result<Vec<JobSpec>, String> {
        let mut full = json!({ "type": "task" });
        full.as_object_mut().unwrap().extend(configuration.as_object().unwrap().clone());
        let spec = serde_json::from_value(json!({ "run_name": "train", "configuration": full })).unwrap();
        job_specs(&fill_defaults(spec, "key\n"), IMAGE)
    }

    fn spec_of(configuration: &Value) -> JobSpec {
        specs_of(configuration).unwrap().remove(0)
    }

    /// The first job of a plan for two nodes, as the original printed it, without the commands that it puts before
    /// the user's.
    fn official() -> Value {
        json!({
            "replica_num": 0, "job_num": 1, "job_name": "train-1-0", "jobs_per_replica": 2, "replica_group": "0",
            "app_specs": [{"port": 8080, "map_to_port": 8080, "app_name": "app_0", "url_path": null,
                           "url_query_params": null}],
            "user": null, "commands": ["/bin/bash", "-i", "-c", "echo hello && nvidia-smi"],
            "env": {"FOO": "bar", "NUM": "1"}, "home_dir": "/root",
            "image_name": "dstackai/base:0.16-base-ubuntu24.04", "privileged": false, "single_branch": true,
            "max_duration": null, "stop_duration": 300, "utilization_policy": null, "registry_auth": null,
            "requirements": {
                "resources": {
                    "cpu": {"arch": "x86", "count": {"min": 2, "max": null}},
                    "memory": {"min": 8.0, "max": null}, "shm_size": 24.0,
                    "gpu": {"vendor": "nvidia", "name": ["H100"], "count": {"min": 8, "max": 8}, "memory": null,
                            "total_memory": null, "compute_capability": null},
                    "disk": {"size": {"min": 100.0, "max": null}}},
                "max_price": null, "spot": false, "reservation": null, "multinode": true, "backend_options": null},
            "retry": null, "volumes": [], "ssh_key": null, "working_dir": null,
            "repo_data": {"repo_type": "virtual"}, "repo_code_hash": null, "repo_dir": "/workflow",
            "repo_exists_action": null, "file_archives": [], "service_port": null, "probes": [],
            "node_group_index": 0, "node_group_name": "0", "node_group_job_index": 1
        })
    }

    #[test]
    fn a_job_is_what_the_original_makes_of_it() {
        let specs = specs_of(&json!({
            "nodes": 2, "ports": [8080], "commands": ["echo hello", "nvidia-smi"], "python": "3.12",
            "env": {"FOO": "bar", "NUM": 1}, "resources": {"gpu": "H100:8", "shm_size": "24GB"},
        }))
        .unwrap();
        assert_eq!(specs.len(), 2);
        assert_eq!(serde_json::to_value(&specs[1]).unwrap(), official());
    }

    #[track_caller]
    fn check_commands_of(configuration: &Value, expected: &[&str]) {
        assert_eq!(spec_of(configuration).commands, expected);
    }

    #[test]
    fn commands_run_in_the_shell_that_suits_the_image() {
        check_commands_of(&json!({ "commands": ["a", "b"] }), &["/bin/bash", "-i", "-c", "a && b"]);
        check_commands_of(&json!({ "commands": ["a"], "image": "x" }), &["/bin/sh", "-i", "-c", "a"]);
        check_commands_of(&json!({ "commands": ["a"], "shell": "sh" }), &["/bin/sh", "-i", "-c", "a"]);
        check_commands_of(&json!({ "commands": ["a"], "shell": "/bin/zsh" }), &["/bin/zsh", "-i", "-c", "a"]);
        check_commands_of(&json!({ "commands": ["a &", "b"] }), &["/bin/bash", "-i", "-c", "{ a & } && b"]);
        check_commands_of(&json!({ "commands": ["a"], "runtime": "process" }), &["/bin/bash", "-c", "a"]);
        check_commands_of(&json!({ "image": "x" }), &[]);
        check_commands_of(
            &json!({ "image": "x", "entrypoint": "python -c 'a b' \"c \\\" d\" e\\ f", "commands": ["$X", "y z"] }),
            &["python", "-c", "a b", "c \" d", "e f", "$X", "y z"],
        );
        let open = specs_of(&json!({ "image": "x", "entrypoint": "sh 'a" }));
        assert_eq!(open, Err("`entrypoint` has an open quote: sh 'a".to_owned()));
    }

    /// What the original planned for a dev environment, without the downloads before the user's commands.
    #[test]
    fn a_dev_environment_is_what_the_original_makes_of_it() {
        let configuration = json!({
            "type": "dev-environment", "ide": "vscode", "version": "1.99.0", "init": ["sleep 3600"],
            "resources": {"gpu": "0"},
        });
        let spec = spec_of(&configuration);
        let script = "sleep 3600 && echo && echo 'To open in VS Code, use link below:' && echo && \
            echo \"  vscode://vscode-remote/ssh-remote+train$DSTACK_WORKING_DIR\" && echo && \
            echo 'To connect via SSH, use: `ssh train`' && echo && echo 'To exit, press Ctrl+C.' && tail -f /dev/null";
        let mut expected = official();
        let differs = json!({
            "job_num": 0, "job_name": "train-0-0", "jobs_per_replica": 1, "app_specs": [],
            "commands": ["/bin/bash", "-i", "-c", script], "env": {}, "single_branch": false,
            "node_group_job_index": 0,
        });
        expected.as_object_mut().unwrap().extend(differs.as_object().unwrap().clone());
        expected["requirements"]["multinode"] = false.into();
        expected["requirements"]["resources"]["shm_size"] = Value::Null;
        expected["requirements"]["resources"]["gpu"] = json!({
            "vendor": null, "name": null, "count": {"min": 0, "max": 0}, "memory": null, "total_memory": null,
            "compute_capability": null,
        });
        assert_eq!(serde_json::to_value(&spec).unwrap(), expected);
        let one = json!({ "type": "dev-environment", "single_branch": true, "ports": [8888], "image": "x" });
        let spec = spec_of(&one);
        assert_eq!((spec.single_branch, spec.app_specs.unwrap().len()), (Some(true), 1));
        assert_eq!(spec.commands[0], "/bin/sh");
    }

    #[test]
    fn code_goes_where_its_repository_says() {
        let check = |configuration: &Value, dir: &str, action: Option<&str>| {
            let spec = spec_of(configuration);
            assert_eq!((spec.repo_dir.as_deref(), spec.repo_exists_action.as_deref()), (Some(dir), action));
        };
        check(&json!({ "commands": ["a"] }), "/workflow", None);
        check(&json!({ "commands": ["a"], "repos": ["."] }), ".", Some("error"));
        let repo = json!({ "url": "https://x.y/z", "path": "~/z", "if_exists": "skip" });
        check(&json!({ "commands": ["a"], "repos": [repo] }), "~/z", Some("skip"));
    }

    #[test]
    fn processes_need_no_interactive_shell() {
        let argv = spec_of(&json!({ "commands": ["a"] })).commands;
        assert_eq!(for_processes(&argv), ["/bin/bash", "-c", "a"]);
        let argv = ["python".to_owned(), "-i".to_owned()];
        assert_eq!(for_processes(&argv), argv);
    }

    #[test]
    fn node_groups_are_numbered_through() {
        let specs = specs_of(&json!({ "groups": [
            { "name": "head", "commands": ["echo ${{ groups[1].nodes[1].IP_ADDRESS }}"], "ports": [8000, 10022] },
            { "nodes": 2, "commands": ["b"], "resources": { "cpu": 4 } },
        ]}))
        .unwrap();
        let places: Vec<_> = specs
            .iter()
            .map(|spec| {
                (spec.job_num, spec.node_group_index, spec.node_group_name.as_str(), spec.node_group_job_index)
            })
            .collect();
        assert_eq!(places, [(0, 0, "head", 0), (1, 1, "1", 0), (2, 1, "1", 1)]);
        assert_eq!(specs[0].app_specs.as_ref().unwrap().len(), 1);
        assert!(specs[1].app_specs.as_ref().unwrap().is_empty());
        assert!(specs.iter().all(|spec| spec.jobs_per_replica == 3));
        let refused = specs_of(&json!({ "groups": [{ "commands": ["${{ groups[0].nodes[1].IP_ADDRESS }}"] }] }));
        assert_eq!(refused, Err("`groups[0].nodes[1]` does not exist: the group has 1 nodes".to_owned()));
    }

    #[test]
    fn nodes_have_a_limit() {
        assert_eq!(specs_of(&json!({ "nodes": 10_000, "commands": ["a"] })).unwrap().len(), 10_000);
        let refused = specs_of(&json!({ "nodes": 4_000_000_000_u32, "commands": ["a"] }));
        assert_eq!(refused, Err("`nodes` must be at most 10000, found 4000000000".to_owned()));
        let half = json!({ "nodes": 4_294_967_295_u32, "commands": ["a"] });
        let refused = specs_of(&json!({ "groups": [half, half] }));
        let expected = "`nodes` of all `groups` together must be at most 10000, found 8589934590";
        assert_eq!(refused, Err(expected.to_owned()));
        let refused = specs_of(&json!({ "nodes": 1000, "commands": ["a".repeat(100_000)] }));
        assert!(refused.unwrap_err().contains("larger than 64 MB together"));
    }

    #[test]
    fn limits_follow_the_profile() {
        let spec = spec_of(&json!({
            "commands": ["a"], "max_duration": "2h", "stop_duration": "off", "retry": true, "spot_policy": "auto",
            "max_price": 2.5, "user": "1000:video", "nvcc": true,
        }));
        assert_eq!((spec.max_duration, spec.stop_duration), (Some(7200), None));
        assert_eq!(spec.retry.as_ref().map(|retry| retry.duration), Some(3600));
        assert_eq!((spec.requirements.spot, spec.requirements.max_price), (None, Some(2.5)));
        let user = spec.user.unwrap();
        assert_eq!((user.uid, user.username, user.groupname), (Some(1000), None, Some("video".to_owned())));
        assert_eq!(spec.image_name, "dstackai/base:0.16-devel-ubuntu24.04");
    }

    #[test]
    fn volumes_become_lists_and_get_the_rank() {
        let specs =
            specs_of(&json!({ "nodes": 2, "commands": ["a"], "volumes": ["data-${{ dstack.node_rank }}:/data"] }));
        let mount = serde_json::to_value(&specs.unwrap()[1].volumes).unwrap();
        assert_eq!(mount, json!([{ "name": ["data-1"], "path": "/data" }]));
    }
}
