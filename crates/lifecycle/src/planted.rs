//! Mistakes that a test can turn on, to prove that the simulation finds them. In every other build nothing is planted.

/// A mistake that somebody could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A backend that does not answer is taken for one that lists nothing.
    SilenceTakenForAbsence,
    /// A machine that is missing from one list is taken for gone.
    OneAbsenceBelieved,
    /// The order to end a machine is given once.
    TerminateNotRepeated,
    /// The backend is asked for machines before that is recorded.
    EffectBeforeRecord,
    /// A node starts as soon as it is ready itself.
    GoBeforeAllAreReady,
    /// A gang that does not fit gets the nodes that do.
    HalfAGangKept,
    /// The last failure that is seen is taken for the cause.
    PeersExitTakenForCause,
    /// A run that is over is judged like one that goes on.
    FinishedRunJudgedAgain,
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Turns one mistake on for this thread, or all off.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether a mistake is turned on.
#[cfg(feature = "planted-bugs")]
pub fn has(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether a mistake is turned on: never.
#[cfg(not(feature = "planted-bugs"))]
pub const fn has(_bug: Bug) -> bool {
    false
}
