//! The book of everything that was ever made: what is made and not deleted is an orphan, whoever asks for it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::filters::Tags;

/// A kind of thing that costs money or stays behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A machine.
    Instance,
    /// A network interface.
    NetworkInterface,
    /// A public address that was allocated.
    ElasticIp,
    /// A disk.
    Volume,
    /// A placement group.
    PlacementGroup,
    /// A security group.
    SecurityGroup,
    /// A rule of a security group.
    SecurityGroupRule,
    /// A public key.
    KeyPair,
    /// A request for spot capacity.
    SpotInstancesRequest,
    /// Capacity that was bought.
    CapacityReservation,
}

/// A thing that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its identifier.
    pub id: String,
    /// Where it is.
    pub region: String,
    /// The action that made it.
    pub made_by: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// When it was gone, if it is.
    pub gone_at: Option<Timestamp>,
    /// The tags that it was made with.
    pub tags: BTreeMap<String, String>,
}

/// All things that were made, in the order of their making.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    /// Where the things that are not gone stand.
    alive: BTreeMap<(Kind, String), usize>,
}

impl Ledger {
    pub(crate) fn made(&mut self, kind: Kind, id: &str, region: &str, by: &str, at: Timestamp, tags: &Tags) {
        self.alive.insert((kind, id.to_owned()), self.entries.len());
        self.entries.push(Entry {
            kind,
            id: id.to_owned(),
            region: region.to_owned(),
            made_by: by.to_owned(),
            made_at: at,
            gone_at: None,
            tags: tags.clone(),
        });
    }

    pub(crate) fn gone(&mut self, kind: Kind, id: &str, at: Timestamp) {
        if let Some(index) = self.alive.remove(&(kind, id.to_owned())) {
            self.entries[index].gone_at = Some(at);
        }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn alive(&self) -> Vec<Entry> {
        let mut indexes: Vec<usize> = self.alive.values().copied().collect();
        indexes.sort_unstable();
        indexes.into_iter().map(|index| self.entries[index].clone()).collect()
    }
}
