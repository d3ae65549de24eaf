//! Hosts to reach over SSH: containers that look like machines, with sshd, sudo and, if wanted, an engine and
//! systemd. Each has an address of its own on the test's private network, which has no way to the internet.

use std::cell::Cell;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::rig::{Ended, end, program, wait_for};

const IMAGE: &str = "dstack-test-host:latest";

/// An image that the hosts' own engines have.
pub(crate) const TINY_IMAGE: &str = "dstack-test:tiny";

/// What a container or network of a test carries: the process of the test, so that others know when it is over.
const OWNER: &str = "ai.dstack.test-owner";

/// What a host starts with. Its last argument is what the test wants done before.
const START: &str = include_str!("host.sh");

/// How long a host may take to answer, and its engine. Generous, because other tests use the same cores.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a host may do beside the usual, so that it can be root in its own network and start containers itself. More
/// than this, as `--privileged`, is not there to give on every machine that runs tests.
const CAPABILITIES: [&str; 4] = ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"];

/// The first address of a host in its network.
const FIRST_HOST: u8 = 10;

/// A host's PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    /// A shell that started sshd, and the engine if wanted. It starts quickest.
    Sshd,
    Systemd,
}

/// What a user may do as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sudo {
    Free,
    AsksPassword,
    Denied,
}

/// Who is reached by `ssh`.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) shell: &'static str,
    pub(crate) sudo: Sudo,
    /// Groups beside the user's own, as `docker`.
    pub(crate) groups: &'static [&'static str],
}

impl User {
    pub(crate) fn root() -> User {
        User { name: "root", shell: "/bin/bash", sudo: Sudo::Free, groups: &[] }
    }

    /// Somebody who may do everything by sudo.
    pub(crate) fn named(name: &'static str) -> User {
        User { name, ..User::root() }
    }
}

/// How a host is to be.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) init: Init,
    /// Whether there is an engine, with the tiny image. Without, not even its client is there.
    pub(crate) docker: bool,
    pub(crate) user: User,
    /// Lines for sshd, which win over the usual ones.
    pub(crate) sshd_config: &'static str,
    /// Lines for sudo.
    pub(crate) sudoers: &'static str,
    /// The memory of the host and all that runs on it, as Docker writes it.
    pub(crate) memory: Option<&'static str>,
    /// Folders on disks of their own, with their sizes, as Docker writes them; a reboot empties them.
    pub(crate) small_disks: &'static [(&'static str, &'static str)],
    /// Shell text that root runs once, before the host can be reached.
    pub(crate) set_up: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            init: Init::Sshd,
            docker: false,
            user: User::root(),
            sshd_config: "",
            sudoers: "",
            memory: None,
            small_disks: &[],
            set_up: String::new(),
        }
    }
}

/// A private network of a test, and the key that its hosts accept.
#[derive(Debug)]
pub(crate) struct Lan {
    name: String,
    /// The network's own address; it is a /24.
    subnet: Ipv4Addr,
    next_host: Cell<u8>,
    dir: TempDir,
}

/// A host that runs. It ends with this value.
#[derive(Debug)]
pub(crate) struct TestHost {
    container: String,
    address: Ipv4Addr,
    init: Init,
    docker: bool,
    user: &'static str,
    key: PathBuf,
}

impl Lan {
    /// Makes a network, or says why it cannot and answers nothing.
    pub(crate) fn start(test: &str) -> Option<Lan> {
        program("DSTACK_TEST_DOCKER", test)?;
        program("DSTACK_TEST_HOSTS", test)?;
        remove_leftovers();
        let dir = tempfile::Builder::new().prefix("lan").tempdir().expect("the temporary directory is writable");
        let key = dir.path().join("id_ed25519");
        let mut keygen = Command::new("ssh-keygen");
        end(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(key)).expect_status(0);
        let (name, subnet) = wait_for("a free subnet", PATIENCE, make_network);
        Some(Lan { name, subnet, next_host: Cell::new(FIRST_HOST), dir })
    }

