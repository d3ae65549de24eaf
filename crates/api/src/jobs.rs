//! Jobs: one node of one replica of a run, and their submissions.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backends::BackendType;
use crate::configurations::{
    BackendOptions, Memory, Mount, RegistryAuth, ResourcesSpec, RetryEvent, UtilizationPolicy,
};
use crate::ids::JobId;
use crate::instances::{GpuDriver, InstanceType, Offer};
use crate::repos::RepoData;
use crate::runs::FileArchiveMapping;

/// The life of a job's submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum JobStatus {
    Submitted,
    Provisioning,
    Pulling,
    Running,
    Terminating,
    Terminated,
    Aborted,
    Failed,
    Done,
}

impl JobStatus {
    /// Whether nothing will happen to it any more.
    pub fn is_finished(self) -> bool {
        match self {
            JobStatus::Terminated | JobStatus::Aborted | JobStatus::Failed | JobStatus::Done => true,
            JobStatus::Submitted
            | JobStatus::Provisioning
            | JobStatus::Pulling
            | JobStatus::Running
            | JobStatus::Terminating => false,
        }
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            JobStatus::Submitted => "submitted",
            JobStatus::Provisioning => "provisioning",
            JobStatus::Pulling => "pulling",
            JobStatus::Running => "running",
            JobStatus::Terminating => "terminating",
            JobStatus::Terminated => "terminated",
            JobStatus::Aborted => "aborted",
            JobStatus::Failed => "failed",
            JobStatus::Done => "done",
        }
    }
}

/// Why a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum JobTerminationReason {
    FailedToStartDueToNoCapacity,
    InterruptedByNoCapacity,
    InstanceUnreachable,
    InstanceAccessRevoked,
    WaitingInstanceLimitExceeded,
    WaitingRunnerLimitExceeded,
    TerminatedByUser,
    VolumeError,
    GatewayError,
    ScaledDown,
    DoneByRunner,
    AbortedByUser,
    TerminatedByServer,
    InactivityDurationExceeded,
    TerminatedDueToUtilizationPolicy,
    ContainerExitedWithError,
    PortsBindingFailed,
    CreatingContainerError,
    ExecutorError,
    MaxDurationExceeded,
    LogQuotaExceeded,
}

use JobTerminationReason as Reason;

