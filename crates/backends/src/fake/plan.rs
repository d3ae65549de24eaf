//! What goes wrong in the pretended cloud, decided by the test.

use api::ids::LaunchId;

use crate::{ErrorKind, MachineKey};

/// Decides what goes wrong. The cloud itself has no clock and no dice, so a plan that repeats itself makes the
/// whole cloud repeat itself.
///
/// A closure from [`Call`] to [`CallFault`] is a plan too. A plan is asked while the cloud is locked, so it must
/// not use the cloud's handle.
pub trait FaultPlan: Send {
    /// What happens to one call.
    fn call(&mut self, call: &Call) -> CallFault;

    /// How many ticks older than the rest one listing is. Never asked of a cloud with a consistent list.
    fn extra_lag_ticks(&mut self) -> u64 {
        0
    }

    /// Whether one listing omits a machine. Never asked of a cloud with a consistent list.
    fn omits(&mut self, _machine: &MachineKey) -> bool {
        false
    }

    /// Why a machine ends by itself in this tick, if it does. Asked for each machine that lives.
    fn vanishes(&mut self, _machine: &MachineKey) -> Option<String> {
        None
    }
}

/// One call of a verb.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the verbs")]
pub enum Call {
    Offers,
    Launch(LaunchId),
    Terminate(MachineKey),
    List,
    AgentAccess(MachineKey),
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CallFault {
    /// It is answered.
    #[default]
    None,
    /// It is refused before it has an effect.
    Refuse(ErrorKind),
    /// It has its effect, and the answer is lost: the caller sees `Unavailable`.
    LoseReply,
}

impl<F: FnMut(&Call) -> CallFault + Send> FaultPlan for F {
    fn call(&mut self, call: &Call) -> CallFault {
        self(call)
    }
}

/// Nothing goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct NoFaults;

impl FaultPlan for NoFaults {
    fn call(&mut self, _call: &Call) -> CallFault {
        CallFault::None
    }
}
