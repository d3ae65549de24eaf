//! What the nodes of gangs must know of each other, kept while they start: each of a thousand nodes is told of all the
//! others, and finding that out anew for each would be a million rows to read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use api::agent::ClusterInfo;
use api::ids::RunId;
use lifecycle::job::Job;
use tokio::sync::OnceCell;

/// Nodes of all gangs together that are remembered. Gangs that have started are not asked for again, so what is
/// forgotten beyond that is nearly always over.
const NODES_LIMIT: usize = 50_000;

/// One try of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Try {
    run_id: RunId,
    replica_num: u32,
    submission_num: u32,
}

impl Try {
    fn of(job: &Job) -> Try {
        Try { run_id: job.run_id, replica_num: job.replica_num, submission_num: job.submission_num }
    }
}

/// A gang whose nodes all have addresses.
#[derive(Debug)]
pub struct KnownGang {
    /// The addresses, as the first node remembers them.
    pub cluster: Arc<ClusterInfo>,
    /// The public keys that the nodes' SSH servers show, by rank.
    pub host_keys: OnceCell<Vec<String>>,
    /// The ports of the nodes' SSH servers by rank, once the gang is released.
    pub ports: OnceCell<Vec<u16>>,
}

impl KnownGang {
    /// A gang of which nothing is known yet but where it is.
    pub fn of(cluster: ClusterInfo) -> KnownGang {
        KnownGang { cluster: Arc::new(cluster), host_keys: OnceCell::new(), ports: OnceCell::new() }
    }
}

/// The last gangs that started.
#[derive(Debug, Default)]
pub struct Gangs(Mutex<HashMap<Try, Arc<KnownGang>>>);

impl Gangs {
    /// The gang of a job, if it is known.
    pub fn get(&self, job: &Job) -> Option<Arc<KnownGang>> {
        self.0.lock().expect("nobody panics while looking").get(&Try::of(job)).cloned()
    }

    /// Remembers the gang of a job, unless somebody was faster.
    pub fn remember(&self, job: &Job, cluster: ClusterInfo) -> Arc<KnownGang> {
        let mut gangs = self.0.lock().expect("nobody panics while looking");
        let nodes: usize = gangs.values().map(|gang| gang.cluster.node_ips.len()).sum();
        if NODES_LIMIT < nodes + cluster.node_ips.len() {
            gangs.clear();
        }
        gangs.entry(Try::of(job)).or_insert_with(|| Arc::new(KnownGang::of(cluster))).clone()
    }
}
