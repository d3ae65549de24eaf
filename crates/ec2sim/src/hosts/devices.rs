//! What the devices of a host look like: GPUs, EFA, and what the kernel tells of them below `/sys`.
//!
//! Numbers of buses are those of p5.48xlarge, where each GPU has four network devices beside it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::machines::{Machine, MachineGpus};

/// The driver of the GPUs, and the newest CUDA that it runs.
const DRIVER: (&str, &str) = ("550.127.05", "12.4");

/// GPUs that are joined by switches which their driver tells of, where there are several of them.
const SWITCHED: [&str; 4] = ["H100", "H200", "B200", "B300"];

/// The kernel's modules for the devices, with their versions.
const MODULES: [(&str, &str); 3] = [("efa", "2.12.1g"), ("mlx5_core", "5.0-0"), ("nvidia", DRIVER.0)];

/// The bus of the first GPU, and of the first network device beside it.
const FIRST_BUSES: (usize, usize) = (0x53, 0x4f);

/// How far the buses of neighbouring GPUs lie apart.
const BUSES_APART: usize = 0x11;

/// How many groups of a GPU and its network devices there are at the most.
const GROUPS: usize = 8;

/// The bus of the first device of InfiniBand's other make.
const FIRST_MLX5_BUS: usize = 0xe0;

/// From this bus on, devices are at the second socket.
const SECOND_SOCKET: usize = 0x90;

/// A device on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PciDevice {
    bus: usize,
    vendor: &'static str,
    device: &'static str,
    class: &'static str,
    driver: &'static str,
    /// The name and the number that InfiniBand's users know it by.
    infiniband: Option<(String, usize)>,
}

impl PciDevice {
    fn address(&self) -> String {
        format!("0000:{:02x}:00.0", self.bus)
    }
}

/// A GPU as NVIDIA's tool tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gpu {
    name: String,
    memory_mib: u64,
    uuid: String,
    bus: usize,
    is_switched: bool,
}

/// The devices of a host.
#[derive(Debug)]
pub(super) struct Devices {
    gpus: Vec<Gpu>,
    pci: Vec<PciDevice>,
}

impl Devices {
    /// The devices of a machine. Without a driver in its image, its GPUs are not to be seen.
    pub(super) fn new(machine: &Machine, has_driver: bool) -> Devices {
        let kinds = machine.gpus.iter().filter(|gpus| has_driver && gpus.manufacturer == "NVIDIA");
        let names = kinds.flat_map(|gpus| (0..gpus.count).map(move |_| (product(gpus), is_switched(gpus))));
        let gpus: Vec<Gpu> = names
            .enumerate()
            .map(|(index, ((name, memory_mib), is_switched))| Gpu {
                name,
                memory_mib,
                uuid: uuid(&machine.instance_id, index),
                bus: FIRST_BUSES.0 + index * BUSES_APART,
                is_switched,
            })
            .collect();
        let mut pci: Vec<PciDevice> = gpus
            .iter()
            .map(|gpu| PciDevice {
                bus: gpu.bus,
                vendor: "0x10de",
                device: "0x2330",
                class: "0x030200",
                driver: "nvidia",
                infiniband: None,
            })
            .collect();
        // The other make comes first: nobody may count on numbers.
        let mlx5 = machine.mlx5_devices as usize;
        pci.extend((0..mlx5).map(|index| PciDevice {
            bus: FIRST_MLX5_BUS + index,
            vendor: "0x15b3",
            device: "0x101e",
            class: "0x020700",
            driver: "mlx5_core",
            infiniband: Some((format!("mlx5_{index}"), index)),
        }));
        let efa =
            machine.interfaces.iter().filter(|interface| interface.interface_type.starts_with("efa")).count();
        let in_group = efa.div_ceil(GROUPS).max(1);
        pci.extend((0..efa).map(|index| {
            let bus = FIRST_BUSES.1 + index / in_group * BUSES_APART + index % in_group;
            PciDevice {
                bus,
                vendor: "0x1d0f",
                device: "0xefa2",
                class: "0x020000",
                driver: "efa",
                infiniband: Some((format!("rdmap{bus}s0"), mlx5 + index)),
            }
        }));
        Devices { gpus, pci }
    }

    /// Whether there are GPUs.
    pub(super) fn has_gpus(&self) -> bool {
        !self.gpus.is_empty()
    }

    /// A line for each GPU, for our stand-in of NVIDIA's tool.
    pub(super) fn gpu_table(&self) -> String {
        let (driver, cuda) = DRIVER;
        let line = |(index, gpu): (usize, &Gpu)| {
            let Gpu { name, memory_mib, uuid, bus, is_switched } = gpu;
            let fabric = if *is_switched { "Completed|Success" } else { "N/A|N/A" };
            format!("{index}|{name}|{memory_mib}|{uuid}|{driver}|00000000:{bus:02X}:00.0|{cuda}|{fabric}")
        };
        lines(self.gpus.iter().enumerate().map(line))
    }

