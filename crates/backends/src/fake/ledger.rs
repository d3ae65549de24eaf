//! The pretended cloud's own books: everything ever made in it, whatever its callers were told.

use std::collections::BTreeMap;

use api::ids::{LaunchId, ServerId};

use crate::{LaunchOrder, MachineKey};

/// Everything that ever happened in the cloud.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    /// Every machine ever made, oldest first.
    pub machines: Vec<MadeMachine>,
    /// Every launch ever asked for.
    pub launches: BTreeMap<LaunchId, SeenLaunch>,
}

/// A machine that was made at some time.
#[derive(Debug, Clone, PartialEq)]
pub struct MadeMachine {
    /// Which of whose launch.
    pub key: MachineKey,
    /// The server whose mark it carries.
    pub server_id: ServerId,
    /// The cloud's own identifier.
    pub provider_id: String,
    /// The type that was bought.
    pub instance_type: String,
    /// Where.
    pub region: String,
    /// Its zone.
    pub zone: Option<String>,
    /// The tick in which it was made.
    pub created_tick: u64,
    /// How it ended; none while it lives and costs money.
    pub ended: Option<Ended>,
    /// How many terminations reached it.
    pub terminations: u32,
}

/// The end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The tick in which it ended.
    pub tick: u64,
    /// Why it ended by itself; none if somebody terminated it.
    pub vanished_because: Option<String>,
}

/// A launch that somebody asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenLaunch {
    /// The first order with this identifier.
    pub order: LaunchOrder,
    /// How often it was asked for.
    pub calls: u32,
    /// How many machines it made; none if it was always refused.
    pub made: Option<u32>,
}

impl Ledger {
    /// The machines that live now.
    pub fn living(&self) -> impl Iterator<Item = &MadeMachine> {
        self.machines.iter().filter(|machine| machine.ended.is_none())
    }

    /// The machines of one launch.
    pub fn of_launch(&self, launch_id: LaunchId) -> impl Iterator<Item = &MadeMachine> {
        self.machines.iter().filter(move |machine| machine.key.launch_id == launch_id)
    }

    /// One machine, if it was ever made.
    pub fn machine(&self, key: &MachineKey) -> Option<&MadeMachine> {
        self.machines.iter().find(|machine| machine.key == *key)
    }

    /// The sum over all machines of the ticks that they lived until `tick`.
    pub fn machine_ticks(&self, tick: u64) -> u64 {
        let ticks = |machine: &MadeMachine| {
            let end = machine.ended.as_ref().map_or(tick, |ended| ended.tick);
            end.saturating_sub(machine.created_tick)
        };
        self.machines.iter().map(ticks).sum()
    }
}
