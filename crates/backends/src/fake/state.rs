//! The pretended cloud's state and what each verb does to it. Nothing here waits, reads a clock or rolls dice.

use std::collections::BTreeMap;

use api::ids::ServerId;
use api::instances::InstanceAvailability;

use super::ledger::{Ended, Ledger, MadeMachine, SeenLaunch};
use super::plan::{Call, CallFault, FaultPlan};
use super::setup::{FakeOffer, FakeSetup, Refusal};
use crate::{
    BackendOffer, Error, ErrorKind, LaunchOrder, Machine, MachineKey, MachineState, OffersWanted, Result,
};

pub(super) struct State {
    pub(super) setup: FakeSetup,
    pub(super) plan: Box<dyn FaultPlan>,
    pub(super) ledger: Ledger,
    pub(super) tick: u64,
    /// How many machines of a type may live at once in a zone; no entry: as many as wanted.
    pub(super) capacity: BTreeMap<(String, Option<String>), u32>,
    pub(super) refusals: Vec<Refusal>,
    /// Launches before this tick are asked too often.
    pub(super) limited_until: u64,
    /// Why what is made in a zone is ended a tick later.
    pub(super) ended_on_arrival: BTreeMap<String, String>,
}

impl State {
    /// Time passes: machines boot and stop, and some end by themselves.
    pub(super) fn tick(&mut self) {
        self.tick += 1;
        let tick = self.tick;
        for machine in self.ledger.machines.iter_mut().filter(|machine| machine.ended.is_none()) {
            if let Some(because) = self.plan.vanishes(&machine.key) {
                machine.ended = Some(Ended { tick, vanished_because: Some(because) });
            }
        }
    }

    pub(super) fn vanish(&mut self, key: &MachineKey, because: &str) -> bool {
        let tick = self.tick;
        let Some(machine) = self.living_mut(key) else {
            return false;
        };
        machine.ended = Some(Ended { tick, vanished_because: Some(because.to_owned()) });
        true
    }

    pub(super) fn offers(&mut self, wanted: &OffersWanted) -> Result<Vec<BackendOffer>> {
        self.faulty(&Call::Offers, |state| {
            let sold = state.setup.offers.iter().filter(|offer| offer.cluster || !wanted.cluster);
            let mut offers: Vec<BackendOffer> = sold.map(backend_offer).collect();
            offers.sort_by(|a, b| a.price_usd_per_hour.total_cmp(&b.price_usd_per_hour));
            Ok(offers)
        })
    }

    pub(super) fn launch(&mut self, server_id: ServerId, order: &LaunchOrder) -> Result<()> {
        let seen = self.ledger.launches.entry(order.launch_id);
        let seen = seen.or_insert_with(|| SeenLaunch { order: order.clone(), calls: 0, made: None });
        seen.calls += 1;
        self.faulty(&Call::Launch(order.launch_id), |state| state.launch_once(server_id, order))
    }

    fn launch_once(&mut self, server_id: ServerId, order: &LaunchOrder) -> Result<()> {
        let seen = self.ledger.launches.get(&order.launch_id);
        if let Some(SeenLaunch { order: first, made: Some(_), .. }) = seen {
            if first != order {
                let message = format!("launch `{}` was made before with another order", order.launch_id);
                return Err(Error::new(ErrorKind::InvalidRequest, message));
            }
            return Ok(());
        }
        if self.tick < self.limited_until {
            let error = Error::new(ErrorKind::RateLimited, "Request limit exceeded.");
            return Err(error.with_code("RequestLimitExceeded"));
        }
        self.check_order(order)?;
        let instance_type = &order.offer.instance_type.name;
        let zone = order.zone.clone().or_else(|| self.roomiest_zone(&order.offer));
        self.check_refusals(order, zone.as_ref())?;
        let count = order.count.min(self.free(instance_type, zone.as_ref()));
        if count < order.least.max(1) {
            return Err(self.sold_out(order, zone.as_ref()));
        }
        let because = zone.as_ref().and_then(|zone| self.ended_on_arrival.get(zone)).cloned();
        let end = because.map(|because| Ended { tick: self.tick + 1, vanished_because: Some(because) });
        for index in 0..count {
            self.ledger.machines.push(MadeMachine {
                key: MachineKey { launch_id: order.launch_id, index },
                server_id,
                provider_id: format!("fake-{:06}", self.ledger.machines.len() + 1),
                instance_type: instance_type.clone(),
                region: order.offer.region.clone(),
                zone: zone.clone(),
                created_tick: self.tick,
                ended: end.clone(),
                terminations: 0,
            });
        }
        if let Some(seen) = self.ledger.launches.get_mut(&order.launch_id) {
            // Refused tries before may have asked for something else.
            seen.order = order.clone();
            seen.made = Some(count);
        }
        Ok(())
    }

