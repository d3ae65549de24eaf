//! The agents of instances: who answers, what each task does, and the orders that we give.

mod absences;
mod connection;
pub mod hosts;
mod log_pull;
mod pool;
mod route;
mod sender;

pub use pool::{AgentPool, Surroundings};
pub use route::Route;

use std::collections::BTreeMap;
use std::fmt;

use api::agent::{AgentError, GoOrder, HostInfo, TaskSpec, TaskState};
use api::ids::{InstanceId, JobId};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::HeaderValue;
use jiff::Timestamp;
use lifecycle::instance::Leaving;
use tokio::sync::mpsc;

use self::hosts::{HostAccess, JoinStep};

/// What can be asked of agents. The real one is [`AgentPool`]; simulations have their own.
#[async_trait]
pub trait Agents: fmt::Debug + Send + Sync {
    /// Keeps a connection to an instance's agent, made anew whenever it breaks.
    fn keep(&self, instance: InstanceId, route: Route);

    /// Whether a connection is kept, so that nobody need find out the way.
    fn is_kept(&self, instance: InstanceId) -> bool;

    /// Lets go of an instance's agent.
    fn drop_connection(&self, instance: InstanceId);

    /// Whether an instance's agent answers, and what its host has.
    fn host(&self, instance: InstanceId) -> HostSeen;

    /// How far a machine of the user's own is joined, while it is.
    fn joining(&self, _instance: InstanceId) -> Option<JoinStep> {
        None
    }

    /// The keys that a machine of the user's own and the hosts on the way to it have shown, by address.
    fn host_keys(&self, _instance: InstanceId) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Begins to leave a machine of the user's own, unless somebody does: ends its agent and removes what was
    /// installed. The instance falls due when that has ended.
    fn leave(&self, _instance: InstanceId, _access: HostAccess) {}

    /// How far a machine of the user's own is left.
    fn leaving(&self, _instance: InstanceId) -> Leaving {
        Leaving::NotYet
    }

    /// Whether some agent knows a server of this installation that started later, so that what this one remembers is
    /// old.
    fn is_superseded(&self) -> bool {
        false
    }

    /// Asks the agent of a machine that no row claims for its tasks. Nothing is changed there, but that the agent learns of
    /// this server. None: there is no agent; an error: nobody knows.
    async fn visit(&self, _route: Route) -> anyhow::Result<Option<Vec<TaskState>>> {
        anyhow::bail!("nobody is visited here")
    }

    /// A task as its agent last told it.
    fn task(&self, instance: InstanceId, job: JobId) -> TaskSeen;

    /// Since when nobody has been in a job that people work in, by our clock; none while somebody is, or while the agent
    /// does not answer.
    fn unvisited_since(&self, _instance: InstanceId, _job: JobId) -> Option<Timestamp> {
        None
    }

    /// Every task that an agent knows; none if it does not answer.
    fn tasks(&self, instance: InstanceId) -> Option<Vec<TaskState>>;

    /// Gives a task. Safe to repeat.
    async fn put(&self, instance: InstanceId, spec: &TaskSpec) -> Result<TaskState, OrderError>;

    /// Lets a task's command start. Safe to repeat.
    async fn go(&self, instance: InstanceId, job: JobId, order: &GoOrder) -> Result<(), OrderError>;

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

    /// Connects to the SSH server of a job.
    async fn enter(&self, _instance: InstanceId, _job: JobId) -> Result<Entered, OrderError> {
        Err(OrderError::Unreachable("nobody can be entered here".to_owned()))
    }

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
        /// It is no use to try again.
        is_final: bool,
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

/// A connection to the SSH server of a job.
pub struct Entered {
    /// What goes there; dropping it says that nothing more does.
    pub input: mpsc::Sender<Bytes>,
    /// What comes from there.
    pub output: BoxStream<'static, std::io::Result<Bytes>>,
    /// The network whose ports the job's are, if it has none of its own.
    pub network: Option<HeaderValue>,
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
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
