//! A machine of the user's own that a fleet names and nobody sells: how it is reached, what it turns out to be once
//! its agent answers, and why it may not be of use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::agent::HostInfo;
use api::instances::{Disk, Gpu, InstanceType, Resources};
use serde::{Deserialize, Serialize};

use super::split;

/// The name that such machines have in the place of a backend's kind.
pub const BACKEND: &str = "ssh";

/// The region of all of them.
pub const REGION: &str = "remote";

/// How a machine is reached, but for its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its name or address.
    pub hostname: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// The address that peers use, if the fleet says.
    pub internal_ip: Option<String>,
    /// The network in which peers reach it, in CIDR notation, if the fleet says.
    pub network: Option<String>,
    /// Into how many blocks it is split; none: as many as it has GPUs, or else CPUs.
    pub blocks: Option<u32>,
    /// The host through which it is reached.
    pub proxy: Option<Proxy>,
    /// The keys that it and the hosts on the way to it have shown, by address. Others are refused from then on.
    pub known_keys: BTreeMap<String, String>,
}

/// A host through which others are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Its name or address.
    pub hostname: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Who logs in.
    pub user: String,
}

impl Host {
    /// What no two machines have in common.
    pub fn key(&self) -> String {
        format!("{}:{}", self.hostname.to_ascii_lowercase(), self.port)
    }
}

/// What a machine turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Joined {
    pub(super) instance_type: InstanceType,
    pub(super) internal_ip: Option<String>,
    pub(super) total_blocks: u32,
}

/// What a machine is by what its agent says, or why it cannot be used as the fleet wants, for people.
pub(super) fn joined(host: &Host, info: &HostInfo) -> Result<Joined, String> {
    if info.docker.is_none() {
        let why = info.docker_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(format!("Docker does not answer on {}{why}. Install and start it there", host.hostname));
    }
    let instance_type = instance_type(info);
    let gpus = instance_type.resources.gpus.len();
    let total_blocks =
        split(host.blocks, gpus, info.cpus).map_err(|error| format!("{}: {error}", host.hostname))?;
    Ok(Joined { instance_type, internal_ip: internal_ip(host, info)?, total_blocks })
}

fn instance_type(info: &HostInfo) -> InstanceType {
    let mib = |bytes: u64| bytes / (1 << 20);
    let gpu = |gpu: &api::agent::HostGpu| Gpu {
        name: gpu.name.clone(),
        memory_mib: gpu.memory_mib,
        vendor: Some(gpu.vendor.clone()),
    };
    let resources = Resources {
        cpus: info.cpus,
        memory_mib: mib(info.memory_bytes),
        gpus: info.gpus.iter().map(gpu).collect(),
        spot: false,
        disk: Disk { size_mib: mib(info.disk_available_bytes) },
        cpu_arch: (!info.cpu_arch.is_empty()).then(|| info.cpu_arch.clone()),
        description: String::new(),
    };
    InstanceType { name: "instance".to_owned(), resources }
}

/// The address that peers use: the given one, or the first in the given network, or what the agent takes for it.
fn internal_ip(host: &Host, info: &HostInfo) -> Result<Option<String>, String> {
    let has = || if info.addresses.is_empty() { "none".to_owned() } else { info.addresses.join(", ") };
    if let Some(wanted) = &host.internal_ip {
        let is_there = info.addresses.iter().any(|address| is_same(address, wanted));
        return if is_there {
            Ok(Some(wanted.clone()))
        } else {
            Err(format!("{} has no address {wanted} (`internal_ip`); it has {}", host.hostname, has()))
        };
    }
    let Some(network) = &host.network else { return Ok(info.internal_ip.clone()) };
    let found = info.addresses.iter().find(|address| is_in(network, address));
    match found {
        Some(address) => Ok(Some(address.clone())),
        None => Err(format!("{} has no address in {network} (`network`); it has {}", host.hostname, has())),
    }
}

fn is_same(left: &str, right: &str) -> bool {
    match (left.parse::<IpAddr>(), right.parse::<IpAddr>()) {
        (Ok(left), Ok(right)) => left == right,
        _ => left == right,
    }
}

