//! What every reconciler records beside its own row: events, and who must look next.

use api::ids::{EventId, InstanceId, RunId};
use lifecycle::events::{NewEvent, Target};
use lifecycle::instance::Instance;
use store::leases::{Table, touch};
use store::{Tx, Versioned};

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

/// Some instances and the jobs that wait for them: whoever follows a run sees why its machines are late.
pub(super) async fn waiting(tx: &mut Tx, instances: Vec<Instance>) -> store::Result<Vec<Target>> {
    let mut targets = vec![];
    for instance in instances {
        let name = &instance.state.name;
        targets.push(Target::instance(instance.project_id, instance.fleet_id, instance.id, name));
        for Versioned { value: job, .. } in store::jobs::list_active_by_instance(&mut *tx, instance.id).await? {
            targets.push(Target::job(job.project_id, job.run_id, job.id, &job.spec.job_name));
        }
    }
    Ok(targets)
}

/// Makes a run due.
pub(super) async fn touch_run(deps: &Deps, tx: &mut Tx, id: RunId) -> store::Result<()> {
    touch(&mut *tx, Table::Runs, id.0, deps.clock.now()).await
}

/// Makes an instance due.
pub(super) async fn touch_instance(deps: &Deps, tx: &mut Tx, id: InstanceId) -> store::Result<()> {
    touch(&mut *tx, Table::Instances, id.0, deps.clock.now()).await
}
