//! One host: a container that boots, tells its console, and ends as EC2 says.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedReceiver;

use super::Shared;
use super::devices::Devices;
use super::docker::docker;
use super::metadata::{self, Metadata};
use crate::machines::{HostTrouble, Machine, MachineEvent, Report};

/// What runs first in a host, and stand-ins for NVIDIA's programs.
const PROGRAMS: [(&str, &str); 3] = [
    ("boot.sh", include_str!("image/boot.sh")),
    ("nvidia-smi", include_str!("image/nvidia-smi.sh")),
    ("nvidia-hook", include_str!("image/nvidia-hook.sh")),
];

/// What cloud-init is told, beside the name of the image's user.
const CLOUD_CONFIG: &str = include_str!("image/cloud.cfg");

/// What a host may do beside the usual, so that it can be root in its own network, start containers itself, and
/// switch itself off. More than this, as `--privileged`, is not there to give on every machine that runs tests.
const CAPABILITIES: [&str; 6] =
    ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "SYS_BOOT", "IPC_LOCK"];

/// How long a host may take to shut down before it is switched off.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// The most of the console that is told at once.
const MAX_LINE: u64 = 16 * 1024;

/// How a container ends that asked the kernel for a reboot: by the signal that says so.
const REBOOTED: i32 = 128 + 1;

/// The most boots of one host; one that reboots for ever is broken.
const MAX_BOOTS: u32 = 20;

/// A host and what is known of it.
#[derive(Debug)]
pub(super) struct Host {
    shared: Arc<Shared>,
    machine: Machine,
    metadata: Metadata,
    container: String,
    folder: PathBuf,
    boots: u32,
}

/// What comes next.
enum Next {
    Event(MachineEvent),
    /// Nobody will tell anything any more.
    Alone,
    /// The container is no more.
    Stopped(Result<ExitStatus>),
}

impl Host {
    pub(super) fn new(shared: Arc<Shared>, machine: Machine) -> Host {
        let container = format!("{}-{}", shared.name, machine.instance_id);
        let folder = shared.folder.join(&machine.instance_id);
        Host { shared, metadata: Metadata::new(&machine), machine, container, folder, boots: 0 }
    }

    /// Lives as EC2 tells, from the launch to the end.
    pub(super) async fn live(mut self, mut events: UnboundedReceiver<MachineEvent>) {
        let prepared = self.prepare().await;
        if let Err(error) = &prepared {
            self.fail(&format!("{error:#}"));
        }
        let mut running: Option<Child> = None;
        let mut is_ending = false;
        loop {
            match next(&mut events, running.as_mut()).await {
                Next::Event(event) => {
                    let is_over = matches!(event, MachineEvent::Ended { .. });
                    is_ending |= matches!(event, MachineEvent::Ending { .. });
                    let started = matches!(event, MachineEvent::Running { .. }) && prepared.is_ok() && !is_ending;
                    let done =
                        if started { self.boot().map(|child| running = Some(child)) } else { self.note(&event) };
                    if let Err(error) = done {
                        self.fail(&format!("{error:#}"));
                    }
                    if is_over {
                        break;
                    }
                }
                Next::Alone => break,
                Next::Stopped(status) => {
                    running = None;
                    let code = status.as_ref().ok().and_then(ExitStatus::code);
                    tracing::info!("{} stopped: {code:?}", self.machine.instance_id);
                    if is_ending {
                        continue;
                    }
                    if code == Some(REBOOTED) && self.boots < MAX_BOOTS {
                        match self.boot() {
                            Ok(child) => running = Some(child),
                            Err(error) => self.fail(&format!("{error:#}")),
                        }
                    } else {
                        self.report(None, None, true);
                    }
                }
            }
        }
        self.remove().await;
    }

