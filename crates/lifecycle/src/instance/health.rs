//! Whether a machine has what it should have, by what its agent says.

use std::collections::BTreeMap;

use api::agent::{DockerInfo, Fabric, HostInfo};
use api::instances::HealthStatus;
use serde::{Deserialize, Serialize};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What it is, in a word or two: `efa`, `gpus`.
    pub name: String,
    /// How it is.
    pub status: HealthStatus,
    /// What was found, for people; it goes on where the name ends: `31/32`.
    pub detail: String,
}

impl Check {
    /// The whole of it, for people: `efa 31/32`.
    pub fn text(&self) -> String {
        format!("{} {}", self.name, self.detail)
    }
}

/// What was found out about a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// What was looked at, the most important first.
    pub checks: Vec<Check>,
    /// The EFA devices that it should have and those that it has; unset where it has and should have none.
    pub efa: Option<EfaCount>,
}

/// The EFA devices of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EfaCount {
    /// How many programs can use.
    pub found: u32,
    /// How many it was bought with; unset: nobody knows.
    pub expected: Option<u32>,
}

impl EfaCount {
    /// How many it should have, if it has fewer.
    pub fn missing_of(self) -> Option<u32> {
        self.expected.filter(|expected| self.found < *expected)
    }
}

impl Health {
    /// The worst of all checks.
    pub fn status(&self) -> HealthStatus {
        self.checks.iter().map(|check| check.status).max().unwrap_or_default()
    }

    /// The EFA devices that it has and should have, where it has too few for a job that spans machines.
    pub fn incomplete_efa(&self) -> Option<String> {
        let efa = self.efa?;
        efa.missing_of().map(|expected| format!("{} of {expected} EFA devices", efa.found))
    }
}

/// What a machine was bought as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// EFA devices; unset: nobody knows.
    pub(super) efa: Option<u32>,
    /// GPUs; unset: nobody knows, because the machine is what it turns out to be.
    pub(super) gpus: Option<u32>,
}

/// Judges a machine by what its agent says and what it was bought as.
pub(super) fn judge(host: &HostInfo, expected: Expected) -> Health {
    let fabric = &host.fabric;
    let found = fabric.efa_count();
    let has_efa = 0 < found || fabric.efa().next().is_some() || expected.efa.is_some_and(|count| 0 < count);
    let efa = has_efa.then_some(EfaCount { found, expected: expected.efa });
    let mut checks: Vec<Check> = efa.map(|efa| efa_checks(efa, fabric)).unwrap_or_default();
    checks.extend(gpu_checks(host, expected));
    let has_rdma = !fabric.uverbs.is_empty();
    if has_efa || has_rdma {
        checks.extend(memory_checks(fabric, has_efa));
        if !host.gpus.is_empty() {
            let yes_or_no = if fabric.has_gdrdrv { "is there" } else { "is not there" };
            checks.push(check("gdrdrv", HealthStatus::Healthy, yes_or_no.to_owned()));
        }
        // The driver of adapters reaches the memory of GPUs by itself, as may those of others.
        if has_nvidia(host) && !has_efa {
            let yes_or_no = if fabric.has_nvidia_peermem { "is loaded" } else { "is not loaded" };
            checks.push(check("nvidia_peermem", HealthStatus::Healthy, yes_or_no.to_owned()));
        }
    }
    Health { checks, efa }
}

fn has_nvidia(host: &HostInfo) -> bool {
    host.gpus.iter().any(|gpu| gpu.vendor == "nvidia")
}

fn check(name: &str, status: HealthStatus, detail: String) -> Check {
    Check { name: name.to_owned(), status, detail }
}

fn failure_if(failed: bool) -> HealthStatus {
    if failed { HealthStatus::Failure } else { HealthStatus::Healthy }
}

/// The count of adapters. One that lacks some says what is known of the rest: whether they are attached at all, and
/// which of them do not carry traffic.
fn efa_check(efa: EfaCount, fabric: &Fabric) -> Check {
    let down: Vec<&str> =
        fabric.efa().filter(|uverbs| fabric.is_down(uverbs)).map(|uverbs| uverbs.device.as_str()).collect();
    let mut detail = match efa.expected {
        Some(expected) => format!("{}/{expected}", efa.found),
        None => efa.found.to_string(),
    };
    if !down.is_empty() {
        detail += &format!(", ports that are not active: {}", down.join(", "));
    }
    let has_failed = efa.missing_of().is_some() || !down.is_empty();
    if let Some(attached) = fabric.efa_pci_functions.filter(|_| has_failed) {
        detail += &format!(", {attached} on the PCI bus");
    }
    check("efa", failure_if(has_failed), detail)
}

