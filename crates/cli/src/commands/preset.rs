//! `dstack preset`: recipes for serving models, which this version keeps none of.

use anyhow::bail;

use crate::Outcome;
use crate::args::{PresetArgs, PresetCommand};
use crate::output::Table;
use crate::session::Session;

pub(super) fn run(session: &mut Session, args: &PresetArgs) -> anyhow::Result<Outcome> {
    if let Some(PresetCommand::Other(words)) = &args.command {
        let word = words.first().map_or("", String::as_str);
        bail!("`dstack preset {word}` is not supported yet by this version of dstack");
    }
    let titles = ["NAME", "ID", "BASE", "CONSTRAINTS", "BENCHMARK", "", "STATUS", "SUBMITTED"];
    session.printer.table(&Table::new(&titles))?;
    session.printer.blank()?;
    Ok(Outcome::Done)
}
