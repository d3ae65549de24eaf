//! Git repositories of jobs: cloned inside the job before its command starts, as the job's user, with no program of
//! Git anywhere.
//!
//! The work is done by a process of its own, a child of the supervisor: it reads what comes from the network, and
//! writes with no other rights than the job's. Its orders hold secrets, so they go through a pipe only.

mod changes;
mod clone;
mod dial;
mod error;
mod http;
mod leave;
mod modules;
mod packets;
mod patch;
mod remote;
mod ssh;
mod store;
mod url;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ChildStdin;

use anyhow::Context;
use api::agent::GitRepo;
use api::ids::JobId;
use serde::{Deserialize, Serialize};

use self::clone::Cloner;
pub(crate) use self::leave::credentials;
use self::remote::Login;
use self::url::Url;
use crate::own_process;
use crate::sys::Credentials;

/// The longest orders and the longest answer.
const WORDS_LIMIT: usize = 16 << 20;
/// The longest diff; the server has a lower limit of its own.
const DIFF_LIMIT: u64 = 1 << 30;

/// A clone that is wanted.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    /// What to clone.
    pub(crate) repo: GitRepo,
    /// The folder that it goes into. It is there.
    pub(crate) target: PathBuf,
    /// What is in that folder is left from an earlier try, and goes.
    pub(crate) replace: bool,
    /// The home of the job's user.
    pub(crate) home: PathBuf,
    /// The job's environment.
    pub(crate) env: BTreeMap<String, String>,
}

/// What the user should know, or why there is no clone.
type Answer = own_process::Answer<Vec<String>>;

/// Clones as `credentials`, and applies the changes in the file `diff`. Answers what the user should know.
pub(crate) fn clone(job: JobId, order: &Order, diff: Option<&Path>, credentials: Option<&Credentials>) -> Answer {
    const FAILED: &str = "cannot clone the repository";
    let diff = diff.map(File::open).transpose().map_err(|error| format!("{FAILED}: {error}"))?;
    own_process::ask("clone", job, credentials, FAILED, |input| give(input, order, diff))
}

fn give(mut input: ChildStdin, order: &Order, diff: Option<File>) -> io::Result<()> {
    let words = serde_json::to_vec(order).map_err(io::Error::other)?;
    let length = u32::try_from(words.len()).map_err(io::Error::other)?;
    input.write_all(&length.to_be_bytes())?;
    input.write_all(&words)?;
    if let Some(mut diff) = diff {
        io::copy(&mut diff, &mut input)?;
    }
    Ok(())
}

/// The process that clones: its orders come by standard input, and its answer goes to standard output.
pub(crate) fn run() -> anyhow::Result<()> {
    // Whoever else runs as this user may neither read the secrets in our memory nor trace us.
    nix::sys::prctl::set_dumpable(false).context("protect the process's memory")?;
    // Without a supervisor nobody waits for the clone.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("follow the supervisor")?;
    let mut input = io::stdin().lock();
    let order = read_order(&mut input).context("read the orders")?;
    let mut diff = Vec::new();
    input.take(DIFF_LIMIT).read_to_end(&mut diff).context("read the changes")?;
    let answer = obey(&order, &diff);
    let words = serde_json::to_vec(&answer)?;
    Ok(io::stdout().write_all(&words)?)
}

fn read_order(input: &mut impl Read) -> io::Result<Order> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > WORDS_LIMIT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut words = vec![0; length];
    input.read_exact(&mut words)?;
    // What is wrong with it is not told: it holds secrets.
    serde_json::from_slice(&words).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn obey(order: &Order, diff: &[u8]) -> Answer {
    let failed = |error: io::Error| format!("cannot clone the repository: {error}");
    let url = Url::parse(&order.repo.url)?;
    if order.replace {
        clone::empty(&order.target).map_err(failed)?;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
    let mut cloner = Cloner {
        runtime: runtime.handle().clone(),
        env: order.env.clone(),
        home: order.home.clone(),
        login: Login { token: order.repo.token.clone(), private_key: order.repo.private_key.clone() },
        host: url.host.clone(),
        submodules: 0,
    };
    let cloned = cloner.clone(&order.repo, &url, &order.target);
    runtime.shutdown_background();
    cloned?;
    if diff.is_empty() {
        return Ok(Vec::new());
    }
    changes::apply(diff, &order.target).map_err(|error| format!("cannot apply uncommitted changes: {error}"))
}
