//! A pretended cloud for tests, simulations and demonstrations. Everything it does is decided by the test that
//! holds its [`FakeCloud`]: what it sells, how slow it is, and what goes wrong.
//!
//! Time is a counter of ticks. Its books, the [`Ledger`], hold everything ever made, so that a test can assert
//! that nothing was forgotten or made twice, whatever the server was told.

mod ledger;
mod plan;
mod setup;
mod state;

pub use ledger::{Ended, Ledger, MadeMachine, SeenLaunch};
pub use plan::{Call, CallFault, FaultPlan, NoFaults};
pub use setup::{FakeOffer, FakeSetup, Refusal};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::backends::BackendType;
use api::ids::{BackendId, ServerId};
use async_trait::async_trait;
use serde_json::Value;

use self::state::State;
use crate::keys::{Keys, invalid};
use crate::registry::{Entry, OpenContext};
use crate::{
    AgentAccess, Backend, BackendOffer, Capabilities, LaunchOrder, Machine, MachineKey, OffersWanted, Result,
    Survey,
};

/// What the list of backends knows of this folder.
pub(crate) static ENTRY: Entry = Entry {
    kind: "fake",
    check: |config| parse(config).map(|_| config.clone()),
    wire_type: |config| parse(config).map_or(DEFAULT_WIRE_TYPE, |config| config.wire_type),
    is_hidden: false,
    is_for_tests: true,
    open,
};

/// Clients refuse names that they do not know, so this one borrows a name.
const DEFAULT_WIRE_TYPE: BackendType = BackendType::Cudo;

/// The configuration, for tests that care.
struct Config {
    /// The name on the wire.
    wire_type: BackendType,
    /// Only global admins may use it, whatever the cloud's setup says.
    admins_only: bool,
}

fn parse(config: &Value) -> Result<Config> {
    let keys = Keys::of("fake", config, &["wire_type", "admins_only"])?;
    Ok(Config {
        wire_type: keys.optional("wire_type")?.unwrap_or(DEFAULT_WIRE_TYPE),
        admins_only: keys.optional("admins_only")?.unwrap_or(false),
    })
}

fn open(config: &Value, context: &OpenContext, _: BackendId) -> Result<Arc<dyn Backend>> {
    let Some(cloud) = &context.fake else {
        return Err(invalid("the backend `fake` is only for tests"));
    };
    let admins_only = parse(config)?.admins_only;
    Ok(Arc::new(Fake { cloud: cloud.clone(), server_id: context.server_id, admins_only }))
}

/// The handle of a pretended cloud. Its clones are the same cloud.
#[derive(Clone)]
pub struct FakeCloud {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for FakeCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("FakeCloud")
            .field("tick", &state.tick)
            .field("machines", &state.ledger.machines.len())
            .finish_non_exhaustive()
    }
}

impl Default for FakeCloud {
    fn default() -> Self {
        FakeCloud::new(FakeSetup::default())
    }
}

impl FakeCloud {
    /// An empty cloud in which nothing goes wrong yet.
    pub fn new(setup: FakeSetup) -> FakeCloud {
        let state = State {
            setup,
            plan: Box::new(NoFaults),
            ledger: Ledger::default(),
            tick: 0,
            capacity: BTreeMap::new(),
            refusals: vec![],
            limited_until: 0,
            ended_on_arrival: BTreeMap::new(),
        };
        FakeCloud { state: Arc::new(Mutex::new(state)) }
    }

    /// The cloud as one server uses it. What it makes carries that server's mark.
    pub fn backend(&self, server_id: ServerId) -> Arc<dyn Backend> {
        Arc::new(Fake { cloud: self.clone(), server_id, admins_only: false })
    }

    /// From now on this plan decides what goes wrong.
    pub fn set_plan(&self, plan: impl FaultPlan + 'static) {
        self.state().plan = Box::new(plan);
    }

    /// Changes what the cloud sells and how slow it is.
    pub fn change_setup(&self, change: impl FnOnce(&mut FakeSetup)) {
        change(&mut self.state().setup);
    }

    /// How many machines of a type may live at once in a zone; none: as many as wanted.
    pub fn set_capacity(&self, instance_type: &str, zone: Option<&str>, capacity: Option<u32>) {
        let pool = (instance_type.to_owned(), zone.map(str::to_owned));
        let mut state = self.state();
        match capacity {
            Some(capacity) => state.capacity.insert(pool, capacity),
            None => state.capacity.remove(&pool),
        };
    }

    /// From now on the cloud refuses these; an empty list: nothing.
    pub fn set_refusals(&self, refusals: Vec<Refusal>) {
        self.state().refusals = refusals;
    }

    /// For so many ticks the cloud says to every launch that it is asked too often.
    pub fn limit_rate(&self, ticks: u64) {
        let mut state = self.state();
        state.limited_until = state.tick + ticks;
    }

    /// Whatever is made in a zone from now on is accepted, and ended by the cloud a tick later; none: it lives.
    pub fn end_on_arrival(&self, zone: &str, because: Option<&str>) {
        let mut state = self.state();
        match because {
            Some(because) => state.ended_on_arrival.insert(zone.to_owned(), because.to_owned()),
            None => state.ended_on_arrival.remove(zone),
        };
    }

    /// One step of time passes.
    pub fn tick(&self) {
        self.state().tick();
    }

    /// The steps of time that have passed.
    pub fn now_tick(&self) -> u64 {
        self.state().tick
    }

    /// Ends a machine as a cloud that takes it back does. False: it did not live.
    pub fn vanish(&self, machine: &MachineKey, because: &str) -> bool {
        self.state().vanish(machine, because)
    }

    /// Whether a machine is up, so that a simulated agent may answer.
    pub fn is_running(&self, machine: &MachineKey) -> bool {
        self.state().is_running(machine)
    }

    /// A copy of the books.
    pub fn ledger(&self) -> Ledger {
        self.state().ledger.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A plan that panics fails its test; the state is whole even so.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cloud as one server uses it.
#[derive(Debug)]
struct Fake {
    cloud: FakeCloud,
    server_id: ServerId,
    admins_only: bool,
}

#[async_trait]
impl Backend for Fake {
    fn capabilities(&self) -> Capabilities {
        let capabilities = self.cloud.state().setup.capabilities;
        Capabilities { admins_only: self.admins_only || capabilities.admins_only, ..capabilities }
    }

    async fn offers(&self, wanted: &OffersWanted) -> Result<Survey<BackendOffer>> {
        self.cloud.state().offers(wanted).map(Survey::whole)
    }

    async fn launch(&self, launch: &LaunchOrder) -> Result<()> {
        self.cloud.state().launch(self.server_id, launch)
    }

    async fn terminate(&self, machine: &MachineKey) -> Result<()> {
        self.cloud.state().terminate(machine)
    }

    async fn list(&self) -> Result<Survey<Machine>> {
        self.cloud.state().list(self.server_id).map(Survey::whole)
    }

    async fn agent_access(&self, machine: &Machine) -> Result<AgentAccess> {
        self.cloud.state().agent_access(&machine.key)?;
        Ok(AgentAccess::Simulated)
    }
}
