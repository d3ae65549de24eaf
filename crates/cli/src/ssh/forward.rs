//! Forwarded ports: which local port leads to which port of the job, and the `ssh` that carries them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use api::configurations::PortMapping;
use api::jobs::AppSpec;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::owner::{self, Owner};

/// Where ports are forwarded from, unless told.
pub(super) const LOCALHOST: &str = "localhost";

/// How often `ssh` is started before there is no use in it.
const ATTEMPTS: u32 = 3;

/// How often it is started again in a row once it has worked, and the pause after that.
const RESTARTS: u32 = 10;
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// The pause between two starts.
const PAUSE: Duration = Duration::from_secs(1);

/// One forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    /// The local address.
    pub(crate) host: String,
    /// The local port.
    pub(crate) local: u16,
    /// The port in the job.
    pub(crate) container: u16,
}

impl Forward {
    /// A port that leads into the job as it is.
    pub(super) fn direct(host: &str, port: PortMapping) -> Forward {
        Forward { host: host.to_owned(), local: port.container_port, container: port.container_port }
    }
}

/// Refuses what was typed if no two ports could be told apart by it.
pub(crate) fn check(typed: &[PortMapping]) -> anyhow::Result<()> {
    let (mut locals, mut containers) = (BTreeSet::new(), BTreeSet::new());
    for port in typed {
        if !containers.insert(port.container_port) {
            bail!("`-p` names the port {} of the run twice", port.container_port);
        }
        if port.local_port.is_some_and(|local| !locals.insert(local)) {
            bail!("`-p` names the local port {} twice", port.local_port.unwrap_or_default());
        }
    }
    Ok(())
}

/// The ports of a job, those that were typed in place of those for the same port of the job.
pub(super) fn wanted(apps: &[AppSpec], typed: &[PortMapping]) -> anyhow::Result<Vec<PortMapping>> {
    check(typed)?;
    let apps = apps.iter().map(|app| PortMapping { local_port: app.map_to_port, container_port: app.port });
    let is_kept = |port: &PortMapping| typed.iter().all(|other| other.container_port != port.container_port);
    Ok(apps.filter(is_kept).chain(typed.iter().copied()).collect())
}

/// Finds a free local port for each. One that was chosen must be free; the others may be higher.
pub(super) fn choose(ports: &[PortMapping], host: &str) -> anyhow::Result<Vec<Forward>> {
    let mut taken = BTreeSet::new();
    for port in ports {
        if let Some(local) = chosen(*port)
            && (!taken.insert(local) || !is_free(host, local)?)
        {
            bail!("Port {local} is already in use");
        }
    }
    let mut forwards = Vec::new();
    for port in ports {
        let local = match chosen(*port) {
            Some(local) => local,
            None => free_from(port.container_port, host, &mut taken)?,
        };
        forwards.push(Forward { host: host.to_owned(), local, container: port.container_port });
    }
    Ok(forwards)
}

/// Whether a port needs no forwarding where the job shares our network.
pub(super) fn is_direct(port: PortMapping) -> bool {
    chosen(port).is_none()
}

/// A local port that was chosen, and not only taken over from the job's.
fn chosen(port: PortMapping) -> Option<u16> {
    port.local_port.filter(|local| *local != port.container_port)
}

fn free_from(first: u16, host: &str, taken: &mut BTreeSet<u16>) -> anyhow::Result<u16> {
    for local in first..=u16::MAX {
        if !taken.contains(&local) && is_free(host, local)? {
            taken.insert(local);
            return Ok(local);
        }
    }
    bail!("no local port from {first} on is free")
}

fn is_free(host: &str, port: u16) -> anyhow::Result<bool> {
    let context = || format!("listen at {host}");
    let mut refusal = None;
    let mut is_free = false;
    // A name may stand for several addresses, and `ssh` listens at each that this machine has.
    for address in (host, port).to_socket_addrs().with_context(context)? {
        match TcpListener::bind(address) {
            Ok(_) => is_free = true,
            // Ports below 1024 may not be allowed, and higher ones will be.
            Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {
                return Ok(false);
            }
            Err(error) => refusal = Some(error),
        }
    }
    match refusal {
        Some(error) if !is_free => Err(error).with_context(context),
        _ => Ok(is_free),
    }
}

/// An `ssh` that forwards ports and does nothing else.
#[derive(Clone)]
pub(super) struct Command {
    /// The configuration with the entry.
    pub(super) config: PathBuf,
    /// The entry.
    pub(super) alias: String,
    /// The ports.
    pub(super) forwards: Vec<Forward>,
    /// The environment.
    pub(super) variables: BTreeMap<String, String>,
}