impl JobTerminationReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::FailedToStartDueToNoCapacity => "failed_to_start_due_to_no_capacity",
            Reason::InterruptedByNoCapacity => "interrupted_by_no_capacity",
            Reason::InstanceUnreachable => "instance_unreachable",
            Reason::InstanceAccessRevoked => "instance_access_revoked",
            Reason::WaitingInstanceLimitExceeded => "waiting_instance_limit_exceeded",
            Reason::WaitingRunnerLimitExceeded => "waiting_runner_limit_exceeded",
            Reason::TerminatedByUser => "terminated_by_user",
            Reason::VolumeError => "volume_error",
            Reason::GatewayError => "gateway_error",
            Reason::ScaledDown => "scaled_down",
            Reason::DoneByRunner => "done_by_runner",
            Reason::AbortedByUser => "aborted_by_user",
            Reason::TerminatedByServer => "terminated_by_server",
            Reason::InactivityDurationExceeded => "inactivity_duration_exceeded",
            Reason::TerminatedDueToUtilizationPolicy => "terminated_due_to_utilization_policy",
            Reason::ContainerExitedWithError => "container_exited_with_error",
            Reason::PortsBindingFailed => "ports_binding_failed",
            Reason::CreatingContainerError => "creating_container_error",
            Reason::ExecutorError => "executor_error",
            Reason::MaxDurationExceeded => "max_duration_exceeded",
            Reason::LogQuotaExceeded => "log_quota_exceeded",
        }
    }

    /// The status that a job with this reason ends in.
    pub fn final_status(self) -> JobStatus {
        match self {
            Reason::DoneByRunner => JobStatus::Done,
            Reason::AbortedByUser => JobStatus::Aborted,
            Reason::TerminatedByUser
            | Reason::ScaledDown
            | Reason::TerminatedByServer
            | Reason::InactivityDurationExceeded
            | Reason::TerminatedDueToUtilizationPolicy
            | Reason::MaxDurationExceeded => JobStatus::Terminated,
            Reason::FailedToStartDueToNoCapacity
            | Reason::InterruptedByNoCapacity
            | Reason::InstanceUnreachable
            | Reason::InstanceAccessRevoked
            | Reason::WaitingInstanceLimitExceeded
            | Reason::WaitingRunnerLimitExceeded
            | Reason::VolumeError
            | Reason::GatewayError
            | Reason::ContainerExitedWithError
            | Reason::PortsBindingFailed
            | Reason::CreatingContainerError
            | Reason::ExecutorError
            | Reason::LogQuotaExceeded => JobStatus::Failed,
        }
    }

    /// The event that lets a run retry after this reason, if any does.
    pub fn retry_event(self) -> Option<RetryEvent> {
        match self {
            Reason::FailedToStartDueToNoCapacity => Some(RetryEvent::NoCapacity),
            Reason::InterruptedByNoCapacity => Some(RetryEvent::Interruption),
            Reason::InstanceUnreachable
            | Reason::InstanceAccessRevoked
            | Reason::WaitingInstanceLimitExceeded
            | Reason::WaitingRunnerLimitExceeded
            | Reason::VolumeError
            | Reason::GatewayError
            | Reason::ContainerExitedWithError
            | Reason::PortsBindingFailed
            | Reason::CreatingContainerError
            | Reason::ExecutorError
            | Reason::LogQuotaExceeded => Some(RetryEvent::Error),
            Reason::TerminatedByUser
            | Reason::ScaledDown
            | Reason::DoneByRunner
            | Reason::AbortedByUser
            | Reason::TerminatedByServer
            | Reason::InactivityDurationExceeded
            | Reason::TerminatedDueToUtilizationPolicy
            | Reason::MaxDurationExceeded => None,
        }
    }

    /// The text of the submission's `error`.
    pub fn error(self) -> Option<&'static str> {
        match self {
            Reason::InstanceUnreachable => Some("instance unreachable"),
            Reason::InstanceAccessRevoked => Some("instance access revoked"),
            Reason::WaitingInstanceLimitExceeded => Some("waiting instance limit exceeded"),
            Reason::WaitingRunnerLimitExceeded => Some("waiting runner limit exceeded"),
            Reason::VolumeError => Some("volume error"),
            Reason::GatewayError => Some("gateway error"),
            Reason::ScaledDown => Some("scaled down"),
            Reason::InactivityDurationExceeded => Some("inactivity duration exceeded"),
            Reason::TerminatedDueToUtilizationPolicy => Some("utilization policy"),
            Reason::PortsBindingFailed => Some("ports binding failed"),
            Reason::CreatingContainerError => Some("runner error"),
            Reason::ExecutorError => Some("executor error"),
            Reason::MaxDurationExceeded => Some("max duration exceeded"),
            Reason::LogQuotaExceeded => Some("log quota exceeded"),
            Reason::FailedToStartDueToNoCapacity
            | Reason::InterruptedByNoCapacity
            | Reason::TerminatedByUser
            | Reason::DoneByRunner
            | Reason::AbortedByUser
            | Reason::TerminatedByServer
            | Reason::ContainerExitedWithError => None,
        }
    }
}

/// What a job needs of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Requirements {
    /// CPUs, memory, accelerators, disk.
    pub resources: ResourcesSpec,
    /// Highest price in US dollars per hour.
    #[serde(default)]
    pub max_price: Option<f64>,
    /// Only spot, only on demand, or either when unset.
    #[serde(default)]
    pub spot: Option<bool>,
    /// A capacity reservation.
    #[serde(default)]
    pub reservation: Option<String>,
    /// The job is one of several that talk to each other.
    #[serde(default)]
    pub multinode: Option<bool>,
    /// Options of single backends.
    #[serde(default)]
    pub backend_options: Option<Vec<BackendOptions>>,
}

/// When a failed job is submitted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retry {
    /// After which events.
    pub on_events: Vec<RetryEvent>,
    /// For how long, in seconds.
    pub duration: u64,
}

/// A port of the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppSpec {
    /// The port in the container.
    pub port: u16,
    /// The port on the user's machine.
    #[serde(default)]
    pub map_to_port: Option<u16>,
    /// `app_{i}`.
    pub app_name: String,
    /// The path of its page.
    #[serde(default)]
    pub url_path: Option<String>,
    /// The query of its page.
    #[serde(default)]
    pub url_query_params: Option<BTreeMap<String, String>>,
}