/// Whether an address is in a network. What cannot be read is in none.
fn is_in(network: &str, address: &str) -> bool {
    let (base, prefix) = network.split_once('/').unwrap_or((network, ""));
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32_u32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let (Ok(base), Ok(address)) = (base.parse::<IpAddr>(), address.parse::<IpAddr>()) else { return false };
    let ((base, width), (address, other)) = (bits(base), bits(address));
    let prefix = prefix.parse::<u32>().unwrap_or(width).min(width);
    // A shift by the whole width is not defined.
    width == other && (prefix == 0 || (base ^ address) >> (128 - prefix) == 0)
}

#[cfg(test)]
mod tests {
    use api::agent::{DockerInfo, HostGpu};

    use super::*;

    fn info() -> HostInfo {
        let gpu = HostGpu {
            vendor: "nvidia".to_owned(),
            name: "H100".to_owned(),
            memory_mib: 80 * 1024,
            index: 0,
            uuid: "GPU-1".to_owned(),
            pci: None,
            numa_node: None,
        };
        let docker = DockerInfo {
            version: "20".to_owned(),
            cgroup_version: "1".to_owned(),
            live_restore: false,
            runtimes: vec![],
            ..DockerInfo::default()
        };
        HostInfo {
            cpus: 8,
            memory_bytes: 32 << 30,
            disk_available_bytes: 100 << 30,
            gpus: vec![gpu; 2],
            addresses: vec!["192.168.7.3".to_owned(), "10.0.0.5".to_owned(), "fd00::5".to_owned()],
            internal_ip: Some("192.168.7.3".to_owned()),
            docker: Some(docker),
            ..HostInfo::default()
        }
    }

    fn host() -> Host {
        Host { hostname: "gpu-1".to_owned(), port: 22, blocks: Some(1), ..Host::default() }
    }

    #[test]
    fn a_machine_is_what_its_agent_says() {
        let joined = joined(&host(), &info()).unwrap();
        let resources = &joined.instance_type.resources;
        assert_eq!((resources.cpus, resources.memory_mib, resources.gpus.len()), (8, 32 * 1024, 2));
        assert_eq!((joined.internal_ip.as_deref(), joined.total_blocks), (Some("192.168.7.3"), 1));
    }

    #[track_caller]
    fn check_address(internal_ip: Option<&str>, network: Option<&str>, expected: Result<&str, &str>) {
        let (internal_ip, network) = (internal_ip.map(str::to_owned), network.map(str::to_owned));
        let found = joined(&Host { internal_ip, network, ..host() }, &info());
        let found = found.map(|joined| joined.internal_ip.unwrap());
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn peers_use_the_address_that_the_fleet_wants() {
        check_address(Some("10.0.0.5"), None, Ok("10.0.0.5"));
        check_address(
            Some("10.0.0.6"),
            None,
            Err("no address 10.0.0.6 (`internal_ip`); it has 192.168.7.3, 10.0.0.5"),
        );
        check_address(None, Some("10.0.0.0/24"), Ok("10.0.0.5"));
        check_address(None, Some("10.0.0.5"), Ok("10.0.0.5"));
        check_address(None, Some("fd00::/8"), Ok("fd00::5"));
        check_address(None, Some("0.0.0.0/0"), Ok("192.168.7.3"));
        check_address(None, Some("10.0.1.0/24"), Err("no address in 10.0.1.0/24 (`network`)"));
    }

    #[test]
    fn a_machine_that_cannot_be_used_says_why() {
        let error = joined(&Host { blocks: Some(3), ..host() }, &info()).unwrap_err();
        assert_eq!(error, "gpu-1: 8 CPUs and 2 GPUs cannot be split into 3 equal `blocks`");
        let no_docker = HostInfo { docker: None, docker_error: Some("no socket".to_owned()), ..info() };
        let error = joined(&host(), &no_docker).unwrap_err();
        assert_eq!(error, "Docker does not answer on gpu-1: no socket. Install and start it there");
        assert_eq!(joined(&Host { blocks: None, ..host() }, &info()).unwrap().total_blocks, 2);
    }
}
