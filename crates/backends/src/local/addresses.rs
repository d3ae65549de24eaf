//! Addresses of local machines. Each machine has the lowest free number of its server, and both of its addresses
//! follow from that: one on the loopback network, and one on the bridge network of its containers.
//!
//! The networks follow from the server's identity, so that several servers on one machine rarely meet.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::ids::ServerId;

use crate::ContainerNetwork;

/// How many local machines may live at once. Their addresses lie in the lower half of the bridge network: the upper
/// one is what the engine gives containers that ask for no address.
pub(super) const MACHINES_LIMIT: u32 = 500;

/// Containers' addresses that a bridge network of 1,022 keeps for itself.
const FIRST_CONTAINER_HOST: u32 = 2;

/// The lowest number that is not taken.
pub(super) fn free_number(taken: &BTreeSet<u32>) -> Option<u32> {
    (0..MACHINES_LIMIT).find(|number| !taken.contains(number))
}

/// The loopback address of a machine.
pub(super) fn loopback(server_id: ServerId, number: u32) -> Ipv4Addr {
    let [first, ..] = *server_id.0.as_bytes();
    // 127.0 and its neighbours belong to others: resolvers, tests, habits.
    let network = 16 + first % 224;
    Ipv4Addr::new(127, network, (number / 250) as u8, (1 + number % 250) as u8)
}

/// The containers' network and the address of a machine on it.
pub(super) fn container_network(server_id: ServerId, number: u32) -> ContainerNetwork {
    let [first, second, ..] = *server_id.0.as_bytes();
    let subnet = Ipv4Addr::new(10, 208 + first % 16, second / 4 * 4, 0);
    let address = Ipv4Addr::from(u32::from(subnet) + FIRST_CONTAINER_HOST + number);
    let id = server_id.to_string();
    ContainerNetwork {
        name: format!("dstack-{}", &id[..8]),
        subnet: format!("{subnet}/22"),
        address: address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_id(text: &str) -> ServerId {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_unique_and_inside_their_networks() {
        let id = server_id("ffff0000-0000-4000-8000-000000000001");
        let mut seen = BTreeSet::new();
        for number in 0..MACHINES_LIMIT {
            let loopback = loopback(id, number);
            assert!(loopback.is_loopback() && seen.insert(loopback.to_string()));
            let network = container_network(id, number);
            assert_eq!(network.subnet, "10.223.252.0/22");
            assert!(seen.insert(network.address.clone()));
            let address: Ipv4Addr = network.address.parse().unwrap();
            let in_subnet = u32::from(address) & 0xffff_fc00 == u32::from(Ipv4Addr::new(10, 223, 252, 0));
            assert!(in_subnet && u32::from(address) & 0x3ff < 512, "the upper half is the engine's");
        }
        assert_eq!(container_network(id, 0).name, "dstack-ffff0000");
    }

    #[test]
    fn a_number_is_used_again_once_it_is_free() {
        assert_eq!(free_number(&BTreeSet::new()), Some(0));
        assert_eq!(free_number(&BTreeSet::from([0, 1, 3])), Some(2));
        assert_eq!(free_number(&(0..MACHINES_LIMIT).collect()), None);
    }
}
