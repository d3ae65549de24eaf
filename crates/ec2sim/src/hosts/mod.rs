//! Machines that are containers: each instance is one, with the address that EC2 told, an SSH server, an engine of its
//! own, cloud-init, a metadata service, and devices that look like those of its type.
//!
//! Docker is driven by its command line, and nothing here is of the project's other crates. What a host is made of
//! carries a label with the process that made it, so that the next one removes what a killed one has left.

mod devices;
mod docker;
mod host;
mod metadata;
mod service;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinSet;

use crate::machines::{MachineEvent, MachineNetwork, Machines, Report};
use crate::simulator::Simulator;
use docker::docker;
use host::Host;

pub use service::metadata_service;

/// The label of all that belongs to a process of ours, with its number and its start.
const OWNER: &str = "ai.dstack.ec2sim-owner";

/// The label of a host, with its instance.
const INSTANCE: &str = "ai.dstack.ec2sim-instance";

/// What the folders of our processes begin with.
const FOLDER: &str = "dstack-ec2sim-";

/// How the hosts are made.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The image that all hosts boot, whichever one their launch names.
    pub image: String,
    /// The program `dstack-ec2sim`, which serves the metadata in each host.
    pub program: PathBuf,
    /// The most hosts at once. A launch beyond it is taken, and its machine does not boot.
    pub max_hosts: usize,
}

/// Plays the machines as containers.
#[derive(Debug)]
pub struct ContainerHosts {
    shared: Arc<Shared>,
    runtime: Handle,
    /// Whom to tell what, by instance.
    hosts: Mutex<BTreeMap<String, UnboundedSender<MachineEvent>>>,
    lives: Mutex<JoinSet<()>>,
}

/// What all hosts of a simulation share.
#[derive(Debug)]
struct Shared {
    options: HostOptions,
    /// What names of containers and networks begin with.
    name: String,
    owner_label: String,
    folder: PathBuf,
    /// Whom to report to.
    simulator: Mutex<Option<Simulator>>,
    /// The networks that were made, by VPC.
    networks: tokio::sync::Mutex<BTreeMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ContainerHosts {
    /// Removes what others have left, and gets ready. Hosts report once they were told to whom.
    pub async fn start(options: HostOptions) -> Result<Arc<ContainerHosts>> {
        docker(&["version", "--format", "{{.Server.Version}}"]).await.context("hosts are containers")?;
        docker(&["image", "inspect", "--format", "{{.Id}}", &options.image])
            .await
            .with_context(|| format!("hosts boot the image `{}`; `cargo xtask test` makes it", options.image))?;
        ensure!(options.program.is_file(), "there is no program `{}`", options.program.display());
        remove_leftovers().await?;
        let pid = process::id();
        let owner = format!("{pid}.{}", started_at(pid).context("read when this process was started")?);
        let folder = std::env::temp_dir().join(format!("{FOLDER}{owner}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make `{}`", folder.display()))?;
        let shared = Shared {
            options,
            name: format!("ec2sim-{pid}"),
            owner_label: format!("{OWNER}={owner}"),
            folder,
            simulator: Mutex::new(None),
            networks: tokio::sync::Mutex::default(),
        };
        Ok(Arc::new(ContainerHosts {
            shared: Arc::new(shared),
            runtime: Handle::current(),
            hosts: Mutex::default(),
            lives: Mutex::default(),
        }))
    }

    /// Says whom the hosts report to.
    pub fn report_to(&self, simulator: Simulator) {
        *lock(&self.shared.simulator) = Some(simulator);
    }

    /// Ends all hosts, and removes everything.
    pub async fn close(&self) -> Result<()> {
        *lock(&self.shared.simulator) = None;
        // Whoever hears nothing more ends.
        lock(&self.hosts).clear();
        let mut lives = std::mem::take(&mut *lock(&self.lives));
        while lives.join_next().await.is_some() {}
        let networks = std::mem::take(&mut *self.shared.networks.lock().await);
        for network in networks.values() {
            docker(&["network", "rm", network]).await?;
        }
        fs::remove_dir_all(&self.shared.folder).context("remove the folder of the hosts")
    }
}

impl Machines for ContainerHosts {
    fn happened(&self, event: &MachineEvent) {
        let mut hosts = lock(&self.hosts);
        let instance_id = match event {
            MachineEvent::Launched(machine) => {
                let id = machine.instance_id.clone();
                if self.shared.options.max_hosts <= hosts.len() {
                    tracing::error!("{id} does not boot: there are {} hosts already", hosts.len());
                    // It cannot be reported from within the telling of what happened.
                    let (shared, limit) = (self.shared.clone(), hosts.len());
                    self.runtime.spawn(async move {
                        let console =
                            Some(format!("ec2sim: there are {limit} hosts already, and may be no more\n"));
                        shared.report(&Report {
                            instance_id: id,
                            healthy: Some(false),
                            console,
                            powered_off: false,
                        });
                    });
                    return;
                }
                let (sender, events) = mpsc::unbounded_channel();
                let host = Host::new(self.shared.clone(), (**machine).clone());
                let mut lives = lock(&self.lives);
                // Those that are over are not kept.
                while lives.try_join_next().is_some() {}
                lives.spawn_on(host.live(events), &self.runtime);
                hosts.insert(id, sender);
                return;
            }
            MachineEvent::Running { instance_id }
            | MachineEvent::SpotNotice { instance_id, .. }
            | MachineEvent::Ending { instance_id }
            | MachineEvent::Ended { instance_id }
            | MachineEvent::Addressed { instance_id, .. } => instance_id,
        };
        if let Some(host) = hosts.get(instance_id) {
            // One that is gone hears nothing, and needs not.
            let _ = host.send(event.clone());
        }
        if matches!(event, MachineEvent::Ended { .. }) {
            hosts.remove(instance_id);
        }
    }
}

impl Shared {
    /// Tells the simulation what a machine tells of itself.
    fn report(&self, report: &Report) {
        let simulator = lock(&self.simulator).clone();
        if let Some(Err(error)) = simulator.map(|simulator| simulator.report(report)) {
            // It is forgotten already.
            tracing::debug!("{}: {error:?}", report.instance_id);
        }
    }

