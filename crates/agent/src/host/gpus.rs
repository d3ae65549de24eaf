//! Which task has which GPU.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::agent::{HostGpu, HostShare};
use api::ids::JobId;

/// The GPUs that the agent hands out.
#[derive(Debug)]
pub(crate) struct GpuPool {
    gpus: Vec<HostGpu>,
    /// GPUs that the agent was given and that the machine does not show.
    missing: Vec<String>,
    taken: Mutex<BTreeMap<String, JobId>>,
}

impl GpuPool {
    /// A pool of the machine's GPUs, or of those that the agent was given; all of them are free.
    pub(crate) fn of_share(machine: &[HostGpu], share: Option<&[String]>) -> GpuPool {
        let is_ours = |gpu: &&HostGpu| share.is_none_or(|share| share.contains(&gpu.uuid));
        let is_missing = |uuid: &&String| machine.iter().all(|gpu| gpu.uuid != **uuid);
        GpuPool {
            gpus: machine.iter().filter(is_ours).cloned().collect(),
            missing: share.unwrap_or_default().iter().filter(is_missing).cloned().collect(),
            taken: Mutex::default(),
        }
    }

    /// The GPUs.
    pub(crate) fn gpus(&self) -> &[HostGpu] {
        &self.gpus
    }

    /// Takes GPUs for a task, or says why they cannot be had. A task that has some already gives them back
    /// first.
    pub(crate) fn take(&self, task: JobId, share: &HostShare) -> Result<Vec<String>, String> {
        let mut taken = self.taken();
        taken.retain(|_, owner| *owner != task);
        let free = |gpu: &&HostGpu| !taken.contains_key(&gpu.uuid);
        let chosen: Vec<String> = match (&share.gpu_uuids, share.gpu_count) {
            (Some(uuids), _) => {
                for uuid in uuids {
                    let gpu = self.gpus.iter().find(|gpu| gpu.uuid == *uuid);
                    let gpu = gpu.ok_or_else(|| not_here(uuid))?;
                    if !free(&gpu) {
                        return Err(format!("the GPU `{uuid}` is taken by another task"));
                    }
                }
                uuids.clone()
            }
            (None, count) => {
                // Nobody said which ones, so all of them must be here.
                if let Some(uuid) = self.missing.first().filter(|_| count != Some(0)) {
                    return Err(not_here(uuid));
                }
                let wanted = count.map_or(self.gpus.len(), |count| count as usize);
                let free: Vec<&HostGpu> = self.gpus.iter().filter(free).collect();
                if free.len() < wanted {
                    let free = free.len();
                    return Err(format!("{wanted} GPUs are wanted, and {free} are free"));
                }
                choose(&free, wanted)
            }
        };
        taken.extend(chosen.iter().map(|uuid| (uuid.clone(), task)));
        Ok(chosen)
    }

    /// Marks GPUs as a task's, as its journal says.
    pub(crate) fn restore(&self, task: JobId, uuids: &[String]) {
        self.taken().extend(uuids.iter().map(|uuid| (uuid.clone(), task)));
    }

    /// Takes back what a task has.
    pub(crate) fn release(&self, task: JobId) {
        self.taken().retain(|_, owner| *owner != task);
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<String, JobId>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_here(uuid: &str) -> String {
    format!("the GPU `{uuid}` is not here: the host's driver does not show it")
}

/// Picks GPUs that are close to each other: of one NUMA node if it has enough, neighbours by index.
fn choose(free: &[&HostGpu], wanted: usize) -> Vec<String> {
    let mut by_node: BTreeMap<Option<u32>, Vec<&HostGpu>> = BTreeMap::new();
    for gpu in free {
        by_node.entry(gpu.numa_node).or_default().push(gpu);
    }
    // The smallest node that is large enough leaves the larger ones whole.
    let node = by_node.values().filter(|gpus| gpus.len() >= wanted).min_by_key(|gpus| gpus.len());
    let from = node.map_or(free, Vec::as_slice);
    from.iter().take(wanted).map(|gpu| gpu.uuid.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(nodes: &[u32]) -> GpuPool {
        let gpu = |(index, node): (usize, &u32)| HostGpu {
            vendor: "nvidia".to_owned(),
            name: "H100".to_owned(),
            memory_mib: 81_559,
            index: index as u32,
            uuid: format!("GPU-{index}"),
            pci: None,
            numa_node: Some(*node),
        };
        let gpus: Vec<HostGpu> = nodes.iter().enumerate().map(gpu).collect();
        GpuPool::of_share(&gpus, None)
    }

    fn count(gpus: u32) -> HostShare {
        HostShare { gpu_count: Some(gpus), ..HostShare::default() }
    }

    #[test]
    fn a_gpu_has_one_owner() {
        let pool = pool(&[0, 0]);
        let (one, two) = (JobId(uuid::Uuid::from_u128(1)), JobId(uuid::Uuid::from_u128(2)));
        assert_eq!(pool.take(one, &count(1)).unwrap(), ["GPU-0"]);
        assert_eq!(pool.take(two, &count(1)).unwrap(), ["GPU-1"]);
        assert!(pool.take(two, &count(2)).is_err());
        pool.release(one);
        assert_eq!(pool.take(two, &HostShare::default()).unwrap().len(), 2);
    }

    #[test]
    fn a_gpu_that_is_not_shown_is_missed_by_those_who_want_gpus() {
        let machine = pool(&[0, 0]).gpus;
        let share = ["GPU-1", "GPU-7"].map(str::to_owned);
        let pool = GpuPool::of_share(&machine, Some(&share));
        let task = JobId(uuid::Uuid::from_u128(1));
        let refused = pool.take(task, &count(1)).unwrap_err();
        assert!(refused.contains("`GPU-7` is not here"), "{refused}");
        assert!(pool.take(task, &HostShare::default()).is_err());
        assert_eq!(pool.take(task, &count(0)).unwrap(), Vec::<String>::new());
        // A block that has all of its GPUs is as good as before.
        let block = |uuids: &[String]| HostShare { gpu_uuids: Some(uuids.to_vec()), ..HostShare::default() };
        assert_eq!(pool.take(task, &block(&share[..1])).unwrap(), ["GPU-1"]);
        assert_eq!(pool.take(task, &block(&[])).unwrap(), Vec::<String>::new());
        assert_eq!(pool.take(task, &block(&share)).unwrap_err(), refused);
        let pool = GpuPool::of_share(&machine, Some(&share[..1]));
        assert_eq!(pool.take(task, &HostShare::default()).unwrap(), ["GPU-1"]);
    }

    #[test]
    fn neighbours_are_preferred() {
        let pool = pool(&[0, 0, 0, 1, 1]);
        let task = JobId(uuid::Uuid::from_u128(1));
        assert_eq!(pool.take(task, &count(2)).unwrap(), ["GPU-3", "GPU-4"]);
    }
}
