//! `dstack delete -f`: deletes what a configuration file names.

use std::time::Duration;

use anyhow::{Context, bail};
use api::client::endpoints;
use api::configurations::ConfigurationType;
use api::fleets::{DeleteFleetsRequest, GetFleetRequest};
use api::gateways::{DeleteGatewaysRequest, GetGatewayRequest};
use api::runs::{DeleteRunsRequest, GetRunRequest};
use api::volumes::{DeleteVolumesRequest, GetVolumeRequest};

use super::apply::progress::Progress;
use super::apply::source::ConfigurationFile;
use crate::Outcome;
use crate::args::DeleteArgs;
use crate::session::{Project, Session};

/// How often it is looked whether a fleet is gone.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(session: &mut Session, args: &DeleteArgs) -> anyhow::Result<Outcome> {
    let file = ConfigurationFile::read(session, args.file.as_deref()).await?;
    let kind = file.configuration.kind();
    let name =
        file.configuration.name().context("The configuration has no `name`, so nothing can be deleted by it")?;
    let name = name.to_owned();
    let project = session.project(args.project.project.as_deref())?;
    let (noun, title) = match kind {
        ConfigurationType::Task | ConfigurationType::DevEnvironment | ConfigurationType::Service => ("run", "Run"),
        ConfigurationType::Fleet => ("fleet", "Fleet"),
        ConfigurationType::Volume => ("volume", "Volume"),
        ConfigurationType::Gateway => ("gateway", "Gateway"),
    };
    if !exists(&project, kind, &name).await? {
        bail!("{title} {name} does not exist");
    }
    if !super::agreed(session, args.yes, &format!("Delete the {noun} {name}?")).await? {
        return Ok(Outcome::Done);
    }
    let progress = Progress::of(&mut session.printer, &format!("Deleting {noun}..."))?;
    delete(&project, kind, &name).await?;
    drop(progress);
    session.printer.line(format!("{title} {name} deleted"))?;
    Ok(Outcome::Done)
}

async fn exists(project: &Project, kind: ConfigurationType, name: &str) -> anyhow::Result<bool> {
    let (client, project, name) = (&project.client, project.name.as_str(), name.to_owned());
    let found = match kind {
        ConfigurationType::Task | ConfigurationType::DevEnvironment | ConfigurationType::Service => {
            let request = GetRunRequest { run_name: Some(name), id: None };
            client.call(&endpoints::GET_RUN, project, &request).await.map(drop)
        }
        ConfigurationType::Fleet => {
            let request = GetFleetRequest { name: Some(name), id: None };
            client.call(&endpoints::GET_FLEET, project, &request).await.map(drop)
        }
        ConfigurationType::Volume => {
            client.call(&endpoints::GET_VOLUME, project, &GetVolumeRequest { name }).await.map(drop)
        }
        ConfigurationType::Gateway => {
            client.call(&endpoints::GET_GATEWAY, project, &GetGatewayRequest { name }).await.map(drop)
        }
    };
    match found {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_exists() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn delete(project: &Project, kind: ConfigurationType, name: &str) -> anyhow::Result<()> {
    let (client, names) = (&project.client, vec![name.to_owned()]);
    match kind {
        ConfigurationType::Task | ConfigurationType::DevEnvironment | ConfigurationType::Service => {
            let request = DeleteRunsRequest { runs_names: names };
            client.call(&endpoints::DELETE_RUNS, &project.name, &request).await?;
        }
        ConfigurationType::Fleet => delete_fleet(project, name).await?,
        ConfigurationType::Volume => {
            client.call(&endpoints::DELETE_VOLUMES, &project.name, &DeleteVolumesRequest { names }).await?;
        }
        ConfigurationType::Gateway => {
            client.call(&endpoints::DELETE_GATEWAYS, &project.name, &DeleteGatewaysRequest { names }).await?;
        }
    }
    Ok(())
}

/// Deletes a fleet and waits until it is gone.
pub(super) async fn delete_fleet(project: &Project, name: &str) -> anyhow::Result<()> {
    let request = DeleteFleetsRequest { names: vec![name.to_owned()] };
    project.client.call(&endpoints::DELETE_FLEETS, &project.name, &request).await?;
    while exists(project, ConfigurationType::Fleet, name).await? {
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}