fn efa_checks(efa: EfaCount, fabric: &Fabric) -> Vec<Check> {
    let module = match &fabric.efa_module {
        Some(module) => module.version.clone().unwrap_or_else(|| "is loaded".to_owned()),
        None => "is not loaded".to_owned(),
    };
    let without_node: Vec<&str> =
        fabric.efa().filter(|uverbs| !uverbs.has_node).map(|uverbs| uverbs.name.as_str()).collect();
    let nodes = if without_node.is_empty() {
        format!("{} nodes", fabric.efa().count())
    } else {
        format!("have no node in /dev/infiniband: {}", without_node.join(", "))
    };
    // A driver that is a part of the kernel and no module shows by its devices.
    let has_driver = fabric.efa_module.is_some() || fabric.efa().next().is_some();
    vec![
        efa_check(efa, fabric),
        check("efa module", failure_if(!has_driver), module),
        check("uverbs", failure_if(!without_node.is_empty()), nodes),
    ]
}

fn gpu_checks(host: &HostInfo, expected: Expected) -> Vec<Check> {
    let fabric = &host.fabric;
    let found = u32::try_from(host.gpus.len()).unwrap_or(u32::MAX);
    let count = expected
        .gpus
        .filter(|expected| 0 < *expected)
        .map(|expected| check("gpus", failure_if(found < expected), format!("{found}/{expected}")));
    let manager = (0 < fabric.nvswitches).then(|| {
        let runs = fabric.has_fabric_manager;
        let detail = if runs { "runs" } else { "is not running, so that CUDA fails with error 802" };
        check("fabric manager", failure_if(!runs), detail.to_owned())
    });
    let toolkit = host.docker.as_ref().filter(|_| has_nvidia(host)).map(toolkit_check);
    count.into_iter().chain(manager).chain(gpu_fabric_check(fabric)).chain(toolkit).collect()
}

/// Whether GPUs that are joined reach each other.
fn gpu_fabric_check(fabric: &Fabric) -> Option<Check> {
    let joined = fabric.gpu_fabrics.len();
    let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for gpu in fabric.gpu_fabrics.iter().filter(|gpu| !gpu.is_ready()) {
        let state =
            if gpu.status.is_empty() { gpu.state.clone() } else { format!("{} ({})", gpu.state, gpu.status) };
        others.entry(state).or_default().push(gpu.index.to_string());
    }
    if joined == 0 {
        return None;
    }
    if others.is_empty() {
        return Some(check("gpu fabric", HealthStatus::Healthy, format!("Completed on {joined} GPUs")));
    }
    let others: Vec<String> =
        others.into_iter().map(|(state, gpus)| format!("{state} on GPU {}", gpus.join(", "))).collect();
    Some(check("gpu fabric", HealthStatus::Failure, others.join("; ")))
}

/// Whether the engine can give the GPUs to containers.
fn toolkit_check(docker: &DockerInfo) -> Check {
    // Agents of before tell of runtimes only, and an engine needs none to give GPUs.
    let has_runtime = docker.runtimes.iter().any(|runtime| runtime == "nvidia");
    let (status, detail) = match docker.has_nvidia_toolkit {
        Some(true) => (HealthStatus::Healthy, "is there"),
        _ if has_runtime => (HealthStatus::Healthy, "is there"),
        Some(false) => (HealthStatus::Failure, "is not there, so that no container gets a GPU"),
        None => (HealthStatus::Warning, "was not found, so that containers may get no GPU"),
    };
    check("container toolkit", status, detail.to_owned())
}

fn memory_checks(fabric: &Fabric, has_efa: bool) -> Vec<Check> {
    let memlock = fabric.memlock_bytes.map(|bytes| match bytes {
        u64::MAX => check("memlock", HealthStatus::Healthy, "unlimited".to_owned()),
        bytes => {
            let detail = format!("is limited to {} MiB, so that RDMA may fail", bytes / (1 << 20));
            check("memlock", HealthStatus::Warning, detail)
        }
    });
    // How many are free changes all the time, and a job may have taken all of them.
    let huge_pages = fabric.huge_pages.filter(|_| has_efa).map(|pages| {
        let status = if pages.total == 0 { HealthStatus::Warning } else { HealthStatus::Healthy };
        check("hugepages", status, format!("{} of {} KiB", pages.total, pages.size_kib))
    });
    memlock.into_iter().chain(huge_pages).collect()
}

#[cfg(test)]
mod tests {
    use api::agent::{GpuFabric, HostGpu, HugePages, KernelModule, RdmaDevice, UverbsDevice};

