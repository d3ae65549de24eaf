//! What happened, in words for people, as a hash for comparison, and counted as proof that it happened.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

/// Lines that are kept for people, unless `SIM_LINES` says otherwise.
const KEPT_LINES: usize = 60;

/// A log of one simulation. Its clones are the same log.
#[derive(Debug, Clone)]
pub(crate) struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    kept: usize,
    last: VecDeque<String>,
    count: u64,
    hash: u64,
    marks: Marks,
}

/// How often each interesting thing happened.
pub(crate) type Marks = BTreeMap<&'static str, u64>;

impl Trace {
    pub(crate) fn new() -> Trace {
        let kept = crate::seeds::number("SIM_LINES").map_or(KEPT_LINES, |lines| lines as usize);
        Trace(Arc::new(Mutex::new(Lines { kept, ..Lines::default() })))
    }

    pub(crate) fn line(&self, line: String) {
        let mut lines = self.0.lock().unwrap();
        // FNV-1a: the same in every process and on every machine.
        for byte in line.bytes() {
            lines.hash = (lines.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        lines.count += 1;
        if lines.last.len() == lines.kept {
            lines.last.pop_front();
        }
        lines.last.push_back(line);
    }

    pub(crate) fn mark(&self, what: &'static str) {
        *self.0.lock().unwrap().marks.entry(what).or_default() += 1;
    }

    pub(crate) fn marks(&self) -> Marks {
        self.0.lock().unwrap().marks.clone()
    }

    pub(crate) fn hash(&self) -> u64 {
        let lines = self.0.lock().unwrap();
        lines.hash ^ lines.count
    }

    pub(crate) fn tail(&self) -> String {
        let lines = self.0.lock().unwrap();
        lines.last.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}
