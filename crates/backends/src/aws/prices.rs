//! What machines cost. AWS's price list is asked in the background and kept in a file for a day; until it has answered,
//! and where it cannot be asked, a snapshot of our own making stands in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_sdk_pricing::types::{Filter, FilterType};
use serde_json::Value;
use tokio::time::Instant;

use super::errors::failure;
use super::types::TypeFacts;
use crate::Result;

/// The day on which the snapshot was last compared with AWS's list. `crates/ec2sim` has the same table; where each
/// figure is from stands in `docs/aws.md`.
pub(super) const SNAPSHOT_DATE: &str = "2026-02";

/// How long a price that AWS told is believed.
const MAX_AGE: Duration = Duration::from_hours(24);

/// How soon AWS is asked again after it could not be asked.
const RETRY: Duration = Duration::from_hours(1);

/// Prices on demand, and the lowest spot price, in US dollars an hour.
type Snapshot = HashMap<(&'static str, &'static str), (Option<f64>, Option<f64>)>;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let rows = include_str!("data/prices.csv").lines().skip(1);
    let row = |line: &'static str| {
        let mut fields = line.split(',');
        let key = (fields.next()?, fields.next()?);
        let mut price = || fields.next()?.parse().ok();
        Some((key, (price(), price())))
    };
    rows.filter_map(row).collect()
});

/// The prices of an account's regions.
#[derive(Debug)]
pub(super) struct Prices {
    dir: PathBuf,
    told: RwLock<HashMap<String, Told>>,
    /// When each region may be asked.
    ask_from: Mutex<HashMap<String, Instant>>,
}

/// What AWS told of a region.
#[derive(Debug, Clone)]
struct Told {
    at: SystemTime,
    by_type: Arc<BTreeMap<String, f64>>,
}

impl Prices {
    /// What was told before.
    pub(super) fn open(dir: &Path, regions: &[String]) -> Prices {
        let read = |region: &String| {
            let file = file(dir, region);
            let at = std::fs::metadata(&file).ok()?.modified().ok()?;
            let by_type = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            Some((region.clone(), Told { at, by_type: Arc::new(by_type) }))
        };
        let told = regions.iter().filter_map(read).collect();
        Prices { dir: dir.to_owned(), told: RwLock::new(told), ask_from: Mutex::default() }
    }

    /// What a machine costs on demand; none if nobody knows.
    pub(super) fn on_demand(&self, region: &str, instance_type: &str) -> Option<f64> {
        let told = self.told.read().expect("nobody panics while reading prices");
        let told = told.get(region).and_then(|told| told.by_type.get(instance_type)).copied();
        told.or_else(|| SNAPSHOT.get(&(instance_type, region))?.0)
    }

    /// What a spot machine cost at the lowest, when the snapshot was made.
    pub(super) fn old_spot(region: &str, instance_type: &str) -> Option<f64> {
        SNAPSHOT.get(&(instance_type, region))?.1
    }

    /// Whether AWS is to be asked again, which the caller then does.
    pub(super) fn is_due(&self, region: &str) -> bool {
        let is_fresh = self
            .told
            .read()
            .expect("nobody panics while reading prices")
            .get(region)
            .is_some_and(|told| super::files::now().duration_since(told.at).is_ok_and(|age| age < MAX_AGE));
        if is_fresh {
            return false;
        }
        let now = Instant::now();
        let mut ask_from = self.ask_from.lock().unwrap_or_else(PoisonError::into_inner);
        if ask_from.get(region).is_some_and(|from| now < *from) {
            return false;
        }
        ask_from.insert(region.to_owned(), now + RETRY);
        true
    }

    /// Asks AWS for a region's prices and keeps them.
    pub(super) async fn refresh(&self, client: &aws_sdk_pricing::Client, region: &str) -> Result<()> {
        let by_type = ask(client, region).await?;
        if by_type.is_empty() {
            return Ok(());
        }
        let text = serde_json::to_vec(&by_type).expect("prices are JSON");
        if let Err(error) = super::files::replace(&file(&self.dir, region), &text) {
            tracing::warn!("cannot keep the prices of {region} in `{}`: {error}", self.dir.display());
        }
        let told = Told { at: super::files::now(), by_type: Arc::new(by_type) };
        self.told.write().expect("nobody panics while reading prices").insert(region.to_owned(), told);
        Ok(())
    }
}

