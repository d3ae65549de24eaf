//! Capacity that was reserved before: on-demand reservations, blocks for a fixed time, and groups of these.

use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::types::{
    CapacityReservation, CapacityReservationPreference, CapacityReservationSpecification,
    CapacityReservationState, CapacityReservationTarget, CapacityReservationTenancy, Filter,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::errors::failure;
use crate::Result;

/// How long before a block's end AWS begins to end its machines (EC2 user guide, "Capacity Blocks for ML").
const ENDS_EARLY: SignedDuration = SignedDuration::from_mins(30);

/// Members of groups that are asked for at the same time.
const CONCURRENCY: usize = 8;

/// The most reservations of a region that are looked at for those of a group.
const MOST_RESERVATIONS: usize = 500;

/// A reservation, or all of a group that are alike, as launches need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Reservation {
    /// The reservation's identifier, or the group's ARN: what the user wrote.
    pub(super) id: String,
    /// Capacity for a fixed time, which is close together and paid for already.
    pub(super) is_block: bool,
    /// The group that it was made in, by name.
    pub(super) placement_group: Option<String>,
    /// Whom its hosts are shared with, unless with everybody.
    pub(super) tenancy: Option<String>,
}

/// A reservation as AWS tells it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReservationFacts {
    pub(super) reservation: Reservation,
    pub(super) instance_type: String,
    pub(super) zone: String,
    pub(super) state: ReservationState,
    pub(super) available: u32,
    pub(super) total: u32,
    pub(super) starts_at: Option<Timestamp>,
    pub(super) ends_at: Option<Timestamp>,
}

/// Where a reservation is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReservationState {
    Active,
    /// Paid for, or about to be; it begins later.
    Awaited,
    /// In AWS's word.
    Over(String),
}

impl Reservation {
    /// What a request for machines says of it.
    pub(super) fn specification(&self) -> CapacityReservationSpecification {
        let target = CapacityReservationTarget::builder();
        let wanted = CapacityReservationSpecification::builder();
        if is_group(&self.id) {
            // What a group has no room for would be bought by the hour without a word.
            let target = target.capacity_reservation_resource_group_arn(&self.id).build();
            let only = CapacityReservationPreference::CapacityReservationsOnly;
            wanted.capacity_reservation_preference(only).capacity_reservation_target(target).build()
        } else {
            wanted.capacity_reservation_target(target.capacity_reservation_id(&self.id).build()).build()
        }
    }
}

impl ReservationFacts {
    /// When AWS begins to end its machines, if that is known.
    pub(super) fn machines_end_at(&self) -> Option<Timestamp> {
        self.ends_at.filter(|_| self.reservation.is_block).map(|ends_at| ends_at - ENDS_EARLY)
    }

    /// When it begins, if it has not yet.
    pub(super) fn awaited_until(&self) -> Option<Timestamp> {
        self.starts_at.filter(|_| self.state == ReservationState::Awaited)
    }

    /// Whether so many machines can be had from it now, or why not, in words.
    pub(super) fn check(&self, now: Timestamp, machines: u32) -> std::result::Result<(), String> {
        let id = &self.reservation.id;
        match &self.state {
            ReservationState::Awaited => {
                let when = self.starts_at.map(|at| format!(", it begins at {at}")).unwrap_or_default();
                return Err(format!("reservation {id} is not active yet{when}"));
            }
            ReservationState::Over(state) => return Err(format!("reservation {id} is {state}")),
            ReservationState::Active => {}
        }
        if let (Some(ends_at), Some(machines_end_at)) = (self.ends_at, self.machines_end_at())
            && machines_end_at <= now
        {
            return Err(format!(
                "reservation {id} ends at {ends_at}, and AWS ends its machines up to {} min before",
                ENDS_EARLY.as_mins()
            ));
        }
        if self.available < machines {
            return Err(format!(
                "reservation {id} has {} of its {} machines free, and {machines} are needed",
                self.available, self.total
            ));
        }
        Ok(())
    }
}

