//! Processors, memory, disk and addresses of the machine, or of the group of it that we are confined to.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use api::agent::HostInfo;
use nix::sys::statvfs::statvfs;

use crate::discover::Roots;

/// Everything but accelerators.
pub(crate) fn basics(roots: &Roots) -> HostInfo {
    let name = nix::sys::utsname::uname();
    let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let field = |field: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        name.as_ref().map(|name| text(field(name))).unwrap_or_default()
    };
    let interfaces = interfaces();
    let route = fs::read_to_string(roots.proc.join("net/route")).unwrap_or_default();
    HostInfo {
        hostname: field(nix::sys::utsname::UtsName::nodename),
        kernel: field(nix::sys::utsname::UtsName::release),
        cpu_arch: cpu_arch(&field(nix::sys::utsname::UtsName::machine)),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        memory_bytes: memory_bytes(roots),
        disk_available_bytes: ["/var/lib/docker", "/"].into_iter().find_map(disk_available_bytes).unwrap_or(0),
        internal_ip: internal_ip(&interfaces, default_interface(&route).as_deref()),
        addresses: interfaces.into_iter().map(|(_, address)| address.to_string()).collect(),
        ..HostInfo::default()
    }
}

fn cpu_arch(machine: &str) -> String {
    match machine {
        "x86_64" | "i686" => "x86".to_owned(),
        "aarch64" => "arm".to_owned(),
        other => other.to_owned(),
    }
}

/// The machine's memory, or less where our control group has a limit.
fn memory_bytes(roots: &Roots) -> u64 {
    let meminfo = fs::read_to_string(roots.proc.join("meminfo")).unwrap_or_default();
    let total = parse_meminfo(&meminfo).unwrap_or(0);
    let groups = fs::read_to_string(roots.proc.join("self/cgroup")).unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|file| {
        fs::read_to_string(roots.sys.join("fs/cgroup").join(file)).ok()?.trim().parse::<u64>().ok()
    });
    limits.filter(|limit| *limit > 0).fold(total, u64::min)
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The files with memory limits of our control group and those above it, below `/sys/fs/cgroup`.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            files.push(Path::new(root).join(group).join(file));
        }
    }
    files
}

/// What is free where a folder is; none if it is not there.
pub(crate) fn disk_available_bytes(folder: &str) -> Option<u64> {
    let statistics = statvfs(folder).ok()?;
    #[expect(clippy::useless_conversion, reason = "the width depends on the platform")]
    let available = u64::from(statistics.blocks_available());
    Some(available * statistics.fragment_size())
}

/// Addresses by interface, without loopback and link-local ones.
fn interfaces() -> Vec<(String, IpAddr)> {
    let Ok(found) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    found
        .filter_map(|interface| {
            let address = interface.address?;
            let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            let is_local = match address {
                IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
            };
            (!is_local).then_some((interface.interface_name, address))
        })
        .collect()
}

/// The interface that the default route leaves by.
fn default_interface(route: &str) -> Option<String> {
    route.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000").then(|| name.to_owned())
    })
}

/// The address that peers use: IPv4 on the default route's interface, else on any that is not a bridge.
fn internal_ip(interfaces: &[(String, IpAddr)], default: Option<&str>) -> Option<String> {
    const VIRTUAL: [&str; 4] = ["docker", "br-", "veth", "virbr"];
    let is_real = |name: &str| !VIRTUAL.iter().any(|prefix| name.starts_with(prefix));
    let rank =
        |(name, address): &&(String, IpAddr)| (default != Some(name.as_str()), !is_real(name), !address.is_ipv4());
    interfaces.iter().min_by_key(rank).map(|(_, address)| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_control_group_allows() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:       16384 kB\nMemFree:         1 kB\n");
        let roots = Roots { sys: root.path().join("sys"), proc: root.path().join("proc"), ..Roots::default() };
        assert_eq!(memory_bytes(&roots), 16384 * 1024);
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/memory.max", "1048576\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(memory_bytes(&roots), 1_048_576);
        write("proc/self/cgroup", "4:cpu,memory:/c\n0::/\n");
        write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "2097152\n");
        assert_eq!(memory_bytes(&roots), 2_097_152);
    }

    #[test]
    fn peers_use_the_address_of_the_default_route() {
        let route = "Iface\tDestination\tGateway\neth1\t0001000A\t0\neth0\t00000000\t0100000A\n";
        assert_eq!(default_interface(route).as_deref(), Some("eth0"));
        let interfaces = [
            ("docker0".to_owned(), "172.17.0.1".parse().unwrap()),
            ("eth0".to_owned(), "fd00::2".parse().unwrap()),
            ("eth0".to_owned(), "10.0.0.2".parse().unwrap()),
        ];
        assert_eq!(internal_ip(&interfaces, Some("eth0")).as_deref(), Some("10.0.0.2"));
        assert_eq!(internal_ip(&interfaces[..1], None).as_deref(), Some("172.17.0.1"));
        assert_eq!(internal_ip(&[], None), None);
    }
}
