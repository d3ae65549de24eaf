//! `dstack fleet`: the fleets of a project and their instances.

use std::cmp::Reverse;

use anyhow::{Error, bail};
use api::client::endpoints;
use api::configurations::EntityReference;
use api::fleets::{
    DeleteFleetInstancesRequest, DeleteFleetsRequest, Fleet, GetFleetRequest, ListProjectFleetsRequest,
};

use crate::Outcome;
use crate::args::{FleetArgs, FleetCommand, GetArgs};
use crate::output::fleets;
use crate::output::runs::Times;
use crate::session::{Project, Session};

pub(super) async fn run(session: &mut Session, args: FleetArgs) -> anyhow::Result<Outcome> {
    let project = args.project.project.as_deref();
    match args.command {
        None | Some(FleetCommand::List) => {
            let project = session.project(project)?;
            let verbose = args.list.verbose;
            let table = async |now| Ok(fleets::table(&list(&project).await?, verbose, &Times::Since(now)));
            super::show(session, args.list.watch, true, table).await?;
        }
        Some(FleetCommand::Get(get)) => return print(session, project, &get).await,
        Some(FleetCommand::Delete { name, instances, confirm }) => {
            let project = session.project(project)?;
            return delete(session, &project, name, instances, confirm.yes).await;
        }
    }
    Ok(Outcome::Done)
}

async fn list(project: &Project) -> anyhow::Result<Vec<Fleet>> {
    let request = ListProjectFleetsRequest { include_imported: true };
    let mut fleets = project.client.call(&endpoints::LIST_FLEETS, &project.name, &request).await?;
    fleets.sort_by_key(|fleet| Reverse(fleet.created_at));
    Ok(fleets)
}

async fn print(session: &mut Session, project: Option<&str>, get: &GetArgs) -> anyhow::Result<Outcome> {
    let id = super::identifier(get.id.as_deref())?;
    let name = get.name.as_deref().map(EntityReference::parse).transpose().map_err(Error::msg)?;
    let project = session.project(project)?;
    let owner = name.as_ref().and_then(|name| name.project.clone()).unwrap_or_else(|| project.name.clone());
    let request = GetFleetRequest { name: name.as_ref().map(|name| name.name.clone()), id };
    let fleet = project.client.call(&endpoints::GET_FLEET, &owner, &request).await;
    // The official words, which scripts may look for.
    let fleet = super::named(fleet, || match (&name, &get.id) {
        (Some(EntityReference { project: None, name }), _) => {
            format!("Fleet project=None name='{name}' not found")
        }
        (Some(EntityReference { project: Some(project), name }), _) => {
            format!("Fleet project='{project}' name='{name}' not found")
        }
        (None, id) => format!("Fleet {} not found", id.as_deref().unwrap_or_default()),
    })?;
    session.printer.json_laid_out(&fleet)?;
    Ok(Outcome::Done)
}

async fn delete(
    session: &mut Session,
    project: &Project,
    name: EntityReference,
    instances: Vec<u32>,
    yes: bool,
) -> anyhow::Result<Outcome> {
    let EntityReference { project: None, name } = name else {
        bail!(
            "The <project>/<fleet> format is not supported for fleet names. Can only delete fleets or instances \
             owned by the current project"
        );
    };
    let request = GetFleetRequest { name: Some(name.clone()), id: None };
    let fleet = project.client.call(&endpoints::GET_FLEET, &project.name, &request).await;
    super::named(fleet, || format!("Fleet {name} does not exist"))?;
    if instances.is_empty() {
        if super::agreed(session, yes, &format!("Delete the fleet {name}?")).await? {
            let request = DeleteFleetsRequest { names: vec![name.clone()] };
            project.client.call(&endpoints::DELETE_FLEETS, &project.name, &request).await?;
            session.printer.line(format!("Fleet {name} deleted"))?;
        }
        return Ok(Outcome::Done);
    }
    if super::agreed(session, yes, &format!("Delete the fleet {name} instances {instances:?}?")).await? {
        let request = DeleteFleetInstancesRequest { name: name.clone(), instance_nums: instances };
        project.client.call(&endpoints::DELETE_FLEET_INSTANCES, &project.name, &request).await?;
        session.printer.line(format!("Fleet {name} instances deleted"))?;
    }
    Ok(Outcome::Done)
}
