//! One kept connection per instance.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use api::agent::{AgentError, AgentErrorCode, GoOrder, StopOrder, TaskOrder, TaskSpec, TaskState};
use api::ids::{InstanceId, JobId, ServerId};
use async_trait::async_trait;
use jiff::Timestamp;
use lifecycle::instance::Leaving;
use store::Db;
use tokio_util::sync::CancellationToken;

use super::connection::{self, Connection};
use super::hosts::{self, AgentProgram, HostAccess, JoinStep, Left};
use super::route::Route;
use super::{Agents, BlobBytes, BlobSeen, Entered, HostSeen, OrderError, TaskSeen};
use crate::clock::Clock;
use crate::ids::Ids;
use crate::logs::LogStore;
use crate::wake::Wake;

/// What connections need of the server.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The database, to make rows due.
    pub db: Db,
    /// The clock.
    pub clock: Clock,
    /// Chance, for jitter.
    pub ids: Ids,
    /// Wakes reconcilers.
    pub wake: Wake,
    /// Where logs go.
    pub logs: Arc<LogStore>,
    /// This server.
    pub server_id: ServerId,
    /// Grows with each start of a server on this database.
    pub epoch: u64,
    /// Some agent knows a server of this installation that started later.
    pub superseded: Arc<AtomicBool>,
    /// What machines of the user's own are given.
    pub agent_program: Arc<AgentProgram>,
}

/// The real agents.
#[derive(Debug)]
pub struct AgentPool {
    around: Surroundings,
    connections: Mutex<HashMap<InstanceId, Arc<Connection>>>,
    /// Machines of the user's own that are being left or have been; none while somebody is at it.
    left: Arc<Mutex<HashMap<InstanceId, Option<Leaving>>>>,
    shutdown: CancellationToken,
}

impl AgentPool {
    /// A pool without connections, which all end when `shutdown` is cancelled.
    pub fn new(around: Surroundings, shutdown: CancellationToken) -> AgentPool {
        AgentPool { around, connections: Mutex::default(), left: Arc::default(), shutdown }
    }

    fn left(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Option<Leaving>>> {
        self.left.lock().expect("nobody panics while leaving")
    }

    fn find(&self, instance: InstanceId) -> Option<Arc<Connection>> {
        self.connections.lock().expect("nobody panics while connecting").get(&instance).cloned()
    }

    fn connected(&self, instance: InstanceId) -> Result<Arc<Connection>, OrderError> {
        self.find(instance).ok_or_else(|| OrderError::Unreachable("there is no connection".to_owned()))
    }
}

#[async_trait]
impl Agents for AgentPool {
    fn is_kept(&self, instance: InstanceId) -> bool {
        self.find(instance).is_some()
    }

    fn keep(&self, instance: InstanceId, route: Route) {
        let mut connections = self.connections.lock().expect("nobody panics while connecting");
        if connections.contains_key(&instance) {
            return;
        }
        let connection = Arc::new(Connection::new(instance, self.around.clock.now(), self.shutdown.child_token()));
        connections.insert(instance, connection.clone());
        tokio::spawn(connection::keep(connection, self.around.clone(), route));
    }

    fn drop_connection(&self, instance: InstanceId) {
        let connection = self.connections.lock().expect("nobody panics while connecting").remove(&instance);
        if let Some(connection) = connection {
            connection.close();
        }
        // Nobody asks any more once the instance is over, and that is when this is called for the last time.
        self.left().retain(|id, left| *id != instance || left.is_none());
    }

    fn host(&self, instance: InstanceId) -> HostSeen {
        let unknown = HostSeen::Unknown { since: None, error: None, is_final: false };
        self.find(instance).map_or(unknown, |connection| connection.host())
    }

    fn joining(&self, instance: InstanceId) -> Option<JoinStep> {
        self.find(instance)?.joining()
    }

    fn host_keys(&self, instance: InstanceId) -> BTreeMap<String, String> {
        self.find(instance).map(|connection| connection.host_keys()).unwrap_or_default()
    }

