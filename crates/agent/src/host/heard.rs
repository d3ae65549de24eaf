//! What a supervisor says, as far as it is believed. In a container its user may speak in its place, so a status is no
//! more than a claim about the job itself: it has a size, and times, lengths and reasons that can be.

use api::agent::ExitReason;
use jiff::Timestamp;

use crate::host::record::WARNINGS_LIMIT;
use crate::log_files::LONGEST_LOG;
use crate::wire::JobStatus;

/// How long a path or a name may be.
const NAME_LENGTH: usize = 4096;
/// How long a supervisor's warning may be.
const WARNING_LENGTH: usize = 1000;
/// How long the reason of an end may be. The last lines of an honest log are shorter.
const MESSAGE_LENGTH: usize = 32 * 1024;

/// The status in these bytes, if they are one.
pub(crate) fn status(bytes: &[u8], now: Timestamp) -> Option<JobStatus> {
    let mut status: JobStatus = serde_json::from_slice(bytes).ok()?;
    for name in [&mut status.working_dir, &mut status.username].into_iter().flatten() {
        *name = plain(name, NAME_LENGTH);
    }
    status.log_end = status.log_end.min(LONGEST_LOG);
    status.started_at = status.started_at.map(|at| at.clamp(Timestamp::UNIX_EPOCH, now));
    status.warnings.truncate(WARNINGS_LIMIT);
    for warning in &mut status.warnings {
        *warning = plain(warning, WARNING_LENGTH);
    }
    if let Some(exit) = &mut status.exit {
        exit.reason = own_reason(exit.reason);
        exit.finished_at = exit.finished_at.clamp(Timestamp::UNIX_EPOCH, now);
        exit.message = exit.message.as_ref().map(|message| plain(message, MESSAGE_LENGTH));
    }
    Some(status)
}

/// The first characters of a text, without those that would command the terminal of whoever reads it.
pub(crate) fn plain(text: &str, length: usize) -> String {
    let is_plain = |character: &char| !character.is_control() || matches!(character, '\n' | '\t');
    text.chars().filter(is_plain).take(length).collect()
}

/// Only the host itself can tell of what comes before a supervisor.
fn own_reason(reason: ExitReason) -> ExitReason {
    match reason {
        ExitReason::Done
        | ExitReason::Failed
        | ExitReason::Stopped
        | ExitReason::MaxDurationExceeded
        | ExitReason::ExecutorError
        | ExitReason::PortsBindingFailed
        | ExitReason::HostInterrupted => reason,
        ExitReason::CreatingContainerError => ExitReason::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_cut_to_what_can_be() {
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let claim = serde_json::json!({
            "stage": "ended", "pid": -1, "working_dir": "/".repeat(100_000), "username": "ro\u{1b}[2Jot",
            "started_at": "9999-01-01T00:00:00Z", "log_end": u64::MAX, "warnings": vec!["w".repeat(5000); 1000],
            "exit": {
                "reason": "creating_container_error", "exit_status": i32::MIN, "signal": 99, "oom_killed": true,
                "message": format!("\u{1b}]0;title\u{7}{}", "m".repeat(100_000)),
                "finished_at": "-009999-06-01T00:00:00Z"
            }
        });
        let status = status(claim.to_string().as_bytes(), now).unwrap();
        assert_eq!(status.working_dir.unwrap().len(), NAME_LENGTH);
        assert_eq!(status.username.unwrap(), "ro[2Jot");
        assert_eq!((status.started_at, status.log_end), (Some(now), LONGEST_LOG));
        assert!(status.warnings.len() == WARNINGS_LIMIT && status.warnings[0].len() == WARNING_LENGTH);
        let exit = status.exit.unwrap();
        assert_eq!((exit.reason, exit.finished_at), (ExitReason::Failed, Timestamp::UNIX_EPOCH));
        let message = exit.message.unwrap();
        assert!(message.starts_with("]0;titlem") && message.len() == MESSAGE_LENGTH);
    }

    #[test]
    fn what_is_no_status_is_none() {
        let deep = "[".repeat(100_000);
        for bytes in [&b""[..], b"{}", b"\xff\xfe", b"{\"stage\":\"winning\"}", deep.as_bytes()] {
            assert_eq!(status(bytes, Timestamp::UNIX_EPOCH), None);
        }
    }
}
