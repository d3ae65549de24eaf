//! Names for the shell's completion, asked of the server while the user types.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::Context;
use api::client::endpoints;
use api::fleets::ListProjectFleetsRequest;
use api::gateways::ListGatewaysRequest;
use api::runs::ListRunsRequest;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::config::ConfigFile;
use crate::output::runs::run_name;
use crate::session::{Project, Session};

/// Whoever types does not wait for longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs that are offered at most.
const RUNS: u32 = 100;

/// What names are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noun {
    Projects,
    /// Runs, finished ones too.
    Runs,
    ActiveRuns,
    Fleets,
    /// Runs, finished ones too, and fleets.
    RunsAndFleets,
    Volumes,
    Gateways,
    Secrets,
}

/// Completes the names of such things.
pub(crate) fn of(noun: Noun) -> ArgValueCompleter {
    ArgValueCompleter::new(move |typed: &OsStr| {
        // Somebody is typing: whatever goes wrong is no more than a name that is not offered.
        let names = find(noun).unwrap_or_default();
        let typed = typed.to_string_lossy();
        names.into_iter().filter(|name| name.starts_with(&*typed)).map(CompletionCandidate::new).collect()
    })
}

fn find(noun: Noun) -> anyhow::Result<Vec<String>> {
    let session = Session::of_process()?;
    if noun == Noun::Projects {
        let file = ConfigFile::read(&session.config_path())?;
        return Ok(file.projects.into_iter().map(|project| project.name).collect());
    }
    let project = session.project(typed_project().as_deref())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let names = runtime.block_on(async { tokio::time::timeout(PATIENCE, list(&project, noun)).await });
    runtime.shutdown_background();
    names?
}

/// The project that stands on the line that is being completed.
fn typed_project() -> Option<String> {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        match word.strip_prefix("--project") {
            // Bash makes three words of `--project=main`.
            Some("") => return words.next().filter(|word| word != "=").or_else(|| words.next()),
            Some(rest) => return rest.strip_prefix('=').map(str::to_owned),
            None => {}
        }
    }
    None
}

async fn list(project: &Project, noun: Noun) -> anyhow::Result<Vec<String>> {
    let (client, name) = (&project.client, project.name.as_str());
    Ok(match noun {
        Noun::Projects => Vec::new(),
        Noun::Runs | Noun::ActiveRuns => {
            let request = ListRunsRequest {
                project_name: Some(name.to_owned()),
                only_active: noun == Noun::ActiveRuns,
                job_submissions_limit: Some(1),
                limit: RUNS,
                ..ListRunsRequest::default()
            };
            let runs = client.call(&endpoints::LIST_RUNS, name, &request).await?;
            runs.iter().map(|run| run_name(run).to_owned()).collect()
        }
        Noun::Fleets => {
            let request = ListProjectFleetsRequest { include_imported: false };
            let fleets = client.call(&endpoints::LIST_FLEETS, name, &request).await?;
            fleets.into_iter().map(|fleet| fleet.name).collect()
        }
        Noun::RunsAndFleets => {
            let mut names = Box::pin(list(project, Noun::Runs)).await?;
            names.extend(Box::pin(list(project, Noun::Fleets)).await?);
            names
        }
        Noun::Volumes => {
            let volumes = client.call(&endpoints::LIST_VOLUMES, name, &()).await?;
            volumes.into_iter().map(|volume| volume.name).collect()
        }
        Noun::Gateways => {
            let request = ListGatewaysRequest { include_imported: false };
            let gateways = client.call(&endpoints::LIST_GATEWAYS, name, &request).await?;
            gateways.into_iter().map(|gateway| gateway.name).collect()
        }
        Noun::Secrets => {
            let secrets = client.call(&endpoints::LIST_SECRETS, name, &()).await?;
            secrets.into_iter().map(|secret| secret.name).collect()
        }
    })
}
