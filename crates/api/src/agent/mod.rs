//! What the server and the host agent say to each other.
//!
//! HTTP/2 with prior knowledge over any byte stream; the agent is the HTTP server whoever dialled.
//! Orders and events are JSON of the types below; logs and blobs travel as raw bodies.
//!
//! | request | body → answer |
//! |---|---|
//! | `POST /v1/hello` | [`HelloRequest`] → [`Hello`] |
//! | `GET /v1/events` | → [`AgentEvent`]s, one JSON document a line, a snapshot first, for as long as the connection lives |
//! | `PUT /v1/tasks/{id}` | [`TaskSpec`] → [`TaskState`]; repeating it changes nothing |
//! | `POST /v1/tasks/{id}/go` | [`GoOrder`] → [`TaskState`] |
//! | `POST /v1/tasks/{id}/stop` | [`StopOrder`] → [`TaskState`] |
//! | `POST /v1/tasks/{id}/forget` | [`TaskOrder`] → `null`; only after the task is sealed |
//! | `GET /v1/tasks/{id}/logs?offset=N` | → [`LogFrame`]s until the log ends |
//! | `POST /v1/tasks/{id}/logs/ack` | [`LogAck`] → `null` |
//! | `HEAD`, `PUT /v1/blobs/{sha256}` | raw bytes → `null` |
//! | `POST /v1/shutdown` | → `null`; refused while a task runs |
//!
//! Every request carries [`EPOCH_HEADER`]; an epoch lower than the highest one seen is refused with 409,
//! so that an older owner of the host can do no harm. Errors are [`AgentError`] bodies.

mod cloud;
mod fabric;
mod host;
mod log_frame;
mod task;

pub use cloud::*;
pub use fabric::*;
pub use host::*;
pub use log_frame::*;
pub use task::*;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{InstanceId, ServerId};

/// The line the agent writes before the first HTTP/2 frame. The reader drops at most
/// [`MAGIC_SEARCH_LIMIT`] bytes until it, because login shells print things.
pub const MAGIC_LINE: &str = "dstack-agent protocol 1\n";

/// How much may precede [`MAGIC_LINE`] before the connection is given up, in bytes.
pub const MAGIC_SEARCH_LIMIT: usize = 64 * 1024;

/// The version of this protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// The request header that carries the caller's epoch, a decimal number.
pub const EPOCH_HEADER: &str = "x-dstack-epoch";

/// The header of an answer that opens a way to a job's SSH server: the network whose ports the job's are, as
/// [`network_of_this_process`] tells it. It is left out where the job has a network of its own.
pub const NETWORK_HEADER: &str = "x-dstack-network";

/// Which network this process is in, the same for all processes in it and for no others: the machine's boot, and the
/// kernel's number of the network. None where the system does not tell.
pub fn network_of_this_process() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let network = std::fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{}/{}", boot.trim(), network.to_str()?))
}

/// How many log bytes may be sent and not yet acknowledged, so that an order overtakes a flood.
pub const LOG_WINDOW: u64 = 1024 * 1024;

/// How often an idle event stream carries a ping, in seconds.
pub const PING_INTERVAL_SECS: u64 = 5;

/// The first thing a server says on a new connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloRequest {
    /// The server installation that speaks.
    pub server_id: ServerId,
    /// Its epoch: grows each time the ownership of hosts may have changed.
    pub epoch: u64,
    /// The protocol version that it speaks.
    pub protocol: u32,
}

/// The agent's answer to a hello: who and what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol version that the agent speaks.
    pub protocol: u32,
    /// The agent's release.
    pub version: String,
    /// The SHA-256 of the agent's executable, in hex.
    pub binary_sha256: String,
    /// The instance the agent was started for, if it was told.
    pub instance_id: Option<InstanceId>,
    /// Changes when the host reboots.
    pub boot_id: String,
    /// The host's clock when it answered.
    pub now: Timestamp,
    /// What the host has.
    pub host: HostInfo,
    /// Every task the agent knows.
    pub tasks: Vec<TaskState>,
}

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentEvent {
    /// The state of every task; tasks not in it are unknown to the agent.
    Snapshot(Vec<TaskState>),
    /// The state of one task changed.
    Task(Box<TaskState>),
    /// A task was forgotten.
    Forgotten(crate::ids::JobId),
    /// What a host has or what its cloud says of it changed. It stands until the next one says otherwise.
    Host(Box<HostNews>),
    /// Nothing happened; the connection lives.
    Ping,
}

/// Why the agent refused a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// What kind of refusal it is.
    pub code: AgentErrorCode,
    /// What happened, for people.
    pub message: String,
}

/// The kinds of refusal a caller may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentErrorCode {
    /// The caller's epoch or the task's generation is older than one already seen (409).
    Fenced,
    /// The agent belongs to another server (409).
    OtherServer,
    /// The agent does not know the task (404).
    UnknownTask,
    /// The request makes no sense (400).
    InvalidRequest,
    /// The order does not fit the task's phase (409).
    WrongPhase,
    /// The agent failed (500).
    Internal,
}

impl AgentErrorCode {
    /// The HTTP status that carries this code.
    pub fn http_status(self) -> u16 {
        match self {
            AgentErrorCode::Fenced | AgentErrorCode::OtherServer | AgentErrorCode::WrongPhase => 409,
            AgentErrorCode::UnknownTask => 404,
            AgentErrorCode::InvalidRequest => 400,
            AgentErrorCode::Internal => 500,
        }
    }
}
