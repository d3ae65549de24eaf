//! The reservations that a launch is made from.

use super::Asked;
use crate::call::Call;
use crate::capacity::{self, Market, Reservation};
use crate::error::ApiError;

/// What a reservation must be for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) market: Market,
    pub(super) zones: &'a [String],
    pub(super) least: usize,
}

impl Wanted<'_> {
    fn is_met_by(&self, reservation: &Reservation) -> bool {
        reservation.instance_type == self.name && self.zones.contains(&reservation.zone)
    }
}

/// The reservations that the launch is made from, in the order in which they are used up; none: it is from no
/// reservation.
pub(super) fn choose(call: &mut Call<'_>, asked: &Asked, wanted: &Wanted<'_>) -> Result<Vec<String>, ApiError> {
    let specification = asked.capacity_reservation_specification.as_ref();
    let target = specification.and_then(|specification| specification.capacity_reservation_target.as_ref());
    let preference =
        specification.and_then(|specification| specification.capacity_reservation_preference.as_deref());
    if target.is_some() && preference.is_some_and(|preference| preference != "capacity-reservations-only") {
        return Err(ApiError::combination("A target and a preference may not be specified together"));
    }
    let one = target.and_then(|target| target.capacity_reservation_id.as_deref());
    let group = target.and_then(|target| target.capacity_reservation_resource_group_arn.as_deref());
    match (one, group) {
        (Some(_), Some(_)) => {
            Err(ApiError::combination("A reservation and a group of them may not be specified together"))
        }
        (Some(id), None) => {
            check(call, id, wanted)?;
            Ok(vec![id.to_owned()])
        }
        (None, Some(arn)) => of_group(call, arn, wanted, preference.is_some()),
        (None, None) if wanted.market == Market::CapacityBlock => {
            Err(ApiError::combination("The market type capacity-block requires a capacity reservation target"))
        }
        (None, None) => Ok(vec![]),
    }
}

fn check(call: &mut Call<'_>, id: &str, wanted: &Wanted<'_>) -> Result<(), ApiError> {
    let now = call.now();
    let reservation = call.region().reservations.get(id).ok_or_else(|| capacity::not_found(id))?;
    if reservation.state(now) != "active" {
        let message =
            format!("The capacity reservation '{id}' is not active: its state is {}", reservation.state(now));
        return Err(ApiError::client("InvalidCapacityReservationState", message));
    }
    if reservation.is_block != (wanted.market == Market::CapacityBlock) {
        let message = format!("The market type of the request is not valid for the capacity reservation '{id}'");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    if !wanted.is_met_by(reservation) {
        let message = format!(
            "The capacity reservation '{id}' is for {} in {}, and not for what the request asks",
            reservation.instance_type, reservation.zone
        );
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    Ok(())
}

/// Those of a group, all in one zone. What no reservation of the group has room for is bought by the hour like anything
/// else, unless the launch is for reservations only (EC2 user guide, "Launch instances into a Capacity Reservation
/// group").
fn of_group(
    call: &mut Call<'_>,
    arn: &str,
    wanted: &Wanted<'_>,
    only_reserved: bool,
) -> Result<Vec<String>, ApiError> {
    let now = call.now();
    let region = call.region();
    let members = || region.reservations.values().filter(|one| one.groups.iter().any(|group| group == arn));
    if members().next().is_none() {
        let message = format!("The capacity reservation resource group '{arn}' does not exist");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let is_usable = |one: &&Reservation| {
        wanted.is_met_by(one)
            && one.is_block == (wanted.market == Market::CapacityBlock)
            && one.state(now) == "active"
    };
    let usable: Vec<&Reservation> = members().filter(is_usable).collect();
    let room = |zone: &&String| {
        let here = usable.iter().filter(|one| one.zone == **zone);
        here.map(|one| one.available(region, now) as usize).sum::<usize>()
    };
    match wanted.zones.iter().max_by_key(room).filter(|zone| wanted.least <= room(zone)) {
        Some(zone) => Ok(usable.iter().filter(|one| one.zone == *zone).map(|one| one.id.clone()).collect()),
        None if only_reserved || wanted.market == Market::CapacityBlock => Err(no_room()),
        None => Ok(vec![]),
    }
}

/// How a launch is refused that its reservations have no room for.
pub(super) fn no_room() -> ApiError {
    const MESSAGE: &str =
        "Requested reservation does not have sufficient compatible and available capacity for this request.";
    ApiError::client("ReservationCapacityExceeded", MESSAGE)
}
