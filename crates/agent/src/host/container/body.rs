//! What is asked of the engine for a task: a function of the spec, so that it can be read and tested.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use api::agent::{ContainerNetwork, ContainerSpec, RegistryAuth, Runtime, TaskSpec};
use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointIpamConfig, EndpointSettings, HostConfig,
    ImageInspect, Mount, MountType, NetworkingConfig, ResourcesUlimits,
};

use crate::host::blobs;
use crate::host::container::failure;
use crate::host::runtime::Failure;
use crate::host::state::Host;
use crate::host::task_dir::TaskDir;
use crate::wire::{self, JobFile};

/// The label with the task's identifier.
pub(crate) const TASK_LABEL: &str = "ai.dstack.task-id";
/// The label with the instance's identifier.
pub(crate) const INSTANCE_LABEL: &str = "ai.dstack.instance-id";

/// Open files that a job may have; its programs assume more than a service's default.
const OPEN_FILES: i64 = 1_048_576;

/// All that a container is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskContainer<'a> {
    /// The agent.
    pub(crate) host: &'a Host,
    /// The task's folder.
    pub(crate) dir: &'a TaskDir,
    /// What is wanted.
    pub(crate) spec: &'a TaskSpec,
    /// What is wanted of the container.
    pub(crate) container: &'a ContainerSpec,
    /// The GPUs that the task was granted.
    pub(crate) gpus: &'a [String],
    /// The agent's program, where upgrades do not touch it.
    pub(crate) binary: &'a Path,
}

/// Limits that are raised unless the host forbids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The count of open files.
    pub(crate) nofile: bool,
    /// Locked memory, for RDMA.
    pub(crate) memlock: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nofile: true, memlock: true }
    }
}

/// The container's name: the job's, and enough of its identifier to be its own.
pub(crate) fn name(spec: &TaskSpec) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let mut name: String = spec.job_name.chars().map(|c| if is_allowed(c) { c } else { '-' }).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        name.insert(0, 'j');
    }
    let id = spec.id.to_string();
    format!("{name}-{}", &id[..8])
}

/// The orders of the supervisor in the container.
pub(crate) fn job_file(
    host: &Host,
    spec: &TaskSpec,
    image: &ImageInspect,
    gpus: Vec<String>,
) -> Result<JobFile, Failure> {
    let config = image.config.clone().unwrap_or_default();
    let mut spec = spec.clone();
    let mut home_dir = None;
    if let Runtime::Docker(container) = &mut spec.runtime {
        container.registry_auth = None::<RegistryAuth>;
        home_dir = container.home_dir.clone().map(PathBuf::from);
        if spec.argv.is_empty() {
            spec.argv = config.entrypoint.unwrap_or_default();
            spec.argv.extend(config.cmd.unwrap_or_default());
            if spec.argv.is_empty() {
                return Err(failure(format!(
                    "the job has no commands, and the image `{}` has no entry point",
                    container.image
                )));
            }
        }
    }
    spec.user = spec.user.or(config.user).filter(|user| !user.is_empty());
    let working_dir = config.working_dir.filter(|dir| !dir.is_empty());
    Ok(JobFile {
        container: true,
        default_working_dir: PathBuf::from(working_dir.unwrap_or_else(|| "/".to_owned())),
        home_dir,
        venv_dir: PathBuf::from("/dstack/venv"),
        hostfile: PathBuf::from("/dstack/mpi/hostfile"),
        blobs_dir: PathBuf::from(wire::CONTAINER_BLOBS),
        gpu_uuids: gpus,
        gpu_env: Vec::new(),
        log_cap_bytes: host.options.log_cap_bytes,
        failpoint_home: None,
        spec,
    })
}

/// Refuses an image that needs a newer driver than the host has, where the image says what it needs.
pub(crate) fn check_cuda(image: &ImageInspect, gpus: &[String], host: &Host) -> Result<(), String> {
    let env = image.config.as_ref().and_then(|config| config.env.as_deref()).unwrap_or_default();
    let wanted = env.iter().find_map(|variable| variable.strip_prefix("CUDA_VERSION="));
    let (Some(wanted), (Some(has), driver)) = (wanted, host.cuda()) else {
        return Ok(());
    };
    if gpus.is_empty() || !is_too_old(has, wanted) {
        return Ok(());
    }
    let driver = driver.unwrap_or_default();
    Err(format!(
        "the image needs CUDA {wanted}, and the host's driver {driver} runs up to {has}: choose an older \
         image, or update the driver"
    ))
}

/// Whether a driver for CUDA `has` cannot run programs for `wanted`. Within a major version it can.
fn is_too_old(has: &str, wanted: &str) -> bool {
    let major = |version: &str| version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major(has).zip(major(wanted)).is_some_and(|(has, wanted)| has < wanted)
}

/// The container itself.
pub(crate) fn container(task: &TaskContainer<'_>, limits: Limits) -> Result<ContainerCreateBody, String> {
    let spec = task.spec;
    let mut labels = HashMap::from([(TASK_LABEL.to_owned(), spec.id.to_string())]);
    if let Some(instance) = task.host.options.instance_id {
        labels.insert(INSTANCE_LABEL.to_owned(), instance.to_string());
    }
    let command = [wire::CONTAINER_BINARY, "job", "--dir", wire::CONTAINER_DIR];
    Ok(ContainerCreateBody {
        image: Some(task.container.image.clone()),
        // The supervisor becomes the job's user itself.
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some(command.map(str::to_owned).to_vec()),
        cmd: Some(Vec::new()),
        // Everything in the container is the job's, the supervisor included.
        env: Some(vec![format!("DSTACK_JOB_ID={}", spec.id)]),
        labels: Some(labels),
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: Some(host_config(task, limits)?),
        networking_config: networking(&task.container.network),
        ..ContainerCreateBody::default()
    })
}

