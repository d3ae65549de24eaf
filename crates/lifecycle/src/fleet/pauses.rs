//! What follows when nothing is left to buy: who is told what, and when it is tried again.

use api::instances::InstanceTerminationReason;
use jiff::{SignedDuration, Timestamp};

use super::decide::{Buyer, FleetDecision, Order};
use crate::instance::EndOrder;

/// How soon a fleet asks again for what should be sold already and is not, in seconds.
const OPENING_SECS: i64 = 15;

/// How late what should be sold may be, in seconds. From then on it is asked for as anything else.
const OPENING_LASTS_SECS: i64 = 15 * 60;

/// How long a fleet waits after a purchase came to nothing, by failures in a row, in seconds.
const FAILURE_DELAYS_SECS: [i64; 5] = [60, 120, 300, 600, 1800];

/// Why there is nothing to buy, and until when.
pub(super) struct Nothing {
    pub(super) obstacle: Option<String>,
    pub(super) opens_at: Option<Timestamp>,
    /// Nothing else would have been bought.
    pub(super) only_type: Option<String>,
}

/// Ends the instances for which nothing is left to buy, and says why and when the next are tried.
pub(super) fn give_up(
    now: Timestamp,
    order: &Order<'_>,
    Nothing { obstacle, opens_at, only_type }: Nothing,
    most_offers: u32,
    decision: &mut FleetDecision,
) {
    let is_begun = order.round.has_begun();
    let mut message = if is_begun {
        order.round.summary(most_offers)
    } else {
        obstacle.unwrap_or_else(|| "No offers found".to_owned())
    };
    if let Some(only_type) = only_type {
        message.push_str(&format!(". {}", crate::placement::of_one_type(&only_type)));
    }
    let message = Some(message);
    if order.buyer == Buyer::Fleet {
        decision.fleet.state.status_message.clone_from(&message);
    } else if let Some(refusal) = order.round.refused_by() {
        // It will refuse the next buyer too, so whoever looks at the fleet should know.
        decision.fleet.state.status_message = Some(refusal);
    }
    for instance in order.instances {
        let end = EndOrder { reason: InstanceTerminationReason::NoOffers, message: message.clone() };
        decision.end_instances.push((instance.id, end));
    }
    if is_begun && order.buyer == Buyer::Fleet {
        // It was counted when the round began, and the pause begins when it ends.
        let delay = pause_after(decision.fleet.state.failures.saturating_sub(1));
        decision.fleet.state.not_before = Some(now + delay);
    } else {
        put_off(now, order.buyer, decision);
    }
    if order.buyer == Buyer::Fleet {
        be_there_when_it_opens(now, opens_at, decision);
    }
    if let (Buyer::Fleet, Some(at)) = (order.buyer, decision.fleet.state.not_before) {
        let count = order.instances.len();
        let at = at.strftime("%H:%M:%S UTC");
        let plural = if count == 1 { "machine" } else { "machines" };
        decision.events.push(format!("No offer for {count} {plural} is left, next tries from {at} on"));
    }
}

/// Shortens the pause of a fleet, so that what is sold from some moment on is bought then, or soon after it: clocks differ.
fn be_there_when_it_opens(now: Timestamp, opens_at: Option<Timestamp>, decision: &mut FleetDecision) {
    let opening = SignedDuration::from_secs(OPENING_LASTS_SECS);
    let Some(opens_at) = opens_at.filter(|opens_at| now <= *opens_at + opening) else { return };
    let soon = now + SignedDuration::from_secs(OPENING_SECS);
    let state = &mut decision.fleet.state;
    state.not_before = state.not_before.map(|not_before| not_before.min(opens_at.max(soon)));
}

/// Puts the next purchase for the fleet's own store off, longer with each failure. A run has pauses of its own.
pub(super) fn put_off(now: Timestamp, buyer: Buyer, decision: &mut FleetDecision) {
    if buyer != Buyer::Fleet {
        return;
    }
    let state = &mut decision.fleet.state;
    state.not_before = Some(now + pause_after(state.failures));
    state.failures = state.failures.saturating_add(1);
}

fn pause_after(failures: u32) -> SignedDuration {
    let place = (failures as usize).min(FAILURE_DELAYS_SECS.len() - 1);
    SignedDuration::from_secs(FAILURE_DELAYS_SECS[place])
}
