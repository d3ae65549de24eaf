//! Tasks as plain processes: a supervisor of their own, which outlives this agent.

use std::process::Stdio;

use api::ids::JobId;
use nix::sys::signal::{Signal, kill};
use tokio::process::Command;

use crate::host::runtime::{Gone, Liveness};
use crate::host::task_dir::TaskDir;
use crate::wire;
use crate::{disk, procs};

/// What a supervisor may keep of the agent's environment.
const KEPT: [&str; 3] = ["PATH", "HOME", "LANG"];

/// Starts the supervisor; it lives, and listens on its socket, when this returns.
pub(crate) async fn launch(dir: &TaskDir) -> Result<(), String> {
    let start = async {
        let errors =
            std::fs::OpenOptions::new().append(true).create(true).open(dir.run().join(wire::SUPERVISOR_LOG))?;
        let kept = KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["job", "--detach", "--dir"])
            .arg(dir.run())
            .env_clear()
            .envs(kept)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(errors.try_clone()?)
            .stderr(errors);
        command.status().await
    };
    let status = start.await.map_err(|error| format!("cannot start the supervisor: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        let words = dir.last_words().unwrap_or_else(|| status.to_string());
        Err(format!("the job's supervisor did not start: {words}"))
    }
}

/// Whether the supervisor lives.
pub(crate) fn liveness(dir: &TaskDir) -> Liveness {
    match disk::is_locked(&dir.lock()) {
        Ok(true) => Liveness::Alive,
        Ok(false) => Liveness::Gone(Gone::default()),
        Err(_) => Liveness::Unknown,
    }
}

/// Ends the supervisor and every process of the job at once. Blocks until none is left. What a container's
/// supervisor says about its number means nothing here.
pub(crate) fn destroy(dir: &TaskDir, id: JobId, is_container: bool) -> Vec<String> {
    let supervisor = if is_container { None } else { disk::lock_holder(&dir.lock()) };
    if let Some(supervisor) = supervisor {
        let children = procs::find(id, Some(supervisor));
        let _ = kill(supervisor, Signal::SIGKILL);
        for child in children {
            let _ = kill(child, Signal::SIGKILL);
        }
    }
    let left = procs::kill_all(id);
    left.iter().map(|pid| format!("process {pid} of the job would not die")).collect()
}
