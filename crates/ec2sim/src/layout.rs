//! Which network interfaces a type takes: the rules by which EC2 refuses a launch, from the type's network cards.
//!
//! This is written from what AWS documents and answers, and from nothing that lays interfaces out.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Card, Network, catalog};
use crate::error::ApiError;

/// An interface that a launch asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) card: i64,
    pub(crate) device: i64,
    /// `interface`, `efa` or `efa-only`.
    pub(crate) interface_type: String,
    /// Whether a public address is asked for, if anything is said about it.
    pub(crate) public: Option<bool>,
}

impl Asked {
    fn is_efa(&self) -> bool {
        self.interface_type != "interface"
    }
}

/// Refuses interfaces (card, device, type) that machines of a type cannot be launched with, wherever it is sold.
pub fn check_layout(instance_type: &str, interfaces: &[(i64, i64, &str)]) -> Result<(), ApiError> {
    let Some(kind) = catalog().types.get(instance_type) else {
        return Err(ApiError::client("InvalidInstanceType", format!("{instance_type} is no type")));
    };
    let asked = interfaces.iter().map(|(card, device, interface_type)| Asked {
        card: *card,
        device: *device,
        interface_type: (*interface_type).to_owned(),
        public: None,
    });
    check(instance_type, &kind.network, &asked.collect::<Vec<_>>())
}

