//! What the pretended cloud sells, and how slow it is.

use api::instances::{Disk, Gpu, InstanceType, Resources};

use crate::Capabilities;

/// The properties of a pretended cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeSetup {
    /// What it says that it can do.
    pub capabilities: Capabilities,
    /// What it sells.
    pub offers: Vec<FakeOffer>,
    /// Ticks from launch until a machine runs.
    pub boot_ticks: u64,
    /// Ticks that a terminated machine is listed as stopping.
    pub stopping_ticks: u64,
    /// Ticks that an ended machine is listed as gone.
    pub gone_ticks: u64,
    /// How many ticks old a listing is. Ignored if the list is consistent.
    pub list_lag_ticks: u64,
    /// Each listing is a tick, so that things move without a test that ticks.
    pub lists_tick: bool,
    /// It says which other zones have room when one has none.
    pub gives_hints: bool,
}

/// What the cloud refuses to sell, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Machines of this type; none: of any.
    pub instance_type: Option<String>,
    /// In this region; none: in any.
    pub region: Option<String>,
    /// In this zone; none: in any.
    pub zone: Option<String>,
    /// What it says.
    pub error: crate::Error,
}

/// A type of machine in a region.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeOffer {
    /// The type.
    pub instance_type: InstanceType,
    /// Where.
    pub region: String,
    /// Its zones; empty: the region has none.
    pub zones: Vec<String>,
    /// US dollars per machine and hour.
    pub price_usd_per_hour: f64,
    /// Its machines may be wanted with a fast network between them.
    pub cluster: bool,
}

impl Default for FakeSetup {
    /// A small cloud without faults: one type with and one without GPUs, two zones, machines that run at once,
    /// lists that tell the truth.
    fn default() -> Self {
        FakeSetup {
            capabilities: Capabilities {
                launches: true,
                cluster: true,
                zonal: false,
                consistent_list: true,
                admins_only: false,
                spot: false,
                reservations: false,
                processes_without_image: false,
                provisioning_timeout_secs: 600,
            },
            offers: vec![FakeOffer::cpu("small", 4, 16, 0.1), FakeOffer::gpu("large", "H100", 80, 8, 20.0)],
            boot_ticks: 0,
            stopping_ticks: 0,
            gone_ticks: 0,
            list_lag_ticks: 0,
            lists_tick: true,
            gives_hints: false,
        }
    }
}

impl FakeOffer {
    /// A type without GPUs in region `fake-1` with the zones `fake-1a` and `fake-1b`.
    pub fn cpu(name: &str, cpus: u32, memory_gb: u64, price_usd_per_hour: f64) -> FakeOffer {
        let resources = Resources {
            cpus,
            memory_mib: memory_gb * 1024,
            disk: Disk { size_mib: 100 * 1024 },
            cpu_arch: Some("x86".to_owned()),
            ..Resources::default()
        };
        FakeOffer {
            instance_type: InstanceType { name: name.to_owned(), resources },
            region: "fake-1".to_owned(),
            zones: vec!["fake-1a".to_owned(), "fake-1b".to_owned()],
            price_usd_per_hour,
            cluster: true,
        }
    }

    /// A type with GPUs of one model, 24 CPUs and 128 GB for each.
    pub fn gpu(name: &str, gpu: &str, gpu_memory_gb: u64, count: u32, price_usd_per_hour: f64) -> FakeOffer {
        let mut offer = FakeOffer::cpu(name, 24 * count, 128 * u64::from(count), price_usd_per_hour);
        let gpu =
            Gpu { name: gpu.to_owned(), memory_mib: gpu_memory_gb * 1024, vendor: Some("nvidia".to_owned()) };
        offer.instance_type.resources.gpus = vec![gpu; count as usize];
        offer
    }
}
