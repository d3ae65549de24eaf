//! RDMA devices, from sysfs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use api::agent::RdmaDevice;

use crate::discover::Roots;

/// The machine's RDMA devices by name.
pub(crate) fn find(roots: &Roots) -> Vec<RdmaDevice> {
    let Ok(entries) = fs::read_dir(roots.sys.join("class/infiniband")) else {
        return Vec::new();
    };
    let mut devices: Vec<RdmaDevice> =
        entries.flatten().filter_map(|entry| Some(device(entry.file_name().to_str()?, &entry.path()))).collect();
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    devices
}

fn device(name: &str, path: &Path) -> RdmaDevice {
    let driver = fs::read_link(path.join("device/driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let ports: BTreeMap<u32, std::path::PathBuf> = fs::read_dir(path.join("ports"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|port| Some((port.file_name().to_str()?.parse().ok()?, port.path())))
        .collect();
    let link_layer = ports.values().next().map(|port| read(&port.join("link_layer")));
    RdmaDevice {
        name: name.to_owned(),
        driver: driver.unwrap_or_default().to_owned(),
        port_states: ports.iter().map(|(port, path)| (*port, read(&path.join("state")))).collect(),
        link_layer: link_layer.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_tells_its_driver_and_ports() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("class/infiniband/rdmap0s6");
        fs::create_dir_all(device.join("ports/1")).unwrap();
        fs::create_dir_all(device.join("device")).unwrap();
        std::os::unix::fs::symlink("../../../bus/pci/drivers/efa", device.join("device/driver")).unwrap();
        fs::write(device.join("ports/1/state"), "4: ACTIVE\n").unwrap();
        fs::write(device.join("ports/1/link_layer"), "Unspecified\n").unwrap();
        let roots = Roots { sys: root.path().to_owned(), ..Roots::default() };
        let [found] = &find(&roots)[..] else { panic!("one device") };
        assert_eq!((found.name.as_str(), found.driver.as_str()), ("rdmap0s6", "efa"));
        assert_eq!(found.port_states[&1], "4: ACTIVE");
        assert_eq!(found.link_layer, "Unspecified");
    }
}
