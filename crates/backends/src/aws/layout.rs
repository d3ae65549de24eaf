//! Which network interfaces a machine gets, by a rule over what AWS says of its type's network cards.
//!
//! AWS's own guidance (EC2 user guide, "Maximize network bandwidth on Amazon EC2 instances with multiple network
//! cards"): the primary interface is a plain one, and EFA comes on interfaces that do nothing else, because those need
//! no address and confuse no routing table. No type's name is known here.

use serde::{Deserialize, Serialize};

/// What an interface does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum InterfaceType {
    /// TCP/IP.
    Interface,
    /// TCP/IP, and EFA beside it.
    Efa,
    /// EFA, without any address.
    EfaOnly,
}

impl InterfaceType {
    /// AWS's word.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            InterfaceType::Interface => "interface",
            InterfaceType::Efa => "efa",
            InterfaceType::EfaOnly => "efa-only",
        }
    }
}

/// An interface of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interface {
    /// The network card that it is on.
    pub(super) card: i32,
    /// Its place on the card.
    pub(super) device: i32,
    /// What it does.
    pub(super) kind: InterfaceType,
}

/// A network card of a type of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkCard {
    pub(super) index: i32,
    /// Interfaces that it takes.
    pub(super) most_interfaces: i32,
    /// Whether it takes interfaces for EFA only.
    pub(super) does_efa: bool,
}

/// The network of a type of machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkFacts {
    pub(super) cards: Vec<NetworkCard>,
    /// The card of the primary interface.
    pub(super) default_card: i32,
    /// EFA interfaces that the type takes; 0: none.
    pub(super) most_efa: u32,
}

/// The interfaces of a machine, the primary one first.
pub(super) fn layout(network: &NetworkFacts, wants_efa: bool) -> Vec<Interface> {
    let primary = |kind| Interface { card: network.default_card, device: 0, kind };
    let default_card = network.cards.iter().find(|card| card.index == network.default_card);
    let default_does_efa = default_card.is_some_and(|card| card.does_efa);
    let wanted = if wants_efa { network.most_efa as usize } else { 0 };
    if wanted == 0 {
        return vec![primary(InterfaceType::Interface)];
    }
    if wanted == 1 && default_does_efa {
        // With one interface alone AWS gives an address that the world can reach by itself.
        return vec![primary(InterfaceType::Efa)];
    }
    let has_room_beside = default_card.is_some_and(|card| card.most_interfaces >= 2);
    let mut efa: Vec<Interface> = vec![];
    let mut interfaces = vec![];
    match (default_does_efa, has_room_beside) {
        (true, false) => efa.push(primary(InterfaceType::Efa)),
        (true, true) => {
            interfaces.push(primary(InterfaceType::Interface));
            efa.push(Interface { card: network.default_card, device: 1, kind: InterfaceType::EfaOnly });
        }
        (false, _) => interfaces.push(primary(InterfaceType::Interface)),
    }
    let others = network.cards.iter().filter(|card| card.index != network.default_card && card.does_efa);
    efa.extend(others.map(|card| Interface { card: card.index, device: 0, kind: InterfaceType::EfaOnly }));
    interfaces.extend(efa.into_iter().take(wanted));
    interfaces
}

