//! Tasks as plain processes: a supervisor of their own, which outlives this agent.

use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::Duration;

use api::ids::JobId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::host::runtime::{Gone, Liveness};
use crate::host::task_dir::TaskDir;
use crate::wire;
use crate::{clock, disk, procs};

/// What a supervisor may keep of the agent's environment.
const KEPT: [&str; 3] = ["PATH", "HOME", "LANG"];

/// How long a supervisor may take from its lock to its signature, and how often we look.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(1);
const SIGNING_LOOK: Duration = Duration::from_millis(5);

/// Starts the supervisor; it lives, and listens on its socket, when this returns.
pub(crate) async fn launch(dir: &TaskDir) -> Result<(), String> {
    let start = async {
        let errors = dir.open_run()?.append(wire::SUPERVISOR_LOG)?;
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
    if !is_container && let Some(supervisor) = supervisor(dir) {
        let children = procs::find(id, Some(supervisor));
        let _ = kill(supervisor, Signal::SIGKILL);
        for child in children {
            let _ = kill(child, Signal::SIGKILL);
        }
    }
    let left = procs::kill_all(id);
    left.iter().map(|pid| format!("process {pid} of the job would not die")).collect()
}

/// The supervisor, if it lives. One that has just begun is waited for until it has said who it is.
fn supervisor(dir: &TaskDir) -> Option<Pid> {
    let deadline = clock::monotonic() + SIGNING_TIMEOUT;
    loop {
        match disk::lock_holder(&dir.lock()) {
            // A number that a supervisor before it left may be anybody's by now.
            Some(pid) if is_supervisor(pid, dir) => return Some(pid),
            None if !matches!(disk::is_locked(&dir.lock()), Ok(true)) => return None,
            _ if deadline < clock::monotonic() => return None,
            _ => clock::pause(SIGNING_LOOK),
        }
    }
}

fn is_supervisor(pid: Pid, dir: &TaskDir) -> bool {
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let run = dir.run();
    let mut arguments = command_line.split(|byte| *byte == 0);
    arguments.any(|argument| argument == run.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_somebody_elses_is_not_killed() {
        let home = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(home.path(), JobId(uuid::Uuid::from_u128(42)));
        disk::create_private_dir(&dir.run()).unwrap();
        // We have the lock and signed it, but are no supervisor.
        let lock = disk::lock(&dir.lock()).unwrap().unwrap();
        lock.sign().unwrap();
        assert_eq!(disk::lock_holder(&dir.lock()), Some(Pid::this()));
        assert_eq!(supervisor(&dir), None);
    }
}
