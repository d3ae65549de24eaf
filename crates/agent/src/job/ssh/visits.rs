//! Whether anybody is in the job: users who have shown their key, however they came.

use tokio::sync::watch;

use super::control::{Report, Reporter};

/// The count of those who are in, and of all who ever were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    now: usize,
    ever: u64,
}

/// Counts visits.
#[derive(Debug, Clone, Default)]
pub(super) struct Visits(watch::Sender<Count>);

impl Visits {
    /// Counts a user for as long as the answer is kept.
    pub(super) fn begin(&self) -> Visit {
        self.0.send_modify(|count| {
            count.now += 1;
            count.ever += 1;
        });
        Visit(self.clone())
    }

    /// Tells the supervisor when the first comes and when the last has left, also of a visit that was over before
    /// anybody looked.
    pub(super) async fn tell(self, reporter: Reporter) {
        let mut counts = self.0.subscribe();
        let mut told = Count::default();
        loop {
            let count = *counts.borrow_and_update();
            for report in reports(told, count) {
                if reporter.say(report).await.is_err() {
                    return;
                }
            }
            told = count;
            if counts.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What is to be told after a change.
fn reports(before: Count, after: Count) -> Vec<Report> {
    let came = (before.now == 0 && before.ever < after.ever).then_some(Report::Visited);
    let left = (after.now == 0 && before != after).then_some(Report::Left);
    came.into_iter().chain(left).collect()
}

/// One user who is in.
#[derive(Debug)]
pub(super) struct Visit(Visits);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| count.now -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_who_comes_and_the_last_who_leaves_are_told_of() {
        let check = |before: (usize, u64), after: (usize, u64), expected: &[Report]| {
            let count = |(now, ever)| Count { now, ever };
            assert_eq!(reports(count(before), count(after)), expected, "{before:?} {after:?}");
        };
        check((0, 0), (0, 0), &[]);
        check((0, 0), (1, 1), &[Report::Visited]);
        check((1, 1), (2, 2), &[]);
        check((2, 2), (1, 2), &[]);
        check((1, 2), (0, 2), &[Report::Left]);
        // It came and left before anybody looked.
        check((0, 2), (0, 3), &[Report::Visited, Report::Left]);
        // One left and another came.
        check((1, 3), (1, 4), &[]);
        // Both happened, and then all left.
        check((1, 3), (0, 5), &[Report::Left]);
    }

    #[test]
    fn a_visit_lasts_as_long_as_its_guard() {
        let visits = Visits::default();
        let first = visits.begin();
        let second = visits.begin();
        drop(first);
        assert_eq!(*visits.0.borrow(), Count { now: 1, ever: 2 });
        drop(second);
        assert_eq!(*visits.0.borrow(), Count { now: 0, ever: 2 });
    }
}
