//! What every reconciler records beside its own row: events, and who must look next.

use api::ids::{EventId, InstanceId, RunId};
use lifecycle::events::{NewEvent, Target};
use store::Tx;
use store::leases::{Table, touch};

use crate::deps::Deps;

/// Records events about `targets`, caused by the server itself.
pub(super) async fn events(
    deps: &Deps,
    tx: &mut Tx,
    messages: &[String],
    targets: &[Target],
) -> store::Result<()> {
    for message in messages {
        let event = NewEvent::by_server(message.as_str(), targets.to_vec());
        store::events::insert(&mut *tx, deps.ids.id::<EventId>(), deps.clock.now(), &event).await?;
    }
    Ok(())
}

/// Makes a run due.
pub(super) async fn touch_run(deps: &Deps, tx: &mut Tx, id: RunId) -> store::Result<()> {
    touch(&mut *tx, Table::Runs, id.0, deps.clock.now()).await
}

/// Makes an instance due.
pub(super) async fn touch_instance(deps: &Deps, tx: &mut Tx, id: InstanceId) -> store::Result<()> {
    touch(&mut *tx, Table::Instances, id.0, deps.clock.now()).await
}