    use super::*;

    /// A machine with EFA devices, two of other kinds, and GPUs, on which all is well.
    fn host(efa: u32, gpus: u32) -> HostInfo {
        let drivers = (0..efa).map(|_| "efa").chain(["mlx5_core"; 2]);
        let uverbs = (0..).zip(drivers).map(|(number, driver)| UverbsDevice {
            name: format!("uverbs{number}"),
            device: format!("device{number}"),
            driver: driver.to_owned(),
            has_node: true,
        });
        let gpu = |index| HostGpu {
            vendor: "nvidia".to_owned(),
            name: "H100".to_owned(),
            memory_mib: 81_559,
            index,
            uuid: format!("GPU-{index}"),
            pci: None,
            numa_node: None,
        };
        HostInfo {
            gpus: (0..gpus).map(gpu).collect(),
            fabric: Fabric {
                uverbs: uverbs.collect(),
                efa_module: Some(KernelModule { version: Some("2.17.3g".to_owned()) }),
                has_gdrdrv: true,
                huge_pages: Some(HugePages { size_kib: 2048, total: 21_120, free: 20_000 }),
                memlock_bytes: Some(u64::MAX),
                ..Fabric::default()
            },
            ..HostInfo::default()
        }
    }

    const P5: Expected = Expected { efa: Some(32), gpus: Some(8) };

    #[track_caller]
    fn check_failing(host: &HostInfo, expected: Expected, status: HealthStatus, failing: &[&str]) {
        let health = judge(host, expected);
        let found = health.checks.iter().filter(|check| check.status != HealthStatus::Healthy).map(Check::text);
        assert_eq!(found.collect::<Vec<_>>(), failing);
        assert_eq!(health.status(), status);
    }

    #[test]
    fn a_whole_machine_is_healthy_and_says_what_it_has() {
        let health = judge(&host(32, 8), P5);
        let texts: Vec<String> = health.checks.iter().map(Check::text).collect();
        let expected = [
            "efa 32/32",
            "efa module 2.17.3g",
            "uverbs 32 nodes",
            "gpus 8/8",
            "memlock unlimited",
            "hugepages 21120 of 2048 KiB",
            "gdrdrv is there",
        ];
        assert_eq!(texts, expected);
        assert_eq!((health.status(), health.incomplete_efa()), (HealthStatus::Healthy, None));
    }

    #[test]
    fn what_is_missing_is_said() {
        check_failing(&host(31, 8), P5, HealthStatus::Failure, &["efa 31/32"]);
        check_failing(&host(32, 7), P5, HealthStatus::Failure, &["gpus 7/8"]);
        let mut without_node = host(32, 8);
        without_node.fabric.uverbs[4].has_node = false;
        let said = ["efa 31/32", "uverbs have no node in /dev/infiniband: uverbs4"];
        check_failing(&without_node, P5, HealthStatus::Failure, &said);
        let mut without_driver = host(0, 8);
        without_driver.fabric.efa_module = None;
        check_failing(&without_driver, P5, HealthStatus::Failure, &["efa 0/32", "efa module is not loaded"]);
        assert_eq!(judge(&without_driver, P5).incomplete_efa().as_deref(), Some("0 of 32 EFA devices"));
        without_driver.fabric.efa_pci_functions = Some(32);
        let said = ["efa 0/32, 32 on the PCI bus", "efa module is not loaded"];
        check_failing(&without_driver, P5, HealthStatus::Failure, &said);
    }

    #[test]
    fn an_adapter_whose_port_is_not_active_is_missing() {
        let mut host = host(32, 8);
        let device = |state: &str| RdmaDevice {
            name: "device5".to_owned(),
            driver: "efa".to_owned(),
            port_states: [(1, state.to_owned())].into(),
            ..RdmaDevice::default()
        };
        host.fabric.efa_pci_functions = Some(32);
        host.fabric.devices = vec![device("4: ACTIVE")];
        check_failing(&host, P5, HealthStatus::Healthy, &[]);
        host.fabric.devices = vec![device("1: DOWN")];
        let said = "efa 31/32, ports that are not active: device5, 32 on the PCI bus";
        check_failing(&host, P5, HealthStatus::Failure, &[said]);
        assert_eq!(judge(&host, P5).incomplete_efa().as_deref(), Some("31 of 32 EFA devices"));
        // That of somebody's own machine is no less broken.
        let said = "efa 31, ports that are not active: device5, 32 on the PCI bus";
        check_failing(&host, Expected::default(), HealthStatus::Failure, &[said]);
        host.fabric.devices = vec![device("")];
        check_failing(&host, P5, HealthStatus::Healthy, &[]);
    }

