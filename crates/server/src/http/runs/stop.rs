//! The end of runs, as somebody wants it.

use api::runs::{RunTerminationReason, StopRunsRequest};
use axum::extract::State;
use lifecycle::events::{NewEvent, Target};
use lifecycle::run::StopRequest;
use store::leases::Table;
use store::runs;

use crate::accounts;
use crate::deps::Deps;
use crate::http::auth::ProjectMember;
use crate::http::error::{Result, check_length};
use crate::http::extract::Json;
use crate::http::run_views::shown_status;

/// Asks for the end of runs. Those that are unknown or finished have ended already.
pub async fn stop(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<StopRunsRequest>,
) -> Result<Json<()>> {
    let (stop, reason) = if request.abort {
        (StopRequest::Abort, RunTerminationReason::AbortedByUser)
    } else {
        (StopRequest::Stop, RunTerminationReason::StoppedByUser)
    };
    check_length("runs_names", request.runs_names.len())?;
    let mut tx = deps.db.begin().await?;
    for name in &request.runs_names {
        let Some(row) = runs::get_by_name(&mut tx, member.project.id, name).await? else { continue };
        let run = &row.value;
        if run.status.is_finished() || !runs::set_stop(&mut tx, run.id, stop, deps.clock.now()).await? {
            continue;
        }
        let (status, _) = shown_status(run);
        if status != api::runs::RunStatus::Terminating {
            let message = format!(
                "Run status changed {} -> TERMINATING. Termination reason: {}",
                status.as_str().to_uppercase(),
                reason.as_str().to_uppercase()
            );
            let target = Target::run(run.project_id, run.id, &run.name);
            accounts::record(&deps, &mut tx, &NewEvent::by_user(member.user.id, message, vec![target])).await?;
        }
    }
    tx.commit().await?;
    deps.wake.ring(Table::Runs);
    deps.wake.tell_watchers();
    Ok(Json(()))
}
