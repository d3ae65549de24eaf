//! Everything that reads a clock, rolls dice or leaves the process, built once in `main` and once per test.

use std::path::PathBuf;
use std::sync::Arc;

use api::ids::ServerId;
use store::Db;

use crate::agents::Agents;
use crate::backend_pool::BackendPool;
use crate::clock::Clock;
use crate::gangs::Gangs;
use crate::ids::Ids;
use crate::logs::LogStore;
use crate::sealing::Sealer;
use crate::settings::Settings;
use crate::wake::Wake;

/// What every handler and reconciler is given.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The database.
    pub db: Db,
    /// The clock.
    pub clock: Clock,
    /// Identifiers and other chance.
    pub ids: Ids,
    /// Wakes reconcilers.
    pub wake: Wake,
    /// Seals what is secret at rest.
    pub sealer: Arc<Sealer>,
    /// Backends, opened from their rows.
    pub backends: Arc<BackendPool>,
    /// The agents of instances.
    pub agents: Arc<dyn Agents>,
    /// What the nodes of gangs are told of each other.
    pub gangs: Arc<Gangs>,
    /// The logs of jobs.
    pub logs: Arc<LogStore>,
    /// What the server was told when it started.
    pub settings: Arc<Settings>,
    /// Who this server is to agents.
    pub server_id: ServerId,
    /// Where the server keeps its files.
    pub data_dir: PathBuf,
}
