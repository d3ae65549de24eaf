//! The simulation as others hold it: one lock around the world, and whoever plays the machines told outside of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::auth::Request;
use crate::call::Reply;
use crate::clock::Clock;
use crate::control::ControlError;
use crate::instances::State;
use crate::ledger::{Entry, Kind};
use crate::machines::{MachineEvent, Machines, Report};
use crate::settings::Options;
use crate::world::{CallRecord, World};

/// A simulated cloud. Clones are the same cloud.
#[derive(Debug, Clone)]
pub struct Simulator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    clock: Clock,
    machines: Option<Arc<dyn Machines>>,
    /// Held while events are told, so that they are told in their order.
    telling: Mutex<()>,
    options: Options,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a test leaves a state that others may still look at.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_world(options: &Options) -> World {
    let now = options.clock.now();
    let mut world = World::new(options.settings.clone(), options.seed, options.credentials.clone(), now);
    world.profiles.insert("dstack-instance".to_owned(), "dstack-instance-role".to_owned());
    world
}

impl Simulator {
    /// A cloud whose machines nobody plays: they boot and end by the clock.
    pub fn new(options: Options) -> Simulator {
        Simulator::build(options, None)
    }

    /// A cloud whose machines are played by `machines`.
    pub fn with_machines(options: Options, machines: Arc<dyn Machines>) -> Simulator {
        Simulator::build(options, Some(machines))
    }

    fn build(options: Options, machines: Option<Arc<dyn Machines>>) -> Simulator {
        let world = Mutex::new(new_world(&options));
        Simulator(Arc::new(Shared {
            world,
            clock: options.clock.clone(),
            machines,
            telling: Mutex::new(()),
            options,
        }))
    }

    /// Does something with the world, and tells afterwards what happened to machines.
    fn with<T>(&self, act: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let result = {
            let mut world = lock(&self.0.world);
            let now = self.0.clock.now();
            act(&mut world, now)
        };
        self.tell();
        result
    }

    fn tell(&self) {
        loop {
            // Whoever is told may call back in, and another may tell already: they will find what came of this.
            let Ok(telling) = self.0.telling.try_lock() else { return };
            let events = std::mem::take(&mut lock(&self.0.world).outbox);
            if let Some(machines) = &self.0.machines {
                for event in &events {
                    machines.happened(event);
                }
            }
            drop(telling);
            // Something may have come from one who found the lock taken.
            if lock(&self.0.world).outbox.is_empty() {
                return;
            }
        }
    }

    /// Answers a request. The reply says how long it is to be held back.
    pub fn call(&self, request: &Request) -> Reply {
        self.with(|world, now| world.handle(request, now))
    }

    /// Lets everything happen that is due, and answers when something is due next.
    pub fn advance(&self) -> Option<Timestamp> {
        self.with(|world, now| {
            world.advance(now);
            world.next_due()
        })
    }

    /// Moves a manual clock, and lets everything happen that is due then.
    pub fn advance_clock(&self, by: Duration) {
        self.0.clock.advance(by);
        self.advance();
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Carries out an order, as `POST /_ec2sim/<name>` does.
    pub fn control(&self, name: &str, body: &Value) -> Result<Value, ControlError> {
        if name == "reset" {
            let mut world = lock(&self.0.world);
            let old = std::mem::replace(&mut *world, new_world(&self.0.options));
            // Whoever plays the machines must not go on with those that nobody knows any more.
            let instances = old.regions.values().flat_map(|region| region.instances.values());
            let gone = instances.filter(|instance| instance.state() != State::Terminated);
            world.outbox = old.outbox;
            world.outbox.extend(gone.map(|instance| MachineEvent::Ended { instance_id: instance.id.clone() }));
            drop(world);
            self.tell();
            return Ok(Value::Null);
        }
        if name == "clock/advance" {
            let by = body["ms"].as_u64().ok_or("say `ms`: by how much")?;
            if matches!(self.0.clock, Clock::System) {
                return Err("the clock is the machine's, which does not obey".into());
            }
            self.advance_clock(Duration::from_millis(by));
            return Ok(Value::Null);
        }
        self.with(|world, now| {
            world.advance(now);
            world.control(name, body)
        })
    }

    /// Looks at something, as `GET /_ec2sim/<name>` does.
    pub fn look(&self, name: &str) -> Result<Value, ControlError> {
        self.with(|world, now| {
            world.advance(now);
            world.look(name)
        })
    }

    /// Takes what a machine tells of itself.
    pub fn report(&self, report: &Report) -> Result<(), ControlError> {
        self.with(|world, now| {
            world.advance(now);
            Ok(crate::instances::report(world, report)?)
        })
    }

    /// Everything that was ever made.
    pub fn ledger(&self) -> Vec<Entry> {
        self.with(|world, now| {
            world.advance(now);
            world.ledger.entries().to_vec()
        })
    }

    /// Everything that was made and is not gone.
    pub fn alive(&self) -> Vec<Entry> {
        self.with(|world, now| {
            world.advance(now);
            world.ledger.alive()
        })
    }

    /// How many things of a kind are there.
    pub fn count_alive(&self, kind: Kind) -> usize {
        self.with(|world, now| {
            world.advance(now);
            world.count_alive(kind)
        })
    }

    /// The last calls.
    pub fn calls(&self) -> Vec<CallRecord> {
        self.with(|world, _| world.calls.last.iter().cloned().collect())
    }

    /// How often each action was called.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.with(|world, _| world.calls.counts.clone())
    }
}
