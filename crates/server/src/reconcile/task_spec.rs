//! Makes the agent's task from a job, its run and its machine, and gives it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::agent::{
    ClusterInfo, ContainerNetwork, ContainerSpec, FileDelivery, HostShare, InstanceMount, RegistryAuth, Runtime,
    SSH_PORT, SshListen, SshServer, Stay, TaskSpec, WayOverHost,
};
use api::backends::BackendType;
use api::configurations::{Memory, Mount, RunConfiguration};
use api::ids::{FileArchiveId, ProjectId};
use api::instances::{InstanceAvailability, Offer};
use api::jobs::{JobProvisioningData, JobRuntimeData, JobSpec};
use api::runs::RunSpec;
use lifecycle::instance::{Instance, InstanceState, rdma_nodes};
use lifecycle::job::{Job, stop_grace_secs};
use lifecycle::placement::requirements;
use lifecycle::run::{Run, dev_environment, for_processes, interpolation};
use store::{Db, projects, runs};

use super::job::GENERATION;
use crate::agents::{BlobSeen, HostSeen, OrderError};
use crate::deps::Deps;
use crate::pool::needs_docker;
use crate::settings::Settings;
use crate::spec_secrets;

/// Why a task could not be given.
pub(super) enum Refusal {
    /// Its files are on their way to the agent; the job falls due when they are there.
    Later,
    /// The order may be lost; it is repeated.
    Order(OrderError),
    /// It will never work, and why, for people.
    Never(String),
}

/// Whether a job runs in a container on an instance.
fn runs_in_container(run: &Run, instance: &Instance) -> bool {
    use api::configurations::Runtime as Wanted;
    let says_process = *run.spec.configuration.common().runtime == Some(Wanted::Process);
    needs_docker(&run.spec) || !(says_process || instance.state.runs_processes)
}

/// Whether a job has all of its machine.
fn has_whole_machine(job: &Job, instance: &Instance) -> bool {
    job.state.blocks.len() >= instance.state.total_blocks.max(1) as usize
}

/// The address that peers use for a run's job on an instance.
pub(super) fn address_of(job: &Job, run: &Run, instance: &Instance) -> Option<String> {
    match &instance.state.container_network {
        // The container of a part of a machine has no peers, and learns its address when it starts.
        Some(_) if runs_in_container(run, instance) && !has_whole_machine(job, instance) => {
            Some("127.0.0.1".to_owned())
        }
        Some(network) if runs_in_container(run, instance) => Some(network.address.clone()),
        _ => instance.state.internal_ip.clone(),
    }
}

/// How many GPUs of an instance a job has.
pub(super) fn gpus_of(job: &Job, instance: &Instance) -> u32 {
    let gpus = instance.state.instance_type.as_ref().map_or(0, |kind| kind.resources.gpus.len());
    let total = instance.state.total_blocks.max(1) as usize;
    u32::try_from(gpus * job.state.blocks.len() / total).unwrap_or(u32::MAX)
}

/// Whether an instance is a part of the server's own machine, whose ports everybody on it reaches.
fn is_this_machine(instance: &Instance) -> bool {
    let address = instance.state.hostname.as_deref().and_then(|name| name.parse::<IpAddr>().ok());
    address.is_some_and(|address| address.is_loopback())
}

