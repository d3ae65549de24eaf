//! What is asked of the engine for a task: a function of the spec, so that it can be read and tested.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use api::agent::{ContainerNetwork, ContainerSpec, RegistryAuth, Runtime, TaskSpec};
use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointIpamConfig, EndpointSettings, HostConfig,
    ImageInspect, Mount, MountType, NetworkingConfig, PortBinding, PortMap, ResourcesUlimits,
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

/// The label with the home of the agent, which is its own on every host.
pub(crate) const HOME_LABEL: &str = "ai.dstack.agent-home";

/// Variables of the agent that containers get, in small and in capital letters.
const PASSED_ON: [&str; 3] = ["http_proxy", "https_proxy", "no_proxy"];

/// Open files that a job may have; its programs assume more than a service's default.
const OPEN_FILES: i64 = 1_048_576;

/// The stack of a job with GPUs or RDMA, in bytes: NCCL and MPI want more than the usual 8 MiB.
const STACK: i64 = 64 << 20;

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

/// What a container gets unless the host forbids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extras {
    /// More open files.
    pub(crate) nofile: bool,
    /// Locked memory, for RDMA.
    pub(crate) memlock: bool,
    /// A larger stack, for GPUs and RDMA.
    pub(crate) stack: bool,
    /// NVIDIA's libraries for displays.
    pub(crate) display: bool,
}

impl Default for Extras {
    fn default() -> Extras {
        Extras { nofile: true, memlock: true, stack: true, display: true }
    }
}

