//! Finding and ending every process of a job, wherever it hid: by descent, and by the job's identifier in
//! its environment.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::time::Duration;

use api::ids::JobId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock;

/// How long processes may take to die of SIGKILL before they are given up, for instance those that hang in
/// the kernel.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of a process's environment is searched.
const ENVIRON_LIMIT: u64 = 4 << 20;

/// The processes of a job that live: descendants of `ancestor`, and those with the job's identifier in their
/// environment, parents before their children. This process is never among them.
pub(crate) fn find(job: JobId, ancestor: Option<Pid>) -> Vec<Pid> {
    let this = Pid::this();
    let parents = living();
    let marker = format!("DSTACK_JOB_ID={job}");
    let mut descends: HashSet<i32> = ancestor.map(Pid::as_raw).into_iter().collect();
    let mut found = Vec::new();
    for &pid in parents.keys() {
        if pid == this.as_raw() {
            continue;
        }
        let is_descendant = ancestor.is_some() && is_below(pid, &parents, &mut descends);
        if is_descendant || has_marker(pid, marker.as_bytes()) {
            found.push(Pid::from_raw(pid));
        }
    }
    found.retain(|pid| Some(*pid) != ancestor || ancestor != Some(this));
    // A shell that is told of the end only after its child has died of it would go on with its next command.
    found.sort_by_key(|pid| depth(pid.as_raw(), &parents));
    found
}

/// A process, and those that descend from it and live.
pub(crate) fn descendants(ancestor: Pid) -> HashSet<Pid> {
    let parents = living();
    let mut descends = HashSet::from([ancestor.as_raw()]);
    let below = parents.keys().filter(|pid| is_below(**pid, &parents, &mut descends)).copied();
    below.chain([ancestor.as_raw()]).map(Pid::from_raw).collect()
}

/// Whether the last process of a job that is to end is its interactive shell.
///
/// An interrupted `sh -i -c …` gives up its commands, goes to its prompt and ignores SIGTERM there, so the job would
/// only end with its grace. A program that took the shell's place by `exec` has another command line.
pub(crate) fn is_shell_at_its_prompt(process: Pid, argv: &[String]) -> bool {
    let is_interactive = argv.get(1).is_some_and(|flag| flag == "-i");
    let command_line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let args: Vec<&[u8]> = command_line.strip_suffix(b"\0").unwrap_or_default().split(|byte| *byte == 0).collect();
    is_interactive
        && args.len() == argv.len()
        && args.iter().zip(argv).all(|(left, right)| *left == right.as_bytes())
}

/// Tells a shell that its terminal is gone.
pub(crate) fn hang_up(shell: Pid) {
    // It may have ended meanwhile.
    let _ = kill(shell, Signal::SIGHUP);
}

/// Sends a signal to processes.
pub(crate) fn signal_all(processes: &[Pid], signal: Signal) {
    for &process in processes {
        // It may have ended meanwhile.
        let _ = kill(process, signal);
    }
}

/// Kills every process of a job until none is left; answers those that would not die in time.
pub(crate) fn kill_all(job: JobId) -> Vec<Pid> {
    let deadline = clock::monotonic() + KILL_TIMEOUT;
    loop {
        let left = find(job, None);
        if left.is_empty() || deadline < clock::monotonic() {
            return left;
        }
        for &process in &left {
            let _ = kill(process, Signal::SIGKILL);
        }
        clock::pause(Duration::from_millis(5));
    }
}

/// Parents of all processes that are not zombies.
fn living() -> HashMap<i32, i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (state, parent) = parse_stat(&stat)?;
            (!matches!(state, 'Z' | 'X')).then_some((pid, parent))
        })
        .collect()
}

/// State and parent of a process. The name before them may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, i32)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, parent))
}

/// How many ancestors a process has.
fn depth(pid: i32, parents: &HashMap<i32, i32>) -> usize {
    let mut current = pid;
    let mut depth = 0;
    // The table was read while processes came and went, so that it may hold a circle.
    while let Some(&parent) = parents.get(&current).filter(|_| depth <= parents.len()) {
        current = parent;
        depth += 1;
    }
    depth
}

fn is_below(pid: i32, parents: &HashMap<i32, i32>, descends: &mut HashSet<i32>) -> bool {
    let mut path = Vec::new();
    let mut current = pid;
    while let Some(&parent) = parents.get(&current) {
        if descends.contains(&current) {
            break;
        }
        path.push(current);
        if path.len() > parents.len() {
            return false;
        }
        current = parent;
    }
    let below = descends.contains(&current);
    if below {
        descends.extend(path);
    }
    below
}

fn has_marker(pid: i32, marker: &[u8]) -> bool {
    let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else {
        return false;
    };
    let mut environ = Vec::new();
    // A process that ends meanwhile has no environment left.
    let _ = file.take(ENVIRON_LIMIT).read_to_end(&mut environ);
    environ.split(|byte| *byte == 0).any(|variable| variable == marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        assert_eq!(parse_stat("42 (a) b (c)) S 7 42 42 0"), Some(('S', 7)));
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn parents_are_found_before_their_children() {
        // The numbers of processes say nothing: they begin anew when they are used up.
        let parents = HashMap::from([(7, 1), (9, 7), (3, 9), (5, 3), (1, 0)]);
        let mut found = [5, 3, 9, 7];
        found.sort_by_key(|pid| depth(*pid, &parents));
        assert_eq!(found, [7, 9, 3, 5]);
        let circle = HashMap::from([(2, 4), (4, 2)]);
        assert!(depth(2, &circle) <= 3);
    }

    #[test]
    fn descent_is_found_over_several_generations() {
        let parents = HashMap::from([(1, 0), (10, 1), (11, 10), (12, 11), (20, 1)]);
        let mut descends = HashSet::from([10]);
        assert!(is_below(12, &parents, &mut descends));
        assert!(!is_below(20, &parents, &mut descends));
    }
}
