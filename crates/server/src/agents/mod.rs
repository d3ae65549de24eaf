//! The agents of instances: who answers, what each task does, and the orders that we give.

mod connection;
mod log_pull;
mod pool;

pub use pool::{AgentPool, Surroundings};

use std::fmt;
use std::sync::Arc;

use api::agent::{AgentError, HostInfo, TaskSpec, TaskState};
use api::ids::{InstanceId, JobId};
use async_trait::async_trait;
use backends::{Backend, Machine};
use futures_util::future::BoxFuture;
use jiff::Timestamp;

/// What can be asked of agents. The real one is [`AgentPool`]; simulations have their own.
#[async_trait]
pub trait Agents: fmt::Debug + Send + Sync {
    /// Keeps a connection to an instance's agent, made anew whenever it breaks.
    fn keep(&self, instance: InstanceId, backend: Arc<dyn Backend>, machine: Machine);

    /// Lets go of an instance's agent.
    fn drop_connection(&self, instance: InstanceId);

    /// Whether an instance's agent answers, and what its host has.
    fn host(&self, instance: InstanceId) -> HostSeen;

    /// A task as its agent last told it.
    fn task(&self, instance: InstanceId, job: JobId) -> TaskSeen;

    /// Every task that an agent knows; none if it does not answer.
    fn tasks(&self, instance: InstanceId) -> Option<Vec<TaskState>>;

    /// Gives a task. Safe to repeat.
    async fn put(&self, instance: InstanceId, spec: &TaskSpec) -> Result<TaskState, OrderError>;

    /// Lets a task's command start. Safe to repeat.
    async fn go(&self, instance: InstanceId, job: JobId, generation: u64) -> Result<(), OrderError>;

    /// Tells a task to end. Safe to repeat.
    async fn stop(
        &self,
        instance: InstanceId,
        job: JobId,
        generation: u64,
        grace_secs: u64,
    ) -> Result<(), OrderError>;

    /// Lets the agent forget a task that is sealed. Safe to repeat.
    async fn forget(&self, instance: InstanceId, job: JobId, generation: u64) -> Result<(), OrderError>;

    /// Whether an agent has a file's bytes. An error of sending them is told once.
    async fn blob(&self, instance: InstanceId, sha256: &str) -> Result<BlobSeen, OrderError>;

    /// Begins to send a file's bytes, and makes the job due when that has ended. They are read when it is their turn.
    fn send_blob(&self, instance: InstanceId, job: JobId, sha256: &str, bytes: BlobBytes);

    /// Tells the agent to exit.
    async fn shutdown(&self, instance: InstanceId) -> Result<(), OrderError>;
}

/// Whether an agent answers.
#[derive(Debug, Clone, PartialEq)]
pub enum HostSeen {
    /// It does not; since when, if it ever did.
    Unknown {
        /// When the connection broke, or was first tried.
        since: Option<Timestamp>,
        /// Why, for people.
        error: Option<String>,
    },
    /// It does.
    Connected(Box<HostInfo>),
}

/// A task as its agent last told it.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskSeen {
    /// The agent does not answer, which says nothing about the task.
    Unknown,
    /// The agent answers and does not know the task.
    Absent,
    /// The agent answers.
    Known(Box<TaskState>),
}

/// Reads a file's bytes; gives none if they are gone.
pub type BlobBytes = BoxFuture<'static, store::Result<Option<Vec<u8>>>>;

/// Whether an agent has a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobSeen {
    /// It has.
    Here,
    /// Somebody sends it.
    OnItsWay,
    /// Nobody does.
    Missing,
    /// Nobody can: its bytes are gone. Told once.
    Lost,
}

/// Why an order did not reach a task.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OrderError {
    /// Nobody knows whether it did.
    #[error("the agent does not answer: {0}")]
    Unreachable(String),
    /// The agent said no.
    #[error(transparent)]
    Refused(AgentError),
}