/// Tells clients where a job runs and what of the machine it has.
pub(super) fn describe(job: &mut Job, run: &Run, instance: &Instance) {
    let in_container = runs_in_container(run, instance);
    let kind = instance.state.instance_type.clone().unwrap_or_default();
    let total = instance.state.total_blocks.max(1);
    let blocks = u32::try_from(job.state.blocks.len()).unwrap_or(1);
    let share = requirements::share(&kind.resources, blocks, total);
    let backend = instance.state.backend.as_deref().map_or(BackendType::Remote, backends::wire_type_of);
    let region = instance.state.region.clone().unwrap_or_default();
    let price = instance.state.price.unwrap_or_default();
    let part = blocks < total;
    let host = instance.state.host.as_ref();
    job.state.runtime = Some(JobRuntimeData {
        network_mode: if part || (in_container && instance.state.container_network.is_some()) {
            "bridge".to_owned()
        } else {
            "host".to_owned()
        },
        gpu: part.then(|| u32::try_from(share.gpus.len()).unwrap_or(u32::MAX)),
        cpu: part.then(|| f64::from(share.cpus)),
        memory: part.then(|| Memory::from_mib(share.memory_mib)),
        ports: Some(BTreeMap::new()),
        volume_names: Some(vec![]),
        offer: Some(Offer {
            unavailable_because: None,
            backend,
            instance: kind.clone(),
            region: region.clone(),
            price,
            backend_data: serde_json::Value::Object(serde_json::Map::new()),
            availability: InstanceAvailability::Idle,
            availability_zones: instance.state.zone.clone().map(|zone| vec![zone]),
            instance_runtime: "shim".to_owned(),
            blocks,
            total_blocks: total,
        }),
        working_dir: None,
        username: None,
    });
    let login = instance.state.login.as_ref();
    job.state.provisioning = Some(JobProvisioningData {
        backend,
        base_backend: None,
        instance_type: kind,
        instance_id: instance.state.provider_id.clone().unwrap_or_else(|| instance.id.to_string()),
        hostname: instance.state.hostname.clone(),
        internal_ip: instance.state.internal_ip.clone(),
        public_ip_enabled: true,
        instance_network: None,
        region,
        availability_zone: instance.state.zone.clone(),
        reservation: instance.state.reservation.clone(),
        price,
        username: host
            .map(|host| &host.user)
            .or(login.map(|login| &login.user))
            .cloned()
            .unwrap_or("root".to_owned()),
        ssh_port: Some(host.map(|host| host.port).or(login.map(|login| login.port)).unwrap_or(22)),
        dockerized: host.is_some() || (in_container && !is_this_machine(instance)),
        ssh_proxy: host.and_then(|host| host.proxy.as_ref()).map(
            |proxy| serde_json::json!({ "hostname": proxy.hostname, "username": proxy.user, "port": proxy.port }),
        ),
        backend_data: None,
        gpu_driver: instance.state.gpu_driver.clone(),
    });
}

/// Sends what the task needs and then the task itself.
pub(super) async fn give(deps: &Deps, job: &Job, instance: &Instance) -> store::Result<Result<(), Refusal>> {
    let Some(run) = runs::get(&deps.db, job.run_id).await? else {
        return Ok(Err(Refusal::Never("its run no longer exists".to_owned())));
    };
    let spec = match spec_of(deps, job, &run.value, instance).await? {
        Ok(spec) => spec,
        Err(message) => return Ok(Err(Refusal::Never(message))),
    };
    if let Err(refusal) = give_blobs(deps, job, &spec, instance).await {
        return Ok(Err(refusal));
    }
    Ok(deps.agents.put(instance.id, &spec).await.map(|_| ()).map_err(Refusal::Order))
}

/// Where the bytes of an uploaded file are.
enum Upload {
    Archive(FileArchiveId),
    /// In a repo of the project.
    Code(ProjectId, String),
}

/// Sends the uploaded files and code that the agent does not have yet.
async fn give_blobs(deps: &Deps, job: &Job, spec: &TaskSpec, instance: &Instance) -> Result<(), Refusal> {
    let files = job.spec.file_archives.iter().zip(&spec.files);
    let mut uploads: Vec<(&str, Upload)> =
        files.map(|(file, delivery)| (delivery.blob_sha256.as_str(), Upload::Archive(file.id))).collect();
    if let Some(sha256) = spec.code.as_ref().and_then(|code| code.blob_sha256.as_deref()) {
        uploads.push((sha256, Upload::Code(job.project_id, spec.repo_id.clone().unwrap_or_default())));
    }
    let mut all_here = true;
    for (sha256, upload) in uploads {
        match deps.agents.blob(instance.id, sha256).await {
            Ok(BlobSeen::Here) => continue,
            Ok(BlobSeen::OnItsWay) => {}
            Ok(BlobSeen::Missing) => {
                let bytes = bytes_of(deps.db.clone(), sha256.to_owned(), upload);
                deps.agents.send_blob(instance.id, job.id, sha256, Box::pin(bytes));
            }
            Ok(BlobSeen::Lost) => {
                return Err(Refusal::Never(format!("the upload {sha256} no longer exists")));
            }
            Err(error) => return Err(Refusal::Order(error)),
        }
        all_here = false;
    }
    if all_here { Ok(()) } else { Err(Refusal::Later) }
}

