//! `dstack offer`: what backends would sell.

use anyhow::bail;
use api::client::endpoints;
use api::configurations::{CpuSpec, Memory, Range, ResourcesSpec, RunConfiguration};
use api::gpus::{GpuGroup, ListGpusRequest};
use api::instances::Offer;
use api::runs::{GetRunPlanRequest, JobPlan, RunSpec};
use serde::Serialize;

use super::apply::options;
use crate::args::{Format, OfferArgs};
use crate::output::{Table, format, offers, plans};
use crate::printer::SECONDARY;
use crate::session::{Project, Session};
use crate::{Outcome, profiles};

/// Offers shown unless told.
const DEFAULT_OFFERS: u32 = 50;

/// From so many offers on, the hint follows them, where it is seen.
const LONG: usize = 3;

/// What is said unless fleets are named.
const HINT: &str = "Hint: Existing fleets are ignored, and all available offers are shown. To filter by fleet, pass \
                    --fleet NAME.";

/// What offers may be grouped by.
const GROUPS: [&str; 4] = ["backend", "count", "gpu", "region"];

pub(super) async fn run(session: &mut Session, mut args: OfferArgs) -> anyhow::Result<Outcome> {
    for group in &mut args.group_by {
        *group = group.trim().to_owned();
    }
    check_groups(&args.group_by)?;
    let project = session.project(args.project.project.as_deref())?;
    let spec = spec(session, &args)?;
    if args.group_by.is_empty() {
        list(session, &project, &args, spec).await
    } else {
        group(session, &project, &args, spec).await
    }
}

fn check_groups(groups: &[String]) -> anyhow::Result<()> {
    let has = |group: &str| groups.iter().any(|other| other == group);
    if let Some(unknown) = groups.iter().find(|group| !GROUPS.contains(&group.as_str())) {
        bail!("Invalid group-by value: '{unknown}'. Valid choices are: {}", GROUPS.join(", "));
    }
    if let Some(first) = groups.first().filter(|_| !has("gpu")) {
        bail!("Cannot group by '{first}' without also grouping by 'gpu'");
    }
    Ok(())
}

/// A task that asks for nothing but what was typed. The image says that no registry need be asked.
fn spec(session: &Session, args: &OfferArgs) -> anyhow::Result<RunSpec> {
    let task = serde_json::json!({"type": "task", "image": "scratch", "user": "root", "commands": [":"]});
    let mut configuration: RunConfiguration = serde_json::from_value(task)?;
    *configuration.common_mut().resources = ResourcesSpec {
        cpu: CpuSpec { arch: None, count: Range::at_least(1) },
        memory: Range::at_least(Memory(0.0)),
        disk: None,
        ..ResourcesSpec::default()
    };
    options::set_resources(&args.resources, configuration.common_mut().resources);
    let params = options::with_selection(configuration.profile_params(), &args.selection);
    configuration.set_profile_params(params);
    let profile = profiles::load(session, args.selection.profile.as_deref(), args.selection.no_profile)?;
    Ok(options::run_spec(configuration, Some(profile), None))
}

#[derive(Serialize)]
struct Requirements<'a> {
    resources: &'a ResourcesSpec,
    max_price: Option<f64>,
    spot: Option<bool>,
    reservation: Option<&'a str>,
}

#[derive(Serialize)]
struct Listing<'a> {
    project: &'a str,
    user: &'a str,
    requirements: Requirements<'a>,
    offers: &'a [Offer],
    total_offers: u32,
}

