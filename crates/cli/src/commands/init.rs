//! `dstack init`, which makes a Git repository known to the server.

use anyhow::bail;

use crate::Outcome;
use crate::args::InitArgs;
use crate::session::Session;

#[expect(clippy::unused_async, reason = "every command of a server has this form")]
pub(super) async fn run(session: &mut Session, args: &InitArgs) -> anyhow::Result<Outcome> {
    // The project is checked, so that a wrong one is not found out only later.
    session.project(args.project.project.as_deref())?;
    bail!(
        "Git repositories are not supported yet, so there is nothing to initialize. Use `files` to copy local files \
         and folders into a run"
    )
}
