//! Offers, one by one and grouped.

use std::collections::BTreeSet;

use anstyle::Style;
use api::gpus::{GpuGroup, MinMax};
use api::instances::{InstanceAvailability, Offer};

use super::format;
use super::runs::share;
use super::{Cell, Table};
use crate::printer::{SECONDARY, WARNING};

/// What is said when there are none.
pub(crate) const NO_OFFERS: &str = "No matching instance offers available. Possible reasons: \
                             https://dstack.ai/docs/guides/troubleshooting/#no-offers";

/// The offers of a run's plan.
pub(crate) fn run_table(offers: &[Offer], total: u32) -> Table {
    let mut table = Table::new(&["#", "BACKEND", "RESOURCES", "INSTANCE TYPE", "PRICE", ""]);
    for (index, offer) in offers.iter().enumerate() {
        let style = if offer.availability.is_usable() { Style::new() } else { SECONDARY };
        let cell = |text: String| Cell::styled(text, style);
        table.row(vec![
            cell((index + 1).to_string()),
            cell(format::place(offer.backend, &offer.region, None)),
            cell(format::resources(&offer.instance.resources, true)),
            cell(format!("{}{}", offer.instance.name, share(offer))),
            cell(format::price(offer.price)),
            Cell::styled(availability(offer.availability), WARNING),
        ]);
    }
    add_ellipsis(&mut table, offers.len(), total);
    table
}

/// The offers of a fleet's plan.
pub(crate) fn fleet_table(offers: &[Offer], total: u32) -> Table {
    let mut table = Table::new(&["#", "BACKEND", "REGION", "INSTANCE", "RESOURCES", "SPOT", "PRICE", ""]);
    for (index, offer) in offers.iter().enumerate() {
        let style = if offer.availability.is_usable() { Style::new() } else { SECONDARY };
        let cell = |text: &str| Cell::styled(text, style);
        table.row(vec![
            cell(&(index + 1).to_string()),
            cell(format::backend(offer.backend, Some(&offer.region))),
            cell(&offer.region),
            cell(&offer.instance.name),
            cell(&format::resources(&offer.instance.resources, false)),
            cell(if offer.instance.resources.spot { "yes" } else { "no" }),
            cell(&format::price(offer.price)),
            Cell::styled(availability(offer.availability), WARNING),
        ]);
    }
    add_ellipsis(&mut table, offers.len(), total);
    table
}

/// Why some of the offers cannot be had: a line for each reason, with the number of the first offer that it is for.
pub(crate) fn reasons(offers: &[Offer]) -> Vec<String> {
    /// More reasons than this are not told.
    const MOST: usize = 5;
    let mut told: Vec<&str> = vec![];
    let mut lines = vec![];
    for (index, offer) in offers.iter().enumerate() {
        let Some(because) = offer.unavailable_because.as_deref() else { continue };
        if told.contains(&because) || told.len() == MOST {
            continue;
        }
        told.push(because);
        lines.push(format!("{}: {because}", index + 1));
    }
    lines
}

fn add_ellipsis(table: &mut Table, shown: usize, total: u32) {
    if shown < total as usize {
        table.row(vec!["".into(), "...".into()]);
    }
}

fn availability(availability: InstanceAvailability) -> &'static str {
    match availability {
        InstanceAvailability::Unknown | InstanceAvailability::Available => "",
        InstanceAvailability::NotAvailable => "not available",
        InstanceAvailability::NoQuota => "no quota",
        InstanceAvailability::NoBalance => "no balance",
        InstanceAvailability::Idle => "idle",
        InstanceAvailability::Busy => "busy",
    }
}

/// Offers grouped by their accelerators.
pub(crate) fn group_table(groups: &[GpuGroup]) -> Table {
    let by_backend = groups.iter().any(|group| group.backend.is_some());
    let by_region = groups.iter().any(|group| group.region.is_some());
    let has_regions = groups.iter().any(|group| group.regions.is_some());
    let mut titles = vec!["#", "GPU", "SPOT", "$/GPU"];
    titles.push(if by_backend { "BACKEND" } else { "BACKENDS" });
    if by_region {
        titles.push("REGION");
    } else if has_regions {
        titles.push("REGIONS");
    }
    titles.push("");
    let mut table = Table::new(&titles);
    for (index, group) in groups.iter().enumerate() {
        let mut cells: Vec<Cell> = vec![
            (index + 1).to_string().into(),
            group_name(group).into(),
            group.spot.join(", ").into(),
            min_max(&group.price, |price| format::number(price, 4)).into(),
            group_backends(group).into(),
        ];
        if by_region || has_regions {
            cells.push(group_regions(group).into());
        }
        cells.push(Cell::styled(group_availability(group), WARNING));
        table.row(cells);
    }
    table
}

fn group_name(group: &GpuGroup) -> String {
    let count = min_max(&group.count, |count| count.to_string());
    match group.memory_mib {
        0 => format!("{}:{count}", group.name),
        mib => format!("{}:{}:{count}", group.name, format::gigabytes(mib)),
    }
}

fn group_backends(group: &GpuGroup) -> String {
    match (group.backend, &group.backends) {
        (Some(kind), _) => format::backend(kind, group.region.as_deref().or(Some("local"))).to_owned(),
        (None, Some(kinds)) => {
            kinds.iter().map(|kind| format::backend(*kind, Some("local"))).collect::<Vec<_>>().join(", ")
        }
        (None, None) => String::new(),
    }
}

fn group_regions(group: &GpuGroup) -> String {
    /// More regions than this are only counted.
    const LISTED: usize = 3;
    match (&group.region, &group.regions) {
        (Some(region), _) => region.clone(),
        (None, Some(regions)) if regions.len() <= LISTED => regions.join(", "),
        (None, Some(regions)) => format!("{} regions", regions.len()),
        (None, None) => String::new(),
    }
}

// One offer that can be had is enough; otherwise all the reasons why none can.
fn group_availability(group: &GpuGroup) -> String {
    if group.availability.iter().any(|state| state.is_usable()) {
        return String::new();
    }
    let reasons: BTreeSet<&str> = group.availability.iter().map(|state| availability(*state)).collect();
    reasons.into_iter().collect::<Vec<_>>().join(", ")
}

fn min_max<T: PartialEq + Copy>(range: &MinMax<T>, print: impl Fn(T) -> String) -> String {
    if range.min == range.max {
        return print(range.min);
    }
    format!("{}..{}", print(range.min), print(range.max))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_reason_is_told_once_with_the_first_offer_that_it_is_for() {
        let offer = |because: Option<&str>| -> Offer {
            serde_json::from_value(json!({
                "backend": "aws", "region": "us-west-2", "price": 55.04, "availability": "no_quota",
                "instance": { "name": "p5.48xlarge", "resources": { "cpus": 192, "memory_mib": 1, "gpus": [],
                    "spot": false } },
                "unavailable_because": because,
            }))
            .unwrap()
        };
        let offers =
            [offer(None), offer(Some("the quota is 0")), offer(Some("the quota is 0")), offer(Some("no"))];
        assert_eq!(reasons(&offers), ["2: the quota is 0", "4: no"]);
        let many: Vec<Offer> = (0..20).map(|number| offer(Some(&format!("reason {number}")))).collect();
        assert_eq!(reasons(&many).len(), 5);
    }
}