async fn list(
    session: &mut Session,
    project: &Project,
    args: &OfferArgs,
    spec: RunSpec,
) -> anyhow::Result<Outcome> {
    let request = GetRunPlanRequest {
        run_spec: spec.clone(),
        max_offers: Some(args.offers.max_offers.unwrap_or(DEFAULT_OFFERS)),
        full_offers: args.offers.full_offers,
        unallocated_resources: args.offers.unallocated,
        reverse_offers: false,
        for_offers_only: true,
    };
    let plan = project.client.call(&endpoints::GET_RUN_PLAN, &project.name, &request).await?;
    let Some(job) = plan.job_plans.first() else { bail!("the server's plan has no job") };
    let requirements = &job.job_spec.requirements;
    if args.format.format() == Format::Json {
        let merged = spec.configuration.merged_profile(spec.profile.as_ref());
        session.printer.json(&Listing {
            project: &plan.project_name,
            user: &plan.user,
            requirements: Requirements {
                resources: &requirements.resources,
                max_price: requirements.max_price,
                spot: wanted_spot(&merged),
                reservation: requirements.reservation.as_deref(),
            },
            offers: &job.offers,
            total_offers: job.total_offers,
        })?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::properties();
    table.property("Project", plan.project_name.as_str());
    plans::add_requirements(requirements, &mut table);
    session.printer.table(&table)?;
    session.printer.blank()?;
    print_offers(session, job, args.selection.fleets.is_empty())?;
    Ok(Outcome::Done)
}

fn print_offers(session: &mut Session, job: &JobPlan, hint: bool) -> anyhow::Result<()> {
    let printer = &mut session.printer;
    if job.offers.is_empty() {
        printer.warning(offers::NO_OFFERS)?;
        printer.blank()?;
        return Ok(());
    }
    let shown = job.offers.len();
    let is_cut = shown < job.total_offers as usize;
    let is_long = is_cut || LONG <= shown;
    if hint && !is_long {
        printer.styled_line(HINT, SECONDARY)?;
        printer.blank()?;
    }
    printer.table(&offers::run_table(&job.offers, job.total_offers))?;
    for reason in offers::reasons(&job.offers) {
        printer.styled_line(&format!(" {reason}"), SECONDARY)?;
    }
    if is_cut {
        let max_price = job.max_price.map(format::price).unwrap_or_default();
        printer.line(format!(" Shown {shown} of {} offers, {max_price}max", job.total_offers))?;
    }
    if !is_cut || hint {
        printer.blank()?;
    }
    if hint && is_long {
        printer.styled_line(HINT, SECONDARY)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct GroupListing<'a> {
    project: &'a str,
    requirements: Requirements<'a>,
    group_by: &'a [String],
    gpus: &'a [GpuGroup],
}

async fn group(
    session: &mut Session,
    project: &Project,
    args: &OfferArgs,
    spec: RunSpec,
) -> anyhow::Result<Outcome> {
    let merged = spec.configuration.merged_profile(spec.profile.as_ref());
    let request = ListGpusRequest {
        run_spec: spec.clone(),
        group_by: Some(args.group_by.iter().filter(|group| *group != "gpu").cloned().collect()),
        reverse: false,
        full_offers: args.offers.full_offers,
        unallocated_resources: args.offers.unallocated,
    };
    let list = project.client.call(&endpoints::LIST_GPUS, &project.name, &request).await?;
    let resources = spec.configuration.common().resources;
    let requirements = Requirements {
        resources,
        max_price: merged.max_price,
        spot: wanted_spot(&merged),
        reservation: merged.reservation.as_deref(),
    };
    if args.format.format() == Format::Json {
        let listing =
            GroupListing { project: &project.name, requirements, group_by: &args.group_by, gpus: &list.gpus };
        session.printer.json(&listing)?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::properties();
    table.property("Project", project.name.as_str());
    table.property("Resources", format::requirements(resources));
    let spot = match requirements.spot {
        None => "auto",
        Some(true) => "spot",
        Some(false) => "on-demand",
    };
    table.property("Spot policy", spot);
    table.property("Max price", requirements.max_price.map_or("-".to_owned(), format::price));
    table.property("Reservation", requirements.reservation.unwrap_or("-"));
    table.property("Group by", args.group_by.join(", "));
    session.printer.table(&table)?;
    session.printer.blank()?;
    session.printer.table(&offers::group_table(&list.gpus))?;
    Ok(Outcome::Done)
}

// Where offers are only looked at, no spot policy means both kinds.
fn wanted_spot(params: &api::configurations::ProfileParams) -> Option<bool> {
    use api::configurations::SpotPolicy;
    match params.spot_policy {
        Some(SpotPolicy::Spot) => Some(true),
        Some(SpotPolicy::OnDemand) => Some(false),
        Some(SpotPolicy::Auto) | None => None,
    }
}
