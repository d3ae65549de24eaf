//! This machine, divided into as many machines as are wanted. Each has a folder, a share of CPUs, memory and
//! GPUs, addresses of its own, and an agent of its own.
//!
//! The folders are the only memory, so servers may come and go, and several projects share one machine without
//! sharing a GPU. Agents outlive the server and end when they are idle; whoever needs one starts it again.
//! What users need to know is in `docs.md`.

mod addresses;
mod agents;
mod config;
mod facts;
mod machines;
mod offers;
mod processes;
mod shares;
mod sockets;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::backends::BackendType;
use api::ids::BackendId;
use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use self::agents::Agents;
use self::config::LocalConfig;
use self::facts::Facts;
use self::machines::{Machines, Record, cannot};
use self::shares::Room;
use crate::keys::invalid;
use crate::registry::{Entry, OpenContext};
use crate::{
    AgentAccess, Backend, BackendOffer, Capabilities, Error, ErrorKind, LaunchOrder, Machine, MachineKey,
    OffersWanted, Result, Survey,
};

/// What the list of backends knows of this folder.
pub(crate) static ENTRY: Entry = Entry {
    kind: "local",
    check: |config| config::parse(config).map(|_| config.clone()),
    // The official clients know machines of the user's own by this name.
    wire_type: |_| BackendType::Remote,
    is_hidden: true,
    is_for_tests: false,
    open,
};

/// The only region there is.
const REGION: &str = "local";

/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often we look whether they are.
const KILL_INTERVAL: Duration = Duration::from_millis(10);

fn open(config: &Value, context: &OpenContext, _: BackendId) -> Result<Arc<dyn Backend>> {
    let machines = Machines::open(&context.state_dir, context.server_id)?;
    Ok(Arc::new(Local {
        config: config::parse(config)?,
        facts: Facts::new(context.agent_binary.clone()),
        agents: Arc::new(Agents { binary: context.agent_binary.clone(), machines: machines.clone() }),
        machines,
    }))
}

/// This machine, as one project uses it.
#[derive(Debug)]
struct Local {
    config: LocalConfig,
    facts: Arc<Facts>,
    machines: Machines,
    agents: Arc<Agents>,
}

#[async_trait]
impl Backend for Local {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            launches: true,
            cluster: true,
            zonal: false,
            consistent_list: true,
            admins_only: true,
            spot: false,
            reservations: false,
            processes_without_image: true,
            provisioning_timeout_secs: 60,
        }
    }

    async fn offers(&self, wanted: &OffersWanted) -> Result<Survey<BackendOffer>> {
        let host = self.facts.get().await?;
        let whole = Room::of_host(&host, self.config);
        let machines = self.machines.clone();
        let held = blocking(move || machines.records()).await?;
        let left = whole.without(held.iter().map(|record| &record.share));
        Ok(Survey::whole(offers::offers(&host, &whole, &left, wanted.most.max(1))))
    }

    async fn launch(&self, launch: &LaunchOrder) -> Result<()> {
        let host = self.facts.get().await?;
        let whole = Room::of_host(&host, self.config);
        let (machines, agents, order) = (self.machines.clone(), Arc::clone(&self.agents), launch.clone());
        blocking(move || {
            for record in machines.launch(&order, &whole)? {
                agents.start_early(&record);
            }
            Ok(())
        })
        .await
    }

    async fn terminate(&self, machine: &MachineKey) -> Result<()> {
        let (machines, key) = (self.machines.clone(), machine.clone());
        let record = blocking(move || machines.mark_ending(&key)).await?;
        if let Some(record) = record {
            self.end(record).await?;
        }
        let machines = self.machines.clone();
        blocking(move || {
            machines.empty_trash();
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Survey<Machine>> {
        let machines = self.machines.clone();
        blocking(move || machines.list()).await.map(Survey::whole)
    }

    async fn agent_access(&self, machine: &Machine) -> Result<AgentAccess> {
        let (machines, key) = (self.machines.clone(), machine.key.clone());
        let Some(record) = blocking(move || machines.record(&key)).await? else {
            let key = &machine.key;
            return Err(invalid(format!("no machine {} of launch `{}`", key.index, key.launch_id)));
        };
        Ok(AgentAccess::UnixSocket(self.agents.reach(&record).await?))
    }
}

impl Local {
    /// Ends all processes of a machine that nobody may start again, and then takes it out of the books.
    async fn end(&self, record: Record) -> Result<()> {
        let home = self.machines.agent_home(&record.key);
        let (agents, locked) = (Arc::clone(&self.agents), record.clone());
        let lock = tokio::task::spawn_blocking(move || agents.lock(&locked)).await;
        let _lock = match lock.expect("taking a lock does not panic") {
            Ok(lock) => lock,
            // Somebody else ended it meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(cannot("lock", &self.machines.folder(&record.key), &error)),
        };
        kill(&home).await?;
        let (agents, ended) = (Arc::clone(&self.agents), record.clone());
        blocking(move || agents.remove_containers(&ended)).await?;
        // A container that was about to start when its agent died has started by now.
        kill(&home).await?;
        let (machines, agents) = (self.machines.clone(), Arc::clone(&self.agents));
        blocking(move || machines.remove(&record, || agents.remove_network(&record.container_network))).await
    }
}

/// Kills the processes of the agent with this home until none is left.
async fn kill(home: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let killed = home.to_owned();
        let left = blocking(move || Ok(processes::kill_all(&killed))).await?;
        if left == 0 {
            return Ok(());
        }
        if deadline < Instant::now() {
            let message = format!("{left} processes of `{}` do not die", home.display());
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        sleep(KILL_INTERVAL).await;
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.expect("work on folders does not panic")
}
