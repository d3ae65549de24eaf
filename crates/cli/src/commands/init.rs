//! `dstack init`, which makes a Git repository known to the server.

use crate::Outcome;
use crate::args::InitArgs;
use crate::repos;
use crate::session::Session;

pub(super) async fn run(session: &mut Session, args: &InitArgs) -> anyhow::Result<Outcome> {
    let project = session.project(args.project.project.as_deref())?;
    repos::make_known(session, &project, &args.repo).await?;
    session.printer.line("OK")?;
    Ok(Outcome::Done)
}