    /// The files that stand for devices, a path in each line.
    pub(super) fn nodes(&self) -> String {
        let mut nodes: Vec<String> = (0..self.gpus.len()).map(|index| format!("/dev/nvidia{index}")).collect();
        if self.has_gpus() {
            let shared = ["nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools", "gdrdrv"];
            nodes.extend(shared.map(|name| format!("/dev/{name}")));
        }
        let numbers = self.pci.iter().filter_map(|device| Some(device.infiniband.as_ref()?.1));
        let verbs: Vec<String> = numbers.map(|number| format!("/dev/infiniband/uverbs{number}")).collect();
        if !verbs.is_empty() {
            nodes.push("/dev/infiniband/rdma_cm".to_owned());
        }
        lines(nodes.into_iter().chain(verbs))
    }

    /// Writes what the kernel tells of the devices, to lie over what it tells on this machine.
    pub(super) fn write_sysfs(&self, root: &Path, machine: &Machine) -> io::Result<()> {
        for folder in ["bus/pci/devices", "bus/pci/drivers", "class", "devices/pci0000:00", "module"] {
            fs::create_dir_all(root.join(folder))?;
        }
        // Only what has devices here is loaded.
        for (driver, version) in MODULES {
            if self.pci.iter().any(|device| device.driver == driver) {
                fs::create_dir_all(root.join("module").join(driver))?;
                fs::write(root.join("module").join(driver).join("version"), format!("{version}\n"))?;
            }
        }
        for device in &self.pci {
            write_device(root, device)?;
        }
        if self.pci.iter().any(|device| device.infiniband.is_some()) {
            fs::write(root.join("class/infiniband_verbs/abi_version"), "6\n")?;
        }
        let dmi = root.join("devices/virtual/dmi/id");
        fs::create_dir_all(&dmi)?;
        let serial = format!("ec2{}", &uuid(&machine.instance_id, 0)["GPU-123".len()..]);
        let facts = [
            ("bios_vendor", "Amazon EC2"),
            ("board_asset_tag", &machine.instance_id),
            ("board_vendor", "Amazon EC2"),
            ("chassis_asset_tag", "Amazon EC2"),
            ("chassis_vendor", "Amazon EC2"),
            ("product_name", &machine.instance_type),
            // By these two being the same, programs know where they run.
            ("product_serial", &serial),
            ("product_uuid", &serial),
            ("sys_vendor", "Amazon EC2"),
        ];
        for (name, value) in facts {
            fs::write(dmi.join(name), format!("{value}\n"))?;
        }
        fs::create_dir_all(root.join("class/dmi"))?;
        symlink("../../devices/virtual/dmi/id", root.join("class/dmi/id"))
    }
}

/// A text of lines, all of which end.
fn lines(lines: impl Iterator<Item = String>) -> String {
    let lines: Vec<String> = lines.chain([String::new()]).collect();
    lines.join("\n")
}

fn write_device(root: &Path, device: &PciDevice) -> io::Result<()> {
    let address = device.address();
    let home = root.join("devices/pci0000:00").join(&address);
    fs::create_dir_all(&home)?;
    let node = usize::from(SECOND_SOCKET <= device.bus).to_string();
    let facts = [
        ("class", device.class),
        ("device", device.device),
        ("numa_node", node.as_str()),
        ("vendor", device.vendor),
    ];
    for (name, value) in facts {
        fs::write(home.join(name), format!("{value}\n"))?;
    }
    let driver = root.join("bus/pci/drivers").join(device.driver);
    fs::create_dir_all(&driver)?;
    symlink(format!("../../../bus/pci/drivers/{}", device.driver), home.join("driver"))?;
    let up = format!("../../../devices/pci0000:00/{address}");
    symlink(&up, root.join("bus/pci/devices").join(&address))?;
    symlink(format!("../{up}"), driver.join(&address))?;
    let Some((name, number)) = &device.infiniband else { return Ok(()) };

    let port = home.join("infiniband").join(name).join("ports/1");
    fs::create_dir_all(&port)?;
    let facts = [
        ("link_layer", "Unspecified"),
        ("phys_state", "5: LinkUp"),
        ("rate", "100 Gb/sec (4X EDR)"),
        ("state", "4: ACTIVE"),
    ];
    for (fact, value) in facts {
        fs::write(port.join(fact), format!("{value}\n"))?;
    }
    let verbs = format!("uverbs{number}");
    let verbs_home = home.join("infiniband_verbs").join(&verbs);
    fs::create_dir_all(&verbs_home)?;
    fs::write(verbs_home.join("abi_version"), "1\n")?;
    fs::write(verbs_home.join("dev"), format!("231:{}\n", 192 + number))?;
    fs::write(verbs_home.join("ibdev"), format!("{name}\n"))?;
    for (class, name) in [("infiniband", name), ("infiniband_verbs", &verbs)] {
        let place = root.join("class").join(class);
        fs::create_dir_all(&place)?;
        symlink(format!("../../devices/pci0000:00/{address}/{class}/{name}"), place.join(name))?;
        symlink(format!("../../../{address}"), home.join(class).join(name).join("device"))?;
    }
    Ok(())
}

