//! The regions that are looked at: those of the configuration, and those that were in it and may still have machines; and
//! the account that all of them are in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use api::ids::BackendId;
use serde::{Deserialize, Serialize};

/// The regions of one backend. Where something was launched is kept in a file, so that a region which leaves the
/// configuration is looked at until nothing of ours is there.
#[derive(Debug)]
pub(super) struct Regions {
    file: PathBuf,
    configured: Vec<String>,
    used: Mutex<Used>,
    /// How many times something was about to be made since the start.
    uses: AtomicU64,
}

/// Where something was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    regions: BTreeSet<String>,
    /// The account; none: nothing was made, or nobody knows.
    #[serde(default)]
    account: Option<String>,
}

impl Regions {
    /// The regions as they were left.
    pub(super) fn open(dir: &Path, backend: BackendId, configured: &[String]) -> Regions {
        let file = dir.join(format!("regions-{backend}.json"));
        let bytes = std::fs::read(&file).unwrap_or_default();
        // Once it was a list of regions and nothing else.
        let old = || Some(Used { regions: serde_json::from_slice(&bytes).ok()?, account: None });
        let used = serde_json::from_slice(&bytes).ok().or_else(old).unwrap_or_default();
        Regions { file, configured: configured.to_vec(), used: Mutex::new(used), uses: AtomicU64::new(0) }
    }

    /// All that are looked at, those of the configuration first.
    pub(super) fn watched(&self) -> Vec<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let others = used.regions.iter().filter(|region| !self.configured.contains(region));
        self.configured.iter().chain(others).cloned().collect()
    }

    /// The account in which something of ours may be.
    pub(super) fn account(&self) -> Option<String> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).account.clone()
    }

    /// Something is about to be made in a region of an account. An error says that this could not be kept.
    pub(super) fn use_one(&self, region: &str, account: Option<String>) -> std::io::Result<()> {
        self.uses.fetch_add(1, Ordering::Relaxed);
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut more = used.clone();
        more.regions.insert(region.to_owned());
        more.account = more.account.or(account);
        if more == *used {
            return Ok(());
        }
        self.keep(&more)?;
        *used = more;
        Ok(())
    }

    /// How many times something was about to be made since the start.
    pub(super) fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }

    /// The regions where something was made.
    pub(super) fn used(&self) -> BTreeSet<String> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).regions.clone()
    }

    /// A machine of ours was seen: where the account is not remembered, as after a restart at a bad moment, it is now.
    pub(super) fn note_account(&self, region: &str, account: Option<String>) {
        if account.is_some() && self.account().is_none() {
            // If it cannot be kept now, it is noted at the next look.
            let _ = self.use_one(region, account);
        }
    }

    /// No machine of ours is anywhere any more, so the next one may be in another account, unless something was about to be
    /// made since that was looked at.
    pub(super) fn leave_account(&self, uses: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if self.uses() != uses {
            return;
        }
        let nowhere = Used { account: None, ..used.clone() };
        if nowhere != *used && self.keep(&nowhere).is_ok() {
            *used = nowhere;
        }
    }

    /// Nothing of ours is in a region any more. One of the configuration stays.
    pub(super) fn leave(&self, region: &str) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if self.configured.iter().any(|known| known == region) || !used.regions.contains(region) {
            return;
        }
        let mut fewer = used.clone();
        fewer.regions.remove(region);
        // It is looked at in vain until it can be forgotten.
        if self.keep(&fewer).is_ok() {
            *used = fewer;
        }
    }

    fn keep(&self, used: &Used) -> std::io::Result<()> {
        super::files::replace(&self.file, &serde_json::to_vec(used).expect("text is JSON"))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_region_that_leaves_is_looked_at_until_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let id = BackendId(Uuid::from_u128(1));
        let open = |configured: &[&str]| {
            let configured: Vec<String> = configured.iter().map(|&region| region.to_owned()).collect();
            Regions::open(dir.path(), id, &configured)
        };
        let regions = open(&["east", "west"]);
        regions.use_one("west", None).unwrap();
        assert_eq!(open(&["east"]).watched(), ["east", "west"]);
        let regions = open(&["east"]);
        regions.leave("west");
        regions.leave("east");
        assert_eq!(regions.watched(), ["east"]);
        assert_eq!(open(&["east"]).watched(), ["east"]);
    }
    #[test]
    fn the_account_is_known_until_nothing_is_left_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Regions::open(dir.path(), BackendId(Uuid::from_u128(1)), &["east".to_owned()]);
        assert_eq!(open().account(), None);
        open().use_one("east", Some("1".to_owned())).unwrap();
        open().use_one("east", Some("2".to_owned())).unwrap();
        assert_eq!(open().account().as_deref(), Some("1"));
        let regions = open();
        let before = regions.uses();
        regions.use_one("east", None).unwrap();
        regions.leave_account(before);
        assert!(regions.account().is_some(), "something was made meanwhile");
        regions.leave_account(regions.uses());
        assert_eq!(open().account(), None);
        regions.note_account("east", Some("3".to_owned()));
        regions.note_account("east", Some("4".to_owned()));
        assert_eq!(open().account().as_deref(), Some("3"));
    }
}
