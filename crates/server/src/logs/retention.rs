//! Removes logs that nobody can ask for any more, or that are older than the server was told to keep.

use std::time::Duration;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use crate::deps::Deps;

/// How often old logs are looked for.
const PERIOD: Duration = Duration::from_hours(1);

/// How long the log of a deleted run is kept: its name may have been used again by mistake.
const DELETED_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// Logs that the database is asked about at once.
const BATCH: usize = 500;

pub(crate) async fn run_loop(deps: Deps, shutdown: CancellationToken) {
    loop {
        // A server that is often started anew must not put this off each time.
        if let Err(error) = forget_old_logs(&deps).await {
            tracing::error!("old logs could not be removed, next try in {} min: {error:#}", PERIOD.as_secs() / 60);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Removes the logs of finished jobs whose run is deleted, and of all that are too old.
pub async fn forget_old_logs(deps: &Deps) -> anyhow::Result<()> {
    let now = deps.clock.now();
    let deleted_before = now - DELETED_KEPT;
    let kept = deps.settings.log_retention_secs.and_then(|secs| i64::try_from(secs).ok());
    let kept_since = kept.and_then(|secs| now.checked_sub(SignedDuration::from_secs(secs)).ok());
    let newest = kept_since.map_or(deleted_before, |since| since.max(deleted_before));
    let logs = deps.logs.clone();
    let written = tokio::task::spawn_blocking(move || logs.list_older(newest)).await??;
    for batch in written.chunks(BATCH) {
        let ids: Vec<_> = batch.iter().map(|(job, _)| *job).collect();
        for (job, is_deleted) in store::jobs::list_finished(&deps.db, &ids).await? {
            let Some((_, at)) = batch.iter().find(|(id, _)| *id == job) else { continue };
            let is_old = kept_since.is_some_and(|since| *at < since);
            if is_old || (is_deleted && *at < deleted_before) {
                let logs = deps.logs.clone();
                tokio::task::spawn_blocking(move || logs.remove(job)).await??;
                tracing::debug!(job.id = %job, "removed an old log");
            }
        }
    }
    Ok(())
}
