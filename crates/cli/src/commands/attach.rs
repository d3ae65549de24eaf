//! `dstack attach`, which needs SSH.

use anyhow::bail;

use crate::Outcome;
use crate::args::AttachArgs;
use crate::session::Session;

#[expect(clippy::unused_async, reason = "every command of a server has this form")]
pub(super) async fn run(_session: &mut Session, args: &AttachArgs) -> anyhow::Result<Outcome> {
    bail!(
        "`dstack attach` arrives together with SSH support. Until then, follow the run with `dstack logs -f {}`",
        args.run_name
    )
}