    fn check_order(&self, order: &LaunchOrder) -> Result<()> {
        let invalid = |message| Err(Error::new(ErrorKind::InvalidRequest, message));
        let name = &order.offer.instance_type.name;
        let is_same = |sold: &&FakeOffer| sold.instance_type.name == *name && sold.region == order.offer.region;
        let Some(sold) = self.setup.offers.iter().find(is_same) else {
            return invalid(format!("no type `{name}` in region `{}`", order.offer.region));
        };
        if order.count == 0 || order.count < order.least {
            return invalid(format!("cannot launch {} machines, at least {}", order.count, order.least));
        }
        if order.zone.as_ref().is_some_and(|zone| !sold.zones.contains(zone)) {
            return invalid(format!("no zone {:?} in region `{}`", order.zone, sold.region));
        }
        Ok(())
    }

    fn check_refusals(&self, order: &LaunchOrder, zone: Option<&String>) -> Result<()> {
        let is_meant =
            |wanted: &Option<String>, given: Option<&String>| wanted.is_none() || wanted.as_ref() == given;
        let refusal = self.refusals.iter().find(|refusal| {
            is_meant(&refusal.instance_type, Some(&order.offer.instance_type.name))
                && is_meant(&refusal.region, Some(&order.offer.region))
                && is_meant(&refusal.zone, zone)
        });
        refusal.map_or(Ok(()), |refusal| Err(refusal.error.clone()))
    }

    fn sold_out(&self, order: &LaunchOrder, zone: Option<&String>) -> Error {
        let instance_type = &order.offer.instance_type.name;
        let place = zone.unwrap_or(&order.offer.region);
        let message = format!("not enough capacity for {} × `{instance_type}` in `{place}`", order.count);
        let has_room = |zone: &&String| self.free(instance_type, Some(*zone)) >= order.least.max(1);
        let hints = order.offer.zones.iter().flatten().filter(|_| self.setup.gives_hints).filter(has_room);
        Error::new(ErrorKind::NoCapacity, message)
            .with_code("InsufficientInstanceCapacity")
            .with_zones(hints.cloned().collect())
    }

    fn roomiest_zone(&self, offer: &BackendOffer) -> Option<String> {
        let zones = offer.zones.iter().flatten();
        // The first of equals, so that nothing depends on chance.
        let free = |zone: &&String| self.free(&offer.instance_type.name, Some(*zone));
        zones.rev().max_by_key(free).cloned()
    }

    /// How many machines more may live in a zone.
    fn free(&self, instance_type: &str, zone: Option<&String>) -> u32 {
        let pool = (instance_type.to_owned(), zone.cloned());
        let Some(capacity) = self.capacity.get(&pool) else {
            return u32::MAX;
        };
        let is_there =
            |machine: &&MadeMachine| machine.instance_type == instance_type && machine.zone.as_ref() == zone;
        capacity.saturating_sub(self.ledger.living().filter(is_there).count() as u32)
    }

    pub(super) fn terminate(&mut self, key: &MachineKey) -> Result<()> {
        self.faulty(&Call::Terminate(key.clone()), |state| {
            let tick = state.tick;
            let found = state.ledger.machines.iter_mut().find(|machine| machine.key == *key);
            if let Some(machine) = found {
                machine.terminations += 1;
                machine.ended.get_or_insert(Ended { tick, vanished_because: None });
            }
            Ok(())
        })
    }

