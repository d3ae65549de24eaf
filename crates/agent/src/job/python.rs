//! The job's Python virtual environment: made by `uv` if it is there, else by that very Python.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::sys::{self, Credentials};

/// How much of a failed tool's output is told.
const TOLD_LINES: usize = 5;

/// Makes the virtual environment for Python `version` in `venv`, as the job's user.
pub(crate) fn make_venv(
    version: &str,
    venv: &Path,
    env: &BTreeMap<String, String>,
    credentials: Option<&Credentials>,
) -> Result<(), String> {
    let path = env.get("PATH").map_or("", String::as_str);
    let run = |program: &Path, arguments: &[&str]| run(program, arguments, env, credentials);
    let target = venv.to_string_lossy();
    let mut failures = Vec::new();
    if let Some(uv) = find_program("uv", path) {
        match run(&uv, &["venv", "--quiet", "--python", version, "--seed", &target]) {
            Ok(_) => return Ok(()),
            Err(error) => failures.push(format!("uv venv: {error}")),
        }
    }
    let exact = find_program(&format!("python{version}"), path);
    let other = find_program("python3", path).filter(|python| {
        let print = "import sys; print('%d.%d' % sys.version_info[:2])";
        run(python, &["-c", print]).is_ok_and(|found| found.trim() == version)
    });
    for python in exact.into_iter().chain(other) {
        // What a failed try left would be taken for a virtual environment.
        empty(venv);
        match run(&python, &["-m", "venv", &target]) {
            Ok(_) => return Ok(()),
            Err(error) => failures.push(format!("{} -m venv: {error}", python.display())),
        }
    }
    Err(match failures.as_slice() {
        [] => format!(
            "cannot make a virtual environment for `python: {version}`: there is neither `uv` nor \
             `python{version}` here; install one of them, or use an image that has it"
        ),
        _ => format!("cannot make a virtual environment for `python: {version}`: {}", failures.join("; ")),
    })
}

/// Removes what is in a directory. The directory itself is the user's, in a place where only we make new ones.
fn empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // What stays is in the way of the next try, which says so.
        let _ = if is_dir { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
    }
}

/// The first program of this name in a search path.
fn find_program(name: &str, path: &str) -> Option<PathBuf> {
    path.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(name)).find(|file| {
        std::fs::metadata(file)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

fn run(
    program: &Path,
    arguments: &[&str],
    env: &BTreeMap<String, String>,
    credentials: Option<&Credentials>,
) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(env).stdin(Stdio::null()).current_dir("/");
    sys::prepare_child(&mut command, false, credentials.cloned());
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let told = lines[lines.len().saturating_sub(TOLD_LINES)..].join(" ");
    Err(format!("{}: {told}", output.status))
}
