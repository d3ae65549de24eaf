//! What AWS sells: instance types, where they are offered, and what they cost.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::machines::MachineGpus;

/// All that is known about what AWS sells.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) types: BTreeMap<String, InstanceType>,
    pub(crate) regions: BTreeMap<String, RegionOffers>,
    /// By type and region.
    pub(crate) prices: BTreeMap<(String, String), Price>,
}

/// An instance type.
#[derive(Debug)]
pub(crate) struct InstanceType {
    /// The row of DescribeInstanceTypes.
    pub(crate) row: Value,
    pub(crate) vcpus: u32,
    pub(crate) architectures: Vec<String>,
    pub(crate) usage_classes: Vec<String>,
    pub(crate) placement_strategies: Vec<String>,
    pub(crate) network: Network,
}

impl InstanceType {
    /// The GPUs that its machines have.
    pub(crate) fn gpus(&self) -> Vec<MachineGpus> {
        let rows = self.row["GpuInfo"]["Gpus"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rows.map(|row| MachineGpus {
            manufacturer: text(&row["Manufacturer"]),
            name: text(&row["Name"]),
            count: row["Count"].as_u64().unwrap_or_default() as u32,
            memory_mib: row["MemoryInfo"]["SizeInMiB"].as_u64().unwrap_or_default(),
        })
        .collect()
    }
}

/// What matters about a type's network.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) default_card: i64,
    pub(crate) max_interfaces: usize,
    pub(crate) max_efa: usize,
    /// By their index.
    pub(crate) cards: BTreeMap<i64, Card>,
}

/// A network card.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) max_interfaces: usize,
    pub(crate) interface_types: Vec<String>,
}

/// The zones of a region, and which types they have.
#[derive(Debug, Deserialize)]
pub(crate) struct RegionOffers {
    /// Their letters and their identifiers.
    pub(crate) zones: BTreeMap<char, String>,
    /// The letters of the zones that have a type.
    types: BTreeMap<String, String>,
}

/// US dollars for an hour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Price {
    pub(crate) on_demand: Option<f64>,
    pub(crate) spot: Option<f64>,
}

/// Regions that every account may use; others must be asked for.
const OPEN_REGIONS: [&str; 17] = [
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ca-central-1",
    "eu-central-1",
    "eu-north-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
];

impl RegionOffers {
    /// The names of the zones that offer a type.
    pub(crate) fn zones_with(&self, region: &str, instance_type: &str) -> Vec<String> {
        let letters = self.types.get(instance_type).map_or("", String::as_str);
        letters.chars().map(|letter| format!("{region}{letter}")).collect()
    }

    /// Whether a type is offered anywhere in the region.
    pub(crate) fn offers(&self, instance_type: &str) -> bool {
        self.types.contains_key(instance_type)
    }
}

/// Whether every account may use a region.
pub(crate) fn is_open(region: &str) -> bool {
    OPEN_REGIONS.contains(&region)
}

/// The catalog, read once.
pub(crate) fn catalog() -> &'static Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(read);
    &CATALOG
}

/// All instance types that AWS has, wherever they are sold, as DescribeInstanceTypes tells of them.
pub fn instance_types() -> impl Iterator<Item = (&'static str, &'static Value)> {
    catalog().types.iter().map(|(name, kind)| (name.as_str(), &kind.row))
}

fn read() -> Catalog {
    let mut types: BTreeMap<String, Value> =
        serde_json::from_str(include_str!("../data/types.json")).expect("the types are JSON");
    types.remove("source");
    let mut regions: BTreeMap<String, Value> =
        serde_json::from_str(include_str!("../data/offerings.json")).expect("the offerings are JSON");
    regions.remove("source");
    let offers = |(name, value)| (name, serde_json::from_value(value).expect("the offerings have their shape"));
    let prices = include_str!("../data/prices.csv").lines().skip(1).filter(|line| !line.starts_with('#'));
    Catalog {
        types: types.into_iter().map(|(name, row)| (name, read_type(row))).collect(),
        regions: regions.into_iter().map(offers).collect(),
        prices: prices.filter_map(read_price).collect(),
    }
}

fn read_price(line: &str) -> Option<((String, String), Price)> {
    let mut fields = line.split(',');
    let key = (fields.next()?.to_owned(), fields.next()?.to_owned());
    let mut price = || fields.next().and_then(|field| field.parse().ok());
    Some((key, Price { on_demand: price(), spot: price() }))
}

fn read_type(mut row: Value) -> InstanceType {
    let runs = row["NetworkInfo"]["NetworkCards"].take();
    let mut cards = Vec::new();
    for run in runs.as_array().into_iter().flatten() {
        for _ in 0..run["Count"].as_u64().unwrap_or(1) {
            let mut card = run["Card"].clone();
            card["NetworkCardIndex"] = json!(cards.len());
            cards.push(card);
        }
    }
    let info = &row["NetworkInfo"];
    let count = |value: &Value| value.as_u64().unwrap_or_default() as usize;
    let network = Network {
        default_card: info["DefaultNetworkCardIndex"].as_i64().unwrap_or_default(),
        max_interfaces: count(&info["MaximumNetworkInterfaces"]),
        max_efa: count(&info["EfaInfo"]["MaximumEfaInterfaces"]),
        cards: cards
            .iter()
            .map(|card| (card["NetworkCardIndex"].as_i64().unwrap_or_default(), read_card(card)))
            .collect(),
    };
    row["NetworkInfo"]["NetworkCards"] = Value::Array(cards);
    InstanceType {
        vcpus: count(&row["VCpuInfo"]["DefaultVCpus"]) as u32,
        architectures: texts(&row["ProcessorInfo"]["SupportedArchitectures"]),
        usage_classes: texts(&row["SupportedUsageClasses"]),
        placement_strategies: texts(&row["PlacementGroupInfo"]["SupportedStrategies"]),
        network,
        row,
    }
}

fn read_card(card: &Value) -> Card {
    Card {
        max_interfaces: card["MaximumNetworkInterfaces"].as_u64().unwrap_or_default() as usize,
        interface_types: texts(&card["InterfaceTypes"]),
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_knows_what_the_documented_example_needs() {
        let catalog = catalog();
        let p5 = &catalog.types["p5.48xlarge"];
        assert_eq!(
            (p5.vcpus, p5.network.cards.len(), p5.network.max_efa, p5.network.max_interfaces),
            (192, 32, 32, 64)
        );
        assert_eq!(p5.row["NetworkInfo"]["NetworkCards"][31]["NetworkCardIndex"], 31);
        let offers = &catalog.regions["us-west-2"];
        assert_eq!(offers.zones_with("us-west-2", "p5.48xlarge").len(), 4);
        assert_eq!(offers.zones_with("us-west-2", "p6-b300.48xlarge"), ["us-west-2a", "us-west-2b"]);
        let price = catalog.prices[&("p5.48xlarge".to_owned(), "us-west-2".to_owned())];
        assert_eq!(price.on_demand, Some(55.04));
    }

    #[test]
    fn every_type_of_the_facts_and_every_efa_type_is_there() {
        let catalog = catalog();
        assert!(catalog.prices.keys().all(|(name, _)| catalog.types.contains_key(name)));
        assert_eq!(catalog.types.values().filter(|one| 0 < one.network.max_efa).count(), 303);
    }
}