fn host_config(task: &TaskContainer<'_>, limits: Limits) -> Result<HostConfig, String> {
    let (spec, container) = (task.spec, task.container);
    let wants_rdma = !container.devices.is_empty();
    let mut config = HostConfig {
        mounts: Some(mounts(task)?),
        network_mode: Some(match &container.network {
            ContainerNetwork::Host => "host".to_owned(),
            ContainerNetwork::Bridge => "bridge".to_owned(),
            ContainerNetwork::Named { name, .. } => name.clone(),
        }),
        privileged: Some(container.privileged),
        shm_size: container.shm_size_bytes.map(|bytes| bytes as i64),
        nano_cpus: spec.share.cpus.map(|cpus| (cpus * 1e9) as i64),
        memory: spec.share.memory_bytes.map(|bytes| bytes as i64),
        ulimits: Some(ulimits(limits, wants_rdma)),
        cap_add: wants_rdma.then(|| vec!["IPC_LOCK".to_owned()]),
        devices: Some(container.devices.iter().map(|path| device(path)).collect()),
        ..HostConfig::default()
    };
    add_gpus(task, &mut config);
    Ok(config)
}

fn ulimits(limits: Limits, wants_rdma: bool) -> Vec<ResourcesUlimits> {
    let limit =
        |name: &str, value| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) };
    let nofile = limits.nofile.then(|| limit("nofile", OPEN_FILES));
    let memlock = (limits.memlock && wants_rdma).then(|| limit("memlock", -1));
    nofile.into_iter().chain(memlock).collect()
}

fn add_gpus(task: &TaskContainer<'_>, config: &mut HostConfig) {
    let granted: Vec<_> = task.host.gpus.gpus().iter().filter(|gpu| task.gpus.contains(&gpu.uuid)).collect();
    let of = |vendor: &str| -> Vec<String> {
        let gpus = granted.iter().filter(|gpu| gpu.vendor == vendor);
        gpus.map(|gpu| gpu.uuid.clone()).collect()
    };
    let nvidia = of("nvidia");
    if !nvidia.is_empty() {
        let capabilities = ["gpu", "utility", "compute", "graphics", "video", "display", "compat32"];
        config.device_requests = Some(vec![DeviceRequest {
            device_ids: Some(nvidia),
            capabilities: Some(vec![capabilities.map(str::to_owned).to_vec()]),
            ..DeviceRequest::default()
        }]);
    }
    let amd = of("amd");
    if !amd.is_empty() {
        let devices = config.devices.get_or_insert_default();
        devices.push(device("/dev/kfd"));
        devices.extend(amd.iter().map(|render| device(&format!("/dev/dri/{render}"))));
        config.ipc_mode = Some("host".to_owned());
        config.cap_add.get_or_insert_default().push("SYS_PTRACE".to_owned());
        config.security_opt = Some(vec!["seccomp=unconfined".to_owned()]);
    }
}

fn mounts(task: &TaskContainer<'_>) -> Result<Vec<Mount>, String> {
    let bind = |source: &Path, target: &str, read_only: bool| Mount {
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        ..Mount::default()
    };
    let mut mounts =
        vec![bind(&task.dir.run(), wire::CONTAINER_DIR, false), bind(task.binary, wire::CONTAINER_BINARY, true)];
    for blob in blobs::of_spec(task.spec) {
        let target = format!("{}/{blob}", wire::CONTAINER_BLOBS);
        let is_new = mounts.iter().all(|mount| mount.target.as_ref() != Some(&target));
        if is_new {
            mounts.push(bind(&task.host.blobs_dir().join(blob), &target, true));
        }
    }
    for mount in &task.container.mounts {
        let path = Path::new(&mount.instance_path);
        std::fs::create_dir_all(path)
            .or_else(|error| if path.exists() { Ok(()) } else { Err(error) })
            .map_err(|error| format!("cannot make the directory `{}`: {error}", path.display()))?;
        mounts.push(bind(path, &mount.path, false));
    }
    Ok(mounts)
}

fn device(path: &str) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(path.to_owned()),
        path_in_container: Some(path.to_owned()),
        cgroup_permissions: Some("rwm".to_owned()),
    }
}

fn networking(network: &ContainerNetwork) -> Option<NetworkingConfig> {
    let ContainerNetwork::Named { name, address, .. } = network else {
        return None;
    };
    let ipam = EndpointIpamConfig { ipv4_address: Some(address.clone()), ..EndpointIpamConfig::default() };
    let endpoint = EndpointSettings { ipam_config: Some(ipam), ..EndpointSettings::default() };
    Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(name.clone(), endpoint)])) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_run_what_their_major_version_allows() {
        let check = |has, wanted, expected| assert_eq!(is_too_old(has, wanted), expected, "{has} {wanted}");
        check("12.4", "13.0.3", true);
        check("12.4", "12.8", false);
        check("13.0", "12.4.1", false);
        check("13.0", "", false);
    }

    #[test]
    fn ulimits_are_raised_as_far_as_the_host_allows() {
        let names = |limits: Limits, rdma| -> Vec<String> {
            ulimits(limits, rdma).into_iter().filter_map(|limit| limit.name).collect()
        };
        assert_eq!(names(Limits::default(), true), ["nofile", "memlock"]);
        assert_eq!(names(Limits::default(), false), ["nofile"]);
        assert_eq!(names(Limits { nofile: true, memlock: false }, true), ["nofile"]);
    }
}