    /// The private key that every user of every host accepts. The public one lies beside it, as usual.
    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("id_ed25519")
    }

    /// The network in CIDR notation.
    pub(crate) fn subnet(&self) -> String {
        format!("{}/24", self.subnet)
    }

    /// Starts a host and waits until it answers; so does its engine if it has one.
    pub(crate) fn host(&self, name: &str, options: &Options) -> TestHost {
        let host = self.boot(name, options);
        host.wait_until_it_answers();
        host
    }

    /// Starts hosts of one kind side by side.
    pub(crate) fn hosts(&self, names: &[&str], options: &Options) -> Vec<TestHost> {
        let hosts: Vec<TestHost> = names.iter().map(|name| self.boot(name, options)).collect();
        thread::scope(|scope| {
            for host in &hosts {
                scope.spawn(|| host.wait_until_it_answers());
            }
        });
        hosts
    }

    fn boot(&self, name: &str, options: &Options) -> TestHost {
        let number = self.next_host.replace(self.next_host.get() + 1);
        let address = Ipv4Addr::from_bits(self.subnet.to_bits() | u32::from(number));
        let gateway = Ipv4Addr::from_bits(self.subnet.to_bits() | 1);
        let container = format!("{}-{name}", self.name);
        let init = match options.init {
            Init::Sshd => "sshd",
            Init::Systemd => "systemd",
        };
        let mut run = Command::new("docker");
        run.args(["run", "--detach", "--name", &container, "--hostname", name, "--label", &owner_label()]);
        run.args(["--network", &self.name, "--ip", &address.to_string()]);
        run.args(CAPABILITIES.iter().flat_map(|capability| ["--cap-add", capability]));
        run.args(["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]);
        // Its own control groups look like all there are, or systemd and engines would look for the outer ones.
        run.args(["--cgroupns", "private", "--env", "container=docker"]);
        // What a boot finds empty; and a place for images where layers can be stacked.
        run.args(["--tmpfs", "/run:exec", "--tmpfs", "/run/lock", "--volume", "/var/lib/docker"]);
        for (place, size) in options.small_disks {
            run.args(["--tmpfs", &format!("{place}:exec,size={size}")]);
        }
        if let Some(memory) = options.memory {
            run.args(["--memory", memory, "--memory-swap", memory]);
        }
        if options.init == Init::Systemd {
            run.args(["--stop-signal", "SIGRTMIN+3"]);
        }
        let docker = if options.docker { "yes" } else { "no" };
        run.args([IMAGE, "sh", "-c", START, "host", &gateway.to_string(), docker, init, &self.set_up(options)]);
        end(&mut run).expect_status(0);
        TestHost {
            container,
            address,
            init: options.init,
            docker: options.docker,
            user: options.user.name,
            key: self.key(),
        }
    }

    /// What makes a host the one that is wanted, as shell text.
    fn set_up(&self, options: &Options) -> String {
        let User { name, shell, sudo, groups } = &options.user;
        let key = fs::read_to_string(self.key().with_extension("pub")).unwrap();
        let account = if *name == "root" {
            format!("usermod -s {shell} root\n")
        } else {
            format!("useradd -m -s {shell} {name}\n")
        };
        // Root accepts the key in any case, so that a test can always look.
        let authorize = |name: &str| {
            format!(
                "install -d -m 700 -o {name} ~{name}/.ssh\necho '{}' > ~{name}/.ssh/authorized_keys\n\
                 chown {name} ~{name}/.ssh/authorized_keys\n",
                key.trim()
            )
        };
        let groups = format!("usermod -G '{}' {name}\n", groups.join(","));
        let rule = match sudo {
            Sudo::Free => format!("{name} ALL=(ALL:ALL) NOPASSWD: ALL"),
            Sudo::AsksPassword => format!("{name} ALL=(ALL:ALL) PASSWD: ALL"),
            Sudo::Denied => String::new(),
        };
        [
            account,
            authorize("root"),
            authorize(name),
            groups,
            format!("cat > /etc/sudoers.d/test <<'END'\n{rule}\n{}\nEND\n", options.sudoers),
            format!("cat > /etc/ssh/sshd_config.d/test.conf <<'END'\n{}\nEND\n", options.sshd_config),
            options.set_up.clone(),
        ]
        .concat()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // A host that outlives its network would keep it.
        let hosts = docker(&["ps", "--all", "--quiet", "--filter", &format!("network={}", self.name)]).text();
        for host in hosts.split_whitespace() {
            docker(&["rm", "--force", "--volumes", host]);
        }
        docker(&["network", "rm", &self.name]);
    }
}

impl TestHost {
    /// Where sshd listens, on the usual port.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// OpenSSH's client with a command for the host, as its user.
    pub(crate) fn ssh_command(&self, command: &str) -> Command {
        self.ssh_command_as(self.user, command)
    }

    /// Runs a command over SSH to its end, as the host's user.
    pub(crate) fn ssh(&self, command: &str) -> Ended {
        end(&mut self.ssh_command(command))
    }

    /// Runs a command over SSH to its end, as root.
    pub(crate) fn ssh_as_root(&self, command: &str) -> Ended {
        end(&mut self.ssh_command_as("root", command))
    }

    fn ssh_command_as(&self, user: &str, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        // Whatever the person who runs the tests has configured must not matter.
        ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "ConnectTimeout=5", "-i"]).arg(&self.key);
        ssh.arg(format!("{user}@{}", self.address)).arg(command).env_remove("SSH_AUTH_SOCK");
        ssh
    }

    /// Runs shell text in the host as root, whatever the state of its network.
    pub(crate) fn exec(&self, text: &str) -> Ended {
        docker(&["exec", &self.container, "sh", "-c", text])
    }

    /// Gives the host's engine an image of the engine that tests use.
    pub(crate) fn load_image(&self, image: &str) {
        let copy = "docker save \"$1\" | docker exec -i \"$2\" docker load --quiet";
        end(Command::new("bash").args(["-o", "pipefail", "-c", copy, "bash", image, &self.container]))
            .expect_status(0);
    }

    /// The public key that the host shows, as `known_hosts` has it after the host's name.
    pub(crate) fn host_key(&self) -> String {
        let key = self.exec("cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub").expect_status(0).text();
        key.trim().to_owned()
    }

    /// Gives the host another key, as after an installation from scratch. Connections end.
    pub(crate) fn change_host_key(&self) {
        let file = "/etc/ssh/ssh_host_ed25519_key";
        self.exec(&format!("rm {file} {file}.pub && ssh-keygen -q -t ed25519 -N '' -f {file}")).expect_status(0);
        self.kill_sshd();
        self.start_sshd();
    }

    /// Starts the host again in the way of its PID 1, and waits until it answers.
    pub(crate) fn reboot(&self) {
        docker(&["restart", "--time", "10", &self.container]).expect_status(0);
        self.wait_until_it_answers();
    }

    /// Ends everything on the host at once.
    pub(crate) fn power_off(&self) {
        docker(&["kill", &self.container]).expect_status(0);
    }

    /// Starts the host again, and waits until it answers.
    pub(crate) fn power_on(&self) {
        docker(&["start", &self.container]).expect_status(0);
        self.wait_until_it_answers();
    }

    /// Drops all that the network brings and takes, without a word to anybody. Connections stay open.
    pub(crate) fn cut_network(&self) {
        self.filter_network("-I");
    }

    pub(crate) fn restore_network(&self) {
        self.filter_network("-D");
    }

    /// Puts the host into one more network.
    pub(crate) fn join_network(&self, network: &str, address: &str) {
        docker(&["network", "connect", "--ip", address, network, &self.container]).expect_status(0);
    }

    /// Lets only one other host connect to sshd: the way in is a jump over that.
    pub(crate) fn hide_behind(&self, other: &TestHost) {
        let rule = "iptables -w -I INPUT -i eth0 -p tcp --dport 22 ! -s";
        self.exec(&format!("{rule} {} -j REJECT", other.address)).expect_status(0);
    }

    fn filter_network(&self, change: &str) {
        // Containers on the host's bridge are cut as well.
        let rules = ["INPUT -i", "OUTPUT -o", "FORWARD -i", "FORWARD -o"];
        let lines = rules.map(|rule| {
            let (chain, side) = rule.split_once(' ').expect("a chain and a side");
            format!("iptables -w {change} {chain} {side} eth0 -j DROP")
        });
        self.exec(&lines.join(" && ")).expect_status(0);
    }

    /// Ends sshd and every session of it.
    pub(crate) fn kill_sshd(&self) {
        let end_service = match self.init {
            Init::Sshd => "true",
            // It would start it again.
            Init::Systemd => "systemctl stop ssh",
        };
        // Without a session nothing may be left to kill.
        self.exec(&format!("{end_service}; pkill -KILL -x sshd || true")).expect_status(0);
    }

    /// Starts sshd again, and waits until it answers.
    pub(crate) fn start_sshd(&self) {
        let start = match self.init {
            Init::Sshd => "/usr/sbin/sshd",
            Init::Systemd => "systemctl start ssh",
        };
        self.exec(start).expect_status(0);
        wait_for("sshd's answer", PATIENCE, || self.sshd_answers().then_some(()));
    }

    /// Whether sshd greets who connects.
    pub(crate) fn sshd_answers(&self) -> bool {
        let address = SocketAddr::from((self.address, 22));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
        let mut greeting = [0; 4];
        stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
            && stream.read_exact(&mut greeting).is_ok()
            && &greeting == b"SSH-"
    }

    fn wait_until_it_answers(&self) {
        wait_for("sshd's answer", PATIENCE, || self.sshd_answers().then_some(()));
        if self.init == Init::Systemd {
            // Until then it lets nobody but root in.
            let booted = "systemctl is-active --quiet multi-user.target";
            wait_for("the end of the boot", PATIENCE, || (self.exec(booted).status == Some(0)).then_some(()));
        }
        if self.docker {
            wait_for("the host's engine", PATIENCE, || {
                (self.exec("docker info > /dev/null 2>&1").status == Some(0)).then_some(())
            });
            let import = format!("docker import /usr/share/dstack-test/tiny.tar {TINY_IMAGE}");
            self.exec(&format!("docker image inspect {TINY_IMAGE} > /dev/null 2>&1 || {import}")).expect_status(0);
        }
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if thread::panicking() {
            let logs = docker(&["logs", "--tail", "20", &self.container]);
            let last = "tail -n 20 /var/log/dockerd.log 2>/dev/null; journalctl -n 40 --no-pager 2>/dev/null";
            eprintln!("{}:\n{}{}{}", self.container, logs.text(), logs.stderr, self.exec(last).text());
        }
        docker(&["rm", "--force", "--volumes", &self.container]);
    }
}

