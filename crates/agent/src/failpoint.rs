//! Points where a test may end the process as `kill -9` would: around the effect of every step.
//!
//! A test writes a point's name into the file `failpoint` in the agent's home. The process that reaches the
//! point removes the file and kills itself. In release builds the points do nothing.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Every point, for tests that visit them all.
pub(crate) const ALL: &[&str] = &[
    "accepted:before",
    "accepted:spec-written",
    "accepted:after",
    "preparing:before",
    "preparing:after",
    "gpus:before",
    "gpus:after",
    "launch:before",
    "launch:job-file-written",
    "launch:after",
    "container:pull",
    "container:create",
    "container:created",
    "container:started",
    "ready:before",
    "ready:after",
    "running:before",
    "running:after",
    "go:after",
    "started:before",
    "started:after",
    "stopping:before",
    "stopping:after",
    "stop:after",
    "exited:before",
    "exited:after",
    "sealed:before",
    "sealed:after",
    "ack:before",
    "ack:after",
    "forgotten:before",
    "forgotten:after",
    "forgotten:removed",
    "job:before-ready",
    "job:go",
    "job:started-marked",
    "job:started",
    "job:exited",
    "job:sealed",
    "job:panic",
];

static HOME: OnceLock<PathBuf> = OnceLock::new();

/// Says where the file `failpoint` may lie.
pub(crate) fn set_home(home: PathBuf) {
    // A second call in one process says the same.
    let _ = HOME.set(home);
}

/// Ends this process at once if a test asked for it by `name`.
pub(crate) fn failpoint(name: &'static str) {
    if armed(name) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
    }
}

/// Whether a test asked for `name`; asking disarms it.
pub(crate) fn armed(name: &'static str) -> bool {
    if !cfg!(debug_assertions) {
        return false;
    }
    debug_assert!(ALL.contains(&name), "the fail point {name} is not listed");
    let Some(file) = HOME.get().map(|home| home.join("failpoint")) else {
        return false;
    };
    let asked = std::fs::read_to_string(&file).is_ok_and(|text| text.trim() == name);
    asked && std::fs::remove_file(&file).is_ok()
}