/// Whether that is a group of reservations, and not one.
fn is_group(asked: &str) -> bool {
    asked.starts_with("arn:")
}

/// Finds what `reservation` names in a region: nothing if it is not of that region, and for a group one for each type
/// and zone that it has something for.
pub(super) async fn find(ec2: &aws_sdk_ec2::Client, region: &str, asked: &str) -> Result<Vec<ReservationFacts>> {
    if !is_group(asked) {
        return Ok(find_one(ec2, asked).await?.into_iter().collect());
    }
    // arn:aws:resource-groups:REGION:ACCOUNT:group/NAME
    let mut parts = asked.split(':').skip(2);
    if (parts.next(), parts.next()) != (Some("resource-groups"), Some(region)) {
        return Ok(vec![]);
    }
    Ok(combine(asked, members(ec2, asked).await?))
}

/// The reservations of a group that are not over.
async fn members(ec2: &aws_sdk_ec2::Client, group: &str) -> Result<Vec<ReservationFacts>> {
    let states = ["active", "scheduled", "pending", "payment-pending"].map(str::to_owned).to_vec();
    let filter = Filter::builder().name("state").set_values(Some(states)).build();
    let mut pages = ec2.describe_capacity_reservations().filters(filter).into_paginator().send();
    let mut all = vec![];
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe the capacity reservations", &error))?;
        all.extend(page.capacity_reservations().iter().filter_map(facts));
        if MOST_RESERVATIONS <= all.len() {
            tracing::warn!("{group} is looked for among the first {MOST_RESERVATIONS} capacity reservations only");
            break;
        }
    }
    let belongs = async |one: ReservationFacts| {
        let mut pages = ec2
            .get_groups_for_capacity_reservation()
            .capacity_reservation_id(&one.reservation.id)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let page = match page {
                Ok(page) => page,
                // It was cancelled meanwhile.
                Err(error) if error.code() == Some("InvalidCapacityReservationId.NotFound") => return Ok(None),
                Err(error) => return Err(failure("ask for the groups of a capacity reservation", &error)),
            };
            if page.capacity_reservation_groups().iter().any(|found| found.group_arn() == Some(group)) {
                return Ok(Some(one));
            }
        }
        Ok(None)
    };
    stream::iter(all).map(belongs).buffered(CONCURRENCY).try_filter_map(async |one| Ok(one)).try_collect().await
}

/// Makes one of all members of a group that a launch cannot tell from each other. What is not active yet counts only
/// where nothing is.
fn combine(group: &str, members: Vec<ReservationFacts>) -> Vec<ReservationFacts> {
    let mut combined: Vec<ReservationFacts> = vec![];
    for mut member in members {
        group.clone_into(&mut member.reservation.id);
        let is_alike = |one: &&mut ReservationFacts| {
            one.reservation == member.reservation
                && one.instance_type == member.instance_type
                && one.zone == member.zone
        };
        match combined.iter_mut().find(is_alike) {
            None => combined.push(member),
            Some(one) if one.state == member.state => {
                one.available += member.available;
                one.total += member.total;
                one.starts_at = one.starts_at.into_iter().chain(member.starts_at).min();
                // The machines of a launch may be of any of them, so the first end is that of all.
                one.ends_at = one.ends_at.into_iter().chain(member.ends_at).min();
            }
            Some(one) if member.state == ReservationState::Active => *one = member,
            Some(_) => {}
        }
    }
    combined
}

async fn find_one(ec2: &aws_sdk_ec2::Client, id: &str) -> Result<Option<ReservationFacts>> {
    match ec2.describe_capacity_reservations().capacity_reservation_ids(id).send().await {
        Ok(answer) => Ok(answer.capacity_reservations().iter().find_map(facts)),
        Err(error)
            if matches!(
                error.code(),
                Some("InvalidCapacityReservationId.NotFound" | "InvalidCapacityReservationId.Malformed")
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failure("describe the capacity reservation", &error)),
    }
}

