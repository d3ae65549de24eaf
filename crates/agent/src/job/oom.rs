//! Whether the kernel ended a job for want of memory.

use nix::sys::signal::Signal;

/// How often the kernel has ended a process for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OomKills {
    count: u64,
    /// Only processes of the job are counted, and not those of the whole machine.
    are_ours: bool,
}

impl OomKills {
    /// The count so far: of a container's own group where that is known.
    pub(crate) fn count(container: bool) -> OomKills {
        let own: &[&str] = &["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];
        let files = if container { own } else { &[] };
        match files.iter().find_map(|file| read(file)) {
            Some(count) => OomKills { count, are_ours: true },
            None => OomKills { count: read("/proc/vmstat").unwrap_or(0), are_ours: false },
        }
    }
}

fn read(file: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    value.trim().parse().ok()
}

/// Whether a command that ended by itself failed for want of memory. Where a launcher lost one of its workers, it has
/// a status of its own; where all of the machine is counted, only the kill itself tells whose it was.
pub(crate) fn ended(exit_status: Option<i32>, before: OomKills, after: OomKills) -> bool {
    let has_failed = exit_status != Some(0);
    before.count < after.count && has_failed && (after.are_ours || was_killed(exit_status))
}

/// What to tell the user, with the last lines of the log where they can say more.
pub(crate) fn message(exit_status: Option<i32>, last_lines: &str) -> String {
    if was_killed(exit_status) || last_lines.is_empty() {
        return "ended by the kernel for want of memory".to_owned();
    }
    format!("the kernel ended a process of the job for want of memory\n{last_lines}")
}

fn was_killed(exit_status: Option<i32>) -> bool {
    exit_status == Some(128 + Signal::SIGKILL as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_counts_under_a_launcher_only_where_it_was_surely_ours() {
        let check = |exit_status, are_ours, more: u64, expected| {
            let kills = |count: u64| OomKills { count, are_ours };
            assert_eq!(
                ended(exit_status, kills(3), kills(3 + more)),
                expected,
                "{exit_status:?} {are_ours} {more}"
            );
        };
        check(Some(1), true, 1, true);
        check(Some(137), true, 1, true);
        check(Some(137), false, 1, true);
        check(Some(1), false, 1, false);
        check(Some(0), true, 1, false);
        check(Some(137), true, 0, false);
    }

    #[test]
    fn a_launchers_last_lines_are_kept() {
        assert_eq!(message(Some(137), "epoch 3"), "ended by the kernel for want of memory");
        assert!(message(Some(1), "rank 2: exit code -9").ends_with("\nrank 2: exit code -9"));
    }
}