    #[test]
    fn gpus_that_are_joined_must_reach_each_other() {
        let joined = |states: &[(&str, &str)]| {
            let gpu = |(index, (state, status)): (u32, &(&str, &str))| GpuFabric {
                index,
                state: (*state).to_owned(),
                status: (*status).to_owned(),
            };
            let mut host = host(32, 8);
            host.fabric.gpu_fabrics = (0..).zip(states).map(gpu).collect();
            host
        };
        let check = |states: &[(&str, &str)], failing: &[&str]| {
            let status = if failing.is_empty() { HealthStatus::Healthy } else { HealthStatus::Failure };
            check_failing(&joined(states), P5, status, failing);
        };
        let ready = ("Completed", "Success");
        check(&[ready; 8], &[]);
        let health = judge(&joined(&[ready; 8]), P5);
        assert!(health.checks.iter().any(|check| check.text() == "gpu fabric Completed on 8 GPUs"));
        check(&[("In Progress", ""); 2], &["gpu fabric In Progress on GPU 0, 1"]);
        check(
            &[ready, ("Not Started", ""), ("Completed", "Insufficient Resources")],
            &["gpu fabric Completed (Insufficient Resources) on GPU 2; Not Started on GPU 1"],
        );
    }

    #[test]
    fn switches_need_their_manager() {
        let mut host = host(4, 8);
        host.fabric.nvswitches = 6;
        let expected = Expected { efa: Some(4), gpus: Some(8) };
        let said = "fabric manager is not running, so that CUDA fails with error 802";
        check_failing(&host, expected, HealthStatus::Failure, &[said]);
        host.fabric.has_fabric_manager = true;
        check_failing(&host, expected, HealthStatus::Healthy, &[]);
        assert!(judge(&host, expected).checks.iter().any(|check| check.text() == "fabric manager runs"));
    }

    #[test]
    fn an_engine_must_be_able_to_give_gpus() {
        let check = |runtimes: &[&str], has_nvidia_toolkit, status, failing: &[&str]| {
            let runtimes = runtimes.iter().map(|runtime| (*runtime).to_owned()).collect();
            let docker = Some(DockerInfo { runtimes, has_nvidia_toolkit, ..DockerInfo::default() });
            check_failing(&HostInfo { docker: docker.clone(), ..host(32, 8) }, P5, status, failing);
            let without_gpus = HostInfo { docker, ..HostInfo::default() };
            assert_eq!(judge(&without_gpus, Expected::default()).checks, []);
        };
        check(&["nvidia", "runc"], None, HealthStatus::Healthy, &[]);
        check(&["runc"], Some(true), HealthStatus::Healthy, &[]);
        let said = "container toolkit is not there, so that no container gets a GPU";
        check(&["runc"], Some(false), HealthStatus::Failure, &[said]);
        let said = "container toolkit was not found, so that containers may get no GPU";
        check(&["runc"], None, HealthStatus::Warning, &[said]);
    }

    #[test]
    fn limits_of_memory_are_warnings() {
        let mut host = host(32, 8);
        host.fabric.memlock_bytes = Some(8 << 20);
        let memlock = "memlock is limited to 8 MiB, so that RDMA may fail";
        check_failing(&host, P5, HealthStatus::Warning, &[memlock]);
        host.fabric.huge_pages = Some(HugePages { size_kib: 2048, total: 0, free: 0 });
        check_failing(&host, P5, HealthStatus::Warning, &[memlock, "hugepages 0 of 2048 KiB"]);
        // All of them may be in use.
        host.fabric.huge_pages = Some(HugePages { size_kib: 2048, total: 10, free: 0 });
        host.fabric.memlock_bytes = None;
        check_failing(&host, P5, HealthStatus::Healthy, &[]);
    }

    #[test]
    fn nothing_is_missed_that_nobody_expects() {
        let unknown = Expected::default();
        let health = judge(&HostInfo::default(), unknown);
        assert_eq!((health.checks, health.efa), (vec![], None));
        assert_eq!(judge(&host(16, 8), unknown).checks[0].text(), "efa 16");
        // More than were bought are no fault, and none were bought where nobody wanted any.
        check_failing(&host(16, 8), Expected { efa: Some(0), gpus: None }, HealthStatus::Healthy, &[]);
        let infiniband = judge(&host(0, 8), unknown);
        assert_eq!(infiniband.efa, None);
        let texts: Vec<String> = infiniband.checks.iter().map(Check::text).collect();
        assert_eq!(texts, ["memlock unlimited", "gdrdrv is there", "nvidia_peermem is not loaded"]);
    }
}
