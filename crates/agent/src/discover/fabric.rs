//! RDMA devices, the nodes through which programs use them, what else those programs need, and the switches between
//! GPUs, from sysfs and procfs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use api::agent::{Fabric, HugePages, KernelModule, RdmaDevice, UverbsDevice};

use crate::discover::{Roots, read};

/// The capability that lifts every limit of resources, as the kernel numbers it.
const CAP_SYS_RESOURCE: u32 = 24;

/// Amazon, and what the devices of its adapters begin with, as the PCI bus numbers them.
const EFA_PCI: (&str, &str) = ("0x1d0f", "0xefa");

/// The daemon that sets up the switches between GPUs, as the kernel cuts its name.
const FABRIC_MANAGER: &str = "nv-fabricmanage";

/// What the machine has now, as files tell. Whatever cannot be read is not there.
pub(super) fn find(roots: &Roots) -> Fabric {
    let nvswitches = entries(&roots.proc.join("driver/nvidia-nvswitch/devices")).len();
    let module = |name: &str| Some(roots.sys.join("module").join(name)).filter(|path| path.is_dir());
    Fabric {
        devices: devices(roots),
        uverbs: uverbs(roots),
        other_nodes: other_nodes(roots),
        efa_module: module("efa").map(|path| KernelModule { version: read(&path.join("version")) }),
        efa_pci_functions: efa_pci_functions(&roots.sys.join("bus/pci/devices")),
        has_gdrdrv: roots.dev.join("gdrdrv").exists(),
        has_nvidia_peermem: module("nvidia_peermem").is_some(),
        huge_pages: read(&roots.proc.join("meminfo")).and_then(|text| parse_huge_pages(&text)),
        memlock_bytes: memlock_bytes(roots),
        nvswitches: u32::try_from(nvswitches).unwrap_or(u32::MAX),
        has_fabric_manager: 0 < nvswitches && runs(roots, FABRIC_MANAGER),
        gpu_fabrics: Vec::new(),
    }
}

/// How many adapters the bus has. One without a driver shows nowhere else.
fn efa_pci_functions(devices: &Path) -> Option<u32> {
    let (vendor, device) = EFA_PCI;
    let is_efa = |path: &PathBuf| {
        read(&path.join("vendor")).is_some_and(|found| found == vendor)
            && read(&path.join("device")).is_some_and(|found| found.starts_with(device))
    };
    let count = devices.is_dir().then(|| entries(devices).values().filter(|path| is_efa(path)).count())?;
    u32::try_from(count).ok()
}

/// Whether a process of this name runs.
fn runs(roots: &Roots, name: &str) -> bool {
    let mut processes = entries(&roots.proc).into_iter().filter(|(number, _)| number.parse::<u32>().is_ok());
    processes.any(|(_, path)| read(&path.join("comm")).is_some_and(|found| found == name))
}

/// The folder's entries by name.
fn entries(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.to_owned(), entry.path()))).collect()
}

/// The number at the end of a name that begins with a prefix: 12 of `uverbs12`.
fn number(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// The name of the driver of whatever a folder of sysfs stands for.
fn driver(path: &Path) -> String {
    let driver = fs::read_link(path.join("device/driver")).ok();
    let name = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    name.unwrap_or_default().to_owned()
}

fn devices(roots: &Roots) -> Vec<RdmaDevice> {
    entries(&roots.sys.join("class/infiniband")).into_iter().map(|(name, path)| device(name, &path)).collect()
}

fn device(name: String, path: &Path) -> RdmaDevice {
    let ports: BTreeMap<u32, PathBuf> = entries(&path.join("ports"))
        .into_iter()
        .filter_map(|(name, path)| Some((name.parse().ok()?, path)))
        .collect();
    let link_layer = ports.values().next().and_then(|port| read(&port.join("link_layer")));
    let state = |port: &Path| read(&port.join("state")).unwrap_or_default();
    RdmaDevice {
        name,
        driver: driver(path),
        port_states: ports.iter().map(|(number, port)| (*number, state(port))).collect(),
        link_layer: link_layer.unwrap_or_default(),
    }
}

fn uverbs(roots: &Roots) -> Vec<UverbsDevice> {
    let found = entries(&roots.sys.join("class/infiniband_verbs"));
    let numbered = found.into_iter().filter_map(|(name, path)| Some((number(&name, "uverbs")?, name, path)));
    let numbered: BTreeMap<u32, (String, PathBuf)> =
        numbered.map(|(number, name, path)| (number, (name, path))).collect();
    numbered
        .into_values()
        .map(|(name, path)| UverbsDevice {
            device: read(&path.join("ibdev")).unwrap_or_default(),
            driver: driver(&path),
            has_node: roots.dev.join("infiniband").join(&name).exists(),
            name,
        })
        .collect()
}

fn other_nodes(roots: &Roots) -> Vec<String> {
    let names = entries(&roots.dev.join("infiniband")).into_keys();
    let is_known =
        |name: &String| name == "rdma_cm" || number(name, "umad").is_some() || number(name, "issm").is_some();
    names.filter(is_known).collect()
}

fn parse_huge_pages(meminfo: &str) -> Option<HugePages> {
    let value = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches("kB").trim_end().parse().ok()
    };
    Some(HugePages {
        size_kib: value("Hugepagesize")?,
        total: value("HugePages_Total")?,
        free: value("HugePages_Free")?,
    })
}

