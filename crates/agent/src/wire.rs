//! What the host agent and a job's supervisor say to each other: files in the task's run folder, and JSON
//! lines over its socket.
//!
//! The supervisor sends its whole status whenever it changes, so either side may come and go. After the end
//! the last status is in [`EXIT_FILE`].

use std::path::PathBuf;

use api::agent::{TaskExit, TaskSpec};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The supervisor's orders in the run folder; it removes them as soon as it has read them.
pub(crate) const JOB_FILE: &str = "job.json";
/// The supervisor's socket in the run folder.
pub(crate) const SOCKET: &str = "job.sock";
/// Locked for as long as the supervisor lives.
pub(crate) const LOCK: &str = "lock";
/// The supervisor's last status.
pub(crate) const EXIT_FILE: &str = "exit.json";
/// There once the command may have started.
pub(crate) const STARTED_MARK: &str = "started";
/// There once uploaded code is being unpacked into a directory that was empty; says which.
pub(crate) const CODE_MARK: &str = "code";
/// What the supervisor wrote to its standard error.
pub(crate) const SUPERVISOR_LOG: &str = "supervisor.log";
/// The folder of log segments in the run folder.
pub(crate) const LOGS: &str = "logs";
/// Where the run folder is inside a container.
pub(crate) const CONTAINER_DIR: &str = "/dstack/task";
/// Where the agent's program is inside a container.
pub(crate) const CONTAINER_BINARY: &str = "/dstack/bin/dstack-agent";
/// Where blobs are inside a container.
pub(crate) const CONTAINER_BLOBS: &str = "/dstack/blobs";

/// Where a container has what its gang's nodes are entered with.
pub(crate) const CONTAINER_PEERS: &str = "/dstack/peers";

/// How the warning begins that counts lost output.
pub(crate) const LOST_OUTPUT: &str = "output was lost";

/// What happened to a container that its engine ended.
pub(crate) const ENGINE_INTERRUPTED: &str = "the container engine ended the container, for instance because it \
    was restarted; with `\"live-restore\": true` in its configuration jobs outlive a restart";

/// All that a supervisor needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JobFile {
    /// The task, without the registry's password.
    pub(crate) spec: TaskSpec,
    /// The job runs in a container, so the whole file system is its own.
    pub(crate) container: bool,
    /// Where the command starts when the spec does not say.
    pub(crate) default_working_dir: PathBuf,
    /// `HOME` when the user's passwd entry has none.
    pub(crate) home_dir: Option<PathBuf>,
    /// Where the virtual environment goes.
    pub(crate) venv_dir: PathBuf,
    /// Where the list of nodes for MPI goes.
    pub(crate) hostfile: PathBuf,
    /// Where the credentials of the job's repository are for its own `git`.
    pub(crate) git_dir: PathBuf,
    /// Where goes what its gang's nodes are entered with.
    pub(crate) peers_dir: PathBuf,
    /// Where blobs are, by their SHA-256.
    pub(crate) blobs_dir: PathBuf,
    /// The GPUs that the task was granted.
    pub(crate) gpu_uuids: Vec<String>,
    /// Variables that make only those GPUs visible.
    pub(crate) gpu_env: Vec<(String, String)>,
    /// How many bytes of log may lie on the disk.
    pub(crate) log_cap_bytes: u64,
    /// Where tests put the name of a fail point.
    pub(crate) failpoint_home: Option<PathBuf>,
}

/// How far a supervisor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Directories, files and the virtual environment are being made.
    Preparing,
    /// The command waits for [`Order::Go`].
    Ready,
    /// The command runs.
    Running,
    /// The command was told to end, or ended and its remains are being ended.
    Ending,
    /// Nothing of the job runs and its log is complete.
    Ended,
}

/// A supervisor's whole status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobStatus {
    /// How far it is.
    pub(crate) stage: Stage,
    /// The supervisor's process, as it sees itself.
    pub(crate) pid: i32,
    /// Where the command starts.
    pub(crate) working_dir: Option<String>,
    /// Whom it runs as.
    pub(crate) username: Option<String>,
    /// Where its SSH server listens, if it has one.
    #[serde(default)]
    pub(crate) ssh_port: Option<u16>,
    /// When the command started.
    pub(crate) started_at: Option<Timestamp>,
    /// The log's length in bytes.
    pub(crate) log_end: u64,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
    /// How it ended.
    pub(crate) exit: Option<TaskExit>,
    /// For how long nobody has been in a job that stays, in milliseconds; unset: somebody is, or it has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unvisited_millis: Option<u64>,
    /// How often somebody came into an empty job.
    #[serde(default)]
    pub(crate) visits: u64,
}

impl JobStatus {
    /// Whether this says more than an earlier status of the same supervisor: not where only the log grew, or only time
    /// went by.
    pub(crate) fn is_news_after(&self, last: &JobStatus) -> bool {
        let (log_end, unvisited_millis) = (self.log_end, self.unvisited_millis);
        let is_visited = unvisited_millis.is_none();
        is_visited != last.unvisited_millis.is_none()
            || JobStatus { log_end, unvisited_millis, ..last.clone() } != *self
    }
}

/// What the host agent wants of a supervisor. Repeating an order changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// The SSH servers of the gang's nodes listen at these ports, by rank. It comes before [`Order::Go`].
    Peers {
        /// 0: that node has no server.
        ssh_ports: Vec<u16>,
    },
    /// Start the command.
    Go,
    /// End the command; a repeated order may only shorten the grace.
    Stop {
        /// Milliseconds between the polite signals and the kill.
        grace_millis: u64,
        /// The machine is taken back, so that the second polite signal comes soon after the first.
        #[serde(default)]
        taken_back: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_log_nor_the_time_is_news_but_a_visit_is() {
        let status = |text: &str| -> JobStatus {
            let mut value = serde_json::json!({ "stage": "running", "pid": 1, "log_end": 0, "warnings": [] });
            let more: serde_json::Value = serde_json::from_str(text).unwrap();
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(value).unwrap()
        };
        let check = |before: &str, after: &str, expected: bool| {
            assert_eq!(status(after).is_news_after(&status(before)), expected, "{before} {after}");
        };
        check("{}", "{}", false);
        check("{}", r#"{"log_end": 5}"#, false);
        check(r#"{"unvisited_millis": 5}"#, r#"{"unvisited_millis": 9}"#, false);
        check(r#"{"unvisited_millis": 5}"#, "{}", true);
        check("{}", r#"{"unvisited_millis": 0}"#, true);
        // So short that it was not told of by itself.
        check(r#"{"unvisited_millis": 0, "visits": 1}"#, r#"{"unvisited_millis": 0, "visits": 2}"#, true);
        check("{}", r#"{"stage": "ending"}"#, true);
    }
}
