//! The folders of local machines: the only memory of this backend.
//!
//! ```text
//! <state_dir>/local/
//!   lock                       taken by whoever changes what is held
//!   machines/<launch>/<index>/ one machine: machine.json, agent.log, agent/ (the agent's home)
//!   staging/<launch>/          a launch that is being written
//!   trash/<launch>-<index>/    a machine that is gone
//! ```
//!
//! A launch appears by one rename, and a machine disappears by one, so a crash leaves either all or nothing. The
//! folder of a launch stays behind when its machines are gone: it is the memory that the launch was made.
//! Everything here blocks.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind::NotFound, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api::ids::{LaunchId, ServerId};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::addresses::{container_network, free_number, loopback};
use super::shares::{Portion, Room, Share};
use super::{REGION, sockets};
use crate::keys::invalid;
use crate::{ContainerNetwork, Error, ErrorKind, LaunchOrder, Machine, MachineKey, MachineState, Result};

/// How many launches are remembered after their machines are gone.
const LAUNCHES_REMEMBERED: usize = 4096;

const RECORD_FILE: &str = "machine.json";
const ENDING_FILE: &str = "ending";

/// The folders of one server.
#[derive(Debug, Clone)]
pub(super) struct Machines {
    root: PathBuf,
    server_id: ServerId,
}

/// What is kept about a machine, in `machine.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Which of which launch.
    pub(super) key: MachineKey,
    /// The server that made it.
    pub(super) server_id: ServerId,
    /// The fleet's name, for people.
    pub(super) fleet_name: String,
    /// The project's name, for people.
    pub(super) project_name: String,
    /// What it holds.
    pub(super) share: Share,
    /// The number from which its addresses follow.
    pub(super) number: u32,
    /// Its loopback address.
    pub(super) address: String,
    /// Its containers' network.
    pub(super) container_network: ContainerNetwork,
    /// Where its agent listens.
    pub(super) socket: PathBuf,
}

impl Machines {
    /// The folders below `state_dir`, made if they are missing.
    pub(super) fn open(state_dir: &Path, server_id: ServerId) -> Result<Machines> {
        let made = make_private_dir(&state_dir.join("local"));
        made.map_err(|error| cannot("make the folder", &state_dir.join("local"), &error))?;
        // Processes are found by this path, so it must not depend on how it was written.
        let root = state_dir.join("local").canonicalize();
        let root = root.map_err(|error| cannot("find", state_dir, &error))?;
        for name in ["machines", "staging", "trash"] {
            let path = root.join(name);
            make_private_dir(&path).map_err(|error| cannot("make the folder", &path, &error))?;
        }
        Ok(Machines { root, server_id })
    }

    /// The folder of a machine, whether it is there or not.
    pub(super) fn folder(&self, key: &MachineKey) -> PathBuf {
        self.launch_folder(key.launch_id).join(key.index.to_string())
    }

    /// The home of a machine's agent.
    pub(super) fn agent_home(&self, key: &MachineKey) -> PathBuf {
        self.folder(key).join("agent")
    }

