//! `dstack gateway`: the gateways of a project.

use std::cmp::Reverse;

use api::client::endpoints;
use api::gateways::{DeleteGatewaysRequest, Gateway, GetGatewayRequest, ListGatewaysRequest};
use serde::Serialize;

use crate::Outcome;
use crate::args::{DeleteByNameArgs, Format, GatewayArgs, GatewayCommand};
use crate::output::gateways;
use crate::output::runs::Times;
use crate::session::{Project, Session};

#[derive(Serialize)]
struct Listing<'a> {
    project: &'a str,
    gateways: &'a [Gateway],
}

pub(super) async fn run(session: &mut Session, args: GatewayArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    match args.command {
        Some(GatewayCommand::List { format }) if format.format() == Format::Json => {
            let gateways = list(&project).await?;
            session.printer.json(&Listing { project: &project.name, gateways: &gateways })?;
        }
        None | Some(GatewayCommand::List { .. }) => {
            let verbose = args.list.verbose;
            let table = async |now| Ok(gateways::table(&list(&project).await?, verbose, &Times::Since(now)));
            super::show(session, args.list.watch, true, table).await?;
        }
        Some(GatewayCommand::Get(get)) => {
            let request = GetGatewayRequest { name: get.name };
            let gateway = project.client.call(&endpoints::GET_GATEWAY, &project.name, &request).await?;
            session.printer.json_laid_out(&gateway)?;
        }
        Some(GatewayCommand::Delete(args)) => delete(session, &project, args).await?,
    }
    Ok(Outcome::Done)
}

async fn list(project: &Project) -> anyhow::Result<Vec<Gateway>> {
    let request = ListGatewaysRequest { include_imported: true };
    let mut gateways = project.client.call(&endpoints::LIST_GATEWAYS, &project.name, &request).await?;
    gateways.sort_by_key(|gateway| Reverse(gateway.created_at));
    Ok(gateways)
}

async fn delete(session: &mut Session, project: &Project, args: DeleteByNameArgs) -> anyhow::Result<()> {
    let name = args.name;
    let request = GetGatewayRequest { name: name.clone() };
    project.client.call(&endpoints::GET_GATEWAY, &project.name, &request).await?;
    if super::agreed(session, args.confirm.yes, &format!("Delete the gateway {name}?"))? {
        let request = DeleteGatewaysRequest { names: vec![name] };
        project.client.call(&endpoints::DELETE_GATEWAYS, &project.name, &request).await?;
        session.printer.line("Gateway deleted")?;
    }
    Ok(())
}
