//! The process that writes: it is the job's user, and has no other rights.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Answer, KEY, KNOWN_HOSTS, NODES, Node, Order, openssh};

/// How long writing may take, in seconds: a home may lie on a server that does not answer.
const TIME_SECS: u32 = 20;
/// The longest orders.
const ORDER_LIMIT: u64 = 16 << 20;
/// The longest configuration that is changed.
const CONFIG_LIMIT: u64 = 4 << 20;
/// The gang's key in the folder where OpenSSH's client looks, by the name that it has always had.
const KEY_IN_HOME: &str = "dstack_job";

/// Writes as standard input says, and answers on standard output.
pub(crate) fn run() -> anyhow::Result<()> {
    // Whoever else runs as this user may neither read the key in our memory nor trace us.
    nix::sys::prctl::set_dumpable(false).context("protect the process's memory")?;
    // Without a supervisor nobody waits for the files.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("follow the supervisor")?;
    nix::unistd::alarm::set(TIME_SECS);
    let mut words = Vec::new();
    io::stdin().lock().take(ORDER_LIMIT).read_to_end(&mut words).context("read the orders")?;
    // What is wrong with them is not told: they hold a key.
    let order: Order = serde_json::from_slice(&words).map_err(|_| anyhow::anyhow!("the orders make no sense"))?;
    let answer = serde_json::to_vec(&obey(&order))?;
    Ok(io::stdout().write_all(&answer)?)
}

fn obey(order: &Order) -> Answer {
    write_own(order).map_err(|error| format!("`{}`: {error}", order.dir.display()))?;
    let Some(home) = &order.home else { return Ok(None) };
    let unusable = |error: io::Error| format!("the home directory `{}` cannot be used: {error}", home.display());
    Ok(write_to_home(order, home).err().map(unusable))
}

/// Writes what our own client needs.
fn write_own(order: &Order) -> io::Result<()> {
    let write = |name: &str, bytes: &[u8]| replace(&order.dir.join(name), bytes, 0o600);
    write(KEY, order.private_key.as_bytes())?;
    if order.nodes.is_empty() {
        return Ok(());
    }
    write(NODES, &serde_json::to_vec(&order.nodes)?)?;
    write(KNOWN_HOSTS, openssh::known_hosts(&reachable(&order.nodes)).as_bytes())
}

/// Writes what OpenSSH's client needs: the key, and our part of its configuration.
fn write_to_home(order: &Order, home: &Path) -> io::Result<()> {
    // The root of all files is the home of users without one.
    if home == Path::new("/") {
        return Err(io::Error::other("it is no folder of the user's own"));
    }
    let folder = home.join(".ssh");
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    replace(&folder.join(KEY_IN_HOME), order.private_key.as_bytes(), 0o600)?;
    if order.nodes.is_empty() {
        return Ok(());
    }
    // A link is what its owner wants: the file that it leads to is the one that is changed.
    let path = folder.join("config");
    let path = fs::canonicalize(&path).unwrap_or(path);
    let (text, mode) = read_config(&path)?;
    let key = format!("~/.ssh/{KEY_IN_HOME}");
    let text = openssh::with_nodes(&text, &reachable(&order.nodes), &key, &order.dir.join(KNOWN_HOSTS));
    replace(&path, text.as_bytes(), mode)
}

/// The nodes that have a server.
fn reachable(nodes: &[Node]) -> Vec<Node> {
    nodes.iter().filter(|node| node.port != 0).cloned().collect()
}

/// A configuration and its mode; an empty one where there is none.
fn read_config(path: &Path) -> io::Result<(String, u32)> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((String::new(), 0o600)),
        file => file?,
    };
    let facts = file.metadata()?;
    if !facts.is_file() || facts.len() > CONFIG_LIMIT {
        return Err(io::Error::other(format!("`{}` is no file of a usual length", path.display())));
    }
    let mut text = String::new();
    file.take(CONFIG_LIMIT).read_to_string(&mut text)?;
    Ok((text, facts.permissions().mode() & 0o7777))
}

/// Replaces a file at once, so that nobody ever reads half of it.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Nodes that share a home write side by side.
    let unique = format!(".{name}.{}.{}", hostname(), std::process::id());
    let temporary: PathBuf = path.with_file_name(unique);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&temporary, path)
    };
    let written = write();
    if written.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    name.replace('/', "-")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn order(dir: &Path, home: &Path, ports: &[u16]) -> Order {
        let nodes = ports.iter().enumerate().map(|(rank, port)| Node {
            address: format!("10.0.0.{rank}"),
            port: *port,
            host_key: "ssh-ed25519 AAAA".to_owned(),
        });
        Order {
            dir: dir.to_owned(),
            home: Some(home.to_owned()),
            private_key: "the key\n".to_owned(),
            nodes: nodes.collect(),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_home_gets_a_key_and_a_part_of_the_configuration() {
        let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ssh = home.path().join(".ssh");
        assert_eq!(obey(&order(dir.path(), home.path(), &[])), Ok(None));
        assert_eq!((mode(&ssh), mode(&ssh.join("dstack_job"))), (0o700, 0o600));
        assert!(!ssh.join("config").exists() && !dir.path().join(NODES).exists());
        assert_eq!(obey(&order(dir.path(), home.path(), &[10022, 0])), Ok(None));
        let config = fs::read_to_string(ssh.join("config")).unwrap();
        assert!(config.contains("Host 10.0.0.0\n    Port 10022\n") && !config.contains("10.0.0.1"), "{config}");
        assert_eq!(mode(&ssh.join("config")), 0o600);
        assert_eq!(fs::read_to_string(dir.path().join(KEY)).unwrap(), "the key\n");
        let nodes: Vec<Node> = serde_json::from_slice(&fs::read(dir.path().join(NODES)).unwrap()).unwrap();
        assert_eq!(nodes.len(), 2);
        let left = fs::read_dir(&ssh).unwrap().count();
        assert_eq!(left, 2, "nothing half-written stays");
    }

    #[test]
    fn a_configuration_of_the_users_own_keeps_its_text_its_mode_and_its_link() {
        let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ssh = home.path().join(".ssh");
        fs::create_dir(&ssh).unwrap();
        let real = home.path().join("dotfiles-config");
        fs::write(&real, "Host mine\n").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
        symlink(&real, ssh.join("config")).unwrap();
        for _ in 0..2 {
            assert_eq!(obey(&order(dir.path(), home.path(), &[10022])), Ok(None));
        }
        assert!(fs::symlink_metadata(ssh.join("config")).unwrap().is_symlink());
        let text = fs::read_to_string(&real).unwrap();
        assert!(text.ends_with("Host *\n# <<< dstack\nHost mine\n"), "{text}");
        assert_eq!(mode(&real), 0o644);
    }

    #[test]
    fn homes_that_cannot_be_used_are_named_and_our_own_client_is_served_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for home in ["/", "/nonexistent/home", "/dev/null"] {
            let unusable = obey(&order(dir.path(), Path::new(home), &[10022])).unwrap().unwrap();
            assert!(unusable.contains(&format!("`{home}` cannot be used")), "{unusable}");
            assert!(dir.path().join(NODES).exists());
        }
        let failed = obey(&order(Path::new("/nonexistent/dir"), Path::new("/"), &[])).unwrap_err();
        assert!(failed.starts_with("`/nonexistent/dir`: "), "{failed}");
    }
}
