//! Whether a machine has what it should have, by what its agent says.

use api::agent::{Fabric, HostInfo};
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
    let gpus = u32::try_from(host.gpus.len()).unwrap_or(u32::MAX);
    if let Some(expected) = expected.gpus.filter(|expected| 0 < *expected) {
        let status = if gpus < expected { HealthStatus::Failure } else { HealthStatus::Healthy };
        checks.push(check("gpus", status, format!("{gpus}/{expected}")));
    }
    let has_rdma = !fabric.uverbs.is_empty();
    if has_efa || has_rdma {
        checks.extend(memory_checks(fabric, has_efa));
        let yes_or_no = |has: bool| if has { "is there" } else { "is not there" }.to_owned();
        if 0 < gpus {
            checks.push(check("gdrdrv", HealthStatus::Healthy, yes_or_no(fabric.has_gdrdrv)));
        }
    }
    Health { checks, efa }
}

fn check(name: &str, status: HealthStatus, detail: String) -> Check {
    Check { name: name.to_owned(), status, detail }
}

fn efa_checks(efa: EfaCount, fabric: &Fabric) -> Vec<Check> {
    let is_short = efa.missing_of().is_some();
    let count = match efa.expected {
        Some(expected) => format!("{}/{expected}", efa.found),
        None => efa.found.to_string(),
    };
    let failure_if = |failed: bool| if failed { HealthStatus::Failure } else { HealthStatus::Healthy };
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
        check("efa", failure_if(is_short), count),
        check("efa module", failure_if(!has_driver), module),
        check("uverbs", failure_if(!without_node.is_empty()), nodes),
    ]
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
    use api::agent::{HostGpu, HugePages, KernelModule, UverbsDevice};

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
        assert_eq!(texts, ["memlock unlimited", "gdrdrv is there"]);
    }
}