/// How many of the interfaces do EFA.
pub(super) fn efa_count(interfaces: &[Interface]) -> u32 {
    let efa = interfaces.iter().filter(|interface| interface.kind != InterfaceType::Interface).count();
    u32::try_from(efa).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    fn cards(count: i32, most_interfaces: i32) -> Vec<NetworkCard> {
        (0..count).map(|index| NetworkCard { index, most_interfaces, does_efa: true }).collect()
    }

    #[track_caller]
    fn check(network: &NetworkFacts, expected: &[(i32, i32, &str)]) {
        let found = layout(network, true);
        let found: Vec<(i32, i32, &str)> =
            found.iter().map(|one| (one.card, one.device, one.kind.as_str())).collect();
        assert_eq!(found, expected);
        assert_eq!(layout(network, false).len(), 1);
        assert_eq!(efa_count(&layout(network, true)), network.most_efa);
    }

    fn efa_only(cards: std::ops::Range<i32>) -> Vec<(i32, i32, &'static str)> {
        cards.map(|card| (card, 0, "efa-only")).collect()
    }

    #[test]
    fn a_type_without_efa_has_one_plain_interface() {
        let plain = NetworkFacts {
            cards: vec![NetworkCard { index: 0, most_interfaces: 3, does_efa: false }],
            ..NetworkFacts::default()
        };
        check(&plain, &[(0, 0, "interface")]);
    }

    #[test]
    fn one_efa_shares_the_primary_interface() {
        check(&NetworkFacts { cards: cards(1, 15), default_card: 0, most_efa: 1 }, &[(0, 0, "efa")]);
        // Two cards, of which one may do EFA.
        check(&NetworkFacts { cards: cards(2, 8), default_card: 0, most_efa: 1 }, &[(0, 0, "efa")]);
    }

    #[test]
    fn more_efa_come_beside_a_plain_primary_interface() {
        for (count, most_interfaces) in [(2, 10), (4, 15), (8, 4), (16, 4), (32, 2)] {
            let network =
                NetworkFacts { cards: cards(count, most_interfaces), default_card: 0, most_efa: count as u32 };
            let mut expected = vec![(0, 0, "interface"), (0, 1, "efa-only")];
            expected.extend(efa_only(1..count));
            check(&network, &expected);
        }
    }

    #[test]
    fn a_default_card_without_efa_is_only_the_primary_one() {
        let mut all = cards(17, 4);
        all[0].does_efa = false;
        let mut expected = vec![(0, 0, "interface")];
        expected.extend(efa_only(1..17));
        check(&NetworkFacts { cards: all, default_card: 0, most_efa: 16 }, &expected);
    }

    #[test]
    fn a_card_with_room_for_one_shares_it() {
        let expected = [(0, 0, "efa"), (1, 0, "efa-only")];
        check(&NetworkFacts { cards: cards(2, 1), default_card: 0, most_efa: 2 }, &expected);
    }

    #[test]
    fn no_more_than_the_type_takes() {
        let network = NetworkFacts { cards: cards(9, 2), default_card: 0, most_efa: 4 };
        check(
            &network,
            &[(0, 0, "interface"), (0, 1, "efa-only"), (1, 0, "efa-only"), (2, 0, "efa-only"), (3, 0, "efa-only")],
        );
    }

    /// The network of a type, as AWS tells of it.
    fn facts(row: &Value) -> NetworkFacts {
        let network = &row["NetworkInfo"];
        let number = |value: &Value| i32::try_from(value.as_i64().unwrap_or_default()).unwrap();
        let card = |card: &Value| NetworkCard {
            index: number(&card["NetworkCardIndex"]),
            most_interfaces: number(&card["MaximumNetworkInterfaces"]),
            does_efa: card["InterfaceTypes"].as_array().unwrap().contains(&Value::from("efa-only")),
        };
        NetworkFacts {
            cards: network["NetworkCards"].as_array().unwrap().iter().map(card).collect(),
            default_card: number(&network["DefaultNetworkCardIndex"]),
            most_efa: number(&network["EfaInfo"]["MaximumEfaInterfaces"]) as u32,
        }
    }

    fn names(interfaces: &[Interface]) -> Vec<(i64, i64, &'static str)> {
        interfaces.iter().map(|one| (one.card.into(), one.device.into(), one.kind.as_str())).collect()
    }

    #[test]
    fn every_type_gets_all_the_efa_that_it_takes_and_one_address() {
        let mut with_efa = 0;
        for (name, row) in ec2sim::instance_types() {
            let network = facts(row);
            let most_efa = row["NetworkInfo"]["EfaInfo"]["MaximumEfaInterfaces"].as_u64().unwrap_or(0);
            let all = layout(&network, true);
            assert_eq!(u64::from(efa_count(&all)), most_efa, "{name}");
            let with_address: Vec<&Interface> =
                all.iter().filter(|interface| interface.kind != InterfaceType::EfaOnly).collect();
            assert_eq!(with_address, [&all[0]], "{name}");
            // The simulator's own rules, which it has from elsewhere.
            assert_eq!(ec2sim::check_layout(name, &names(&all)), Ok(()), "{name}");
            let plain = layout(&network, false);
            assert_eq!(names(&plain), [(network.default_card.into(), 0, "interface")], "{name}");
            assert_eq!(ec2sim::check_layout(name, &names(&plain)), Ok(()), "{name}");
            with_efa += usize::from(0 < most_efa);
        }
        assert_eq!(with_efa, 303);
    }

    /// The table of `docs/efa.md`.
    #[test]
    fn the_documented_types_get_the_documented_interfaces() {
        let rows: BTreeMap<&str, &Value> = ec2sim::instance_types().collect();
        let check = |types: &[&str], first: &[(i64, i64, &'static str)], others: std::ops::Range<i64>| {
            let expected: Vec<_> = first.iter().copied().chain(others.map(|card| (card, 0, "efa-only"))).collect();
            for name in types {
                assert_eq!(names(&layout(&facts(rows[name]), true)), expected, "{name}");
            }
        };
        check(&["c7i.large"], &[(0, 0, "interface")], 1..1);
        check(&["g5.8xlarge", "g6.8xlarge", "p5.4xlarge", "c7i.48xlarge"], &[(0, 0, "efa")], 1..1);
        let beside = [(0, 0, "interface"), (0, 1, "efa-only")];
        check(&["g6e.24xlarge", "g7e.24xlarge"], &beside, 1..2);
        check(&["g6e.48xlarge", "g7e.48xlarge", "p4d.24xlarge", "p4de.24xlarge"], &beside, 1..4);
        check(&["p5.48xlarge", "p5e.48xlarge"], &beside, 1..32);
        check(&["p5en.48xlarge"], &beside, 1..16);
        check(&["p6-b200.48xlarge"], &beside, 1..8);
        check(&["p6-b300.48xlarge"], &[(0, 0, "interface")], 1..17);
    }
}
