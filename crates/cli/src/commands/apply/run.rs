//! Applying a task, a dev environment or a service.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use api::client::endpoints;
use api::configurations::RunConfiguration;
use api::fleets::ListProjectFleetsRequest;
use api::repos::{InitRepoRequest, RepoData};
use api::runs::{
    ApplyAction, ApplyRunPlanInput, ApplyRunPlanRequest, GetRunPlanRequest, GetRunRequest, Run, RunPlan, RunSpec,
    StopRunsRequest,
};

use super::progress::Progress;
use super::{USE_FORCE, archives, configure, options};
use crate::args::ApplyArgs;
use crate::commands::agreed;
use crate::output::runs::run_name;
use crate::output::{format, offers, plans};
use crate::printer::SECONDARY;
use crate::profiles;
use crate::repos::{self, Repo, Source};
use crate::session::{Project, Session};

/// Offers of a plan that are shown, unless told.
const DEFAULT_OFFERS: u32 = 3;

/// How often it is looked whether the run to replace has ended.
const INTERVAL: Duration = Duration::from_secs(1);

/// The repository of runs without one.
const NO_REPO: &str = "none";

const NO_FLEETS: &str = "The project has no fleets. Create one before submitting a run.\n\
                         See https://dstack.ai/docs/guides/troubleshooting/#no-fleets";

/// Submits a run. None: it is not to be followed.
pub(super) async fn apply(
    session: &mut Session,
    args: &ApplyArgs,
    mut configuration: RunConfiguration,
    path: String,
    folder: &Path,
) -> anyhow::Result<Option<(Project, Run)>> {
    configure::complete(session, args, &mut configuration, folder)?;
    if args.run.no_repo {
        configuration.common_mut().repos.clear();
    }
    let source = repos::locate(session, &args.run, configuration.common().repos.first(), folder)?;
    let project = session.project(args.project.project.as_deref())?;
    let selection = &args.run.selection;
    let profile = profiles::load(session, selection.profile.as_deref(), selection.no_profile)?;
    let mut spec = options::run_spec(configuration, Some(profile), Some(path));
    spec.ssh_key_pub = public_key(session, args)?;
    let repo = set_repo(session, &project, args, &mut spec, source).await?;
    spec.file_archives = archives::upload(&project, spec.configuration.common().files).await?;
    let plan = get_plan(&project, args, spec).await?;
    print_plan(session, &project, args, &plan).await?;
    let Some(decision) = decide(session, args, &plan)? else { return Ok(None) };
    if !agreed(session, args.yes, &decision.question).await? {
        return Ok(None);
    }
    if decision.stop_first {
        let _progress = Progress::of(&mut session.printer, "Stopping run...")?;
        stop(&project, plan.current_resource.as_ref().map_or("", run_name)).await?;
    }
    let is_update = plan.action == ApplyAction::Update && !decision.stop_first;
    if let Some((repo, hash)) = repo.and_then(|repo| repo.code_hash().map(|hash| (repo, hash))) {
        project.client.upload_code(&project.name, &repo.id, &hash, repo.diff).await?;
    }
    let input = ApplyRunPlanInput { run_spec: plan.run_spec, current_resource: plan.current_resource };
    let request = ApplyRunPlanRequest { plan: input, force: false };
    let run = project.client.call(&endpoints::APPLY_RUN, &project.name, &request).await?;
    if args.detach {
        let done = if is_update { "updated" } else { "submitted" };
        session.printer.line(format!("Run {} {done}, detaching...", run_name(&run)))?;
        return Ok(None);
    }
    Ok(Some((project, run)))
}

/// The repository that the run takes along, written into its spec.
async fn set_repo(
    session: &Session,
    project: &Project,
    args: &ApplyArgs,
    spec: &mut RunSpec,
    source: Option<Source>,
) -> anyhow::Result<Option<Repo>> {
    let Some(source) = source else {
        spec.repo_id = Some(NO_REPO.to_owned());
        spec.repo_data = Some(RepoData::Virtual {});
        let request =
            InitRepoRequest { repo_id: NO_REPO.to_owned(), repo_info: RepoData::Virtual {}, repo_creds: None };
        project.client.call(&endpoints::INIT_REPO, &project.name, &request).await?;
        return Ok(None);
    };
    let configured = spec.configuration.common().repos.first();
    let repo = repos::prepare(session, project, &args.run, configured, source).await?;
    spec.repo_id = Some(repo.id.clone());
    spec.repo_data = Some(repo.data.clone());
    spec.repo_code_hash = repo.code_hash();
    Ok(Some(repo))
}