fn facts(told: &CapacityReservation) -> Option<ReservationFacts> {
    let state = match told.state()? {
        CapacityReservationState::Active => ReservationState::Active,
        CapacityReservationState::Scheduled
        | CapacityReservationState::Pending
        | CapacityReservationState::PaymentPending => ReservationState::Awaited,
        other => ReservationState::Over(other.as_str().to_owned()),
    };
    let is_block = told.reservation_type().is_some_and(|kind| kind.as_str() == "capacity-block");
    let tenancy = told.tenancy().map(CapacityReservationTenancy::as_str).filter(|tenancy| *tenancy != "default");
    let group = told.placement_group_arn().and_then(|arn| arn.rsplit_once('/'));
    let number = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
    let time = |at: Option<&aws_smithy_types::DateTime>| Timestamp::from_second(at?.secs()).ok();
    Some(ReservationFacts {
        reservation: Reservation {
            id: told.capacity_reservation_id()?.to_owned(),
            is_block,
            placement_group: group.map(|(_, name)| name.to_owned()),
            tenancy: tenancy.map(str::to_owned),
        },
        instance_type: told.instance_type()?.to_owned(),
        zone: told.availability_zone()?.to_owned(),
        state,
        available: number(told.available_instance_count()),
        total: number(told.total_instance_count()),
        starts_at: time(told.start_date()),
        ends_at: time(told.end_date()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> ReservationFacts {
        ReservationFacts {
            reservation: Reservation {
                id: "cr-1".to_owned(),
                is_block: true,
                placement_group: None,
                tenancy: None,
            },
            instance_type: "p5.48xlarge".to_owned(),
            zone: "us-west-2a".to_owned(),
            state: ReservationState::Active,
            available: 4,
            total: 8,
            starts_at: Some("2026-11-26T10:00:00Z".parse().unwrap()),
            ends_at: Some("2026-11-27T10:00:00Z".parse().unwrap()),
        }
    }

    #[test]
    fn a_reservation_says_why_it_cannot_be_used() {
        let now: Timestamp = "2026-11-26T12:00:00Z".parse().unwrap();
        assert_eq!(block().check(now, 4), Ok(()));
        assert_eq!(
            block().check(now, 5).unwrap_err(),
            "reservation cr-1 has 4 of its 8 machines free, and 5 are needed"
        );
        let late = "2026-11-27T09:30:00Z".parse().unwrap();
        assert!(block().check(late, 1).unwrap_err().contains("ends at 2026-11-27T10:00:00Z"));
        let awaited = ReservationFacts { state: ReservationState::Awaited, ..block() };
        assert_eq!(
            awaited.check(now, 1).unwrap_err(),
            "reservation cr-1 is not active yet, it begins at 2026-11-26T10:00:00Z"
        );
        let over = ReservationFacts { state: ReservationState::Over("expired".to_owned()), ..block() };
        assert_eq!(over.check(now, 1).unwrap_err(), "reservation cr-1 is expired");
    }
    #[test]
    fn members_of_a_group_that_are_alike_are_one() {
        let group = "arn:aws:resource-groups:us-west-2:123456789012:group/training";
        let elsewhere = ReservationFacts { zone: "us-west-2b".to_owned(), ..block() };
        let awaited = ReservationFacts { state: ReservationState::Awaited, available: 0, ..block() };
        let later = ReservationFacts { ends_at: Some("2026-11-28T10:00:00Z".parse().unwrap()), ..block() };
        let combined = combine(group, vec![awaited.clone(), later, elsewhere, block(), awaited]);
        let seen: Vec<_> = combined.iter().map(|one| (one.zone.as_str(), one.available, one.total)).collect();
        assert_eq!(seen, [("us-west-2a", 8, 16), ("us-west-2b", 4, 8)]);
        assert_eq!(combined[0].ends_at, block().ends_at, "the first of all ends");
        assert!(combined.iter().all(|one| one.reservation.id == group && one.state == ReservationState::Active));
    }
}