    pub(super) fn list(&mut self, server_id: ServerId) -> Result<Vec<Machine>> {
        if self.setup.lists_tick {
            self.tick();
        }
        self.faulty(&Call::List, |state| {
            let is_consistent = state.setup.capabilities.consistent_list;
            let lag = if is_consistent { 0 } else { state.setup.list_lag_ticks + state.plan.extra_lag_ticks() };
            let Some(tick) = state.tick.checked_sub(lag) else {
                return Ok(Vec::new());
            };
            let ours = state.ledger.machines.iter().enumerate();
            let ours = ours.filter(|(_, made)| made.server_id == server_id);
            let seen = ours.filter_map(|(number, made)| view(&state.setup, number, made, tick));
            let mut seen: Vec<Machine> = seen.collect();
            if !is_consistent {
                seen.retain(|machine| !state.plan.omits(&machine.key));
            }
            Ok(seen)
        })
    }

    pub(super) fn agent_access(&mut self, key: &MachineKey) -> Result<()> {
        self.faulty(&Call::AgentAccess(key.clone()), |state| {
            if state.is_running(key) {
                return Ok(());
            }
            let message = format!("machine {} of launch `{}` does not run", key.index, key.launch_id);
            Err(Error::new(ErrorKind::Unavailable, message))
        })
    }

    pub(super) fn is_running(&self, key: &MachineKey) -> bool {
        let found = self.ledger.living().find(|machine| machine.key == *key);
        found.is_some_and(|machine| machine.created_tick + self.setup.boot_ticks <= self.tick)
    }

    fn living_mut(&mut self, key: &MachineKey) -> Option<&mut MadeMachine> {
        let mut machines = self.ledger.machines.iter_mut();
        machines.find(|machine| machine.key == *key && machine.ended.is_none())
    }

    fn faulty<T>(&mut self, call: &Call, effect: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        match self.plan.call(call) {
            CallFault::None => effect(self),
            CallFault::Refuse(kind) => {
                let message = format!("{call:?} was refused as planned: {}", kind.as_str());
                Err(Error::new(kind, message))
            }
            CallFault::LoseReply => {
                // What it said is lost with the reply, a refusal as well.
                let _ = effect(self);
                let message = format!("the reply to {call:?} was lost as planned");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }
}

fn backend_offer(offer: &FakeOffer) -> BackendOffer {
    BackendOffer {
        instance_type: offer.instance_type.clone(),
        region: offer.region.clone(),
        zones: (!offer.zones.is_empty()).then(|| offer.zones.clone()),
        price_usd_per_hour: offer.price_usd_per_hour,
        availability: InstanceAvailability::Available,
        unavailable_because: None,
        available_from: None,
        zone_prices: BTreeMap::new(),
        most_disk_mib: None,
        backend_data: serde_json::Value::Null,
    }
}

/// A machine as it looked at that tick; none if it was not listed then.
fn view(setup: &FakeSetup, number: usize, made: &MadeMachine, tick: u64) -> Option<Machine> {
    if tick < made.created_tick {
        return None;
    }
    let ended = made.ended.as_ref().filter(|ended| ended.tick <= tick);
    let state = match ended {
        None if tick < made.created_tick + setup.boot_ticks => MachineState::Starting,
        None => MachineState::Running,
        Some(ended) => {
            // Nobody announces a machine that vanishes.
            let is_terminated = ended.vanished_because.is_none();
            let gone_tick = ended.tick + if is_terminated { setup.stopping_ticks } else { 0 };
            match tick {
                _ if tick < gone_tick => MachineState::Stopping,
                _ if tick < gone_tick + setup.gone_ticks => MachineState::Gone,
                _ => return None,
            }
        }
    };
    let is_up = matches!(state, MachineState::Running | MachineState::Stopping);
    let address = format!("10.0.{}.{}", number / 250, 1 + number % 250);
    Some(Machine {
        key: made.key.clone(),
        provider_id: made.provider_id.clone(),
        state,
        hostname: is_up.then(|| address.clone()),
        internal_ip: is_up.then_some(address),
        container_network: None,
        region: made.region.clone(),
        zone: made.zone.clone(),
        ended_because: ended.and_then(|ended| ended.vanished_because.clone()),
        lacked_room: ended.is_some_and(|ended| {
            ended.vanished_because.as_ref().is_some_and(|because| because.contains("Capacity"))
        }),
        login: None,
        network_path: vec![],
    })
}