async fn bytes_of(db: Db, sha256: String, upload: Upload) -> store::Result<Option<Vec<u8>>> {
    let (project, repo_id) = match upload {
        Upload::Archive(id) => return store::blobs::archive_bytes(&db, id).await,
        Upload::Code(project, repo_id) => (project, repo_id),
    };
    match store::repos::find(&db, project, &repo_id).await? {
        Some(repo) => store::blobs::code(&db, repo.id, &sha256).await,
        None => Ok(None),
    }
}

async fn spec_of(
    deps: &Deps,
    job: &Job,
    run: &Run,
    instance: &Instance,
) -> store::Result<Result<TaskSpec, String>> {
    let Some(project) = projects::get(&deps.db, job.project_id).await? else {
        return Ok(Err("its project no longer exists".to_owned()));
    };
    let mut job_spec = job.spec.clone();
    if let Err(error) = spec_secrets::unseal_job_spec(&deps.sealer, &mut job_spec) {
        return Ok(Err(format!("Secrets cannot be read: {error}")));
    }
    let secrets = match secrets_of(deps, &job_spec, project.id).await? {
        Ok(secrets) => secrets,
        Err(message) => return Ok(Err(message)),
    };
    let lookup = |name: &str| secrets.get(name).cloned();
    let resolved = interpolation::resolve_job_secrets(&mut job_spec, lookup);
    if let Err(missing) = resolved {
        return Ok(Err(format!("Secrets interpolation error: {missing}")));
    }
    let Some(gang) = super::gang::find(deps, job).await? else {
        return Ok(Err("nobody knows where the nodes of its gang are".to_owned()));
    };
    let in_container = runs_in_container(run, instance);
    let cluster = super::gang::as_seen_by(job, &gang);
    let ssh = ssh_of(deps, job, run, instance, in_container, &cluster);
    // What a dev environment does on the wire is said to the agent in parts.
    let (commands, stay) = match &run.spec.configuration {
        RunConfiguration::DevEnvironment(environment) => {
            let greeting = dev_environment::greeting(environment, &run.name);
            (dev_environment::init_argv(environment), Some(Stay { greeting }))
        }
        RunConfiguration::Task(_) | RunConfiguration::Service(_) => (job_spec.commands.clone(), None),
    };
    let argv = match interpolation::resolve_commands(&commands, &run.spec.configuration, &cluster.node_ips) {
        Ok(argv) => argv,
        Err(message) => return Ok(Err(message)),
    };
    let argv = if in_container { argv } else { for_processes(&argv) };
    let files = match file_deliveries(deps, &job_spec).await? {
        Ok(files) => files,
        Err(message) => return Ok(Err(message)),
    };
    let code = match super::task_code::code_of(deps, run, &job_spec, in_container).await? {
        Ok(code) => code,
        Err(message) => return Ok(Err(message)),
    };
    let user = run.spec.configuration.common().user.clone();
    Ok(Ok(TaskSpec {
        id: job.id,
        generation: GENERATION,
        job_name: job_spec.job_name.clone(),
        run_id: run.id,
        run_name: run.name.clone(),
        project_name: project.name.clone(),
        runtime: if in_container { container_of(deps, job, run, &job_spec, instance) } else { Runtime::Process },
        argv,
        env: job_spec.env.clone(),
        cluster,
        share: share_of(job, instance),
        user,
        working_dir: super::task_code::working_dir_of(&job_spec, in_container),
        python: run.spec.configuration.common().python.as_ref().map(ToString::to_string),
        code,
        files,
        repo_id: run.spec.repo_id.clone(),
        max_duration_secs: job_spec.max_duration,
        stop_grace_secs: stop_grace_secs(&job_spec),
        released: job.released_at.is_some(),
        ssh: Some(ssh),
        stay,
        gang: super::gang::access_of(deps, job, &gang).await?,
    }))
}

