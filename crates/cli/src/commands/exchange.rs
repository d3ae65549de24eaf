//! `dstack export` and `dstack import`, which servers of this kind refuse with a sentence.

use anyhow::bail;
use api::client::endpoints;

use crate::Outcome;
use crate::args::ExchangeArgs;
use crate::session::Session;

pub(super) async fn exports(session: &mut Session, args: &ExchangeArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    project.client.call(&endpoints::LIST_EXPORTS, &project.name, &()).await?;
    bail!("Exports are not supported by this version of the CLI")
}

pub(super) async fn imports(session: &mut Session, args: &ExchangeArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    project.client.call(&endpoints::LIST_IMPORTS, &project.name, &()).await?;
    bail!("Imports are not supported by this version of the CLI")
}