/// Refuses interfaces that the type does not take.
pub(crate) fn check(name: &str, network: &Network, asked: &[Asked]) -> Result<(), ApiError> {
    let limit = |message: String| Err(ApiError::client("AttachmentLimitExceeded", message));
    if network.max_interfaces < asked.len() {
        return limit(format!("Interface count {} exceeds the limit for {name}", asked.len()));
    }
    let mut places = BTreeSet::new();
    let mut by_card: BTreeMap<i64, Vec<&Asked>> = BTreeMap::new();
    for interface in asked {
        if !places.insert((interface.card, interface.device)) {
            let message = "Each network interface requires a unique device index on its network card.";
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        by_card.entry(interface.card).or_default().push(interface);
    }
    check_primary(network, asked)?;
    for (index, interfaces) in &by_card {
        let Some(card) = network.cards.get(index) else {
            let most = network.cards.len() - 1;
            let why = format!("Network card index must be between 0 and {most} for {name}.");
            return Err(ApiError::invalid_value(index, "networkCardIndex", &why));
        };
        check_card(name, network, *index, card, interfaces)?;
        if card.max_interfaces < interfaces.len() {
            let count = interfaces.len();
            return limit(format!("Interface count {count} exceeds the limit for network card {index} of {name}"));
        }
    }
    let efa = asked.iter().filter(|interface| interface.is_efa()).count();
    if network.max_efa < efa {
        return limit(format!("EFA interface count {efa} exceeds the limit for {name}"));
    }
    check_public(asked)
}

fn check_primary(network: &Network, asked: &[Asked]) -> Result<(), ApiError> {
    let is_primary = |interface: &&Asked| interface.card == network.default_card && interface.device == 0;
    let Some(primary) = asked.iter().find(is_primary) else {
        let message = "A network interface with device index 0 on the default network card must be specified.";
        return Err(ApiError::combination(message));
    };
    if primary.interface_type == "efa-only" {
        return Err(ApiError::combination(
            "The primary network interface cannot be an EFA-only network interface.",
        ));
    }
    Ok(())
}

fn check_card(
    name: &str,
    network: &Network,
    index: i64,
    card: &Card,
    interfaces: &[&Asked],
) -> Result<(), ApiError> {
    for interface in interfaces {
        if network.max_efa == 0 && interface.is_efa() {
            return Err(ApiError::combination(format!("EFA interfaces are not supported on {name}.")));
        }
        if !card.interface_types.contains(&interface.interface_type) {
            let kind = if interface.is_efa() { "EFA" } else { &interface.interface_type };
            let message = format!("{kind} interfaces are not supported on network card {index} of {name}.");
            return Err(ApiError::combination(message));
        }
    }
    if 1 < interfaces.iter().filter(|interface| interface.is_efa()).count() {
        let message = format!("Only one EFA interface may be attached to network card {index} of {name}.");
        return Err(ApiError::combination(message));
    }
    Ok(())
}

fn check_public(asked: &[Asked]) -> Result<(), ApiError> {
    let wants_public = |interface: &Asked| interface.public == Some(true);
    if 1 < asked.len() && asked.iter().any(wants_public) {
        const MESSAGE: &str = "The associatePublicIPAddress parameter cannot be specified when launching with multiple network interfaces.";
        return Err(ApiError::combination(MESSAGE));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `card,device,type` for each interface, with `+` behind the one that wants a public address.
    fn read(layout: &str) -> Vec<Asked> {
        let one = |text: &str| {
            let (text, public) = text.strip_suffix('+').map_or((text, None), |text| (text, Some(true)));
            let fields: Vec<&str> = text.split(',').collect();
            Asked {
                card: fields[0].parse().unwrap(),
                device: fields[1].parse().unwrap(),
                interface_type: fields[2].to_owned(),
                public,
            }
        };
        layout.split_whitespace().map(one).collect()
    }

    /// Interfaces for EFA only on a range of cards.
    fn efa_only(cards: std::ops::RangeInclusive<i64>, device: i64) -> String {
        cards.fold(String::new(), |text, card| text + &format!(" {card},{device},efa-only"))
    }

    #[track_caller]
    fn taken(name: &str, layout: &str) {
        let network = &catalog().types[name].network;
        assert_eq!(check(name, network, &read(layout)), Ok(()), "{name}: {layout}");
    }

    #[track_caller]
    fn refused(name: &str, layout: &str, code: &str, words: &str) {
        let network = &catalog().types[name].network;
        let error = check(name, network, &read(layout)).unwrap_err();
        assert_eq!(error.code, code, "{name}: {error}");
        assert!(error.message.contains(words), "{name}: {error}");
    }

    #[test]
    fn recommended_layouts_are_taken() {
        taken("c7i.large", "0,0,interface+");
        for name in ["g5.8xlarge", "g6.8xlarge", "p5.4xlarge", "c7i.48xlarge"] {
            taken(name, "0,0,efa+");
        }
        let multiple = [
            ("g6e.24xlarge", 1),
            ("g6e.48xlarge", 3),
            ("g7e.48xlarge", 3),
            ("p4d.24xlarge", 3),
            ("p4de.24xlarge", 3),
            ("p5.48xlarge", 31),
            ("p5e.48xlarge", 31),
            ("p5en.48xlarge", 15),
            ("p6-b200.48xlarge", 7),
        ];
        for (name, last) in multiple {
            taken(name, &format!("0,0,interface 0,1,efa-only{}", efa_only(1..=last, 0)));
            taken(name, "0,0,interface+");
        }
        taken("p6-b300.48xlarge", &format!("0,0,interface{}", efa_only(1..=16, 0)));
    }

    #[test]
    fn the_official_layouts_are_taken() {
        taken("p4d.24xlarge", &format!("0,0,efa{}", efa_only(1..=3, 1)));
        let mut layout = "0,0,efa".to_owned();
        for card in 1..32 {
            layout += &format!(" {card},1,{}", if card % 4 == 0 { "efa" } else { "efa-only" });
        }
        taken("p5.48xlarge", &layout);
        taken("p6-b300.48xlarge", &format!("0,0,interface{}", efa_only(1..=16, 1)));
    }

    #[test]
    fn wrong_layouts_are_refused() {
        const COMBINATION: &str = "InvalidParameterCombination";
        const LIMIT: &str = "AttachmentLimitExceeded";
        refused("p4d.24xlarge", "0,0,interface+ 0,1,efa-only", COMBINATION, "associatePublicIPAddress");
        refused("c7i.large", "0,0,efa", COMBINATION, "not supported on c7i.large");
        refused("p6-b300.48xlarge", "0,0,efa", COMBINATION, "network card 0");
        refused("p4d.24xlarge", "0,0,efa-only", COMBINATION, "cannot be an EFA-only");
        refused("p4d.24xlarge", "0,1,efa-only 1,0,interface", COMBINATION, "device index 0");
        refused("p4d.24xlarge", "0,0,efa 0,1,efa-only", COMBINATION, "Only one EFA");
        refused("p4d.24xlarge", "0,0,efa 4,0,efa-only", "InvalidParameterValue", "networkCardIndex");
        refused(
            "p4d.24xlarge",
            "0,0,efa 1,1,efa-only 1,1,interface",
            "InvalidParameterValue",
            "unique device index",
        );
        refused("p5.48xlarge", "0,0,interface 0,1,efa-only 0,2,interface", LIMIT, "network card 0");
        refused(
            "c7i.large",
            "0,0,interface 0,1,interface 0,2,interface 0,3,interface",
            LIMIT,
            "Interface count 4",
        );
    }

    /// A layout that uses all that a type has, found card by card, is taken for every type that has EFA; one more is not.
    #[test]
    fn every_efa_type_takes_its_maximum_and_no_more() {
        let mut seen = 0;
        for (name, one) in catalog().types.iter().filter(|(_, one)| 0 < one.network.max_efa) {
            let network = &one.network;
            let mut asked = Vec::new();
            let mut left = network.max_efa;
            for (index, card) in &network.cards {
                let has_efa = card.interface_types.iter().any(|kind| kind == "efa") && 0 < left;
                left -= usize::from(has_efa);
                let is_default = *index == network.default_card;
                if is_default || has_efa {
                    let kind = match (is_default, has_efa) {
                        (true, false) => "interface",
                        (true, true) => "efa",
                        (false, _) => "efa-only",
                    };
                    asked.push(Asked { card: *index, device: 0, interface_type: kind.to_owned(), public: None });
                }
            }
            assert_eq!(left, 0, "{name}");
            assert_eq!(check(name, network, &asked), Ok(()), "{name}");
            let last = asked.last().unwrap().card;
            asked.push(Asked { card: last, device: 1, interface_type: "efa-only".to_owned(), public: None });
            assert!(check(name, network, &asked).is_err(), "{name}");
            seen += 1;
        }
        assert_eq!(seen, 303);
    }
}