/// The job's SSH server. On the host's own network only the host reaches it, the server by way of the agent, and the
/// nodes of its gang at the address that they know.
///
/// Clients that have nothing but OpenSSH go over a machine of the user's own, unless there is a proxy for them.
fn ssh_of(
    deps: &Deps,
    job: &Job,
    run: &Run,
    instance: &Instance,
    in_container: bool,
    cluster: &ClusterInfo,
) -> SshServer {
    let keys: Vec<String> = run.spec.ssh_key_pub.iter().map(|key| key.trim().to_owned()).collect();
    let entry_key = deps.sealer.job_entry_key(job.id).public.trim().to_owned();
    let host = instance.state.host.as_ref().filter(|_| deps.settings.ssh_proxy.is_none());
    let bridge = job.state.runtime.as_ref().is_some_and(|runtime| runtime.network_mode == "bridge");
    let gang = super::gang::key_of(deps, job).map(|pair| pair.public.trim().to_owned());
    let address = cluster.node_ips.get(cluster.node_rank as usize).filter(|_| gang.is_some());
    SshServer {
        host_key: deps.sealer.job_host_key(job.id).private,
        authorized_keys: keys.iter().cloned().chain([entry_key]).chain(gang).collect(),
        port: SSH_PORT,
        listen: if in_container && bridge { SshListen::All } else { SshListen::Loopback },
        peer_address: address.and_then(|address| address.parse().ok()),
        required: false,
        keep_alive_secs: SshServer::default_keep_alive_secs(),
        over_host: host.map(|host| WayOverHost { user: host.user.clone(), keys }),
    }
}

/// The values of the secrets that a job names.
async fn secrets_of(
    deps: &Deps,
    spec: &JobSpec,
    project: api::ids::ProjectId,
) -> store::Result<Result<BTreeMap<String, String>, String>> {
    let mut values = BTreeMap::new();
    for name in interpolation::secret_names(spec) {
        let Some(secret) = store::secrets::find(&deps.db, project, &name).await? else { continue };
        match deps.sealer.unseal(&secret.sealed_value) {
            Ok(value) => values.insert(name, value),
            Err(error) => return Ok(Err(format!("Secret `{name}` cannot be read: {error}"))),
        };
    }
    Ok(Ok(values))
}

/// The nodes of the host's RDMA devices, for jobs that share them with nobody.
fn devices_of(deps: &Deps, job: &Job, instance: &Instance) -> Vec<String> {
    let HostSeen::Connected(host) = deps.agents.host(instance.id) else { return vec![] };
    if has_whole_machine(job, instance) { rdma_nodes(&host.fabric) } else { vec![] }
}

/// The image of a job. What the run does not name depends on the machine, which was not known when the job was made.
fn image_of(settings: &Settings, run: &RunSpec, job: &JobSpec, machine: &InstanceState) -> String {
    let common = run.configuration.common();
    let is_default = common.image.is_none() && *common.docker != Some(true);
    if is_default && machine.has_efa() { settings.efa_image() } else { job.image_name.clone() }
}

fn container_of(deps: &Deps, job: &Job, run: &Run, spec: &JobSpec, instance: &Instance) -> Runtime {
    let bridge = job.state.runtime.as_ref().is_some_and(|runtime| runtime.network_mode == "bridge");
    let network = match &instance.state.container_network {
        Some(network) if bridge => ContainerNetwork::Named {
            name: network.name.clone(),
            subnet: network.subnet.clone(),
            // There is one address for all containers of the machine.
            address: has_whole_machine(job, instance).then(|| network.address.clone()),
        },
        _ if bridge => ContainerNetwork::Bridge,
        _ => ContainerNetwork::Host,
    };
    let mounts = spec.volumes.iter().flatten().filter_map(|mount| match mount {
        Mount::Instance(mount) => {
            Some(InstanceMount { instance_path: mount.instance_path.clone(), path: mount.path.clone() })
        }
        Mount::Volume(_) => None,
    });
    Runtime::Docker(Box::new(ContainerSpec {
        image: image_of(&deps.settings, &run.spec, spec, &instance.state),
        registry_auth: spec
            .registry_auth
            .as_ref()
            .map(|auth| RegistryAuth { username: auth.username.clone(), password: auth.password.clone() }),
        privileged: spec.privileged,
        shm_size_bytes: spec.requirements.resources.shm_size.map(|size| size.mib() * 1024 * 1024),
        network,
        mounts: mounts.collect(),
        devices: devices_of(deps, job, instance),
        home_dir: Some(run.spec.configuration.common().home_dir.clone()),
    }))
}

