//! The regions that are looked at: those of the configuration, and those that were in it and may still have machines.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use api::ids::BackendId;

/// The regions of one backend. Where something was launched is kept in a file, so that a region which leaves the
/// configuration is looked at until nothing of ours is there.
#[derive(Debug)]
pub(super) struct Regions {
    file: PathBuf,
    configured: Vec<String>,
    used: Mutex<BTreeSet<String>>,
}

impl Regions {
    /// The regions as they were left.
    pub(super) fn open(dir: &Path, backend: BackendId, configured: &[String]) -> Regions {
        let file = dir.join(format!("regions-{backend}.json"));
        let used = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Regions { file, configured: configured.to_vec(), used: Mutex::new(used.unwrap_or_default()) }
    }

    /// All that are looked at, those of the configuration first.
    pub(super) fn watched(&self) -> Vec<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let others = used.iter().filter(|region| !self.configured.contains(region));
        self.configured.iter().chain(others).cloned().collect()
    }

    /// Something is about to be made in a region. An error says that this could not be kept.
    pub(super) fn use_one(&self, region: &str) -> std::io::Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains(region) {
            return Ok(());
        }
        let mut more = used.clone();
        more.insert(region.to_owned());
        self.keep(&more)?;
        *used = more;
        Ok(())
    }

    /// Nothing of ours is in a region any more. One of the configuration stays.
    pub(super) fn leave(&self, region: &str) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if self.configured.iter().any(|known| known == region) || !used.contains(region) {
            return;
        }
        let mut fewer = used.clone();
        fewer.remove(region);
        // It is looked at in vain until it can be forgotten.
        if self.keep(&fewer).is_ok() {
            *used = fewer;
        }
    }

    fn keep(&self, used: &BTreeSet<String>) -> std::io::Result<()> {
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
        regions.use_one("west").unwrap();
        assert_eq!(open(&["east"]).watched(), ["east", "west"]);
        let regions = open(&["east"]);
        regions.leave("west");
        regions.leave("east");
        assert_eq!(regions.watched(), ["east"]);
        assert_eq!(open(&["east"]).watched(), ["east"]);
    }
}
