//! What a job does about a machine that answers and cannot be used as it should: its cloud takes it back, or devices
//! are missing.

use api::jobs::JobTerminationReason;
use jiff::{SignedDuration, Timestamp};

use super::JobDecision;
use super::decide::begin_end;
use crate::instance::{EfaShortage, Instance};

/// How long before its machine is taken back a job must have ended, in seconds, so that its log can be read.
const LAST_WORDS_SECS: i64 = 10;

/// Why the job cannot go on although its machine is still there: its cloud takes it back.
pub(super) fn taken_back(instance: Option<&Instance>) -> Option<(JobTerminationReason, String)> {
    let instance = instance?;
    let notice = instance.state.notice.as_ref()?;
    let text = notice.text(instance.state.provider_id.as_deref());
    Some((JobTerminationReason::InterruptedByNoCapacity, format!("Instance {}: {text}", instance.state.name)))
}

/// The longest grace that a machine which is taken back leaves to a job, in seconds. Its log must be read, too.
pub(super) fn grace_left(now: Timestamp, instance: Option<&Instance>) -> Option<u64> {
    let notice = instance?.state.notice.as_ref()?;
    let left = notice.deadline().duration_since(now) - SignedDuration::from_secs(LAST_WORDS_SECS);
    Some(u64::try_from(left.as_secs()).unwrap_or(0))
}

/// Whether the machine lacks some of the EFA devices by which nodes reach each other. They may come late; a job that
/// does without them would only crawl, and nobody would know why.
pub(super) fn has_incomplete_efa(now: Timestamp, instance: Option<&Instance>, decision: &mut JobDecision) -> bool {
    let has_peers = decision.job.spec.jobs_per_replica > 1;
    let Some(instance) = instance.filter(|_| has_peers) else { return false };
    let Some(missing) = instance.state.health.incomplete_efa() else { return false };
    let name = &instance.state.name;
    let settled_at = instance.state.efa_shortage.map_or(now, EfaShortage::settled_at);
    if now < settled_at {
        decision.job.state.waiting_for =
            Some(format!("the rest of the EFA devices of instance {name}: it has {missing}"));
        decision.look_again_at = Some(settled_at);
    } else {
        let message = format!("Instance {name} has {missing}, and a job with several nodes needs all of them");
        begin_end(JobTerminationReason::FailedToStartDueToNoCapacity, Some(message), decision);
    }
    true
}
