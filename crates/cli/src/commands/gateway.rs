//! `dstack gateway`: the gateways of a project.

use std::cmp::Reverse;

use anyhow::{Error, bail};
use api::client::endpoints;
use api::configurations::EntityReference;
use api::gateways::{
    DeleteGatewaysRequest, Gateway, GetGatewayRequest, ListGatewaysRequest, SetDefaultGatewayRequest,
    SetWildcardDomainRequest,
};
use serde::Serialize;

use crate::Outcome;
use crate::args::{DeleteByNameArgs, Format, GatewayArgs, GatewayCommand};
use crate::output::gateways;
use crate::output::runs::Times;
use crate::session::{Project, Session};

/// Gateways of other projects can be used, and no more.
const ONLY_OWN: &str = "The <project>/<gateway> format is not supported for gateway names";

#[derive(Serialize)]
struct Listing<'a> {
    project: &'a str,
    gateways: &'a [Gateway],
}

pub(super) async fn run(session: &mut Session, args: GatewayArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    let command = args.command.unwrap_or(GatewayCommand::List { format: args.format });
    match command {
        GatewayCommand::List { format } if format.or(args.format) == Format::Json => {
            super::refuse_watch(args.list.watch)?;
            let gateways = list(&project).await?;
            session.printer.json(&Listing { project: &project.name, gateways: &gateways })?;
        }
        GatewayCommand::List { .. } => {
            let verbose = args.list.verbose;
            let table = async |now| Ok(gateways::table(&list(&project).await?, verbose, &Times::Since(now)));
            super::show(session, args.list.watch, true, table).await?;
        }
        GatewayCommand::Get(get) => {
            let gateway = find(&project, &EntityReference::parse(&get.name).map_err(Error::msg)?).await?;
            session.printer.json_laid_out(&gateway)?;
        }
        GatewayCommand::Delete(args) => delete(session, &project, args).await?,
        GatewayCommand::Update { name, set_default, domain } => {
            update(session, &project, &name, set_default, domain).await?;
        }
    }
    Ok(Outcome::Done)
}

/// A gateway of this project, or of the one that is named.
async fn find(project: &Project, name: &EntityReference) -> anyhow::Result<Gateway> {
    let owner = name.project.as_deref().unwrap_or(&project.name);
    let request = GetGatewayRequest { name: name.name.clone() };
    Ok(project.client.call(&endpoints::GET_GATEWAY, owner, &request).await?)
}

async fn list(project: &Project) -> anyhow::Result<Vec<Gateway>> {
    let request = ListGatewaysRequest { include_imported: true };
    let mut gateways = project.client.call(&endpoints::LIST_GATEWAYS, &project.name, &request).await?;
    gateways.sort_by_key(|gateway| Reverse(gateway.created_at));
    Ok(gateways)
}

async fn delete(session: &mut Session, project: &Project, args: DeleteByNameArgs) -> anyhow::Result<()> {
    if args.name.contains('/') {
        bail!("{ONLY_OWN}. Can only delete gateways owned by the current project");
    }
    let request = GetGatewayRequest { name: args.name.clone() };
    let gateway = project.client.call(&endpoints::GET_GATEWAY, &project.name, &request).await?;
    print(session, gateway)?;
    if !args.confirm.yes && !session.printer.confirm("Do you want to delete the gateway?").await? {
        session.printer.line("Exiting...")?;
        return Ok(());
    }
    let request = DeleteGatewaysRequest { names: vec![args.name] };
    project.client.call(&endpoints::DELETE_GATEWAYS, &project.name, &request).await?;
    session.printer.line("Gateway deleted")?;
    Ok(())
}

async fn update(
    session: &mut Session,
    project: &Project,
    name: &EntityReference,
    set_default: bool,
    domain: Option<String>,
) -> anyhow::Result<()> {
    if let Some(domain) = domain {
        if name.project.is_some() {
            bail!("{ONLY_OWN} when `--domain` is passed. Can only update gateways owned by the current project");
        }
        let request = SetWildcardDomainRequest { name: name.name.clone(), wildcard_domain: domain };
        project.client.call(&endpoints::SET_WILDCARD_DOMAIN, &project.name, &request).await?;
    }
    if set_default {
        let request = SetDefaultGatewayRequest { name: name.name.clone(), gateway_project: name.project.clone() };
        project.client.call(&endpoints::SET_DEFAULT_GATEWAY, &project.name, &request).await?;
    }
    let gateway = find(project, name).await?;
    print(session, gateway)
}

fn print(session: &mut Session, gateway: Gateway) -> anyhow::Result<()> {
    let table = gateways::table(&[gateway], false, &Times::Since(session.now()));
    session.printer.table(&table)?;
    session.printer.blank()?;
    Ok(())
}