impl Extras {
    /// What to try after a start that failed with these words, and what to say about it. None: the extras were not
    /// what failed.
    pub(crate) fn without_what_failed(self, text: &str) -> Option<(Extras, Option<&'static str>)> {
        // The kernel's numbers: 3 is the stack, 7 is the count of open files, 8 is locked memory.
        if self.memlock && text.contains("rlimit type 8") {
            let warning = "the host forbids unlimited locked memory; RDMA may fail";
            return Some((Extras { memlock: false, ..self }, Some(warning)));
        }
        if self.nofile && text.contains("rlimit type 7") {
            return Some((Extras { nofile: false, ..self }, None));
        }
        if self.stack && text.contains("rlimit type 3") {
            return Some((Extras { stack: false, ..self }, None));
        }
        if self.nofile && text.contains("rlimit") {
            return Some((Extras { nofile: false, memlock: false, stack: false, ..self }, None));
        }
        // Hosts without a display have no such device.
        if self.display && text.contains("/dev/nvidia-modeset") {
            return Some((Extras { display: false, ..self }, None));
        }
        None
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
        if spec.argv.is_empty() && spec.stay.is_none() {
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
        git_dir: PathBuf::from("/dstack/git"),
        peers_dir: PathBuf::from(wire::CONTAINER_PEERS),
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
pub(crate) fn container(task: &TaskContainer<'_>, extras: Extras) -> Result<ContainerCreateBody, String> {
    let (spec, options) = (task.spec, &task.host.options);
    let mut labels = HashMap::from([
        (TASK_LABEL.to_owned(), spec.id.to_string()),
        (HOME_LABEL.to_owned(), options.home.display().to_string()),
    ]);
    if let Some(instance) = options.instance_id {
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
        env: Some(env(task, |name| std::env::var(name).ok())),
        labels: Some(labels),
        exposed_ports: published_port(spec, &task.container.network).map(|port| vec![port]),
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: Some(host_config(task, extras)?),
        networking_config: networking(&task.container.network),
        ..ContainerCreateBody::default()
    })
}

fn env(task: &TaskContainer<'_>, lookup: impl Fn(&str) -> Option<String>) -> Vec<String> {
    // Everything in the container is the job's, the supervisor included.
    let mut env = vec![format!("DSTACK_JOB_ID={}", task.spec.id)];
    let names = PASSED_ON.iter().flat_map(|name| [(*name).to_owned(), name.to_ascii_uppercase()]);
    env.extend(names.filter_map(|name| Some(format!("{name}={}", lookup(&name)?))));
    if granted(task, "nvidia").is_empty() {
        // Where NVIDIA's runtime is the default one, an image that asks for all GPUs would get them.
        env.push("NVIDIA_VISIBLE_DEVICES=void".to_owned());
    }
    env
}

/// The GPUs of a vendor that the task was granted.
fn granted(task: &TaskContainer<'_>, vendor: &str) -> Vec<String> {
    let gpus = task.host.gpus.gpus().iter().filter(|gpu| gpu.vendor == vendor && task.gpus.contains(&gpu.uuid));
    gpus.map(|gpu| gpu.uuid.clone()).collect()
}

fn host_config(task: &TaskContainer<'_>, extras: Extras) -> Result<HostConfig, String> {
    let (spec, container) = (task.spec, task.container);
    // The engine refuses a container with a device that is missing; a driver may be there without its nodes.
    let roots = &task.host.options.roots;
    let wanted = container.devices.iter().filter(|path| roots.node(path).exists());
    let devices: Vec<DeviceMapping> = wanted.map(|path| device(&roots.node(path), path)).collect();
    let wants_rdma = !devices.is_empty();
    // A task that has all of the agent's share has no more than that of the machine.
    let options = &task.host.options;
    let cpus = spec.share.cpus.or(options.cpus.map(f64::from));
    let memory_bytes = spec.share.memory_bytes.or(options.memory_bytes);
    let mut config = HostConfig {
        mounts: Some(mounts(task)?),
        network_mode: Some(match &container.network {
            ContainerNetwork::Host => "host".to_owned(),
            ContainerNetwork::Bridge => "bridge".to_owned(),
            ContainerNetwork::Named { name, .. } => name.clone(),
        }),
        privileged: Some(container.privileged),
        shm_size: shm_size_bytes(task, memory_bytes).map(|bytes| bytes as i64),
        nano_cpus: cpus.map(|cpus| (cpus * 1e9) as i64),
        memory: memory_bytes.map(|bytes| bytes as i64),
        pids_limit: pids_limit(),
        ulimits: Some(ulimits(extras, wants_rdma, !task.gpus.is_empty())),
        cap_add: wants_rdma.then(|| vec!["IPC_LOCK".to_owned()]),
        devices: Some(devices),
        port_bindings: published_port(spec, &task.container.network).map(on_loopback),
        ..HostConfig::default()
    };
    add_gpus(task, extras, &mut config);
    Ok(config)
}

/// What `/dev/shm` may hold. Programs on several GPUs exchange data there, NCCL and data loaders among them, and fail
/// with the engine's 64 MB. None of it is taken before it is used.
fn shm_size_bytes(task: &TaskContainer<'_>, memory_bytes: Option<u64>) -> Option<u64> {
    let half = || memory_bytes.unwrap_or(task.host.memory_bytes()) / 2;
    let usual = (1 < task.gpus.len()).then(half).filter(|bytes| 0 < *bytes);
    task.container.shm_size_bytes.or(usual)
}

/// Half of the machine's processes and threads, so that whatever a job starts the host can start its own.
fn pids_limit() -> Option<i64> {
    let most = |name: &str| -> Option<i64> {
        std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
    };
    [most("pid_max"), most("threads-max")].into_iter().flatten().min().map(|most| most / 2)
}

/// The port of the job's SSH server, where the container has a network of its own.
pub(crate) fn published_port(spec: &TaskSpec, network: &ContainerNetwork) -> Option<String> {
    let ssh = spec.ssh.as_ref().filter(|_| *network != ContainerNetwork::Host)?;
    Some(format!("{}/tcp", ssh.port))
}

/// Any free port of the host's loopback interface for a port of the container: who enters the job goes through the host.
fn on_loopback(port: String) -> PortMap {
    let binding = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: None };
    HashMap::from([(port, Some(vec![binding]))])
}

fn ulimits(extras: Extras, wants_rdma: bool, has_gpus: bool) -> Vec<ResourcesUlimits> {
    let limit = |name: &str, soft, hard| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(soft),
        hard: Some(hard),
    };
    let nofile = extras.nofile.then(|| limit("nofile", OPEN_FILES, OPEN_FILES));
    let memlock = (extras.memlock && wants_rdma).then(|| limit("memlock", -1, -1));
    // Whoever wants even more may take it.
    let stack = (extras.stack && (wants_rdma || has_gpus)).then(|| limit("stack", STACK, -1));
    nofile.into_iter().chain(memlock).chain(stack).collect()
}

