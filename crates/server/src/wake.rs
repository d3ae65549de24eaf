//! Wakes reconcilers. A wake-up carries no data and may be lost: it only says "look now".

use std::sync::Arc;

use store::leases::Table;
use tokio::sync::Notify;

/// One bell per reconciler. Ring after the commit.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    fleets: Arc<Notify>,
    launches: Arc<Notify>,
    instances: Arc<Notify>,
    runs: Arc<Notify>,
    jobs: Arc<Notify>,
    placement: Arc<Notify>,
    changed: Arc<Notify>,
}

impl Wake {
    /// Rings the bell of a table's reconciler.
    pub fn ring(&self, table: Table) {
        self.bell(table).notify_one();
    }

    /// The bell of a table's reconciler.
    pub fn bell(&self, table: Table) -> &Notify {
        match table {
            Table::Fleets => &self.fleets,
            Table::Launches => &self.launches,
            Table::Instances => &self.instances,
            Table::Runs => &self.runs,
            Table::Jobs => &self.jobs,
        }
    }

    /// Says that a run waits, or that something fell free.
    pub fn ring_placement(&self) {
        self.placement.notify_one();
    }

    /// The bell of the placement pass.
    pub fn placement_bell(&self) -> &Notify {
        &self.placement
    }

    /// Tells live streams that something about a run may have changed.
    pub fn tell_watchers(&self) {
        self.changed.notify_waiters();
    }

    /// What live streams wait for.
    pub fn watchers_bell(&self) -> &Notify {
        &self.changed
    }
}
