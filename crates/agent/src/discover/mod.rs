//! What a machine has, read from text files and from what `nvidia-smi` prints: no libraries are loaded.

use std::path::PathBuf;

use api::agent::HostInfo;

/// Where the machine's own files begin; tests put captured ones elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// `/sys`.
    pub(crate) sys: PathBuf,
    /// `/proc`.
    pub(crate) proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots {
            sys: PathBuf::from("/sys"),
            proc: PathBuf::from("/proc"),
        }
    }
}

/// The whole machine as JSON.
pub(crate) fn run() -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&machine(&Roots::default()))?)
}

/// The whole machine, without its container engine.
pub(crate) fn machine(_roots: &Roots) -> HostInfo {
    HostInfo {
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        ..HostInfo::default()
    }
}