fn docker(args: &[&str]) -> Ended {
    end(Command::new("docker").args(args))
}

/// Makes a network with a subnet that no other one has, unless chance was against it.
fn make_network() -> Option<(String, Ipv4Addr)> {
    let chance = RandomState::new().hash_one(0);
    let [.., second, third] = chance.to_be_bytes();
    // Our own agents and the engine take theirs from elsewhere.
    let subnet = Ipv4Addr::new(10, 224 + second % 16, third, 0);
    let name = format!("dstack-lan-{:08x}", chance as u32);
    let cidr = format!("{subnet}/24");
    // No way to the internet: what works here works on hosts that have none.
    let made = docker(&["network", "create", "--internal", "--subnet", &cidr, "--label", &owner_label(), &name]);
    (made.status == Some(0)).then_some((name, subnet))
}

/// The label of what belongs to this process.
fn owner_label() -> String {
    let pid = process::id();
    format!("{OWNER}={pid}.{}", started_at(pid).expect("this process runs"))
}

/// When a process was started, in the kernel's count; it tells apart processes that had the same number.
fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Removes what tests that were killed have left.
fn remove_leftovers() {
    let format = format!("{{{{.ID}}}} {{{{.Label \"{OWNER}\"}}}}");
    let abandoned = |list: &[&str]| -> Vec<String> {
        let filter = format!("label={OWNER}");
        let listed = docker(&[list, &["--filter", &filter, "--format", &format]].concat()).text();
        let lines = listed.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(_, owner)| !is_alive(owner)).map(|(id, _)| id.to_owned()).collect()
    };
    for container in abandoned(&["ps", "--all"]) {
        docker(&["rm", "--force", "--volumes", &container]);
    }
    for network in abandoned(&["network", "ls"]) {
        docker(&["network", "rm", &network]);
    }
}

/// Whether the process of a label runs.
fn is_alive(owner: &str) -> bool {
    let parsed = owner.split_once('.').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
    parsed.is_some_and(|(pid, start): (u32, u64)| started_at(pid) == Some(start))
}