fn add_gpus(task: &TaskContainer<'_>, extras: Extras, config: &mut HostConfig) {
    let nvidia = granted(task, "nvidia");
    if !nvidia.is_empty() {
        let mut capabilities = vec!["gpu", "utility", "compute", "graphics", "video", "compat32"];
        capabilities.extend(extras.display.then_some("display"));
        config.device_requests = Some(vec![DeviceRequest {
            device_ids: Some(nvidia),
            capabilities: Some(vec![capabilities.into_iter().map(str::to_owned).collect()]),
            ..DeviceRequest::default()
        }]);
    }
    let amd = granted(task, "amd");
    if !amd.is_empty() {
        let devices = config.devices.get_or_insert_default();
        let renders = amd.iter().map(|render| format!("/dev/dri/{render}"));
        let nodes = std::iter::once("/dev/kfd".to_owned()).chain(renders);
        devices.extend(nodes.map(|path| device(Path::new(&path), &path)));
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
        make_open_dir(path).map_err(|error| format!("cannot make the directory `{}`: {error}", path.display()))?;
        mounts.push(bind(path, &mount.path, false));
    }
    Ok(mounts)
}

/// Makes a directory that jobs of any user may write to, unless something is there.
fn make_open_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::create_dir(path) {
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)),
        // Another task was faster.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// A device node, which the container may read, write and make.
fn device(on_host: &Path, path: &str) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(on_host.to_string_lossy().into_owned()),
        path_in_container: Some(path.to_owned()),
        cgroup_permissions: Some("rwm".to_owned()),
    }
}

