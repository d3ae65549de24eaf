//! Containers that are hosts: sshd, and an engine of their own, on a private network without a way out.

use std::cell::Cell;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// The image that `cargo xtask test` makes.
pub(super) const IMAGE: &str = "dstack-test-host:latest";

/// How a host of the tests starts.
const START: &str = include_str!("../../../../crates/dstack/tests/real_programs/host.sh");

/// What a host may do beside the usual, so that it can be root in its own network and start containers itself.
const CAPABILITIES: [&str; 4] = ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"];

/// The first address of a host.
const FIRST_HOST: u8 = 10;

/// How often a subnet is looked for that nobody has.
const TRIES: usize = 20;

const PATIENCE: Duration = Duration::from_mins(3);

/// A private network, and the key that its hosts accept. Its hosts end with it.
#[derive(Debug)]
pub(super) struct Lan {
    name: String,
    subnet: Ipv4Addr,
    next_host: Cell<u8>,
    key: PathBuf,
}

/// A host that runs.
#[derive(Debug)]
pub(super) struct Host {
    container: String,
    pub(super) address: Ipv4Addr,
}

impl Lan {
    /// Makes a network, and a key in the folder.
    pub(super) fn new(dir: &Path) -> Result<Lan> {
        let key = dir.join("id_ed25519");
        shell::capture(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        for _ in 0..TRIES {
            let [.., second, third] = RandomState::new().hash_one(0).to_be_bytes();
            let subnet = Ipv4Addr::new(10, 224 + second % 16, third, 0);
            let name = format!("dstack-bench-{second:02x}{third:02x}");
            let mut create = Command::new("docker");
            create.args(["network", "create", "--internal", "--subnet", &format!("{subnet}/24")]);
            create.args(["--label", &owner_label()?, &name]);
            if shell::succeeds(&mut create) {
                return Ok(Lan { name, subnet, next_host: Cell::new(FIRST_HOST), key });
            }
        }
        bail!("the engine makes no network");
    }

    pub(super) fn key(&self) -> &Path {
        &self.key
    }

    /// Boots hosts with engines, and waits until all of them answer.
    pub(super) fn hosts(&self, count: usize) -> Result<Vec<Host>> {
        let hosts: Vec<Host> = (0..count).map(|_| self.boot()).collect::<Result<_>>()?;
        for host in &hosts {
            host.wait_until_it_answers()?;
            let has_engine = || host.exec("docker info > /dev/null 2>&1").is_ok().then_some(());
            shell::wait_for("the answer of a host's engine", PATIENCE, has_engine)?;
        }
        Ok(hosts)
    }

    fn boot(&self) -> Result<Host> {
        let gateway = self.address(1).to_string();
        let set_up = self.let_in()?;
        self.start(&["sh", "-c", START, "host", &gateway, "yes", "sshd", &set_up])
    }

    /// Starts a container of the hosts' image.
    pub(super) fn start(&self, command: &[&str]) -> Result<Host> {
        let number = self.next_host.replace(self.next_host.get() + 1);
        let address = self.address(number);
        let container = format!("{}-{number}", self.name);
        let mut run = Command::new("docker");
        run.args(["run", "--detach", "--name", &container, "--label", &owner_label()?]);
        run.args(["--network", &self.name, "--ip", &address.to_string()]);
        run.args(CAPABILITIES.iter().flat_map(|capability| ["--cap-add", capability]));
        run.args(["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]);
        run.args(["--cgroupns", "private", "--tmpfs", "/run:exec", "--volume", "/var/lib/docker"]);
        run.arg(IMAGE).args(command);
        shell::capture(&mut run)?;
        Ok(Host { container, address })
    }

    /// Shell text by which root accepts the key.
    pub(super) fn let_in(&self) -> Result<String> {
        let key = fs::read_to_string(self.key.with_extension("pub")).context("read the public key")?;
        let key = key.trim();
        Ok(format!("install -d -m 700 ~root/.ssh\necho '{key}' > ~root/.ssh/authorized_keys\n"))
    }

    pub(super) fn address(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.to_bits() | u32::from(number))
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let filter = format!("network={}", self.name);
        let hosts = shell::capture(Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &filter]));
        for host in hosts.unwrap_or_default().split_whitespace() {
            shell::succeeds(Command::new("docker").args(["rm", "--force", "--volumes", host]));
        }
        shell::succeeds(Command::new("docker").args(["network", "rm", &self.name]));
    }
}

impl Host {
    /// Runs shell text in the host as root, whatever the state of its network.
    pub(super) fn exec(&self, text: &str) -> Result<String> {
        shell::capture(Command::new("docker").args(["exec", &self.container, "sh", "-c", text]))
    }

    /// Gives the host's engine an image of this machine's, by a name that nobody need ask a registry about.
    pub(super) fn give_image(&self, image: &str, name: &str) -> Result<()> {
        let line = format!("docker save {image} | docker exec --interactive {} docker load", self.container);
        shell::capture(Command::new("sh").args(["-c", &line]))?;
        self.exec(&format!("docker tag {image} {name}")).map(drop)
    }

    /// Puts a file there.
    pub(super) fn copy(&self, file: &Path, to: &str) -> Result<()> {
        shell::run(Command::new("docker").arg("cp").arg(file).arg(format!("{}:{to}", self.container)))
    }

    /// Where sshd listens.
    pub(super) fn sshd(&self) -> SocketAddr {
        SocketAddr::from((self.address, 22))
    }

    /// Drops all that the network brings and takes, without a word to anybody. Connections stay open.
    pub(super) fn cut_network(&self) -> Result<()> {
        self.filter_network("-I")
    }

    pub(super) fn restore_network(&self) -> Result<()> {
        self.filter_network("-D")
    }

    fn filter_network(&self, change: &str) -> Result<()> {
        let rule = |chain: &str| format!("iptables -w {change} {chain} eth0 -j DROP");
        self.exec(&["INPUT -i", "OUTPUT -o"].map(rule).join(" && ")).map(drop)
    }

    /// Waits until nothing of any server is left there.
    pub(super) fn wait_until_clean(&self) -> Result<()> {
        let traces = "ls -d /var/lib/dstack/* /usr/local/lib/dstack/* 2> /dev/null; true";
        let is_clean = || self.exec(traces).is_ok_and(|text| text.trim().is_empty()).then_some(());
        shell::wait_for("a clean host", PATIENCE, is_clean)
    }

    fn wait_until_it_answers(&self) -> Result<()> {
        shell::wait_for("sshd's answer", PATIENCE, || greets(self.sshd()).then_some(()))
    }
}

/// Whether an SSH server greets who connects.
pub(super) fn greets(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && &greeting == b"SSH-"
}

/// The label of what belongs to this process. The tests remove what carries one of a process that is gone.
fn owner_label() -> Result<String> {
    let stat = fs::read_to_string("/proc/self/stat").context("read this process's state")?;
    // The name stands in parentheses and may hold anything.
    let start = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    Ok(format!("ai.dstack.test-owner={}.{}", process::id(), start.context("the kernel tells no start")?))
}
