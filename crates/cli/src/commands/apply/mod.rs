//! `dstack apply`: shows what a configuration would change, asks, and does it.

mod archives;
pub(super) mod configure;
mod ending;
mod enter;
mod fleet;
pub(super) mod follow;
mod help;
mod identities;
mod ignore;
mod interpolate;
pub(super) mod options;
pub(super) mod progress;
mod run;
pub(super) mod source;

use anyhow::bail;
use api::configurations::Configuration;
use api::fleets::Fleet;
use api::runs::Run;

use super::{Interrupted, unless_interrupted};
use crate::Outcome;
use crate::args::{ApplyArgs, RunArgs};
use crate::session::{Project, Session};
use crate::ssh::{self, Wishes};
use follow::{Follower, Purpose};
use source::ConfigurationFile;

/// What is said before a plan is left unapplied.
const USE_FORCE: &str = "Use --force to apply anyway.";

/// What was submitted, to be followed.
enum Submitted {
    Run(Project, Box<Run>),
    Fleet(Project, Box<Fleet>),
}

pub(super) async fn run(session: &mut Session, args: ApplyArgs) -> anyhow::Result<Outcome> {
    if let Some(kind) = args.help {
        return help::print(session, kind);
    }
    let submit = async |session: &mut Session| submit(session, &args).await;
    match unless_interrupted(session, submit).await? {
        Ok(Some(Submitted::Run(project, run))) => {
            let purpose = Purpose::Submitted { yes: args.yes };
            let identity = args.run.ssh_identity.as_deref();
            // The ports that were typed are in the run's configuration by now.
            let wishes = Wishes {
                identity: identity.map(|path| configure::absolute(session, &session.directory, path).into()),
                host: args.run.host.clone(),
                ports: Vec::new(),
            };
            Box::pin(Follower::new(project, *run, purpose, wishes).run(session)).await
        }
        Ok(Some(Submitted::Fleet(project, fleet))) => fleet::follow(session, &project, &args, *fleet).await,
        Ok(None) => Ok(Outcome::Done),
        Err(Interrupted::AtQuestion) => Ok(Outcome::Failed),
        Err(Interrupted::AtWork) => {
            session.printer.line("\nOperation interrupted by user. Exiting...")?;
            Ok(Outcome::Done)
        }
    }
}

/// Does all of it up to where the user may watch. None: there is nothing to watch.
async fn submit(session: &mut Session, args: &ApplyArgs) -> anyhow::Result<Option<Submitted>> {
    if !args.yes && args.file.as_deref() == Some(source::STDIN) {
        bail!("Cannot read configuration from stdin if -y/--yes is not specified");
    }
    ssh::check(&args.run.ports)?;
    let file = ConfigurationFile::read(session, args.file.as_deref()).await?;
    let ConfigurationFile { configuration, path, folder, source } = file;
    match configuration.into_run() {
        Ok(configuration) => {
            let applied = run::apply(session, args, configuration, path, &folder).await?;
            Ok(applied.map(|(project, run)| Submitted::Run(project, Box::new(run))))
        }
        Err(other) if args.run != RunArgs::default() => {
            bail!("Unrecognized arguments: a {} takes only `-n` and `-e` beside the general ones", other.kind())
        }
        Err(Configuration::Fleet(configuration)) => {
            let applied = fleet::apply(session, args, *configuration, path, &source).await?;
            Ok(applied.map(|(project, fleet)| Submitted::Fleet(project, Box::new(fleet))))
        }
        Err(other) => bail!("{}s are not supported yet by this version of dstack", other.kind()),
    }
}