impl Command {
    fn arguments(&self) -> Vec<String> {
        // It says a line once the ports are open; a master that the user keeps would hide whether they are.
        let options = [
            "BatchMode=yes",
            "ExitOnForwardFailure=yes",
            "PermitLocalCommand=yes",
            "LocalCommand=echo",
            "ControlMaster=no",
            "ControlPath=none",
        ];
        let mut arguments = vec!["-F".to_owned(), self.config.to_string_lossy().into_owned(), "-N".to_owned()];
        arguments.extend(options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        for Forward { host, local, container } in &self.forwards {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            arguments.extend(["-L".to_owned(), format!("{host}:{local}:localhost:{container}")]);
        }
        arguments.extend(["--".to_owned(), self.alias.clone()]);
        arguments
    }

    /// Starts it and waits until the ports are open.
    async fn start(&self) -> anyhow::Result<Running> {
        let mut command = tokio::process::Command::new("ssh");
        command.args(self.arguments()).envs(&self.variables);
        command.env(owner::VARIABLE, Owner::of_process().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C asks about the run; it must not end the forwarding by itself.
        command.process_group(0).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(io::Error::new(error.kind(), "OpenSSH's client `ssh` is not installed").into());
            }
            Err(error) => return Err(error).context("start `ssh`"),
        };
        let mut output = child.stdout.take().context("`ssh` has no output")?;
        let errors = child.stderr.take().context("`ssh` has no errors")?;
        let mut line = [0];
        if output.read(&mut line).await.unwrap_or_default() == 0 {
            let why = last_line(errors).await;
            child.wait().await.context("wait for `ssh`")?;
            bail!("{}", if why.is_empty() { "`ssh` ended without a word" } else { why.as_str() });
        }
        Ok(Running { child, errors })
    }
}

struct Running {
    child: Child,
    errors: ChildStderr,
}

/// What it said last. It may speak of every connection that fails, so it is always listened to.
async fn last_line(errors: ChildStderr) -> String {
    let mut lines = BufReader::new(errors).lines();
    let mut last = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        if !line.trim().is_empty() {
            line.trim().clone_into(&mut last);
        }
    }
    last
}

/// Ports that stay open until this is dropped.
#[derive(Debug)]
pub(super) struct Forwarding {
    keeper: JoinHandle<()>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Forwarding {
    /// Opens the ports.
    pub(super) async fn start(command: Command) -> anyhow::Result<Forwarding> {
        let running = start(&command, ATTEMPTS).await?;
        Ok(Forwarding { keeper: tokio::spawn(keep(command, running)) })
    }
}

async fn start(command: &Command, attempts: u32) -> anyhow::Result<Running> {
    let mut attempt = 1;
    loop {
        match command.start().await {
            Ok(running) => return Ok(running),
            Err(error) if attempt == attempts || error.is::<io::Error>() => return Err(error),
            Err(_) => {}
        }
        attempt += 1;
        sleep(PAUSE).await;
    }
}

/// Starts it again when it ends, as it does when the server is away, for as long as somebody is attached.
async fn keep(command: Command, mut running: Running) {
    loop {
        let Running { mut child, errors } = running;
        last_line(errors).await;
        // It is killed with its handle, and reaped here.
        let _ = child.wait().await;
        sleep(PAUSE).await;
        running = loop {
            match start(&command, RESTARTS).await {
                Ok(next) => break next,
                Err(error) if error.is::<io::Error>() => return,
                Err(_) => sleep(LONG_PAUSE).await,
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<PortMapping> {
        text.split_whitespace().map(|port| PortMapping::parse(port).unwrap()).collect()
    }

    fn app(port: u16, map_to_port: Option<u16>) -> AppSpec {
        AppSpec { port, map_to_port, app_name: "app_0".to_owned(), url_path: None, url_query_params: None }
    }

    #[test]
    fn typed_ports_take_the_place_of_the_runs() {
        let apps = [app(8000, Some(8000)), app(9000, None)];
        assert_eq!(wanted(&apps, &ports("81:8000 7000")).unwrap(), ports("*:9000 81:8000 7000"));
        for (typed, error) in [
            ("80:8000 81:8000", "`-p` names the port 8000 of the run twice"),
            ("80:8000 80:8001", "`-p` names the local port 80 twice"),
        ] {
            assert_eq!(wanted(&apps, &ports(typed)).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn a_port_in_use_is_an_error_where_it_was_chosen_and_else_passed_over() {
        let busy = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        let other = if port == 8000 { 8001 } else { 8000 };
        let error = choose(&ports(&format!("{port}:{other}")), "127.0.0.1").unwrap_err();
        assert_eq!(error.to_string(), format!("Port {port} is already in use"));
        let chosen = choose(&ports(&format!("{port} *:{port}")), "127.0.0.1").unwrap();
        assert!(port < chosen[0].local && chosen[0].local < chosen[1].local, "{chosen:?}");
        assert!(choose(&ports("8000"), "192.0.2.1").is_err());
    }
}
