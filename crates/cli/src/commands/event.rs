//! `dstack event`: what happened.

use std::collections::BTreeSet;
use std::time::Duration;

use api::client::{Endpoint, endpoints};
use api::events::{Event, ListEventsRequest};
use api::fleets::GetFleetRequest;
use api::gateways::GetGatewayRequest;
use api::ids::EventId;
use api::runs::GetRunRequest;
use api::secrets::GetSecretRequest;
use api::volumes::GetVolumeRequest;
use jiff::SignedDuration;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::Outcome;
use crate::args::{EventArgs, EventFilters};
use crate::output::events;
use crate::session::{Project, Session};

/// Events of one call at most.
const PAGE: u32 = 100;

/// How often new events are asked for.
const INTERVAL: Duration = Duration::from_secs(2);

/// Events may become visible this much later than they were recorded.
const LOOK_BACK: SignedDuration = SignedDuration::from_secs(20);

pub(super) async fn run(session: &mut Session, args: &EventArgs) -> anyhow::Result<Outcome> {
    let since = super::since(session, args.filters.since.as_deref())?;
    let project = session.project(args.project.project.as_deref())?;
    let filter = filter(&project, &args.filters).await?;
    let mut watcher = Watcher { project, filter, seen: BTreeSet::new(), last: None };
    let first = match since {
        Some(since) => {
            watcher.last = Some(since);
            watcher.after(since).await?
        }
        None => watcher.newest().await?,
    };
    print(session, &first)?;
    if !args.filters.watch {
        return Ok(Outcome::Done);
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        let from = watcher.last.map_or(session.now() - LOOK_BACK, |last| last - LOOK_BACK);
        let fresh = watcher.after(from).await?;
        print(session, &fresh)?;
    }
}

fn print(session: &mut Session, fresh: &[Event]) -> anyhow::Result<()> {
    for event in fresh {
        let line = events::line(event, &session.zone);
        session.printer.line(line)?;
    }
    session.printer.flush()?;
    Ok(())
}

struct Watcher {
    project: Project,
    filter: ListEventsRequest,
    seen: BTreeSet<EventId>,
    last: Option<jiff::Timestamp>,
}

impl Watcher {
    /// The newest page, oldest first.
    async fn newest(&mut self) -> anyhow::Result<Vec<Event>> {
        let request = ListEventsRequest { limit: Some(PAGE), ascending: false, ..self.filter.clone() };
        let mut page = self.call(&request).await?;
        page.reverse();
        Ok(self.fresh(page))
    }

    /// What was recorded after a time and not seen yet, oldest first.
    async fn after(&mut self, time: jiff::Timestamp) -> anyhow::Result<Vec<Event>> {
        let mut request = ListEventsRequest {
            prev_recorded_at: Some(time),
            limit: Some(PAGE),
            ascending: true,
            ..self.filter.clone()
        };
        let mut fresh = Vec::new();
        loop {
            let page = self.call(&request).await?;
            let is_last = page.len() < PAGE as usize;
            if let Some(event) = page.last() {
                request.prev_recorded_at = Some(event.recorded_at);
                request.prev_id = Some(event.id);
            }
            fresh.extend(self.fresh(page));
            if is_last {
                return Ok(fresh);
            }
        }
    }

    async fn call(&self, request: &ListEventsRequest) -> anyhow::Result<Vec<Event>> {
        Ok(self.project.client.call(&endpoints::LIST_EVENTS, &self.project.name, request).await?)
    }

    fn fresh(&mut self, page: Vec<Event>) -> Vec<Event> {
        let fresh: Vec<Event> = page.into_iter().filter(|event| self.seen.insert(event.id)).collect();
        self.last = self.last.max(fresh.last().map(|event| event.recorded_at));
        fresh
    }
}

/// The filter with the identifiers of what was named; the whole project unless something was.
async fn filter(project: &Project, filters: &EventFilters) -> anyhow::Result<ListEventsRequest> {
    let some = |ids: Vec<Uuid>| (!ids.is_empty()).then_some(ids);
    let types = &filters.include_target_type;
    let mut filter = ListEventsRequest {
        target_fleets: some(fleets(project, &filters.target_fleet).await?),
        target_runs: some(runs(project, &filters.target_run).await?),
        target_volumes: some(volumes(project, &filters.target_volume).await?),
        target_gateways: some(gateways(project, &filters.target_gateway).await?),
        target_secrets: some(secrets(project, &filters.target_secret).await?),
        within_gateways: some(gateways(project, &filters.within_gateway).await?),
        include_target_types: (!types.is_empty()).then(|| types.clone()),
        ..ListEventsRequest::default()
    };
    let within_fleets = fleets(project, &filters.within_fleet).await?;
    filter.within_fleets = some(within_fleets).map(|ids| ids.into_iter().map(Into::into).collect());
    let within_runs = runs(project, &filters.within_run).await?;
    filter.within_runs = some(within_runs).map(|ids| ids.into_iter().map(Into::into).collect());
    let is_narrow = filter.target_fleets.is_some()
        || filter.target_runs.is_some()
        || filter.target_volumes.is_some()
        || filter.target_gateways.is_some()
        || filter.target_secrets.is_some()
        || filter.within_fleets.is_some()
        || filter.within_runs.is_some()
        || filter.within_gateways.is_some();
    if !is_narrow {
        let found = project.client.call(&endpoints::GET_PROJECT, &project.name, &()).await?;
        filter.within_projects = Some(vec![found.project_id]);
    }
    Ok(filter)
}

async fn fleets(project: &Project, names: &[String]) -> anyhow::Result<Vec<Uuid>> {
    let request = |name| GetFleetRequest { name: Some(name), id: None };
    ids(project, names, &endpoints::GET_FLEET, request, |fleet| fleet.id.0).await
}

async fn runs(project: &Project, names: &[String]) -> anyhow::Result<Vec<Uuid>> {
    let request = |name| GetRunRequest { run_name: Some(name), id: None };
    ids(project, names, &endpoints::GET_RUN, request, |run| run.id.0).await
}

async fn volumes(project: &Project, names: &[String]) -> anyhow::Result<Vec<Uuid>> {
    let request = |name| GetVolumeRequest { name };
    ids(project, names, &endpoints::GET_VOLUME, request, |volume| volume.id.0).await
}

async fn gateways(project: &Project, names: &[String]) -> anyhow::Result<Vec<Uuid>> {
    let request = |name| GetGatewayRequest { name };
    ids(project, names, &endpoints::GET_GATEWAY, request, |gateway| gateway.id).await
}

async fn secrets(project: &Project, names: &[String]) -> anyhow::Result<Vec<Uuid>> {
    let request = |name| GetSecretRequest { name };
    ids(project, names, &endpoints::GET_SECRET, request, |secret| secret.id.0).await
}

async fn ids<Q: Serialize, A: DeserializeOwned>(
    project: &Project,
    names: &[String],
    endpoint: &Endpoint<Q, A>,
    request: impl Fn(String) -> Q,
    id: impl Fn(A) -> Uuid,
) -> anyhow::Result<Vec<Uuid>> {
    let mut ids = Vec::new();
    for name in names {
        ids.push(id(project.client.call(endpoint, &project.name, &request(name.clone())).await?));
    }
    Ok(ids)
}