    /// Makes all that the host needs to boot.
    async fn prepare(&self) -> Result<()> {
        self.write_files().context("write the host's files")?;
        let network = self.shared.network(&self.machine.network).await?;
        let Host { machine, container, .. } = self;
        let mount =
            |from: &Path, to: &str| format!("type=bind,src={},dst=/var/lib/ec2sim/{to},readonly", from.display());
        let hostname = format!("ip-{}", machine.private_ip.replace('.', "-"));
        let folder = mount(&self.folder, "host");
        let program = mount(&self.shared.options.program, "program");
        let instance = format!("{}={}", super::INSTANCE, machine.instance_id);
        let mut args = vec!["create", "--tty", "--name", container, "--hostname", &hostname];
        args.extend(["--label", &self.shared.owner_label, "--label", &instance]);
        args.extend(["--network", &network, "--ip", &machine.private_ip]);
        args.extend(CAPABILITIES.iter().flat_map(|capability| ["--cap-add", capability]));
        args.extend(["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]);
        // Its own control groups look like all there are, or systemd and engines would look for the outer ones.
        args.extend(["--cgroupns", "private", "--env", "container=docker", "--stop-signal", "SIGRTMIN+3"]);
        // What a boot finds empty; and a place for images where layers can be stacked.
        args.extend(["--tmpfs", "/run:exec", "--tmpfs", "/run/lock", "--volume", "/var/lib/docker"]);
        args.extend(["--mount", &folder, "--mount", &program]);
        args.extend([self.shared.options.image.as_str(), "sh", "/var/lib/ec2sim/host/boot.sh"]);
        docker(&args).await?;
        Ok(())
    }

    /// Writes what the host finds at each boot. All of it is its owner's alone, because it holds user data.
    fn write_files(&self) -> Result<()> {
        let Host { machine, folder, .. } = self;
        fs::DirBuilder::new().mode(0o700).create(folder)?;
        let image = ImageKind::of(&machine.image_name);
        let devices = Devices::new(machine, image.is_prepared);
        for (name, text) in PROGRAMS {
            write(&folder.join(name), text)?;
        }
        write(&folder.join("cloud.cfg"), &CLOUD_CONFIG.replace("USER", image.user))?;
        write(&folder.join("devices"), &devices.nodes())?;
        if devices.has_gpus() {
            write(&folder.join("gpus"), &devices.gpu_table())?;
        }
        devices.write_sysfs(&folder.join("sys"), machine)?;
        write(&folder.join("vars"), &vars(machine, &image)?)?;
        self.write_metadata()
    }

    fn write_metadata(&self) -> Result<()> {
        let text = serde_json::to_string(&self.metadata)?;
        // The service must not find half of it.
        let draft = self.folder.join("metadata.draft");
        write(&draft, &text)?;
        fs::rename(&draft, self.folder.join("metadata.json")).context("put the metadata in place")
    }

    /// Starts the container, whose console is told as long as it runs.
    fn boot(&mut self) -> Result<Child> {
        self.boots += 1;
        let mut command = Command::new("docker");
        // Attached, it prints what the container prints, and ends as it ends.
        command.args(["start", "--attach", &self.container]);
        // It passes signals on, and Ctrl-C in a terminal is not meant for the host.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("start `docker`")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let teller = Teller { shared: self.shared.clone(), instance_id: self.machine.instance_id.clone() };
        if let Some(stdout) = stdout {
            tokio::spawn(tell_console(teller.clone(), stdout));
        }
        if let Some(stderr) = stderr {
            tokio::spawn(tell_console(teller, stderr));
        }
        // Its network answers from now on, which is all that EC2's checks look at.
        self.report(Some(true), None, false);
        Ok(child)
    }

    /// Takes note of what EC2 tells.
    fn note(&mut self, event: &MachineEvent) -> Result<()> {
        match event {
            MachineEvent::SpotNotice { ends_at, .. } => {
                self.metadata.set_spot_notice(*ends_at);
                self.write_metadata()
            }
            MachineEvent::Addressed { public_ip, .. } => {
                self.metadata.set_public_ip(&self.machine, public_ip.as_deref());
                self.write_metadata()
            }
            MachineEvent::Ending { .. } => {
                let (container, limit) = (self.container.clone(), SHUTDOWN.as_secs().to_string());
                // It may be switched off before it is done.
                tokio::spawn(async move { docker(&["stop", "--time", &limit, &container]).await });
                Ok(())
            }
            MachineEvent::Launched(_) | MachineEvent::Running { .. } | MachineEvent::Ended { .. } => Ok(()),
        }
    }

    async fn remove(&self) {
        if let Err(error) = docker(&["rm", "--force", "--volumes", &self.container]).await {
            tracing::warn!("cannot remove {}: {error:#}", self.container);
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!("cannot remove {}: {error}", self.folder.display());
        }
    }

    /// Tells that the machine does not work, and why.
    fn fail(&self, why: &str) {
        tracing::error!("{}: {why}", self.machine.instance_id);
        self.report(Some(false), Some(&format!("ec2sim: {why}\n")), false);
    }

    fn report(&self, healthy: Option<bool>, console: Option<&str>, powered_off: bool) {
        let instance_id = self.machine.instance_id.clone();
        self.shared.report(&Report { instance_id, healthy, console: console.map(str::to_owned), powered_off });
    }
}

async fn next(events: &mut UnboundedReceiver<MachineEvent>, running: Option<&mut Child>) -> Next {
    let stopped = async {
        match running {
            Some(child) => child.wait().await.context("wait for the container"),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        event = events.recv() => event.map_or(Next::Alone, Next::Event),
        status = stopped => Next::Stopped(status),
    }
}

/// Who tells what stands on a console.
#[derive(Debug, Clone)]
struct Teller {
    shared: Arc<Shared>,
    instance_id: String,
}

async fn tell_console(teller: Teller, console: impl AsyncRead + Unpin) {
    let mut console = BufReader::new(console);
    let mut line = Vec::new();
    while let Ok(read) = (&mut console).take(MAX_LINE).read_until(b'\n', &mut line).await {
        if read == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        teller.shared.report(&Report {
            instance_id: teller.instance_id.clone(),
            healthy: None,
            console: Some(text),
            powered_off: false,
        });
        line.clear();
    }
}

/// What an image brings, known by its name.
#[derive(Debug, PartialEq, Eq)]
struct ImageKind {
    /// Who logs in.
    user: &'static str,
    /// Whether an engine for containers and the drivers are there already.
    is_prepared: bool,
}

impl ImageKind {
    fn of(name: &str) -> ImageKind {
        let is_amazon_linux = name.starts_with("al20") || name.contains("Amazon Linux");
        let is_bare = name.starts_with("al20") || name.starts_with("ubuntu/images/");
        ImageKind { user: if is_amazon_linux { "ec2-user" } else { "ubuntu" }, is_prepared: !is_bare }
    }
}

/// Variables of the shell for the boot.
fn vars(machine: &Machine, image: &ImageKind) -> Result<String> {
    let base: &str = machine.network.vpc_cidr.split('/').next().unwrap_or_default();
    let base: std::net::Ipv4Addr = base.parse().context("read the addresses of the VPC")?;
    let more = machine.interfaces.iter().filter_map(|interface| interface.private_ip.as_deref());
    let more: Vec<&str> = more.filter(|address| *address != machine.private_ip).collect();
    let mac = metadata::primary(machine).map(|interface| &interface.mac);
    let mac = mac.context("no interface has the machine's address")?;
    let slow_boot_ms = match machine.trouble {
        Some(HostTrouble::SlowBoot { ms }) => ms,
        Some(HostTrouble::WithoutSsh) | None => 0,
    };
    let yes_or_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let vars = [
        ("instance_id", machine.instance_id.clone()),
        ("instance_type", machine.instance_type.clone()),
        ("image_name", machine.image_name.clone()),
        ("private_ip", machine.private_ip.clone()),
        ("mac", mac.clone()),
        ("gateway", super::gateway(base).to_string()),
        ("resolver", super::resolver(base).to_string()),
        ("more_addresses", more.join(" ")),
        ("has_docker", yes_or_no(image.is_prepared)),
        ("has_ssh", yes_or_no(machine.trouble != Some(HostTrouble::WithoutSsh))),
        ("slow_boot_secs", format!("{}.{:03}", slow_boot_ms / 1000, slow_boot_ms % 1000)),
    ];
    let quoted = vars.map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', r"'\''")));
    Ok(quoted.concat())
}

/// Writes a file that its owner alone may read.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_names() {
        let check = |name: &str, user: &'static str, is_prepared: bool| {
            assert_eq!(ImageKind::of(name), ImageKind { user, is_prepared }, "{name}");
        };
        check("Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241115", "ubuntu", true);
        check("Deep Learning Base OSS Nvidia Driver GPU AMI (Amazon Linux 2023) 20260801", "ec2-user", true);
        check("ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260715", "ubuntu", false);
        check("al2023-ami-2023.8.20260701.0-kernel-6.1-x86_64", "ec2-user", false);
        check("dstack-0.16", "ubuntu", true);
    }
}
