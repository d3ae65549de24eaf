//! Finding and ending the processes of a machine: its agent, the supervisors of its jobs, and the jobs. None of
//! them is our child for certain: a server before us may have started them.
//! Everything here blocks, briefly.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

/// How much of a process's environment is searched, in bytes.
const ENVIRON_LIMIT: u64 = 4 << 20;

/// How deep below an agent's home its tasks' folders lie at most.
const TASK_DEPTH: u32 = 3;

/// Clock ticks of `/proc` in a second; the same on every Linux that has `/proc`.
const TICKS_PER_SEC: u64 = 100;

/// Something about a process, read at once.
struct Process {
    pid: i32,
    parent: i32,
    args: Vec<String>,
}

/// The processes that are the agent of this home. Usually one or none.
pub(super) fn agents(home: &Path) -> Vec<i32> {
    let is_agent = |process: &Process| is_agent_of(process, home);
    living().into_iter().filter(is_agent).map(|process| process.pid).collect()
}

/// How long a process has lived, if it lives.
pub(super) fn age(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let started_ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime_secs: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    let started = Duration::from_secs(started_ticks / TICKS_PER_SEC);
    Some(Duration::from_secs_f64(uptime_secs).saturating_sub(started))
}

/// Kills every process of the machine with this home, once, and answers how many there were.
pub(super) fn kill_all(home: &Path) -> usize {
    let found = all(home);
    for &pid in &found {
        kill_now(pid);
    }
    found.len()
}

/// Kills a process that may have ended meanwhile.
pub(super) fn kill_now(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// The agent, its supervisors, everything whose environment says that it belongs to a task of this home, and
/// everything that descends from these. In this order, so that nobody is left to react to the end of another.
fn all(home: &Path) -> Vec<i32> {
    let processes = living();
    let is_agent = |process: &&Process| is_agent_of(process, home);
    let mut found: Vec<i32> = processes.iter().filter(is_agent).map(|process| process.pid).collect();
    let mut tasks: Vec<Uuid> = tasks_below(home, TASK_DEPTH);
    for process in &processes {
        if let Some(folder) = supervised_folder(process, home) {
            found.push(process.pid);
            tasks.extend(uuids_in(&folder));
        }
    }
    let markers: HashSet<Vec<u8>> =
        tasks.into_iter().map(|id| format!("DSTACK_JOB_ID={id}").into_bytes()).collect();
    if !markers.is_empty() {
        let marked = processes.iter().filter(|process| has_marker(process.pid, &markers));
        found.extend(marked.map(|process| process.pid));
    }
    let this = Pid::this().as_raw();
    let mut found = with_descendants(&processes, &found);
    found.retain(|pid| *pid != this);
    found
}

/// Each process once, with everything below it.
fn with_descendants(processes: &[Process], roots: &[i32]) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut seen: HashSet<i32> = HashSet::new();
    let mut found: Vec<i32> = roots.iter().copied().filter(|pid| seen.insert(*pid)).collect();
    let mut next = 0;
    while next < found.len() {
        let below = children.get(&found[next]).into_iter().flatten();
        found.extend(below.copied().filter(|pid| seen.insert(*pid)));
        next += 1;
    }
    found
}

fn is_agent_of(process: &Process, home: &Path) -> bool {
    let is_host = process.args.iter().any(|arg| arg == "host");
    is_host && option(process, "--home").is_some_and(|found| is_same(found, home))
}

/// The task's folder, from the home on, if the process supervises a task below this home.
fn supervised_folder(process: &Process, home: &Path) -> Option<PathBuf> {
    let is_job = process.args.iter().any(|arg| arg == "job");
    let folder = option(process, "--dir").filter(|_| is_job)?;
    let below = |folder: &Path| folder.strip_prefix(home).map(Path::to_owned).ok();
    below(folder).or_else(|| below(&folder.canonicalize().ok()?))
}

fn option<'p>(process: &'p Process, name: &str) -> Option<&'p Path> {
    let mut args = process.args.iter();
    args.find(|arg| *arg == name)?;
    args.next().map(Path::new)
}

fn is_same(found: &Path, home: &Path) -> bool {
    found == home || found.canonicalize().is_ok_and(|found| found == home)
}

fn uuids_in(path: &Path) -> Vec<Uuid> {
    path.iter().filter_map(|name| Uuid::try_parse(name.to_str()?).ok()).collect()
}

fn tasks_below(folder: &Path, depth: u32) -> Vec<Uuid> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| Uuid::try_parse(name).ok());
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match id {
            Some(id) => found.push(id),
            None if is_dir && 1 < depth => found.extend(tasks_below(&entry.path(), depth - 1)),
            None => {}
        }
    }
    found
}

/// All processes that are not zombies.
fn living() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(read_process).collect()
}

fn read_process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let args = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args = args.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned());
    Some(Process { pid, parent, args: args.collect() })
}

fn has_marker(pid: i32, markers: &HashSet<Vec<u8>>) -> bool {
    let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else {
        return false;
    };
    let mut environ = Vec::new();
    // A process that ends meanwhile has no environment left.
    let _ = file.take(ENVIRON_LIMIT).read_to_end(&mut environ);
    environ.split(|byte| *byte == 0).any(|variable| markers.contains(variable))
}
