//! Where everything of a task lies on the disk.

use std::io;
use std::path::{Path, PathBuf};

use api::agent::TaskSpec;
use api::ids::JobId;
use tracing::warn;

use crate::beneath::{self, Beneath};
use crate::host::heard;
use crate::wire::{self, JobFile, JobStatus};
use crate::{clock, disk};

/// The longest status that is believed.
pub(crate) const STATUS_LIMIT: usize = 256 << 10;
/// How much of the supervisor's last words is told.
const LAST_WORDS: usize = 2000;

/// A task's folder. `run` is the part that its supervisor, and in a container its user, may write to.
#[derive(Debug, Clone)]
pub(crate) struct TaskDir {
    root: PathBuf,
}

impl TaskDir {
    /// The folder of a task in the agent's home.
    pub(crate) fn new(tasks: &Path, id: JobId) -> TaskDir {
        TaskDir { root: tasks.join(id.to_string()) }
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The journal.
    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// The supervisor's folder.
    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The supervisor's folder, for all that is read or written in it.
    pub(crate) fn open_run(&self) -> io::Result<Beneath> {
        Beneath::open(&self.run())
    }

    /// The log's segments.
    pub(crate) fn logs(&self) -> PathBuf {
        self.run().join(wire::LOGS)
    }

    /// Where a process starts unless it says otherwise.
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// A process's virtual environment.
    pub(crate) fn venv(&self) -> PathBuf {
        self.root.join("venv")
    }

    /// What a process enters the other nodes of its gang with.
    pub(crate) fn peers(&self) -> PathBuf {
        self.root.join("peers")
    }

    /// The supervisor's lock.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run().join(wire::LOCK)
    }

    fn spec(&self) -> PathBuf {
        self.root.join("spec.json")
    }

    /// Keeps the spec, with its secrets, until the command has started.
    pub(crate) fn write_spec(&self, spec: &TaskSpec) -> io::Result<()> {
        disk::create_private_dir(&self.run())?;
        disk::write_atomically(&self.spec(), &serde_json::to_vec(spec)?)
    }

    /// The spec, if it is still needed.
    pub(crate) fn read_spec(&self) -> io::Result<TaskSpec> {
        serde_json::from_slice(&std::fs::read(self.spec())?).map_err(io::Error::from)
    }

    /// Removes what holds secrets.
    pub(crate) fn remove_secrets(&self) {
        let _ = std::fs::remove_file(self.spec());
        let _ = self.open_run().and_then(|run| run.remove(wire::JOB_FILE));
    }

    /// Writes the supervisor's orders.
    pub(crate) fn write_job_file(&self, job: &JobFile) -> io::Result<()> {
        let bytes = serde_json::to_vec(job)?;
        self.open_run()?.replace(wire::JOB_FILE, &bytes)
    }

    /// The supervisor's last status, if it came to its end.
    pub(crate) fn read_exit(&self) -> Option<JobStatus> {
        let bytes = self.open_run().and_then(|run| run.read(wire::EXIT_FILE, STATUS_LIMIT)).ok()?;
        heard::status(&bytes, clock::now()).filter(|status| status.exit.is_some())
    }

    /// Whether the command may have started.
    pub(crate) fn is_marked_started(&self) -> bool {
        self.open_run().is_ok_and(|run| run.has(wire::STARTED_MARK))
    }

    /// The end of what the supervisor wrote to its standard error.
    pub(crate) fn last_words(&self) -> Option<String> {
        use std::os::unix::fs::FileExt;
        let file = self.open_run().and_then(|run| run.file(wire::SUPERVISOR_LOG)).ok()?;
        let length = file.metadata().ok()?.len();
        let mut bytes = vec![0; LAST_WORDS.min(length as usize)];
        let place = length - bytes.len() as u64;
        let read = file.read_at(&mut bytes, place).ok()?;
        let text = heard::plain(&String::from_utf8_lossy(&bytes[..read]), LAST_WORDS).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Lets a job that runs as another user reach its own working directory, and see nothing else.
    pub(crate) fn let_others_through(&self, home: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for dir in [home, &home.join("tasks"), &self.root] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
        }
        Ok(())
    }

    /// Removes what was made for a command that has not started, so that another one finds nothing of it.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for dir in [self.run(), self.work(), self.venv(), self.peers(), self.root.join("caches")] {
            beneath::remove_all(&dir)?;
        }
        disk::create_private_dir(&self.run())
    }

    /// Removes everything of the task.
    pub(crate) fn remove(&self) -> io::Result<()> {
        beneath::remove_all(&self.root)
    }
    /// Removes everything of the task, or puts it into `aside` where that is not allowed: to an agent that is not root,
    /// folders that a container's root made are closed. The task is over all the same.
    pub(crate) fn remove_or_set_aside(&self, aside: &Path) -> io::Result<()> {
        let Err(error) = self.remove() else {
            return Ok(());
        };
        let Some(name) = self.root.file_name().filter(|_| error.kind() == io::ErrorKind::PermissionDenied) else {
            return Err(error);
        };
        warn!("only root can remove what is left of the task {}: {error}", name.display());
        disk::create_private_dir(aside)?;
        std::fs::rename(&self.root, aside.join(format!("{}-{}", name.display(), clock::unix_micros())))
    }
}

/// Tries again to remove what was put aside; perhaps the agent is root now.
pub(crate) fn remove_set_aside(aside: &Path) {
    for entry in std::fs::read_dir(aside).into_iter().flatten().flatten() {
        let _ = beneath::remove_all(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn task() -> (tempfile::TempDir, TaskDir) {
        let home = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(&home.path().join("tasks"), JobId(uuid::Uuid::from_u128(7)));
        disk::create_private_dir(&dir.logs()).unwrap();
        (home, dir)
    }

    #[test]
    fn nothing_of_the_host_is_read_or_written_through_the_run_folder() {
        let (home, dir) = task();
        let secret = home.path().join("secret");
        let status = serde_json::json!({
            "stage": "ended", "pid": 1, "working_dir": null, "username": null, "started_at": null, "log_end": 0,
            "warnings": [], "exit": { "reason": "done", "exit_status": 0, "signal": null, "oom_killed": false,
            "message": "of the host", "finished_at": "2024-01-01T00:00:00Z" }
        });
        std::fs::write(&secret, status.to_string()).unwrap();
        for name in [wire::EXIT_FILE, wire::SUPERVISOR_LOG, wire::LOCK, wire::JOB_FILE, "job.json.tmp"] {
            symlink(&secret, dir.run().join(name)).unwrap();
        }
        assert_eq!(dir.read_exit(), None);
        assert_eq!(dir.last_words(), None);
        assert!(disk::is_locked(&dir.lock()).is_err());
        dir.remove_secrets();
        dir.clear().unwrap();
        dir.remove().unwrap();
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), status.to_string());
    }

    #[test]
    fn what_only_root_can_remove_holds_up_nobody() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (home, dir) = task();
        let (aside, kept) = (home.path().join("aside"), dir.run().join("kept"));
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "").unwrap();
        for path in [home.path(), dir.root().parent().unwrap(), dir.root(), &dir.run(), &dir.logs()] {
            chown(path, Some(65_534), Some(65_534)).unwrap();
        }
        let remove = || {
            // These hold for this thread only.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            dir.remove_or_set_aside(&aside)
        };
        std::thread::scope(|scope| scope.spawn(remove).join().unwrap()).unwrap();
        assert!(!dir.root().exists());
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 1);
        remove_set_aside(&aside);
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 0);
    }
}