fn file(dir: &Path, region: &str) -> PathBuf {
    dir.join(format!("prices-{region}.json"))
}

async fn ask(client: &aws_sdk_pricing::Client, region: &str) -> Result<BTreeMap<String, f64>> {
    let mut request = client.get_products().service_code("AmazonEC2");
    for (field, value) in [
        ("regionCode", region),
        ("operatingSystem", "Linux"),
        ("tenancy", "Shared"),
        ("capacitystatus", "Used"),
        ("preInstalledSw", "NA"),
        ("marketoption", "OnDemand"),
    ] {
        let filter = Filter::builder().r#type(FilterType::TermMatch).field(field).value(value).build();
        request = request.filters(filter.expect("all of it is given"));
    }
    let mut pages = request.into_paginator().send();
    let mut by_type = BTreeMap::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("tell prices", &error))?;
        by_type.extend(page.price_list().iter().filter_map(|text| price(text)));
    }
    Ok(by_type)
}

/// The type and the price in a product of the price list.
fn price(text: &str) -> Option<(String, f64)> {
    let product: Value = serde_json::from_str(text).ok()?;
    let name = product["product"]["attributes"]["instanceType"].as_str()?;
    let terms = product["terms"]["OnDemand"].as_object()?.values();
    let dimensions =
        terms.filter_map(|term| term["priceDimensions"].as_object()).flat_map(serde_json::Map::values);
    let hourly = dimensions.filter(|dimension| dimension["unit"] == "Hrs");
    let mut prices = hourly.filter_map(|dimension| dimension["pricePerUnit"]["USD"].as_str()?.parse::<f64>().ok());
    let price = prices.find(|price| *price > 0.0)?;
    Some((name.to_owned(), price))
}

/// Today's spot prices of a region: for each type, the price in each zone.
pub(super) async fn spot(ec2: &aws_sdk_ec2::Client, zones: &HashSet<&str>) -> Result<SpotPrices> {
    let now = aws_smithy_types::DateTime::from(super::files::now());
    let request = ec2.describe_spot_price_history().start_time(now).product_descriptions("Linux/UNIX");
    let mut pages = request.into_paginator().send();
    let mut prices = SpotPrices::default();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe spot prices", &error))?;
        for row in page.spot_price_history() {
            let (Some(name), Some(zone)) = (row.instance_type(), row.availability_zone()) else { continue };
            let Some(price) = row.spot_price().and_then(|price| price.parse::<f64>().ok()) else { continue };
            if zones.contains(zone) {
                prices.0.entry(name.as_str().to_owned()).or_default().insert(zone.to_owned(), price);
            }
        }
    }
    Ok(prices)
}

/// Spot prices by type and zone, in US dollars an hour.
#[derive(Debug, Default)]
pub(super) struct SpotPrices(HashMap<String, BTreeMap<String, f64>>);

impl SpotPrices {
    /// The price of a type in each zone.
    pub(super) fn find(&self, facts: &TypeFacts) -> Option<BTreeMap<String, f64>> {
        self.0.get(&facts.name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_has_prices() {
        let prices = Prices::open(Path::new("/nowhere"), &[]);
        assert_eq!(prices.on_demand("us-west-2", "p5.48xlarge"), Some(55.04));
        assert_eq!(prices.on_demand("us-west-2", "nothing"), None);
        assert!(Prices::old_spot("us-east-1", "p4d.24xlarge").is_some());
        assert!(SNAPSHOT.len() > 800);
    }

    #[test]
    fn a_product_tells_its_price() {
        let text = r#"{"product":{"attributes":{"instanceType":"p5.48xlarge"}},"terms":{"OnDemand":{"a":{
            "priceDimensions":{"b":{"unit":"Hrs","pricePerUnit":{"USD":"55.0400000000"}}}}}}}"#;
        assert_eq!(price(text), Some(("p5.48xlarge".to_owned(), 55.04)));
        assert_eq!(price("{}"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn aws_is_not_asked_all_the_time() {
        let prices = Prices::open(Path::new("/nowhere"), &[]);
        assert!(prices.is_due("us-west-2") && prices.is_due("us-east-1"));
        assert!(!prices.is_due("us-west-2"));
        tokio::time::advance(RETRY).await;
        assert!(prices.is_due("us-west-2"));
    }
}