/// Whether GPUs of a kind are joined by switches.
fn is_switched(gpus: &MachineGpus) -> bool {
    1 < gpus.count && SWITCHED.contains(&gpus.name.as_str())
}

/// The full name of a GPU, and the memory that its driver tells.
fn product(gpus: &MachineGpus) -> (String, u64) {
    let (name, memory_mib) = match (gpus.name.as_str(), gpus.memory_mib) {
        ("A100", 40_960) => ("NVIDIA A100-SXM4-40GB", 40_960),
        ("A100", _) => ("NVIDIA A100-SXM4-80GB", 81_920),
        ("A10G", _) => ("NVIDIA A10G", 23_028),
        ("B200", _) => ("NVIDIA B200", 183_359),
        ("H100", _) => ("NVIDIA H100 80GB HBM3", 81_559),
        ("H200", _) => ("NVIDIA H200", 143_771),
        ("L4", _) => ("NVIDIA L4", 23_034),
        ("L40S", _) => ("NVIDIA L40S", 46_068),
        ("RTX PRO Server 6000", _) => ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97_887),
        ("T4", _) => ("Tesla T4", 15_360),
        ("V100", _) => ("Tesla V100-SXM2-32GB", 32_768),
        (name, memory_mib) => return (format!("NVIDIA {name}"), memory_mib),
    };
    (name.to_owned(), memory_mib)
}

/// An identifier that is the same whenever the same host is made.
fn uuid(instance_id: &str, index: usize) -> String {
    let digest = Sha256::digest(format!("{instance_id}/{index}"));
    let (head, _) = digest.split_first_chunk::<16>().expect("a digest has 32 bytes");
    let hex = format!("{:032x}", u128::from_be_bytes(*head));
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What our stand-in for NVIDIA's tool answers on a machine with these GPUs, and how it ends.
    fn ask(name: &str, count: u32, arguments: &[&str]) -> (Option<i32>, String) {
        let kind =
            MachineGpus { manufacturer: "NVIDIA".to_owned(), name: name.to_owned(), count, memory_mib: 81_920 };
        let gpu = |index| {
            let (name, memory_mib) = product(&kind);
            Gpu { name, memory_mib, uuid: uuid("i-1", index), bus: index, is_switched: is_switched(&kind) }
        };
        let devices = Devices { gpus: (0..count as usize).map(gpu).collect(), pci: vec![] };
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("gpus"), devices.gpu_table()).unwrap();
        fs::write(folder.path().join("nvidia-smi"), include_str!("image/nvidia-smi.sh")).unwrap();
        let mut command = Command::new("sh");
        command.arg(folder.path().join("nvidia-smi")).args(arguments);
        let output = command.env("NVIDIA_SMI_TABLE", folder.path().join("gpus")).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn gpus_that_are_joined_by_switches_say_so() {
        let check = |name: &str, count: u32, expected: &str| {
            let query = "--query-gpu=index,fabric.state,fabric.status";
            assert_eq!(ask(name, count, &[query, "--format=csv,noheader"]), (Some(0), expected.to_owned()));
        };
        check("H100", 2, "0, Completed, Success\n1, Completed, Success\n");
        check("H100", 1, "0, N/A, N/A\n");
        check("A100", 2, "0, N/A, N/A\n1, N/A, N/A\n");
        check("L40S", 2, "0, N/A, N/A\n1, N/A, N/A\n");
    }

    #[test]
    fn a_field_that_the_tool_does_not_know_is_refused_as_it_refuses_it() {
        let (code, text) = ask("H100", 1, &["--query-gpu=index,colour", "--format=csv"]);
        assert_eq!((code, &*text), (Some(2), "Field \"colour\" is not a valid field to query.\n"));
        let (_, table) = ask("H100", 1, &[]);
        assert!(table.contains("CUDA Version: 12.4 "), "{table}");
    }
}
