//! Lets backends remove what serves nobody any more, but for machines, and forgets the backends that were let go.

use std::collections::HashSet;

use api::ids::FleetId;
use backends::{Living, MachineKey};
use store::backends::BackendRow;
use store::{backends as rows, fleets, instances, launches};

use crate::backend_pool::answer;
use crate::deps::Deps;

/// Looks once at every backend. What goes wrong with one does not concern the others; the last error is given when all
/// have had their turn.
pub async fn pass(deps: &Deps) -> store::Result<()> {
    // Another server knows better what lives.
    if deps.agents.is_superseded() {
        return Ok(());
    }
    let mut tidied = Ok(());
    for row in rows::all(&deps.db).await? {
        tidied = tidy(deps, &row).await.and(tidied);
    }
    tidied
}

async fn tidy(deps: &Deps, row: &BackendRow) -> store::Result<()> {
    let is_leaving = row.draining && !rows::is_in_use(&deps.db, row.id).await?;
    let Some(open) = deps.backends.get(&deps.db, row.id).await? else {
        // Nobody can ask it anything; it holds no machine of ours.
        return if is_leaving { rows::delete_drained(&deps.db, row.id).await } else { Ok(()) };
    };
    let fleets: HashSet<FleetId> = fleets::list_living(&deps.db).await?.into_iter().collect();
    // Launches before machines: one that is over by then has all its machines in the other list.
    let open_launches: HashSet<_> = launches::list_open_by_backend(&deps.db, row.id).await?.into_iter().collect();
    let machines = instances::list_machines_by_backend(&deps.db, row.id).await?;
    let living = Living {
        launches: open_launches.iter().copied().chain(machines.iter().map(|(launch, _)| *launch)).collect(),
        machines: machines
            .into_iter()
            .filter_map(|(launch_id, index)| Some(MachineKey { launch_id, index: index? }))
            .collect(),
        open_launches,
        fleets,
        is_leaving,
    };
    match answer(open.backend.tidy(&living)).await {
        Ok(left) if left.is_empty() => {
            // Whoever configured it again meanwhile has taken it back.
            if is_leaving { rows::delete_drained(&deps.db, row.id).await } else { Ok(()) }
        }
        Ok(left) => {
            tracing::info!("`{}` still has {}, trying again", open.kind, left.join(", "));
            Ok(())
        }
        Err(error) => {
            tracing::warn!("cannot tidy up `{}`, trying again: {error}", open.kind);
            Ok(())
        }
    }
}