/// What a job may lock: a container engine that runs as root gives all that it may take itself. Without the rights of
/// root, our own limit says nothing about the engine's.
fn memlock_bytes(roots: &Roots) -> Option<u64> {
    let status = read(&roots.proc.join("self/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let capabilities = u64::from_str_radix(field("CapEff:")?, 16).ok()?;
    if capabilities >> CAP_SYS_RESOURCE & 1 == 1 {
        return Some(u64::MAX);
    }
    let effective_user = field("Uid:")?.split_whitespace().nth(1)?;
    let limits = read(&roots.proc.join("self/limits"))?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match limit.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        hard if effective_user == "0" => hard.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine of files.
    struct Tree {
        folder: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Tree {
            Tree { folder: tempfile::tempdir().unwrap() }
        }

        fn roots(&self) -> Roots {
            let root = |name: &str| self.folder.path().join(name);
            Roots { sys: root("sys"), proc: root("proc"), dev: root("dev") }
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// An RDMA device, its driver, and the node that programs open.
        fn add(&self, index: u32, device: &str, driver: &str, has_node: bool) {
            let rdma = self.folder.path().join("sys/class/infiniband").join(device);
            let verbs = self.folder.path().join(format!("sys/class/infiniband_verbs/uverbs{index}"));
            for folder in [&rdma, &verbs] {
                fs::create_dir_all(folder.join("device")).unwrap();
                let target = format!("../../../bus/pci/drivers/{driver}");
                symlink(target, folder.join("device/driver")).unwrap();
            }
            self.write(&format!("sys/class/infiniband/{device}/ports/1/state"), "4: ACTIVE\n");
            let link = if driver == "efa" { "Unspecified\n" } else { "InfiniBand\n" };
            self.write(&format!("sys/class/infiniband/{device}/ports/1/link_layer"), link);
            self.write(&format!("sys/class/infiniband_verbs/uverbs{index}/ibdev"), &format!("{device}\n"));
            if has_node {
                self.write(&format!("dev/infiniband/uverbs{index}"), "");
            }
        }
    }

    #[test]
    fn a_device_tells_its_driver_and_ports() {
        let tree = Tree::new();
        tree.add(0, "rdmap0s6", "efa", true);
        let [found] = &find(&tree.roots()).devices[..] else { panic!("one device") };
        assert_eq!((found.name.as_str(), found.driver.as_str()), ("rdmap0s6", "efa"));
        assert_eq!(found.port_states[&1], "4: ACTIVE");
        assert_eq!(found.link_layer, "Unspecified");
    }

    #[test]
    fn adapters_are_told_from_other_devices_by_their_driver_and_counted_by_their_nodes() {
        let tree = Tree::new();
        // The kernel numbers nodes as drivers find their devices, so the two kinds are mixed.
        for index in 0..34 {
            match index {
                0 | 17 => tree.add(index, &format!("mlx5_{index}"), "mlx5_core", true),
                _ => tree.add(index, &format!("rdmap{index}s0"), "efa", true),
            }
        }
        tree.write("sys/class/infiniband_verbs/abi_version", "6\n");
        for node in ["rdma_cm", "umad0", "issm0", "umad17", "by-path"] {
            tree.write(&format!("dev/infiniband/{node}"), "");
        }
        let found = find(&tree.roots());
        assert_eq!((found.devices.len(), found.uverbs.len(), found.efa_count()), (34, 34, 32));
        // By number and not by letters.
        let names: Vec<String> = found.uverbs.iter().map(|uverbs| uverbs.name.clone()).collect();
        assert_eq!(names, (0..34).map(|index| format!("uverbs{index}")).collect::<Vec<_>>());
        assert_eq!((&*found.uverbs[2].device, &*found.uverbs[17].driver), ("rdmap2s0", "mlx5_core"));
        assert_eq!(found.other_nodes, ["issm0", "rdma_cm", "umad0", "umad17"]);
        fs::remove_file(tree.roots().dev.join("infiniband/uverbs33")).unwrap();
        let found = find(&tree.roots());
        assert_eq!((found.efa().count(), found.efa_count()), (32, 31));
    }

    #[test]
    fn modules_and_memory_are_told() {
        let tree = Tree::new();
        assert_eq!(find(&tree.roots()), Fabric::default());
        tree.write("sys/module/efa/version", "2.17.3g\n");
        tree.write("sys/module/nvidia_peermem/refcnt", "0\n");
        tree.write("dev/gdrdrv", "");
        let meminfo = "MemTotal: 1 kB\nHugePages_Total:   21120\nHugePages_Free:    21000\nHugePages_Rsvd: 0\n\
                       Hugepagesize:       2048 kB\nHugetlb: 1 kB\n";
        tree.write("proc/meminfo", meminfo);
        let found = find(&tree.roots());
        assert_eq!(found.efa_module, Some(KernelModule { version: Some("2.17.3g".to_owned()) }));
        assert!(found.has_gdrdrv && found.has_nvidia_peermem);
        assert_eq!(found.huge_pages, Some(HugePages { size_kib: 2048, total: 21_120, free: 21_000 }));
        tree.write("proc/meminfo", &meminfo.replace("21000", "7"));
        assert!(!find(&tree.roots()).differs(&found));
        tree.write("proc/meminfo", &meminfo.replace("21120", "7"));
        assert!(find(&tree.roots()).differs(&found));
    }

    #[test]
    fn an_adapter_whose_port_is_down_is_of_no_use() {
        let tree = Tree::new();
        tree.add(0, "rdmap0s6", "efa", true);
        tree.add(1, "rdmap1s6", "efa", true);
        tree.write("sys/class/infiniband/rdmap1s6/ports/1/state", "1: DOWN\n");
        let found = find(&tree.roots());
        assert_eq!((found.efa().count(), found.efa_count()), (2, 1));
        assert!(found.is_down(&found.uverbs[1]) && !found.is_down(&found.uverbs[0]));
        // What is not known is no reason to do without it.
        tree.write("sys/class/infiniband/rdmap1s6/ports/1/state", "");
        assert_eq!(find(&tree.roots()).efa_count(), 2);
    }

    #[test]
    fn adapters_without_a_driver_are_seen_on_the_bus() {
        let tree = Tree::new();
        tree.write("sys/bus/pci/devices/0000:00:05.0/vendor", "0x1d0f\n");
        tree.write("sys/bus/pci/devices/0000:00:05.0/device", "0xec20\n");
        assert_eq!(find(&tree.roots()).efa_pci_functions, Some(0));
        for (slot, device) in [(6, "0xefa1\n"), (7, "0xefa3\n")] {
            tree.write(&format!("sys/bus/pci/devices/0000:00:0{slot}.0/vendor"), "0x1d0f\n");
            tree.write(&format!("sys/bus/pci/devices/0000:00:0{slot}.0/device"), device);
        }
        assert_eq!(find(&tree.roots()).efa_pci_functions, Some(2));
    }

    #[test]
    fn the_fabric_manager_is_looked_for_where_there_are_switches() {
        let tree = Tree::new();
        tree.write("proc/1/comm", "systemd\n");
        tree.write("proc/4711/comm", "nv-fabricmanage\n");
        let found = find(&tree.roots());
        assert_eq!((found.nvswitches, found.has_fabric_manager, found.joins_gpus()), (0, false, false));
        for number in 0..6 {
            tree.write(&format!("proc/driver/nvidia-nvswitch/devices/0000:00:1{number}.0"), "");
        }
        let found = find(&tree.roots());
        assert_eq!((found.nvswitches, found.has_fabric_manager, found.joins_gpus()), (6, true, true));
        fs::remove_dir_all(tree.roots().proc.join("4711")).unwrap();
        assert!(!find(&tree.roots()).has_fabric_manager);
    }

    #[test]
    fn a_job_may_lock_what_the_engine_may() {
        let check = |capabilities: &str, user: &str, hard: &str, expected: Option<u64>| {
            let tree = Tree::new();
            tree.write(
                "proc/self/status",
                &format!("Name:\tagent\nUid:\t{user}\t{user}\t{user}\t{user}\nCapEff:\t{capabilities}\n"),
            );
            let limits = "Limit                     Soft Limit           Hard Limit           Units     \n";
            tree.write(
                "proc/self/limits",
                &format!("{limits}Max locked memory         65536                {hard}           bytes     \n"),
            );
            assert_eq!(memlock_bytes(&tree.roots()), expected, "{capabilities} {user} {hard}");
        };
        check("000001ffffffffff", "0", "65536", Some(u64::MAX));
        check("00000000a80425fb", "0", "8388608", Some(8_388_608));
        check("00000000a80425fb", "0", "unlimited", Some(u64::MAX));
        check("0000000000000000", "1000", "8388608", None);
        check("0000000000000000", "1000", "unlimited", Some(u64::MAX));
    }

    #[test]
    fn a_node_lies_where_the_devices_are() {
        let roots = Roots { dev: PathBuf::from("/elsewhere"), ..Roots::default() };
        assert_eq!(roots.node("/dev/infiniband/uverbs0"), Path::new("/elsewhere/infiniband/uverbs0"));
        assert_eq!(roots.node("/devices/a"), Path::new("/devices/a"));
        assert_eq!(Roots::default().node("/dev/gdrdrv"), Path::new("/dev/gdrdrv"));
    }
}