    /// What is kept about a machine. None: it is gone.
    pub(super) fn record(&self, key: &MachineKey) -> Result<Option<Record>> {
        let path = self.folder(key).join(RECORD_FILE);
        match fs::read(&path) {
            Ok(text) => {
                let record = serde_json::from_slice(&text);
                record.map(Some).map_err(|error| cannot("read", &path, &error.into()))
            }
            // Not a directory: somebody else's file lies where a machine would.
            Err(error) if matches!(error.kind(), NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(cannot("read", &path, &error)),
        }
    }

    /// What is kept about all machines here, those of other servers included, because they hold their shares too.
    pub(super) fn records(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for (launch_id, folder) in children::<LaunchId>(&self.root.join("machines"))? {
            for (index, _) in children::<u32>(&folder)? {
                records.extend(self.record(&MachineKey { launch_id, index })?);
            }
        }
        Ok(records)
    }

    /// The machines of this server.
    pub(super) fn list(&self) -> Result<Vec<Machine>> {
        let mut machines = Vec::new();
        for record in self.records()? {
            if record.server_id == self.server_id {
                machines.push(self.machine(record));
            }
        }
        Ok(machines)
    }

    /// Makes the folders of a launch, as many as there is room for in `whole`, or none. Answers the new ones;
    /// none are new if the launch was made before.
    pub(super) fn launch(&self, order: &LaunchOrder, whole: &Room) -> Result<Vec<Record>> {
        let portion: Portion = serde_json::from_value(order.offer.backend_data.clone())
            .map_err(|error| invalid(format!("the offer is not of this machine: {error}")))?;
        if order.count == 0 || order.count < order.least {
            let message = format!("cannot launch {} machines, at least {}", order.count, order.least);
            return Err(invalid(message));
        }
        let _lock = self.lock()?;
        let folder = self.launch_folder(order.launch_id);
        if folder.exists() {
            return Ok(Vec::new());
        }
        let records = self.plan(order, &portion, whole)?;
        let staged = self.stage(order.launch_id, &records);
        let renamed = staged.and_then(|staging| fs::rename(staging, &folder));
        renamed.map_err(|error| cannot("write the launch to", &folder, &error))?;
        self.forget_old_launches();
        let machines = self.root.join("machines");
        sync_dir(&machines).map_err(|error| cannot("write", &machines, &error))?;
        Ok(records)
    }

    /// Writes down that a machine ends, so that nobody starts its agent again. None: it is gone already.
    pub(super) fn mark_ending(&self, key: &MachineKey) -> Result<Option<Record>> {
        let Some(record) = self.record(key)? else {
            return Ok(None);
        };
        let path = self.folder(key).join(ENDING_FILE);
        match File::create(&path) {
            Ok(_) => Ok(Some(record)),
            Err(error) if error.kind() == NotFound => Ok(None),
            Err(error) => Err(cannot("write", &path, &error)),
        }
    }

    /// Whether a machine is there and not ending.
    pub(super) fn is_wanted(&self, key: &MachineKey) -> bool {
        let folder = self.folder(key);
        folder.join(RECORD_FILE).exists() && !folder.join(ENDING_FILE).exists()
    }

    /// The folder of all machines.
    pub(super) fn all(&self) -> PathBuf {
        self.root.join("machines")
    }

    /// Takes a machine out of the books. Its processes must have ended. Does `after_last` if it was the last one of
    /// its server, while nobody can make another.
    pub(super) fn remove(&self, record: &Record, after_last: impl FnOnce()) -> Result<()> {
        let key = &record.key;
        sockets::remove(&record.socket);
        let folder = self.folder(key);
        let trash = self.root.join("trash").join(format!("{}-{}", key.launch_id, key.index));
        let _lock = self.lock()?;
        match fs::rename(&folder, &trash) {
            Ok(()) => {}
            Err(error) if error.kind() == NotFound => {}
            Err(error) => return Err(cannot("remove", &folder, &error)),
        }
        if self.records()?.iter().all(|other| other.server_id != record.server_id) {
            after_last();
        }
        Ok(())
    }

    /// Deletes what is left of machines that are gone.
    pub(super) fn empty_trash(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("trash")) else {
            return;
        };
        for entry in entries.flatten() {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => {}
                Err(error) if error.kind() == NotFound => {}
                // Containers may have left files that are not ours to delete.
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "cannot delete a folder");
                }
            }
        }
    }

    fn launch_folder(&self, launch_id: LaunchId) -> PathBuf {
        self.root.join("machines").join(launch_id.to_string())
    }

    /// Waits until nobody else changes what is held.
    fn lock(&self) -> Result<Flock<File>> {
        let path = self.root.join("lock");
        lock_file(&path, FlockArg::LockExclusive).map_err(|error| cannot("lock", &path, &error))
    }

    fn plan(&self, order: &LaunchOrder, portion: &Portion, whole: &Room) -> Result<Vec<Record>> {
        let held = self.records()?;
        let mut numbers: BTreeSet<u32> = held.iter().map(|record| record.number).collect();
        let mut left = whole.without(held.iter().map(|record| &record.share));
        let mut records = Vec::new();
        for index in 0..order.count {
            let Some(number) = free_number(&numbers) else {
                break;
            };
            let Some(share) = left.take(portion) else {
                break;
            };
            numbers.insert(number);
            let key = MachineKey { launch_id: order.launch_id, index };
            let socket = sockets::path(&self.agent_home(&key), &self.root, &key);
            records.push(Record {
                server_id: self.server_id,
                fleet_name: order.fleet_name.clone(),
                project_name: order.project_name.clone(),
                share,
                number,
                address: loopback(self.server_id, number).to_string(),
                container_network: container_network(self.server_id, number),
                socket: socket?,
                key,
            });
        }
        if records.len() < order.least.max(1) as usize {
            let message = format!(
                "this machine has room for {} of {} nodes with {} CPUs, {} MB of memory and {} GPUs each",
                records.len(),
                order.count,
                portion.cpus,
                portion.memory_mib,
                portion.gpu_count(),
            );
            return Err(Error::new(ErrorKind::NoCapacity, message));
        }
        Ok(records)
    }

    /// Writes a launch where nobody sees it yet.
    fn stage(&self, launch_id: LaunchId, records: &[Record]) -> io::Result<PathBuf> {
        let staging = self.root.join("staging");
        // We hold the lock, so whatever is there was left by a crash.
        for entry in fs::read_dir(&staging)? {
            fs::remove_dir_all(entry?.path())?;
        }
        let launch = staging.join(launch_id.to_string());
        make_private_dir(&launch)?;
        for record in records {
            let folder = launch.join(record.key.index.to_string());
            make_private_dir(&folder)?;
            let mut file = open_private(&folder.join(RECORD_FILE))?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            sync_dir(&folder)?;
        }
        sync_dir(&launch)?;
        Ok(launch)
    }

    /// Launches are remembered by an empty folder each; those that ended first are forgotten first.
    fn forget_old_launches(&self) {
        let Ok(launches) = children::<LaunchId>(&self.root.join("machines")) else {
            return;
        };
        let excess = launches.len().saturating_sub(LAUNCHES_REMEMBERED);
        if excess == 0 {
            return;
        }
        let changed_at = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let mut folders: Vec<PathBuf> = launches.into_iter().map(|(_, folder)| folder).collect();
        folders.sort_by_cached_key(|folder| changed_at(folder));
        for folder in folders.iter().take(excess) {
            // Fails for a launch whose machines live, as it should.
            let _ = fs::remove_dir(folder);
        }
    }

    fn machine(&self, record: Record) -> Machine {
        let state = if self.is_wanted(&record.key) { MachineState::Running } else { MachineState::Stopping };
        Machine {
            network_path: vec![],
            provider_id: format!("{}-{}", record.key.launch_id, record.key.index),
            key: record.key,
            state,
            hostname: Some(record.address.clone()),
            internal_ip: Some(record.address),
            container_network: Some(record.container_network),
            region: REGION.to_owned(),
            zone: None,
            ended_because: None,
            lacked_room: false,
            login: None,
        }
    }
}

/// A failure of the file system.
pub(super) fn cannot(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot {verb} `{}`: {error}", path.display()))
}

/// Opens a file that only this user may read, for appending.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Makes a folder that only this user may enter, and its parents, if they are missing.
pub(super) fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes the lock that a file stands for.
pub(super) fn lock_file(path: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    let file = open_private(path)?;
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The folders in a folder whose names parse, in their order.
fn children<T: std::str::FromStr + Ord>(folder: &Path) -> Result<Vec<(T, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot("read", folder, &error)),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| cannot("read", folder, &error))?;
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            children.push((name, entry.path()));
        }
    }
    children.sort();
    Ok(children)
}
