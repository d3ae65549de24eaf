//! AMD's accelerators, from the kernel's compute topology.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use api::agent::HostGpu;

use crate::discover::Roots;

/// Accelerators with less memory are the graphics of a processor.
const SMALLEST_MIB: u64 = 4096;

/// Marketing names by PCI device.
const NAMES: [(u64, &str); 14] = [
    (0x738c, "MI100"),
    (0x738e, "MI100"),
    (0x7408, "MI250X"),
    (0x740c, "MI250X"),
    (0x740f, "MI210"),
    (0x74a0, "MI300A"),
    (0x74a1, "MI300X"),
    (0x74a2, "MI308X"),
    (0x74a5, "MI325X"),
    (0x74a9, "MI300X"),
    (0x74b5, "MI300X"),
    (0x74b9, "MI325X"),
    (0x75a0, "MI350X"),
    (0x75a3, "MI355X"),
];

/// The machine's accelerators, in the order of the driver.
pub(crate) fn find(roots: &Roots) -> Vec<HostGpu> {
    let Ok(nodes) = fs::read_dir(roots.sys.join("class/kfd/kfd/topology/nodes")) else {
        return Vec::new();
    };
    let mut nodes: Vec<(u32, std::path::PathBuf)> =
        nodes.flatten().filter_map(|node| Some((node.file_name().to_str()?.parse().ok()?, node.path()))).collect();
    nodes.sort();
    let gpus = nodes.iter().filter_map(|(_, node)| gpu(roots, node));
    gpus.enumerate().map(|(index, gpu)| HostGpu { index: index as u32, ..gpu }).collect()
}

/// The driver's version.
pub(crate) fn driver(roots: &Roots) -> Option<String> {
    let text = fs::read_to_string(roots.sys.join("module/amdgpu/version")).ok()?;
    Some(text.trim().to_owned()).filter(|version| !version.is_empty())
}

fn gpu(roots: &Roots, node: &Path) -> Option<HostGpu> {
    let properties = fs::read_to_string(node.join("properties")).ok()?;
    let properties = parse_properties(&properties);
    let get = |name: &str| properties.get(name).copied().unwrap_or(0);
    let is_accelerator = get("simd_count") > 0 && get("cpu_cores_count") == 0;
    if !is_accelerator {
        return None;
    }
    let render = format!("renderD{}", get("drm_render_minor"));
    let device = roots.sys.join("class/drm").join(&render).join("device");
    let memory = fs::read_to_string(device.join("mem_info_vram_total"));
    let memory_mib = memory.ok()?.trim().parse::<u64>().ok()? >> 20;
    if memory_mib < SMALLEST_MIB {
        return None;
    }
    let product = || {
        let text = fs::read_to_string(device.join("product_name")).ok()?;
        let name = text.trim().trim_start_matches("AMD ").replace("Instinct ", "");
        Some(name.replace(' ', "")).filter(|name| !name.is_empty())
    };
    let id = get("device_id");
    let known = NAMES.iter().find(|(device, _)| *device == id).map(|(_, name)| (*name).to_owned());
    let numa = fs::read_to_string(device.join("numa_node"));
    Some(HostGpu {
        vendor: "amd".to_owned(),
        name: known.or_else(product).unwrap_or_else(|| format!("AMD-{id:04x}")),
        memory_mib,
        index: 0,
        uuid: render,
        pci: Some(pci(get("domain"), get("location_id"))),
        numa_node: numa.ok().and_then(|text| text.trim().parse().ok()),
    })
}

/// The topology packs bus, device and function into one number.
fn pci(domain: u64, location: u64) -> String {
    let (bus, device, function) = (location >> 8 & 0xff, location >> 3 & 0x1f, location & 7);
    format!("{domain:04x}:{bus:02x}:{device:02x}.{function}")
}

fn parse_properties(text: &str) -> BTreeMap<&str, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name, value.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: &str = "cpu_cores_count 96\nsimd_count 0\nmem_banks_count 1\n";
    const GPU: &str = "\
cpu_cores_count 0
simd_count 1216
mem_banks_count 1
vendor_id 4098
device_id 29857
location_id 1536
domain 0
drm_render_minor 128
unique_id 17153461713424230482
";

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn an_accelerator_is_told_from_processors_and_small_graphics() {
        let root = tempfile::tempdir().unwrap();
        let nodes = "class/kfd/kfd/topology/nodes";
        write(root.path(), &format!("{nodes}/0/properties"), CPU);
        write(root.path(), &format!("{nodes}/2/properties"), GPU);
        let small = GPU.replace("128", "129").replace("29857", "5056");
        write(root.path(), &format!("{nodes}/10/properties"), &small);
        let device = "class/drm/renderD128/device";
        write(root.path(), &format!("{device}/mem_info_vram_total"), "206141652992\n");
        write(root.path(), &format!("{device}/numa_node"), "1\n");
        let vram = "class/drm/renderD129/device/mem_info_vram_total";
        write(root.path(), vram, "536870912\n");
        let roots = Roots { sys: root.path().to_owned(), ..Roots::default() };
        let found = find(&roots);
        assert_eq!(found.len(), 1);
        let gpu = &found[0];
        assert_eq!((gpu.name.as_str(), gpu.memory_mib), ("MI300X", 196_592));
        assert_eq!((gpu.uuid.as_str(), gpu.numa_node), ("renderD128", Some(1)));
        assert_eq!(gpu.pci.as_deref(), Some("0000:06:00.0"));
    }

    #[test]
    fn a_machine_without_the_driver_has_none() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots { sys: root.path().to_owned(), ..Roots::default() };
        assert!(find(&roots).is_empty());
    }
}
