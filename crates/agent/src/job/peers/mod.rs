//! What a job needs to enter the other nodes of its gang over SSH: the gang's key, the nodes' addresses, ports and host
//! keys, and a client for images without one.
//!
//! In a container it is made so that OpenSSH's client finds it, in a marked part of the user's configuration. A process
//! without a container has a home that belongs to a person, so nothing is written there: launchers are told to use our
//! own client. Files in a home are written by a process of the job's user, because a home may hold any links.

mod files;
mod openssh;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use api::agent::{GangAccess, SSH_PORT};
use api::ids::JobId;
use serde::{Deserialize, Serialize};

pub(crate) use self::files::run;
use crate::job::account::Account;
use crate::own_process;
use crate::sys::Credentials;
use crate::wire::JobFile;

/// The variable that tells our client where it finds what it needs.
pub(crate) const NODES_VARIABLE: &str = "DSTACK_SSH_NODES";
/// The gang's private key, in the folder of what our client needs.
pub(crate) const KEY: &str = "key";
/// The nodes, in the same folder.
pub(crate) const NODES: &str = "nodes.json";
/// The nodes' host keys for OpenSSH's client, in the same folder.
const KNOWN_HOSTS: &str = "known_hosts";

/// How our client is called: as everybody calls a client, and by a name that no other program has.
pub(crate) const CLIENT_NAMES: [&str; 2] = ["ssh", "dstack-ssh"];

/// How a warning begins where the files could not be written.
const CANNOT_ENTER: &str = "the job cannot enter the gang's other nodes over SSH";

/// By which variables launchers are told of a client, each with others of the same meaning: Open MPI up to 4, Open MPI
/// from 5 on, MPICH and what descends from it, and Intel MPI.
const LAUNCHERS: [(&str, &[&str]); 4] = [
    ("OMPI_MCA_plm_rsh_agent", &["OMPI_MCA_orte_rsh_agent", "OMPI_MCA_pls_rsh_agent"]),
    ("PRTE_MCA_plm_ssh_agent", &["PRTE_MCA_plm_rsh_agent"]),
    ("HYDRA_LAUNCHER_EXEC", &["HYDRA_BOOTSTRAP_EXEC"]),
    ("I_MPI_HYDRA_BOOTSTRAP_EXEC", &["I_MPI_HYDRA_RSH"]),
];

/// A node of the gang, as clients find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// Its address.
    pub(crate) address: String,
    /// The port of its SSH server; 0: it has none.
    pub(crate) port: u16,
    /// The key that the server shows: an algorithm and a key.
    pub(crate) host_key: String,
}

/// What the process that writes is told. It holds the gang's key, so it goes through a pipe only.
#[derive(Serialize, Deserialize)]
struct Order {
    /// Where our client's files go.
    dir: PathBuf,
    /// The home in which OpenSSH's client looks, if it is to be written to.
    home: Option<PathBuf>,
    private_key: String,
    /// Empty before they are known.
    nodes: Vec<Node>,
}

/// Why nothing is written for OpenSSH's client, if that is so; or why nothing at all could be written.
type Answer = own_process::Answer<Option<String>>;

/// How a job enters its gang's nodes, as far as it was found out before they are known.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    /// Where our client's files go.
    dir: PathBuf,
    home: Option<PathBuf>,
}