fn networking(network: &ContainerNetwork) -> Option<NetworkingConfig> {
    let ContainerNetwork::Named { name, address, .. } = network else {
        return None;
    };
    let ipam = |address: &String| EndpointIpamConfig {
        ipv4_address: Some(address.clone()),
        ..EndpointIpamConfig::default()
    };
    let endpoint = EndpointSettings { ipam_config: address.as_ref().map(ipam), ..EndpointSettings::default() };
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
    fn only_a_container_with_a_network_of_its_own_has_its_port_published() {
        let text = r#"{"id":"6f1c2a34-9a0f-4f0e-8a9e-0123456789ab","generation":1,"job_name":"j","run_name":"r",
            "run_id":"6f1c2a34-9a0f-4f0e-8a9e-0123456789ac","project_name":"main","runtime":"process","argv":[],
            "env":{},"cluster":{"node_rank":0,"node_ips":[],"gpus_per_node":[]},"share":{"gpu_uuids":null,
            "gpu_count":null,"cpus":null,"memory_bytes":null},"files":[],"stop_grace_secs":1,"released":true,
            "ssh":{"host_key":"","authorized_keys":[],"port":10022,"listen":"all"}}"#;
        let mut spec: TaskSpec = serde_json::from_str(text).unwrap();
        assert_eq!(published_port(&spec, &ContainerNetwork::Host), None);
        assert_eq!(published_port(&spec, &ContainerNetwork::Bridge).as_deref(), Some("10022/tcp"));
        let bindings = on_loopback("10022/tcp".to_owned());
        assert_eq!(bindings["10022/tcp"].as_ref().unwrap()[0].host_ip.as_deref(), Some("127.0.0.1"));
        spec.ssh = None;
        assert_eq!(published_port(&spec, &ContainerNetwork::Bridge), None);
    }

    #[test]
    fn only_a_container_with_an_address_of_its_own_asks_for_it() {
        let asked = |address: Option<&str>| {
            let (name, subnet) = ("dstack".to_owned(), "10.9.0.0/24".to_owned());
            let network = ContainerNetwork::Named { name, subnet, address: address.map(str::to_owned) };
            let endpoints = networking(&network).unwrap().endpoints_config.unwrap();
            endpoints["dstack"].ipam_config.clone().and_then(|config| config.ipv4_address)
        };
        assert_eq!(asked(Some("10.9.0.4")).as_deref(), Some("10.9.0.4"));
        assert_eq!(asked(None), None);
    }

    #[test]
    fn ulimits_are_raised_as_far_as_the_host_allows() {
        let check = |extras: Extras, rdma, gpus, expected: &[&str]| {
            let limits = ulimits(extras, rdma, gpus).into_iter();
            let text = |limit: ResourcesUlimits| {
                format!("{}={}:{}", limit.name.unwrap(), limit.soft.unwrap(), limit.hard.unwrap())
            };
            assert_eq!(limits.map(text).collect::<Vec<_>>(), expected);
        };
        let (nofile, memlock, stack) = ("nofile=1048576:1048576", "memlock=-1:-1", "stack=67108864:-1");
        let all = Extras::default();
        check(all, true, true, &[nofile, memlock, stack]);
        check(all, true, false, &[nofile, memlock, stack]);
        check(all, false, true, &[nofile, stack]);
        check(all, false, false, &[nofile]);
        check(Extras { memlock: false, ..all }, true, true, &[nofile, stack]);
        check(Extras { stack: false, ..all }, true, true, &[nofile, memlock]);
    }

    #[test]
    fn what_the_host_forbids_is_left_out_once() {
        let all = Extras::default();
        let check = |extras: Extras, text: &str, left: Option<Extras>| {
            assert_eq!(extras.without_what_failed(text).map(|(left, _)| left), left, "{text}");
        };
        check(all, "error setting rlimit type 8", Some(Extras { memlock: false, ..all }));
        check(all, "error setting rlimit type 7", Some(Extras { nofile: false, ..all }));
        let without_stack = Extras { stack: false, ..all };
        check(all, "error setting rlimit type 3: operation not permitted", Some(without_stack));
        let without_display = Extras { display: false, ..all };
        let text = "lstat /dev/nvidia-modeset: no such file or directory";
        check(all, text, Some(without_display));
        check(without_display, text, None);
        check(all, "no space left on device", None);
    }

    /// A host with these GPUs and a task for a container on it, told to `check`.
    fn with_task(gpus: &[(&str, &str)], granted: &[String], check: impl Fn(&TaskContainer<'_>)) {
        let home = tempfile::tempdir().unwrap();
        with_task_on(&Host::for_tests(home.path(), gpus, None), granted, &[], check);
    }

    /// A task for a container on a host that gets these devices, told to `check`.
    fn with_task_on(host: &Host, granted: &[String], devices: &[&str], check: impl Fn(&TaskContainer<'_>)) {
        let spec: TaskSpec = serde_json::from_value(serde_json::json!({
            "id": uuid::Uuid::nil(), "generation": 1, "job_name": "job", "run_id": uuid::Uuid::nil(),
            "run_name": "run", "project_name": "main", "argv": [], "env": {}, "files": [], "stop_grace_secs": 1,
            "released": true, "cluster": { "node_rank": 0, "node_ips": [], "gpus_per_node": [] },
            "share": {},
            "runtime": { "docker": {
                "image": "image", "registry_auth": null, "privileged": false, "shm_size_bytes": null,
                "network": "host", "mounts": [], "devices": devices, "home_dir": null
            } }
        }))
        .unwrap();
        let Runtime::Docker(container) = &spec.runtime else { panic!("not a container") };
        let dir = TaskDir::new(&host.options.home, spec.id);
        let binary = Path::new("/agent");
        check(&TaskContainer { host, dir: &dir, spec: &spec, container, gpus: granted, binary });
    }

    #[test]
    fn a_container_sees_the_gpus_it_was_granted_and_no_others() {
        let gpus = [("nvidia", "GPU-0"), ("nvidia", "GPU-1")];
        with_task(&gpus, &[], |task| {
            let body = container(task, Extras::default()).unwrap();
            assert!(body.env.unwrap().contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()));
            assert_eq!(body.host_config.unwrap().device_requests, None);
        });
        with_task(&gpus, &["GPU-1".to_owned()], |task| {
            let extras = Extras { display: false, ..Extras::default() };
            let body = container(task, extras).unwrap();
            assert!(!body.env.unwrap().contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()));
            let request = body.host_config.unwrap().device_requests.unwrap().remove(0);
            assert_eq!(request.device_ids.unwrap(), ["GPU-1"]);
            let capabilities = request.capabilities.unwrap().remove(0);
            assert!(capabilities.contains(&"compute".to_owned()) && !capabilities.contains(&"display".to_owned()));
        });
    }

    #[test]
    fn a_container_with_several_gpus_has_half_of_its_memory_to_share() {
        let home = tempfile::tempdir().unwrap();
        let gpus = ["GPU-0", "GPU-1"].map(str::to_owned);
        let mut host = Host::for_tests(home.path(), &[("nvidia", "GPU-0"), ("nvidia", "GPU-1")], None);
        let check = |host: &Host, granted: &[String], share: Option<u64>, wanted: Option<u64>, expected| {
            with_task_on(host, granted, &[], |task| {
                let (mut spec, mut container) = (task.spec.clone(), task.container.clone());
                (spec.share.memory_bytes, container.shm_size_bytes) = (share, wanted);
                let task = TaskContainer { spec: &spec, container: &container, ..*task };
                assert_eq!(host_config(&task, Extras::default()).unwrap().shm_size, expected);
            });
        };
        check(&host, &gpus, Some(32 << 30), None, Some(16 << 30));
        check(&host, &gpus, Some(32 << 30), Some(1 << 30), Some(1 << 30));
        check(&host, &gpus[..1], Some(32 << 30), None, None);
        // Who has no share has the machine, and how much that has may be unknown.
        check(&host, &gpus, None, None, Some(1 << 40));
        host.options.memory_bytes = Some(8 << 30);
        check(&host, &gpus, None, None, Some(4 << 30));
    }

    #[test]
    fn a_container_gets_each_node_where_programs_look_for_it_and_may_lock_memory() {
        let home = tempfile::tempdir().unwrap();
        let mut host = Host::for_tests(home.path(), &[], None);
        let dev = home.path().join("dev");
        std::fs::create_dir_all(dev.join("infiniband")).unwrap();
        std::fs::write(dev.join("infiniband/uverbs3"), "").unwrap();
        host.options.roots.dev.clone_from(&dev);
        let nodes = ["/dev/infiniband/uverbs3", "/dev/infiniband/uverbs4"];
        with_task_on(&host, &[], &nodes, |task| {
            let config = container(task, Extras::default()).unwrap().host_config.unwrap();
            // The engine refuses a container with a node that is not there.
            let [device] = &config.devices.unwrap()[..] else { panic!("one device") };
            let on_host = dev.join("infiniband/uverbs3");
            assert_eq!(device.path_on_host.as_deref(), on_host.to_str());
            assert_eq!(device.path_in_container.as_deref(), Some(nodes[0]));
            assert_eq!(device.cgroup_permissions.as_deref(), Some("rwm"));
            assert!(config.ulimits.unwrap().iter().any(|limit| limit.name.as_deref() == Some("memlock")));
            assert_eq!(config.cap_add.unwrap(), ["IPC_LOCK"]);
        });
        with_task_on(&host, &[], &nodes[1..], |task| {
            let config = container(task, Extras::default()).unwrap().host_config.unwrap();
            assert_eq!((config.devices.unwrap().len(), config.cap_add), (0, None));
        });
    }

    #[test]
    fn proxies_of_the_host_are_passed_on_and_nothing_else() {
        with_task(&[], &[], |task| {
            let of_host = |name: &str| match name {
                "https_proxy" | "NO_PROXY" | "TOKEN" => Some(format!("of {name}")),
                _ => None,
            };
            let env = env(task, of_host);
            assert_eq!(env[1..3], ["https_proxy=of https_proxy", "NO_PROXY=of NO_PROXY"]);
            assert_eq!(env.len(), 4);
        });
    }

    #[test]
    fn a_directory_made_for_a_mount_is_open_to_all_and_one_that_was_there_stays() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let leaf = dir.path().join("a/b");
        make_open_dir(&leaf).unwrap();
        assert_eq!(mode(&leaf), 0o777);
        assert_eq!(mode(&dir.path().join("a")) & 0o022, 0);
        std::fs::set_permissions(&leaf, std::fs::Permissions::from_mode(0o700)).unwrap();
        make_open_dir(&leaf).unwrap();
        assert_eq!(mode(&leaf), 0o700);
    }
}
