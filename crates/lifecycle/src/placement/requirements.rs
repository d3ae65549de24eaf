//! Whether a machine has what a job needs.

use api::configurations::{
    AcceleratorVendor, ComputeCapability, CpuArchitecture, GpuSpec, Memory, Range, ResourcesSpec,
};
use api::instances::{Gpu, Resources};

use super::compute_capability;

/// Why a machine does not do, in words that name the key.
pub type Mismatch = String;

/// Compares a machine, or a share of one, with what is needed.
pub fn check(needed: &ResourcesSpec, has: &Resources) -> Result<(), Mismatch> {
    check_cpu(needed, has)?;
    let memory = Memory::from_mib(has.memory_mib);
    if !within(&needed.memory, memory) {
        return Err(format!("`memory` {} is needed, {} is there", range(&needed.memory, "GB"), gb(memory)));
    }
    if let Some(disk) = &needed.disk
        && !within(&disk.size, Memory::from_mib(has.disk.size_mib))
    {
        let there = gb(Memory::from_mib(has.disk.size_mib));
        return Err(format!("`disk` {} is needed, {there} is there", range(&disk.size, "GB")));
    }
    match &needed.gpu {
        Some(gpu) => check_gpu(gpu, &has.gpus),
        None => Ok(()),
    }
}

fn check_cpu(needed: &ResourcesSpec, has: &Resources) -> Result<(), Mismatch> {
    if !needed.cpu.count.contains(has.cpus) {
        return Err(format!("`cpu` {} is needed, {} is there", range(&needed.cpu.count, ""), has.cpus));
    }
    let arch = has.cpu_arch.as_deref().unwrap_or("x86");
    match needed.cpu.arch {
        Some(CpuArchitecture::X86) if arch != "x86" => Err(format!("`cpu` x86 is needed, {arch} is there")),
        Some(CpuArchitecture::Arm) if arch != "arm" => Err(format!("`cpu` arm is needed, {arch} is there")),
        _ => Ok(()),
    }
}

fn check_gpu(needed: &GpuSpec, has: &[Gpu]) -> Result<(), Mismatch> {
    let count = u32::try_from(has.len()).unwrap_or(u32::MAX);
    if !needed.count.contains(count) {
        return Err(format!("`gpu` count {} is needed, {count} is there", range(&needed.count, "")));
    }
    let total: u64 = has.iter().map(|gpu| gpu.memory_mib).sum();
    if let Some(total_memory) = &needed.total_memory
        && !within(total_memory, Memory::from_mib(total))
    {
        return Err(format!("`gpu` total memory {} is needed", range(total_memory, "GB")));
    }
    // A machine without accelerators serves whoever needs none, whatever kind they would have liked.
    for gpu in has {
        check_gpu_kind(needed, gpu)?;
    }
    Ok(())
}

fn check_gpu_kind(needed: &GpuSpec, gpu: &Gpu) -> Result<(), Mismatch> {
    if let Some(names) = &needed.name
        && !names.iter().any(|name| name.eq_ignore_ascii_case(&gpu.name))
    {
        return Err(format!("`gpu` {} is needed, {} is there", names.join(" or "), gpu.name));
    }
    let vendor = gpu.vendor.as_deref().and_then(AcceleratorVendor::parse);
    if let (Some(needed), Some(there)) = (needed.vendor, vendor)
        && needed != there
    {
        return Err(format!("`gpu` of {} is needed, of {} is there", needed.as_str(), there.as_str()));
    }
    if let Some(memory) = &needed.memory
        && !within(memory, Memory::from_mib(gpu.memory_mib))
    {
        let there = gb(Memory::from_mib(gpu.memory_mib));
        return Err(format!("`gpu` memory {} is needed, {there} is there", range(memory, "GB")));
    }
    if let Some(ComputeCapability(major, minor)) = needed.compute_capability {
        let there = compute_capability::of(&gpu.name);
        if there.is_none_or(|there| there < ComputeCapability(major, minor)) {
            let there = there.map_or("none that is known".to_owned(), |there| format!("{}.{}", there.0, there.1));
            let name = &gpu.name;
            return Err(format!("`gpu` compute capability {major}.{minor} is needed, {name} has {there}"));
        }
    }
    Ok(())
}

// An accelerator sold as 80 GB reports a little less or more, so whole gigabytes are compared.
fn within(needed: &Range<Memory>, has: Memory) -> bool {
    let has = Memory(has.0);
    needed.contains(has) || needed.contains(Memory(has.0.round()))
}

fn gb(memory: Memory) -> String {
    format!("{}GB", (memory.0 * 10.0).round() / 10.0)
}

fn range<T: RangeText + Copy + PartialOrd>(range: &Range<T>, unit: &str) -> String {
    let text = |bound: &Option<T>| bound.as_ref().map_or(String::new(), |value| format!("{}{unit}", value.text()));
    if range.is_single() { text(&range.min) } else { format!("{}..{}", text(&range.min), text(&range.max)) }
}

trait RangeText {
    fn text(&self) -> String;
}

impl RangeText for u32 {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl RangeText for Memory {
    fn text(&self) -> String {
        self.0.to_string()
    }
}

/// A share of a machine: `blocks` of its `total` equal blocks.
pub fn share(has: &Resources, blocks: u32, total: u32) -> Resources {
    let total = total.max(1);
    let gpus = has.gpus.len() * blocks as usize / total as usize;
    Resources {
        cpus: has.cpus * blocks / total,
        memory_mib: has.memory_mib * u64::from(blocks) / u64::from(total),
        gpus: has.gpus.iter().take(gpus).cloned().collect(),
        ..has.clone()
    }
}
