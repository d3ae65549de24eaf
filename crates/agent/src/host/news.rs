//! What changes of a host while its agent runs: devices that come late, and what the cloud says of the machine.

use std::sync::Arc;
use std::time::Duration;

use api::agent::Fabric;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::discover;
use crate::host::state::Host;

/// How often devices are looked for while they may still come.
const SOON: Duration = Duration::from_secs(5);
/// For how long that is, after the start and after each change.
const UNSETTLED: Duration = Duration::from_secs(30);
/// How often they are looked for later: people load modules and detach devices.
const LATER: Duration = Duration::from_mins(1);

/// Looks for devices again and again, and tells who listens what has changed.
pub(crate) async fn keep_looking(host: Arc<Host>) {
    let mut unsettled_until = Instant::now() + UNSETTLED;
    loop {
        sleep(if Instant::now() < unsettled_until { SOON } else { LATER }).await;
        let (has_changed, are_joined_anew) = (look(&host).await, ask_driver(&host).await);
        if has_changed || are_joined_anew {
            unsettled_until = Instant::now() + UNSETTLED;
        }
    }
}

/// Looks for devices once; answers whether what is found is not what was found before.
pub(crate) async fn look(host: &Host) -> bool {
    let roots = host.options.roots.clone();
    let Ok(fabric) = tokio::task::spawn_blocking(move || discover::fabric(&roots)).await else { return false };
    let (adapters, devices) = (fabric.efa_count(), fabric.devices.len());
    let has_changed = host.news.send_if_modified(|news| {
        // Files do not tell how GPUs are joined.
        let fabric = Fabric { gpu_fabrics: news.fabric.gpu_fabrics.clone(), ..fabric };
        let has_changed = news.fabric.differs(&fabric);
        news.fabric = fabric;
        has_changed
    });
    if has_changed {
        info!("the host has {devices} RDMA devices now, and {adapters} EFA devices that can be used");
    }
    has_changed
}

/// Asks the driver once how the GPUs are joined, where they are joined by something that has to be set up; answers
/// whether that has changed. It takes a program of the vendor's, which other machines are spared.
async fn ask_driver(host: &Host) -> bool {
    if !host.news.borrow().fabric.joins_gpus() {
        return false;
    }
    let Ok(Some(gpu_fabrics)) = tokio::task::spawn_blocking(discover::gpu_fabrics).await else { return false };
    host.news.send_if_modified(|news| {
        let has_changed = news.fabric.gpu_fabrics != gpu_fabrics;
        news.fabric.gpu_fabrics = gpu_fabrics;
        has_changed
    })
}
