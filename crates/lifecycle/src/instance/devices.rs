//! Which device nodes of a machine a container gets that has the machine for itself.

use api::agent::{EFA_DRIVER, Fabric, UverbsDevice};

/// The folder of the nodes of RDMA devices, on every machine.
const RDMA_NODES: &str = "/dev/infiniband";

/// The node through which the CPU reaches the memory of GPUs.
const GDRDRV: &str = "/dev/gdrdrv";

/// The nodes that programs need for RDMA, each by itself.
///
/// A machine with Elastic Fabric Adapters may have other RDMA devices for its own use, through which no other machine
/// is reached: a program that sees those takes them for the network, and falls back to TCP without a word. So where
/// there are adapters, there is nothing else. They are not connected through the kernel and need no node but their own.
/// One whose port is down would be taken for a way to the others, too.
pub fn rdma_nodes(fabric: &Fabric) -> Vec<String> {
    let has_adapters = fabric.efa().next().is_some();
    let is_wanted =
        |uverbs: &UverbsDevice| !has_adapters || uverbs.driver == EFA_DRIVER && !fabric.is_down(uverbs);
    let uverbs = fabric.uverbs.iter().filter(|uverbs| uverbs.has_node && is_wanted(uverbs));
    let names: Vec<&str> = uverbs.map(|uverbs| uverbs.name.as_str()).collect();
    let others = fabric.other_nodes.iter().filter(|_| !has_adapters && !names.is_empty()).map(String::as_str);
    let nodes = names.iter().copied().chain(others).map(|name| format!("{RDMA_NODES}/{name}"));
    nodes.chain(fabric.has_gdrdrv.then(|| GDRDRV.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use api::agent::RdmaDevice;

    use super::*;

    fn uverbs(number: usize, driver: &str) -> UverbsDevice {
        UverbsDevice {
            name: format!("uverbs{number}"),
            device: format!("device{number}"),
            driver: driver.to_owned(),
            has_node: true,
        }
    }

    fn fabric(drivers: &[&str]) -> Fabric {
        Fabric {
            uverbs: drivers.iter().enumerate().map(|(number, driver)| uverbs(number, driver)).collect(),
            other_nodes: vec!["issm0".to_owned(), "rdma_cm".to_owned(), "umad0".to_owned()],
            ..Fabric::default()
        }
    }

    #[track_caller]
    fn check(fabric: &Fabric, expected: &[&str]) {
        assert_eq!(rdma_nodes(fabric), expected);
    }

    #[test]
    fn a_machine_with_adapters_gives_them_and_none_of_its_own_devices() {
        let mut drivers = vec!["efa"; 8];
        drivers.insert(2, "mlx5_core");
        drivers.push("mlx5_core");
        let expected = [0, 1, 3, 4, 5, 6, 7, 8].map(|number| format!("/dev/infiniband/uverbs{number}"));
        check(&fabric(&drivers), &expected.each_ref().map(String::as_str));
    }

    #[test]
    fn a_machine_on_infiniband_gives_all_of_its_nodes() {
        let expected =
            ["uverbs0", "uverbs1", "issm0", "rdma_cm", "umad0"].map(|name| format!("/dev/infiniband/{name}"));
        check(&fabric(&["mlx5_core"; 2]), &expected.each_ref().map(String::as_str));
    }

    #[test]
    fn a_node_that_is_not_there_is_not_given() {
        let mut some = Fabric { has_gdrdrv: true, ..fabric(&["efa", "efa", "mlx5_core"]) };
        some.uverbs[0].has_node = false;
        check(&some, &["/dev/infiniband/uverbs1", "/dev/gdrdrv"]);
        // Adapters without their nodes are still what the machine's network is made of.
        some.uverbs[1].has_node = false;
        check(&some, &["/dev/gdrdrv"]);
        check(&fabric(&[]), &[]);
    }

    #[test]
    fn an_adapter_whose_port_is_down_is_not_given() {
        let down = |driver: &str| {
            let port_states = [(1, "1: DOWN".to_owned())].into();
            let device = RdmaDevice { name: "device0".to_owned(), port_states, ..RdmaDevice::default() };
            Fabric { devices: vec![device], other_nodes: vec![], ..fabric(&[driver; 2]) }
        };
        check(&down("efa"), &["/dev/infiniband/uverbs1"]);
        // Machines on InfiniBand have ports that nobody has ever plugged in, and programs that know.
        check(&down("mlx5_core"), &["/dev/infiniband/uverbs0", "/dev/infiniband/uverbs1"]);
    }
}
