//! The Docker engine of the host: reaching it, what it is, its networks.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use api::agent::DockerInfo;
use bollard::errors::Error as DockerError;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::{API_DEFAULT_VERSION, Docker};
use jiff::Timestamp;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// How long the engine may take to answer, in seconds. Pulls are watched apart.
const TIMEOUT_SECS: u64 = 120;
/// How long a network that somebody else makes may stay out of sight, and how often it is looked for.
const NETWORK_APPEARS: std::time::Duration = std::time::Duration::from_secs(5);
const NETWORK_LOOK: std::time::Duration = std::time::Duration::from_millis(50);
/// How long it may take to say who it is.
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The program by which an engine gives NVIDIA's GPUs to containers, if it finds it; it needs no runtime for that.
const NVIDIA_HOOK: &str = "nvidia-container-runtime-hook";
/// How the devices begin that an engine knows by NVIDIA's description of them.
const NVIDIA_DEVICES: &str = "nvidia.com/gpu";

/// The way to the engine.
#[derive(Debug)]
pub(crate) struct Engine {
    socket: Option<PathBuf>,
}

impl Engine {
    /// The engine behind `DOCKER_HOST`, or at its usual socket; or none at all.
    pub(crate) fn new(enabled: bool) -> Engine {
        let configured = std::env::var("DOCKER_HOST").ok();
        let configured = configured.as_deref().and_then(|host| host.strip_prefix("unix://"));
        let socket = configured.unwrap_or("/var/run/docker.sock");
        Engine { socket: enabled.then(|| PathBuf::from(socket)) }
    }

    /// Whether the agent was told to use none.
    pub(crate) fn is_off(&self) -> bool {
        self.socket.is_none()
    }

    /// Whether there is something to connect to.
    pub(crate) fn exists(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.exists())
    }

    /// A client that speaks the engine's version.
    pub(crate) async fn connect(&self) -> Result<Docker, String> {
        let Some(socket) = &self.socket else {
            return Err("this agent was started without a container engine".to_owned());
        };
        let socket = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&socket, TIMEOUT_SECS, API_DEFAULT_VERSION)
            .map_err(|error| error.to_string())?;
        tokio::time::timeout(PING_TIMEOUT, docker.negotiate_version())
            .await
            .map_err(|_| format!("`{socket}` does not answer"))?
            .map_err(|error| format!("`{socket}`: {error}"))
    }

    /// What the engine is, or why there is none.
    pub(crate) async fn info(&self) -> Result<DockerInfo, String> {
        let docker = self.connect().await?;
        let info = tokio::time::timeout(PING_TIMEOUT, docker.info())
            .await
            .map_err(|_| "the engine does not answer".to_owned())?
            .map_err(|error| error.to_string())?;
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        let devices = info.discovered_devices.unwrap_or_default();
        let is_described =
            devices.iter().any(|device| device.id.as_ref().is_some_and(|id| id.starts_with(NVIDIA_DEVICES)));
        let is_told = is_described || runtimes.iter().any(|runtime| runtime == "nvidia");
        Ok(DockerInfo {
            version: info.server_version.unwrap_or_default(),
            cgroup_version: info.cgroup_version.map(|version| version.to_string()).unwrap_or_default(),
            live_restore: info.live_restore_enabled.unwrap_or(false),
            has_nvidia_toolkit: if is_told { Some(true) } else { self.finds_nvidia_hook() },
            runtimes,
            root_dir: info.docker_root_dir,
        })
    }

    /// Whether the engine finds NVIDIA's hook; none if it is not known where it looks.
    fn finds_nvidia_hook(&self) -> Option<bool> {
        let process = Path::new("/proc").join(engine_pid(self.socket.as_deref()?)?.to_string());
        finds(&std::fs::read(process.join("environ")).ok()?, &process.join("root"), NVIDIA_HOOK)
    }

    /// Whether the engine was started after `started_at` and ended what ran at that time, as it does unless it was
    /// told to let containers live on.
    pub(crate) async fn has_ended_what_runs_since(&self, started_at: &str) -> bool {
        self.was_restarted_since(started_at) && !self.info().await.is_ok_and(|info| info.live_restore)
    }

    /// Whether the engine's process is younger than something that it started.
    fn was_restarted_since(&self, started_at: &str) -> bool {
        let Ok(started_at) = started_at.parse::<Timestamp>() else {
            return false;
        };
        let engine = self.socket.as_deref().and_then(engine_pid).and_then(process_start);
        engine.is_some_and(|engine| started_at.as_second() < engine)
    }
}