    fn leave(&self, instance: InstanceId, access: HostAccess) {
        {
            let mut left = self.left();
            if matches!(left.get(&instance), Some(None | Some(Leaving::Done))) {
                return;
            }
            left.insert(instance, None);
        }
        self.drop_connection(instance);
        let (around, all) = (self.around.clone(), self.left.clone());
        tokio::spawn(async move {
            let left = match hosts::leave(&access, &around.clock).await {
                Ok(Left::Removed | Left::Nothing) => Leaving::Done,
                Ok(Left::HostGone(error)) => Leaving::Failed(error),
                Err(error) => Leaving::Failed(error.message),
            };
            all.lock().expect("nobody panics while leaving").insert(instance, Some(left));
            connection::touch_instance(&around, instance).await;
        });
    }

    fn is_superseded(&self) -> bool {
        self.around.superseded.load(Ordering::Relaxed)
    }

    async fn visit(&self, route: Route) -> anyhow::Result<Option<Vec<TaskState>>> {
        connection::visit(&self.around, route).await
    }

    fn leaving(&self, instance: InstanceId) -> Leaving {
        self.left().get(&instance).cloned().flatten().unwrap_or(Leaving::NotYet)
    }

    fn task(&self, instance: InstanceId, job: JobId) -> TaskSeen {
        self.find(instance).map_or(TaskSeen::Unknown, |connection| connection.task(job))
    }

    fn unvisited_since(&self, instance: InstanceId, job: JobId) -> Option<Timestamp> {
        self.find(instance)?.unvisited_since(job)
    }

    fn tasks(&self, instance: InstanceId) -> Option<Vec<TaskState>> {
        self.find(instance)?.tasks()
    }

    async fn put(&self, instance: InstanceId, spec: &TaskSpec) -> Result<TaskState, OrderError> {
        let connection = self.connected(instance)?;
        let state: TaskState = connection.send("PUT", &format!("/v1/tasks/{}", spec.id), spec).await?;
        connection.learn(&self.around, state.clone());
        Ok(state)
    }

    async fn go(&self, instance: InstanceId, job: JobId, order: &GoOrder) -> Result<(), OrderError> {
        let connection = self.connected(instance)?;
        let state: TaskState = connection.send("POST", &format!("/v1/tasks/{job}/go"), order).await?;
        connection.learn(&self.around, state);
        Ok(())
    }

    async fn stop(
        &self,
        instance: InstanceId,
        job: JobId,
        generation: u64,
        grace_secs: u64,
    ) -> Result<(), OrderError> {
        let connection = self.connected(instance)?;
        let order = StopOrder { generation, grace_secs };
        let state: TaskState = connection.send("POST", &format!("/v1/tasks/{job}/stop"), &order).await?;
        connection.learn(&self.around, state);
        Ok(())
    }

    async fn forget(&self, instance: InstanceId, job: JobId, generation: u64) -> Result<(), OrderError> {
        let connection = self.connected(instance)?;
        let order = TaskOrder { generation };
        match connection.send::<_, ()>("POST", &format!("/v1/tasks/{job}/forget"), &order).await {
            Err(OrderError::Refused(AgentError { code: AgentErrorCode::UnknownTask, .. })) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn blob(&self, instance: InstanceId, sha256: &str) -> Result<BlobSeen, OrderError> {
        self.connected(instance)?.blob(sha256).await
    }

    fn send_blob(&self, instance: InstanceId, job: JobId, sha256: &str, bytes: BlobBytes) {
        if let Some(connection) = self.find(instance) {
            connection.send_blob(&self.around, job, sha256.to_owned(), bytes);
        }
    }

    async fn enter(&self, instance: InstanceId, job: JobId) -> Result<Entered, OrderError> {
        self.connected(instance)?.enter(job).await
    }

    async fn shutdown(&self, instance: InstanceId) -> Result<(), OrderError> {
        self.connected(instance)?.send::<_, ()>("POST", "/v1/shutdown", &()).await
    }
}
