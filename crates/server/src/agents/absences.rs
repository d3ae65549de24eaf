//! Since when nobody has been in the jobs of an agent, by our clock.

use std::collections::HashMap;

use api::agent::TaskState;
use api::ids::JobId;
use jiff::{SignedDuration, Timestamp};

/// How much later or earlier the same moment may seem to have been, told again.
const SAME_MOMENT: SignedDuration = SignedDuration::from_millis(500);

/// The jobs in which nobody is.
#[derive(Debug, Default)]
pub(super) struct Absences(HashMap<JobId, Timestamp>);

impl Absences {
    /// Takes note of what a task says; answers whether that is news. How long is said and not since when, because the
    /// host's clock may be wrong, so the same moment comes out a little different each time.
    pub(super) fn note(&mut self, task: &TaskState, now: Timestamp) -> bool {
        let length = task.unvisited_millis.and_then(|millis| i64::try_from(millis).ok());
        let since = length.and_then(|millis| now.checked_sub(SignedDuration::from_millis(millis)).ok());
        let is_same = match (self.since(task.id), since) {
            (None, None) => true,
            (Some(known), Some(since)) => since.duration_since(known).abs() < SAME_MOMENT,
            (None, Some(_)) | (Some(_), None) => false,
        };
        match since {
            _ if is_same => {}
            Some(since) => {
                self.0.insert(task.id, since);
            }
            None => self.forget(task.id),
        }
        !is_same
    }

    /// Since when nobody has been in a job, if it is known.
    pub(super) fn since(&self, job: JobId) -> Option<Timestamp> {
        self.0.get(&job).copied()
    }

    /// Keeps only these jobs.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&JobId) -> bool) {
        self.0.retain(|job, _| is_kept(job));
    }

    /// Forgets a job.
    pub(super) fn forget(&mut self, job: JobId) {
        self.0.remove(&job);
    }
}

#[cfg(test)]
mod tests {
    use api::agent::{Resolved, TaskPhase};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn absence_is_counted_by_our_clock_and_the_same_one_is_no_news() {
        let job = JobId(Uuid::from_u128(3));
        let mut absences = Absences::default();
        let mut told = |secs: i64, unvisited_millis: Option<u64>| {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(secs);
            let task = TaskState {
                id: job,
                generation: 1,
                phase: TaskPhase::Running,
                pull: None,
                started_at: None,
                exit: None,
                log_end: 0,
                resolved: Resolved::default(),
                warnings: vec![],
                unvisited_millis,
            };
            (absences.note(&task, now), absences.since(job).map(Timestamp::as_second))
        };
        assert_eq!(told(1000, None), (false, None));
        assert_eq!(told(1000, Some(5_000)), (true, Some(995)));
        // Told again, and a little late.
        assert_eq!(told(1060, Some(64_800)), (false, Some(995)));
        // Somebody was there in between.
        assert_eq!(told(1060, Some(1_000)), (true, Some(1059)));
        assert_eq!(told(1061, None), (true, None));
        // No host can have been up for so long.
        assert_eq!(told(1062, Some(u64::MAX)), (false, None));
    }
}