fn public_key(session: &Session, args: &ApplyArgs) -> anyhow::Result<Option<String>> {
    let Some(identity) = &args.run.ssh_identity else { return Ok(None) };
    let path = configure::absolute(session, &session.directory, &format!("{identity}.pub"));
    std::fs::read_to_string(&path).map(Some).with_context(|| format!("read the public key `{path}`"))
}

async fn get_plan(project: &Project, args: &ApplyArgs, run_spec: RunSpec) -> anyhow::Result<RunPlan> {
    let request = GetRunPlanRequest {
        run_spec,
        max_offers: Some(args.run.offers.max_offers.unwrap_or(DEFAULT_OFFERS)),
        full_offers: args.run.offers.full_offers,
        unallocated_resources: args.run.offers.unallocated,
        reverse_offers: false,
        for_offers_only: false,
    };
    Ok(project.client.call(&endpoints::GET_RUN_PLAN, &project.name, &request).await?)
}

async fn print_plan(
    session: &mut Session,
    project: &Project,
    args: &ApplyArgs,
    plan: &RunPlan,
) -> anyhow::Result<()> {
    let printer = &mut session.printer;
    printer.table(&plans::run_properties(plan, args.verbose))?;
    printer.blank()?;
    let Some(job) = plan.job_plans.first() else { bail!("the server's plan has no job") };
    if job.offers.is_empty() {
        let request = ListProjectFleetsRequest { include_imported: true };
        let fleets = project.client.call(&endpoints::LIST_FLEETS, &project.name, &request).await?;
        printer.warning(if fleets.is_empty() { NO_FLEETS } else { offers::NO_OFFERS })?;
    } else {
        let limit = args.run.offers.max_offers.unwrap_or(DEFAULT_OFFERS) as usize;
        let shown = &job.offers[..job.offers.len().min(limit)];
        printer.table(&offers::run_table(shown, job.total_offers))?;
        for reason in offers::reasons(shown) {
            printer.styled_line(&format!(" {reason}"), SECONDARY)?;
        }
        if shown.len() < job.total_offers as usize {
            let max = job.max_price.map(format::price).unwrap_or_default();
            printer.line(format!(" Shown {} of {} offers, {max}max", shown.len(), job.total_offers))?;
        }
    }
    printer.blank()?;
    for warning in &plan.warnings {
        printer.warning(&format!("Warning: {warning}"))?;
    }
    if !plan.warnings.is_empty() {
        printer.blank()?;
    }
    Ok(())
}

/// What is asked, and what yes means.
struct Decision {
    question: String,
    stop_first: bool,
}

/// Says what stands in the way. None: nothing is to be done.
fn decide(session: &mut Session, args: &ApplyArgs, plan: &RunPlan) -> anyhow::Result<Option<Decision>> {
    let spec = plan.effective_run_spec.as_ref().unwrap_or(&plan.run_spec);
    let Some(current) = plan.current_resource.as_ref().filter(|run| !run.status.is_finished()) else {
        let question = match &spec.run_name {
            Some(name) => format!("Submit the run {name}?"),
            None => "Submit a new run?".to_owned(),
        };
        return Ok(Some(Decision { question, stop_first: false }));
    };
    let changes = plans::changes(&current.run_spec, spec);
    let name = run_name(current);
    let printer = &mut session.printer;
    let is_update = plan.action == ApplyAction::Update;
    if is_update && changes.is_empty() {
        printer.line(format!("Active run {name} already exists. Detected no changes."))?;
        if args.yes && !args.force {
            printer.line(USE_FORCE)?;
            return Ok(None);
        }
        return Ok(Some(override_it()));
    }
    let how = if is_update { "can" } else { "cannot" };
    printer.line(format!("Active run {name} already exists. Detected changes that {how} be updated in-place:"))?;
    if changes.is_empty() {
        printer.line("None")?;
    } else {
        for change in changes {
            printer.line(change)?;
        }
        printer.blank()?;
    }
    if is_update {
        return Ok(Some(Decision { question: "Update the run?".to_owned(), stop_first: false }));
    }
    Ok(Some(override_it()))
}

fn override_it() -> Decision {
    Decision { question: "Stop and override the run?".to_owned(), stop_first: true }
}

/// Stops a run and waits until it has ended.
async fn stop(project: &Project, name: &str) -> anyhow::Result<()> {
    let request = StopRunsRequest { runs_names: vec![name.to_owned()], abort: false };
    project.client.call(&endpoints::STOP_RUNS, &project.name, &request).await?;
    let request = GetRunRequest { run_name: Some(name.to_owned()), id: None };
    loop {
        let run: Result<Run, _> = project.client.call(&endpoints::GET_RUN, &project.name, &request).await;
        match run {
            Ok(run) if run.status.is_finished() => return Ok(()),
            Ok(_) => tokio::time::sleep(INTERVAL).await,
            Err(error) if error.is_not_exists() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