/// The user that a container runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnixUser {
    /// By number.
    #[serde(default)]
    pub uid: Option<u32>,
    /// By number.
    #[serde(default)]
    pub gid: Option<u32>,
    /// By name.
    #[serde(default)]
    pub username: Option<String>,
    /// By name.
    #[serde(default)]
    pub groupname: Option<String>,
}

/// What one job does, made by the server from the run's spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobSpec {
    /// The replica that it belongs to.
    #[serde(default)]
    pub replica_num: u32,
    /// Its number in the replica: the node's rank.
    pub job_num: u32,
    /// `{run}-{job_num}-{replica_num}`.
    pub job_name: String,
    /// How many jobs the replica has.
    #[serde(default = "one")]
    pub jobs_per_replica: u32,
    /// The group of replicas.
    #[serde(default = "zero_name")]
    pub replica_group: String,
    /// Its ports.
    #[serde(default)]
    pub app_specs: Option<Vec<AppSpec>>,
    /// Its user.
    #[serde(default)]
    pub user: Option<UnixUser>,
    /// The command and its arguments.
    pub commands: Vec<String>,
    /// Its environment, secrets not put in.
    pub env: BTreeMap<String, String>,
    /// `HOME`.
    #[serde(default)]
    pub home_dir: Option<String>,
    /// Its image.
    pub image_name: String,
    /// All capabilities and devices of the host.
    #[serde(default)]
    pub privileged: bool,
    /// Clone one branch only.
    #[serde(default)]
    pub single_branch: Option<bool>,
    /// Seconds.
    #[serde(default)]
    pub max_duration: Option<u64>,
    /// Seconds.
    #[serde(default)]
    pub stop_duration: Option<u64>,
    /// When it counts as unused.
    #[serde(default)]
    pub utilization_policy: Option<UtilizationPolicy>,
    /// Credentials for the registry.
    #[serde(default)]
    pub registry_auth: Option<RegistryAuth>,
    /// What it needs of an instance.
    pub requirements: Requirements,
    /// When it is submitted again.
    #[serde(default)]
    pub retry: Option<Retry>,
    /// What is mounted.
    #[serde(default)]
    pub volumes: Option<Vec<Mount>>,
    /// Always unset on the wire.
    #[serde(default)]
    pub ssh_key: Option<serde_json::Value>,
    /// Where the command starts.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// The repository's state.
    #[serde(default)]
    pub repo_data: Option<RepoData>,
    /// The uploaded code.
    #[serde(default)]
    pub repo_code_hash: Option<String>,
    /// Where the code goes.
    #[serde(default)]
    pub repo_dir: Option<String>,
    /// `error` or `skip`.
    #[serde(default)]
    pub repo_exists_action: Option<String>,
    /// Uploaded files.
    #[serde(default)]
    pub file_archives: Vec<FileArchiveMapping>,
    /// The service's port.
    #[serde(default)]
    pub service_port: Option<u16>,
    /// The service's probes.
    #[serde(default)]
    pub probes: Vec<serde_json::Value>,
    /// The node group's place.
    #[serde(default)]
    pub node_group_index: u32,
    /// The node group's name.
    #[serde(default = "zero_name")]
    pub node_group_name: String,
    /// Its place in the node group.
    #[serde(default)]
    pub node_group_job_index: u32,
}

fn one() -> u32 {
    1
}

fn zero_name() -> String {
    "0".to_owned()
}

/// Where a job runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobProvisioningData {
    /// Who sold the machine.
    pub backend: BackendType,
    /// Who sold it to them.
    #[serde(default)]
    pub base_backend: Option<BackendType>,
    /// The kind of machine.
    pub instance_type: InstanceType,
    /// The backend's own identifier.
    pub instance_id: String,
    /// Where it answers; empty while unknown.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The address that peers use.
    #[serde(default)]
    pub internal_ip: Option<String>,
    /// It has a public address.
    #[serde(default)]
    pub public_ip_enabled: bool,
    /// Its network.
    #[serde(default)]
    pub instance_network: Option<String>,
    /// Where it is.
    pub region: String,
    /// Its zone.
    #[serde(default)]
    pub availability_zone: Option<String>,
    /// The capacity reservation that it uses.
    #[serde(default)]
    pub reservation: Option<String>,
    /// Price in US dollars per hour.
    pub price: f64,
    /// The SSH user.
    pub username: String,
    /// The SSH port.
    #[serde(default)]
    pub ssh_port: Option<u16>,
    /// Jobs run in containers behind the host's SSH.
    pub dockerized: bool,
    /// A jump host.
    #[serde(default)]
    pub ssh_proxy: Option<serde_json::Value>,
    /// What the backend keeps.
    #[serde(default)]
    pub backend_data: Option<String>,
    /// Its accelerators' driver.
    #[serde(default)]
    pub gpu_driver: Option<GpuDriver>,
}