/// The blocks that a job holds, as GPUs, CPUs and memory.
fn share_of(job: &Job, instance: &Instance) -> HostShare {
    let total = instance.state.total_blocks.max(1) as usize;
    let blocks = &job.state.blocks;
    let Some(kind) = instance.state.instance_type.as_ref().filter(|_| blocks.len() < total) else {
        return HostShare::default();
    };
    let per_block = instance.state.gpu_uuids.len() / total;
    let gpus = blocks.iter().flat_map(|block| {
        let first = *block as usize * per_block;
        instance.state.gpu_uuids.iter().skip(first).take(per_block).cloned()
    });
    let share = requirements::share(&kind.resources, u32::try_from(blocks.len()).unwrap_or(1), total as u32);
    HostShare {
        gpu_uuids: Some(gpus.collect()),
        gpu_count: None,
        cpus: Some(f64::from(share.cpus)),
        memory_bytes: Some(share.memory_mib * 1024 * 1024),
    }
}

async fn file_deliveries(deps: &Deps, spec: &JobSpec) -> store::Result<Result<Vec<FileDelivery>, String>> {
    let mut deliveries = vec![];
    for file in &spec.file_archives {
        let Some(archive) = store::blobs::get_archive(&deps.db, file.id).await? else {
            return Ok(Err(format!("the uploaded archive of `{}` no longer exists", file.path)));
        };
        deliveries.push(FileDelivery { blob_sha256: archive.hash, path: file.path.clone() });
    }
    Ok(Ok(deliveries))
}

#[cfg(test)]
mod tests {
    use api::agent::{Fabric, HostInfo, UverbsDevice};
    use lifecycle::instance::{EfaCount, Health};
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_image(keys: &serde_json::Value, machine: &InstanceState, expected: &str) {
        let mut configuration = json!({"type": "task", "commands": ["true"], "nodes": 1});
        configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let run: RunSpec =
            serde_json::from_value(json!({"run_name": "train", "configuration": configuration})).unwrap();
        let settings = Settings::default();
        let jobs = lifecycle::run::job_specs(&run, &settings.default_image).unwrap();
        assert_eq!(image_of(&settings, &run, &jobs[0], machine), expected);
    }

    #[test]
    fn the_default_image_has_what_the_machine_needs() {
        let plain = InstanceState::default();
        let bought = InstanceState { efa_expected: Some(1), ..InstanceState::default() };
        let efa = Some(EfaCount { found: 4, expected: None });
        let found = InstanceState { health: Health { efa, ..Health::default() }, ..InstanceState::default() };
        let without = InstanceState { efa_expected: Some(0), ..InstanceState::default() };
        let (usual, of_efa) = ("dstackai/base:0.16-base-ubuntu24.04", "dstackai/base:0.16-devel-efa-ubuntu24.04");
        check_image(&json!({}), &plain, usual);
        check_image(&json!({}), &without, usual);
        check_image(&json!({}), &bought, of_efa);
        check_image(&json!({}), &found, of_efa);
        check_image(&json!({"nvcc": true}), &plain, "dstackai/base:0.16-devel-ubuntu24.04");
        // The flavour for EFA has the compiler as well.
        check_image(&json!({"nvcc": true}), &bought, of_efa);
        check_image(&json!({"image": "ubuntu"}), &bought, "ubuntu");
    }

    #[test]
    fn a_host_says_of_its_adapters_which_nodes_jobs_get() {
        let uverbs = |name: &str, driver: &str| UverbsDevice {
            name: name.to_owned(),
            device: String::new(),
            driver: driver.to_owned(),
            has_node: true,
        };
        let fabric =
            Fabric { uverbs: vec![uverbs("uverbs0", "mlx5_core"), uverbs("uverbs1", "efa")], ..Fabric::default() };
        let host = HostInfo { fabric, ..HostInfo::default() };
        let told: HostInfo = serde_json::from_str(&serde_json::to_string(&host).unwrap()).unwrap();
        assert_eq!(rdma_nodes(&told.fabric), ["/dev/infiniband/uverbs1"]);
        // Agents of before do not say what they have.
        let old: HostInfo = serde_json::from_value(json!({"rdma_devices": []})).unwrap();
        assert_eq!(rdma_nodes(&old.fabric), Vec::<String>::new());
    }
}
