//! `dstack volume`: the volumes of a project.

use std::cmp::Reverse;

use api::client::endpoints;
use api::volumes::{DeleteVolumesRequest, GetVolumeRequest, Volume};

use crate::Outcome;
use crate::args::{DeleteByNameArgs, VolumeArgs, VolumeCommand};
use crate::output::runs::Times;
use crate::output::volumes;
use crate::session::{Project, Session};

pub(super) async fn run(session: &mut Session, args: VolumeArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    match args.command {
        None | Some(VolumeCommand::List) => {
            let verbose = args.list.verbose;
            let table = async |now| Ok(volumes::table(&list(&project).await?, verbose, &Times::Since(now)));
            super::show(session, args.list.watch, true, table).await?;
        }
        Some(VolumeCommand::Get(get)) => {
            let request = GetVolumeRequest { name: get.name };
            let volume = project.client.call(&endpoints::GET_VOLUME, &project.name, &request).await;
            let volume = super::named(volume, || "Volume not found".to_owned())?;
            session.printer.json_laid_out(&volume)?;
        }
        Some(VolumeCommand::Delete(args)) => delete(session, &project, args).await?,
    }
    Ok(Outcome::Done)
}

async fn list(project: &Project) -> anyhow::Result<Vec<Volume>> {
    let mut volumes = project.client.call(&endpoints::LIST_VOLUMES, &project.name, &()).await?;
    volumes.sort_by_key(|volume| Reverse(volume.created_at));
    Ok(volumes)
}

async fn delete(session: &mut Session, project: &Project, args: DeleteByNameArgs) -> anyhow::Result<()> {
    let name = args.name;
    let request = GetVolumeRequest { name: name.clone() };
    let volume = project.client.call(&endpoints::GET_VOLUME, &project.name, &request).await;
    super::named(volume, || format!("Volume {name} does not exist"))?;
    if super::agreed(session, args.confirm.yes, &format!("Delete the volume {name}?")).await? {
        let request = DeleteVolumesRequest { names: vec![name.clone()] };
        project.client.call(&endpoints::DELETE_VOLUMES, &project.name, &request).await?;
        session.printer.line(format!("Volume {name} deleted"))?;
    }
    Ok(())
}