/// How a job uses its instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobRuntimeData {
    /// `host` or `bridge`.
    pub network_mode: String,
    /// GPUs, when it has a share only.
    #[serde(default)]
    pub gpu: Option<u32>,
    /// CPUs, when it has a share only.
    #[serde(default)]
    pub cpu: Option<f64>,
    /// Memory in GB, when it has a share only.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// Host ports by container port.
    #[serde(default)]
    pub ports: Option<BTreeMap<u16, u16>>,
    /// Volumes.
    #[serde(default)]
    pub volume_names: Option<Vec<String>>,
    /// The offer that was taken.
    #[serde(default)]
    pub offer: Option<Offer>,
    /// The directory where the command started.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// The user that the command runs as.
    #[serde(default)]
    pub username: Option<String>,
}

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePullProgress {
    /// Bytes downloaded so far.
    pub downloaded_bytes: u64,
    /// Bytes extracted so far.
    pub extracted_bytes: u64,
    /// Bytes of all layers whose size is known.
    pub total_bytes: u64,
    /// Every layer has said its size.
    pub is_total_bytes_final: bool,
}

/// One try of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobSubmission {
    /// Its identifier.
    pub id: JobId,
    /// Its number, from 0.
    pub submission_num: u32,
    /// The run's deployment that it belongs to.
    #[serde(default)]
    pub deployment_num: u32,
    /// When it was made.
    pub submitted_at: Timestamp,
    /// When something last happened to it.
    pub last_processed_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// Seconds without a user's connection.
    #[serde(default)]
    pub inactivity_secs: Option<u64>,
    /// Where it is in its life.
    pub status: JobStatus,
    /// The status as `ps` shows it.
    #[serde(default)]
    pub status_message: String,
    /// Why it ended.
    #[serde(default)]
    pub termination_reason: Option<String>,
    /// Why it ended, for people.
    #[serde(default)]
    pub termination_reason_message: Option<String>,
    /// The command's exit status.
    #[serde(default)]
    pub exit_status: Option<i32>,
    /// Where it runs.
    #[serde(default)]
    pub job_provisioning_data: Option<JobProvisioningData>,
    /// How it uses its instance.
    #[serde(default)]
    pub job_runtime_data: Option<JobRuntimeData>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// The service's probes.
    #[serde(default)]
    pub probes: Vec<serde_json::Value>,
    /// How far the image is.
    #[serde(default)]
    pub image_pull_progress: Option<ImagePullProgress>,
    /// What the job waits for, in words. An addition of ours; old clients ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

/// How users reach a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct JobConnectionInfo {
    /// The IDE's name.
    pub ide_name: Option<String>,
    /// The IDE's link while attached.
    pub attached_ide_url: Option<String>,
    /// The IDE's link through the proxy.
    pub proxied_ide_url: Option<String>,
    /// The command while attached.
    pub attached_ssh_command: Option<Vec<String>>,
    /// The command through the proxy.
    pub proxied_ssh_command: Option<Vec<String>>,
    /// The proxy.
    pub sshproxy_hostname: Option<String>,
    /// The proxy's port.
    pub sshproxy_port: Option<u16>,
    /// The proxy's user for this job.
    pub sshproxy_upstream_id: Option<String>,
    /// The key that the job's SSH server shows, as a line of `authorized_keys`. Only our server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_host_key: Option<String>,
}

/// A job and its submissions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// What it does.
    pub job_spec: JobSpec,
    /// Its tries, oldest first.
    pub job_submissions: Vec<JobSubmission>,
    /// How users reach it, while it runs.
    #[serde(default)]
    pub job_connection_info: Option<JobConnectionInfo>,
}
