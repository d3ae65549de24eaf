//! Forgets runs. Their rows stay, so that their identifiers still lead to them.

use api::ids::UserId;
use api::runs::DeleteRunsRequest;
use axum::extract::State;
use lifecycle::events::{NewEvent, Target};
use lifecycle::run::Run;
use store::{Tx, runs};

use crate::accounts;
use crate::deps::Deps;
use crate::http::auth::ProjectMember;
use crate::http::error::{Error, Result, check_length};
use crate::http::extract::Json;

/// Deletes finished runs. If one of them is active, none is deleted.
pub async fn delete(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<DeleteRunsRequest>,
) -> Result<Json<()>> {
    check_length("runs_names", request.runs_names.len())?;
    let mut tx = deps.db.begin().await?;
    let mut rows = vec![];
    for name in &request.runs_names {
        rows.extend(runs::get_by_name(&mut tx, member.project.id, name).await?);
    }
    let active: Vec<String> = rows
        .iter()
        .filter(|row| !row.value.status.is_finished())
        .map(|row| format!("'{}'", row.value.name))
        .collect();
    if !active.is_empty() {
        return Err(Error::bad_request(format!("Cannot delete active runs: [{}]", active.join(", "))));
    }
    for row in &rows {
        hide(&deps, &mut tx, member.user.id, &row.value).await?;
    }
    tx.commit().await?;
    deps.wake.tell_watchers();
    Ok(Json(()))
}

/// Hides a finished run.
pub(super) async fn hide(deps: &Deps, tx: &mut Tx, user: UserId, run: &Run) -> Result<()> {
    runs::set_deleted(&mut *tx, run.id).await?;
    let target = Target::run(run.project_id, run.id, &run.name);
    accounts::record(deps, tx, &NewEvent::by_user(user, "Run deleted", vec![target])).await?;
    Ok(())
}
