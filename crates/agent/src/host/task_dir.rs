//! Where everything of a task lies on the disk.

use std::io;
use std::path::{Path, PathBuf};

use api::agent::TaskSpec;
use api::ids::JobId;

use crate::disk;
use crate::wire::{self, JobFile, JobStatus};

/// The longest status that is believed.
pub(crate) const STATUS_LIMIT: usize = 1 << 20;
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
        let _ = std::fs::remove_file(self.run().join(wire::JOB_FILE));
    }

    /// Writes the supervisor's orders.
    pub(crate) fn write_job_file(&self, job: &JobFile) -> io::Result<()> {
        let bytes = serde_json::to_vec(job)?;
        disk::write_atomically(&self.run().join(wire::JOB_FILE), &bytes)
    }

    /// The supervisor's last status, if it came to its end.
    pub(crate) fn read_exit(&self) -> Option<JobStatus> {
        let path = self.run().join(wire::EXIT_FILE);
        let bytes = disk::read_untrusted(&path, STATUS_LIMIT as u64).ok()?;
        serde_json::from_slice::<JobStatus>(&bytes).ok().filter(|status| status.exit.is_some())
    }

    /// Whether the command may have started.
    pub(crate) fn is_marked_started(&self) -> bool {
        self.run().join(wire::STARTED_MARK).exists()
    }

    /// The end of what the supervisor wrote to its standard error.
    pub(crate) fn last_words(&self) -> Option<String> {
        use std::os::unix::fs::FileExt;
        let file = disk::open_untrusted(&self.run().join(wire::SUPERVISOR_LOG)).ok()?;
        let length = file.metadata().ok()?.len();
        let mut bytes = vec![0; LAST_WORDS.min(length as usize)];
        let place = length - bytes.len() as u64;
        let read = file.read_at(&mut bytes, place).ok()?;
        let text = String::from_utf8_lossy(&bytes[..read]).trim().to_owned();
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
        for dir in [self.run(), self.work(), self.venv(), self.root.join("caches")] {
            remove_dir(&dir)?;
        }
        disk::create_private_dir(&self.run())
    }

    /// Removes everything of the task.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove_dir(&self.root)
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
