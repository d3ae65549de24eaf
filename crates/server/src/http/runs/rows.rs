//! Runs as lists print them, kept until they change: printing them anew is most of the work of a list.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use api::ids::RunId;
use axum::body::Bytes;
use jiff::Timestamp;

use crate::http::run_views::Detail;

/// The most bytes that are kept.
const LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// Printed runs.
#[derive(Debug, Default)]
pub struct RunRows(Mutex<Rows>);

#[derive(Debug, Default)]
struct Rows {
    by_key: HashMap<Key, Row>,
    /// The order in which they came.
    order: VecDeque<Key>,
    bytes: usize,
}

/// A run, and how much of it is shown.
type Key = (RunId, bool, usize);

#[derive(Debug)]
struct Row {
    state: RowState,
    /// It holds only until then.
    until: Option<Timestamp>,
    json: Bytes,
}

/// The versions of a run's rows: its own, and the sum of its jobs'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowState {
    /// The run's.
    pub run: i64,
    /// Its jobs', added up.
    pub jobs: i64,
}

fn key(id: RunId, detail: Detail) -> Key {
    (id, detail.jobs, detail.submissions)
}

impl RunRows {
    /// What was printed of a run in that state.
    pub fn get(&self, id: RunId, detail: Detail, state: RowState, now: Timestamp) -> Option<Bytes> {
        let rows = self.0.lock().expect("nobody panics while looking");
        let row = rows.by_key.get(&key(id, detail))?;
        let holds = row.state == state && row.until.is_none_or(|until| now < until);
        holds.then(|| row.json.clone())
    }

    /// Keeps what was printed, and forgets the oldest where there is no room.
    pub fn put(&self, id: RunId, detail: Detail, state: RowState, until: Option<Timestamp>, json: Bytes) {
        let mut rows = self.0.lock().expect("nobody panics while keeping");
        let key = key(id, detail);
        rows.bytes += json.len();
        match rows.by_key.insert(key, Row { state, until, json }) {
            Some(replaced) => rows.bytes -= replaced.json.len(),
            None => rows.order.push_back(key),
        }
        while rows.bytes > LIMIT_BYTES {
            let Some(oldest) = rows.order.pop_front() else { break };
            if let Some(row) = rows.by_key.remove(&oldest) {
                rows.bytes -= row.json.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> RunId {
        RunId(Uuid::from_u128(number))
    }

    #[test]
    fn a_row_holds_until_it_changes_or_its_time_is_over() {
        let rows = RunRows::default();
        let now = Timestamp::UNIX_EPOCH;
        let later = now + jiff::SignedDuration::from_secs(1);
        let state = RowState { run: 1, jobs: 2 };
        rows.put(id(1), Detail::ALL, state, Some(later), Bytes::from_static(b"{}"));
        assert!(rows.get(id(1), Detail::ALL, state, now).is_some());
        assert!(rows.get(id(1), Detail::ALL, state, later).is_none());
        assert!(rows.get(id(1), Detail::ALL, RowState { run: 1, jobs: 3 }, now).is_none());
        assert!(rows.get(id(1), Detail { jobs: false, submissions: 0 }, state, now).is_none());
    }

    #[test]
    fn what_is_kept_has_a_limit() {
        let rows = RunRows::default();
        let state = RowState { run: 1, jobs: 1 };
        let large = Bytes::from(vec![0; LIMIT_BYTES / 4]);
        for number in 0..20 {
            rows.put(id(number), Detail::ALL, state, None, large.clone());
            rows.put(id(number), Detail::ALL, state, None, large.clone());
        }
        assert!(rows.0.lock().unwrap().bytes <= LIMIT_BYTES);
        assert!(rows.get(id(19), Detail::ALL, state, Timestamp::UNIX_EPOCH).is_some());
        assert!(rows.get(id(0), Detail::ALL, state, Timestamp::UNIX_EPOCH).is_none());
    }
}