    /// The network of a VPC, which is made for its first machine. It has no way to the world.
    async fn network(&self, network: &MachineNetwork) -> Result<String> {
        let mut networks = self.networks.lock().await;
        if let Some(name) = networks.get(&network.vpc_id) {
            return Ok(name.clone());
        }
        let MachineNetwork { vpc_id, vpc_cidr, .. } = network;
        let name = format!("{}-{vpc_id}", self.name);
        let base: Ipv4Addr =
            vpc_cidr.split('/').next().unwrap_or_default().parse().context("read the addresses")?;
        let gateway = gateway(base).to_string();
        let mut args = vec!["network", "create", "--internal", "--subnet", vpc_cidr, "--gateway", &gateway];
        args.extend(["--label", &self.owner_label, &name]);
        docker(&args).await.with_context(|| {
            format!(
                "make the network of {vpc_id} ({vpc_cidr}); \
                 if its addresses are taken, choose others by `--my-vpc-cidr` and `--default-vpc-cidr`"
            )
        })?;
        networks.insert(vpc_id.clone(), name.clone());
        Ok(name)
    }
}

/// The address of a VPC that stands for its gateways. EC2 gives it to no machine.
fn gateway(base: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() | 1)
}

/// The address of a VPC's resolver, which EC2 gives to no machine either.
fn resolver(base: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() | 2)
}

/// When a process was started that still runs, in the kernel's count; it tells apart processes that had the same
/// number.
fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // One that is dead and not buried yet does not count.
    fields.next().filter(|state| !["Z", "X"].contains(state))?;
    fields.nth(18)?.parse().ok()
}

/// Whether the process of a label or a folder runs.
fn is_alive(owner: &str) -> bool {
    let parsed = owner.split_once('.').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
    parsed.is_some_and(|(pid, start): (u32, u64)| started_at(pid) == Some(start))
}

/// Removes what processes that were killed have left.
async fn remove_leftovers() -> Result<()> {
    let format = format!("{{{{.ID}}}} {{{{.Label \"{OWNER}\"}}}}");
    let filter = format!("label={OWNER}");
    for (list, remove) in
        [(["ps", "--all"], &["rm", "--force", "--volumes"][..]), (["network", "ls"], &["network", "rm"][..])]
    {
        let listed = docker(&[&list[..], &["--filter", &filter, "--format", &format]].concat()).await?;
        let lines = listed.lines().filter_map(|line| line.split_once(' '));
        for (id, _) in lines.filter(|(_, owner)| !is_alive(owner)) {
            // Another who starts just now may have been quicker.
            if let Err(error) = docker(&[remove, &[id]].concat()).await {
                tracing::warn!("cannot remove what was left: {error:#}");
            }
        }
    }
    for entry in fs::read_dir(std::env::temp_dir()).context("read the folder for what is temporary")?.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
        if owner.is_some_and(|owner| owner.contains('.') && !is_alive(owner)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