/// Makes a bridge network, unless it is there.
pub(crate) async fn ensure_network(docker: &Docker, name: &str, subnet: &str) -> Result<(), DockerError> {
    match docker.inspect_network(name, None).await {
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => {}
        found => return found.map(|_| ()),
    }
    let halves = halves(subnet);
    let config = IpamConfig {
        subnet: Some(subnet.to_owned()),
        gateway: halves.as_ref().map(|halves| halves.gateway.clone()),
        ip_range: halves.map(|halves| halves.upper),
        ..IpamConfig::default()
    };
    let request = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
        ..NetworkCreateRequest::default()
    };
    let created = docker.create_network(request).await;
    // The agents of one host's machines make the same network at the same time. The engine refuses the second one's
    // subnet before the first one's network can be seen.
    let deadline = tokio::time::Instant::now() + NETWORK_APPEARS;
    loop {
        match docker.inspect_network(name, None).await {
            Ok(_) => return Ok(()),
            Err(error) if tokio::time::Instant::now() >= deadline => return created.map(|_| ()).and(Err(error)),
            Err(_) => tokio::time::sleep(NETWORK_LOOK).await,
        }
    }
}

/// How the addresses of a network are shared out.
#[derive(Debug, PartialEq, Eq)]
struct Halves {
    /// The host's own address: the first one.
    gateway: String,
    /// What the engine gives containers that ask for no address, so that it never gives one that is another's.
    upper: String,
}

/// The parts of an IPv4 network, if it is one that is large enough to have parts.
fn halves(subnet: &str) -> Option<Halves> {
    let (first, length) = subnet.split_once('/')?;
    let (first, length): (Ipv4Addr, u32) = (first.parse().ok()?, length.parse().ok()?);
    if !(1..=28).contains(&length) {
        return None;
    }
    let first = u32::from(first);
    let upper = Ipv4Addr::from(first + (1 << (31 - length)));
    Some(Halves { gateway: Ipv4Addr::from(first + 1).to_string(), upper: format!("{upper}/{}", length + 1) })
}

/// Whether a process with this environment, whose files begin at `root`, finds a program; none if it is not known
/// where it looks.
fn finds(environment: &[u8], root: &Path, program: &str) -> Option<bool> {
    let mut variables = environment.split(|byte| *byte == 0);
    let path = variables.find_map(|variable| std::str::from_utf8(variable.strip_prefix(b"PATH=")?).ok())?;
    let mut folders = path.split(':').map(|folder| root.join(folder.trim_start_matches('/')));
    Some(folders.any(|folder| folder.join(program).exists()))
}

/// The process behind the engine's socket.
fn engine_pid(socket: &Path) -> Option<i32> {
    let is_engine = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "dockerd")
    };
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let peer = getsockopt(&stream.as_fd(), PeerCredentials).ok().map(|peer| peer.pid());
    // Where an init system holds the socket, the engine still writes its number down.
    peer.filter(is_engine).or_else(|| {
        let text = std::fs::read_to_string("/var/run/docker.pid").ok()?;
        text.trim().parse().ok().filter(is_engine)
    })
}

/// When a process started, in seconds since the epoch.
fn process_start(pid: i32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: i64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<i64>().ok()? + ticks / per_second as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_finds_what_lies_on_its_own_path() {
        let root = tempfile::tempdir().unwrap();
        let path = b"HOME=/\0PATH=/usr/sbin:/opt/nvidia/bin\0TERM=linux\0";
        assert_eq!(finds(path, root.path(), NVIDIA_HOOK), Some(false));
        std::fs::create_dir_all(root.path().join("opt/nvidia/bin")).unwrap();
        std::fs::write(root.path().join("opt/nvidia/bin").join(NVIDIA_HOOK), "").unwrap();
        assert_eq!(finds(path, root.path(), NVIDIA_HOOK), Some(true));
        assert_eq!(finds(b"PATH=/usr/bin\0", root.path(), NVIDIA_HOOK), Some(false));
        // Whoever may not see the environment of another does not know.
        assert_eq!(finds(b"", root.path(), NVIDIA_HOOK), None);
    }

    #[test]
    fn the_engine_gives_addresses_of_the_upper_half_only() {
        let check = |subnet, expected: Option<(&str, &str)>| {
            let found = halves(subnet);
            let found = found.as_ref().map(|halves| (halves.gateway.as_str(), halves.upper.as_str()));
            assert_eq!(found, expected, "{subnet}");
        };
        check("10.223.252.0/22", Some(("10.223.252.1", "10.223.254.0/23")));
        check("10.231.77.0/24", Some(("10.231.77.1", "10.231.77.128/25")));
        check("10.231.77.0/30", None);
        check("fd00::/64", None);
        check("nonsense", None);
    }
}