/// Makes ready what does not depend on the other nodes, and adds to the job's environment. Nothing of it keeps a job
/// from running; what is missing is said in `warnings`.
pub(crate) fn prepare(
    job: &JobFile,
    account: &Account,
    owner: Option<&Credentials>,
    env: &mut BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Option<Peers> {
    let gang = job.spec.gang.as_ref()?;
    let failed = |error: &dyn std::fmt::Display| format!("{CANNOT_ENTER}: {error}");
    let (bin, dir) = (job.peers_dir.join("bin"), job.peers_dir.join("nodes"));
    if let Err(error) = make_places(job, &bin, &dir, owner) {
        warnings.push(failed(&error));
        return None;
    }
    // OpenSSH's client asks the user database where the home is, whatever the environment says.
    let mut peers = Peers { dir, home: account.home.as_ref().filter(|_| job.container).map(PathBuf::from) };
    let unusable = match peers.write(job.spec.id, gang, Vec::new(), owner) {
        Ok(None) if job.container && peers.home.is_none() => {
            Some(format!("the user `{}` has no home directory", account.name))
        }
        Ok(unusable) => unusable,
        Err(error) => {
            warnings.push(failed(&error));
            return None;
        }
    };
    let image_has_client = is_on_path(env, "ssh");
    if let Some(why) = unusable {
        peers.home = None;
        if image_has_client {
            warnings.push(format!(
                "{why}, so `ssh` does not know the gang's nodes; `{}` does, and launchers of MPI use it",
                CLIENT_NAMES[1]
            ));
        }
    }
    let uses_ours = !image_has_client || peers.home.is_none();
    add_client(env, job, &bin, &peers.dir, uses_ours);
    Some(peers)
}

impl Peers {
    /// Tells the job of the gang's nodes, now that all of them are known. Answers what went wrong.
    pub(crate) fn introduce(&self, job: &JobFile, owner: Option<&Credentials>) -> Result<(), String> {
        let Some(gang) = &job.spec.gang else { return Ok(()) };
        let nodes = nodes_of(gang, &job.spec.cluster.node_ips);
        match self.write(job.spec.id, gang, nodes, owner) {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(format!("{CANNOT_ENTER}: {error}")),
        }
    }

    /// Has a process of the job's user write the files.
    fn write(&self, job: JobId, gang: &GangAccess, nodes: Vec<Node>, owner: Option<&Credentials>) -> Answer {
        let order =
            Order { dir: self.dir.clone(), home: self.home.clone(), private_key: gang.private_key.clone(), nodes };
        let words = serde_json::to_vec(&order).map_err(|error| error.to_string())?;
        let failed = "its files cannot be written";
        own_process::ask("peers", job, owner, failed, |mut input| input.write_all(&words))
    }
}

/// The nodes whose address and host key are known, by rank. Servers of nodes that told no port are at the usual one.
fn nodes_of(gang: &GangAccess, addresses: &[String]) -> Vec<Node> {
    let known = addresses.iter().zip(&gang.host_keys).enumerate();
    let nodes = known.map(|(rank, (address, host_key))| Node {
        address: address.clone(),
        port: gang.ports.get(rank).copied().unwrap_or(SSH_PORT),
        host_key: host_key.clone(),
    });
    nodes.filter(|node| !node.address.is_empty()).collect()
}

/// Makes a folder for our client, which is the supervisor's, and one for what it needs, which is the job's user's. Both
/// lie where the user can put nothing in their place.
fn make_places(job: &JobFile, bin: &Path, dir: &Path, owner: Option<&Credentials>) -> io::Result<()> {
    fs::create_dir_all(bin)?;
    for folder in [&job.peers_dir, bin] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    if let Some(owner) = owner {
        chown(dir, Some(owner.uid), Some(owner.gid))?;
    }
    let program = fs::read_link("/proc/self/exe")?;
    for name in CLIENT_NAMES {
        let path = bin.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if job.container {
            symlink(&program, &path)?;
        } else if fs::hard_link(&program, &path).is_err() {
            // An upgrade replaces the agent's program while the job runs, so the job needs one of its own.
            fs::copy("/proc/self/exe", &path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// Puts our client last on the search path, and tells launchers of it where there is no other that knows the nodes.
fn add_client(env: &mut BTreeMap<String, String>, job: &JobFile, bin: &Path, dir: &Path, uses_ours: bool) {
    let given = &job.spec.env;
    if let Some(path) = env.get_mut("PATH").filter(|_| !given.contains_key("PATH")) {
        path.push(':');
        path.push_str(&bin.to_string_lossy());
    }
    env.entry(NODES_VARIABLE.to_owned()).or_insert_with(|| dir.to_string_lossy().into_owned());
    if !uses_ours {
        return;
    }
    // Launchers hand the value on to the other nodes. There the folder of a process has another name, so that only the
    // search path finds the client.
    let client =
        if job.container { bin.join("ssh").to_string_lossy().into_owned() } else { CLIENT_NAMES[1].to_owned() };
    for (variable, synonyms) in LAUNCHERS {
        let is_set = env.contains_key(variable) || synonyms.iter().any(|synonym| env.contains_key(*synonym));
        if !is_set {
            env.insert(variable.to_owned(), client.clone());
        }
    }
}

/// Whether a program is found on the search path of an environment.
fn is_on_path(env: &BTreeMap<String, String>, name: &str) -> bool {
    let is_program = |path: PathBuf| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let path = env.get("PATH").map(String::as_str).unwrap_or_default();
    std::env::split_paths(path).any(|dir| dir.is_absolute() && is_program(dir.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gang(host_keys: &[&str]) -> GangAccess {
        let host_keys = host_keys.iter().map(|key| (*key).to_owned()).collect();
        GangAccess { private_key: "the key".to_owned(), host_keys, ports: vec![40_000, 0] }
    }

    #[test]
    fn nodes_are_where_they_said_or_at_the_usual_port() {
        let addresses = ["10.0.0.1", "", "10.0.0.3"].map(str::to_owned);
        let nodes = nodes_of(&gang(&["a", "b", "c"]), &addresses);
        let found: Vec<(&str, u16, &str)> =
            nodes.iter().map(|node| (node.address.as_str(), node.port, node.host_key.as_str())).collect();
        assert_eq!(found, [("10.0.0.1", 40_000, "a"), ("10.0.0.3", SSH_PORT, "c")]);
        assert!(!format!("{:?}", gang(&[])).contains("the key"));
    }

    #[test]
    fn a_client_is_found_only_where_it_can_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let env = BTreeMap::from([("PATH".to_owned(), format!("/nonexistent:{}", dir.path().display()))]);
        assert!(!is_on_path(&env, "ssh"));
        fs::write(dir.path().join("ssh"), "").unwrap();
        assert!(!is_on_path(&env, "ssh"));
        fs::set_permissions(dir.path().join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(is_on_path(&env, "ssh"));
        assert!(!is_on_path(&BTreeMap::new(), "ssh"));
    }
}
