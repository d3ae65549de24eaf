//! The calls of the API, one constant each: where it goes, what it sends, what comes back.

use std::marker::PhantomData;

use crate::events::{Event, ListEventsRequest};
use crate::exports::{CreateExportRequest, DeleteExportRequest, DeleteImportRequest, UpdateExportRequest};
use crate::fleets::{
    ApplyFleetPlanRequest, DeleteFleetInstancesRequest, DeleteFleetsRequest, Fleet, FleetPlan,
    GetFleetPlanRequest, GetFleetRequest, ListProjectFleetsRequest,
};
use crate::gateways::{
    DeleteGatewaysRequest, Gateway, GetGatewayRequest, ListGatewaysRequest, SetDefaultGatewayRequest,
    SetWildcardDomainRequest,
};
use crate::gpus::{GpuList, ListGpusRequest};
use crate::logs::{JobSubmissionLogs, PollLogsRequest};
use crate::projects::Project;
use crate::repos::{GetRepoRequest, InitRepoRequest, RepoHeadWithCreds};
use crate::runs::{
    ApplyRunPlanRequest, DeleteRunsRequest, GetRunPlanRequest, GetRunRequest, ListRunsRequest, Run, RunPlan,
    StopRunsRequest,
};
use crate::secrets::{DeleteSecretsRequest, GetSecretRequest, Secret, SetSecretRequest};
use crate::users::UserWithCreds;
use crate::volumes::{CreateVolumeRequest, DeleteVolumesRequest, GetVolumeRequest, Volume};
use crate::why::{ProjectNotes, Why, WhyRequest};

/// One call of the API. `Q` is the body of the request, `()` for none; `A` is the answer.
#[derive(Debug)]
pub struct Endpoint<Q, A> {
    pub(crate) path: &'static str,
    pub(crate) has_body: bool,
    types: PhantomData<fn(Q) -> A>,
}

impl<Q, A> Endpoint<Q, A> {
    /// A call with a JSON body. `{project}` in the path stands for the project's name.
    pub const fn new(path: &'static str) -> Self {
        Endpoint { path, has_body: true, types: PhantomData }
    }
}

impl<A> Endpoint<(), A> {
    /// A call without a body.
    pub const fn bare(path: &'static str) -> Self {
        Endpoint { path, has_body: false, types: PhantomData }
    }
}

/// An answer that says nothing but that it is done.
pub type Void = serde::de::IgnoredAny;

/// The identity providers that users may log in with.
pub const LIST_AUTH_PROVIDERS: Endpoint<(), Vec<serde_json::Value>> = Endpoint::bare("/api/auth/list_providers");
/// The user whose token it is.
pub const GET_MY_USER: Endpoint<(), UserWithCreds> = Endpoint::bare("/api/users/get_my_user");
/// A project.
pub const GET_PROJECT: Endpoint<(), Project> = Endpoint::bare("/api/projects/{project}/get");

/// Runs of one or all projects.
pub const LIST_RUNS: Endpoint<ListRunsRequest, Vec<Run>> = Endpoint::new("/api/runs/list");
/// A run by name or identifier.
pub const GET_RUN: Endpoint<GetRunRequest, Run> = Endpoint::new("/api/project/{project}/runs/get");
/// What applying a run would do.
pub const GET_RUN_PLAN: Endpoint<GetRunPlanRequest, RunPlan> =
    Endpoint::new("/api/project/{project}/runs/get_plan");
/// Submits a run, or changes it in place.
pub const APPLY_RUN: Endpoint<ApplyRunPlanRequest, Run> = Endpoint::new("/api/project/{project}/runs/apply");
/// Asks runs to stop; does not wait.
pub const STOP_RUNS: Endpoint<StopRunsRequest, Void> = Endpoint::new("/api/project/{project}/runs/stop");
/// Deletes finished runs.
pub const DELETE_RUNS: Endpoint<DeleteRunsRequest, Void> = Endpoint::new("/api/project/{project}/runs/delete");
/// A page of a job's log.
pub const POLL_LOGS: Endpoint<PollLogsRequest, JobSubmissionLogs> =
    Endpoint::new("/api/project/{project}/logs/poll");
/// The accelerators on offer, grouped.
pub const LIST_GPUS: Endpoint<ListGpusRequest, GpuList> = Endpoint::new("/api/project/{project}/gpus/list");

/// The fleets of a project.
pub const LIST_FLEETS: Endpoint<ListProjectFleetsRequest, Vec<Fleet>> =
    Endpoint::new("/api/project/{project}/fleets/list");
/// A fleet by name or identifier.
pub const GET_FLEET: Endpoint<GetFleetRequest, Fleet> = Endpoint::new("/api/project/{project}/fleets/get");
/// What applying a fleet would do.
pub const GET_FLEET_PLAN: Endpoint<GetFleetPlanRequest, FleetPlan> =
    Endpoint::new("/api/project/{project}/fleets/get_plan");
/// Makes a fleet, or changes it in place.
pub const APPLY_FLEET: Endpoint<ApplyFleetPlanRequest, Fleet> =
    Endpoint::new("/api/project/{project}/fleets/apply");
/// Asks fleets to end; does not wait.
pub const DELETE_FLEETS: Endpoint<DeleteFleetsRequest, Void> =
    Endpoint::new("/api/project/{project}/fleets/delete");
/// Asks instances of a fleet to end; does not wait.
pub const DELETE_FLEET_INSTANCES: Endpoint<DeleteFleetInstancesRequest, Void> =
    Endpoint::new("/api/project/{project}/fleets/delete_instances");

/// What happened.
pub const LIST_EVENTS: Endpoint<ListEventsRequest, Vec<Event>> = Endpoint::new("/api/events/list");

/// Why a run, a fleet or an instance is as it is.
pub const WHY: Endpoint<WhyRequest, Why> = Endpoint::new("/api/project/{project}/why");

/// What all users of a project should know.
pub const PROJECT_NOTES: Endpoint<(), ProjectNotes> = Endpoint::bare("/api/project/{project}/notes");

/// The secrets of a project, without their values.
pub const LIST_SECRETS: Endpoint<(), Vec<Secret>> = Endpoint::bare("/api/project/{project}/secrets/list");
/// A secret with its value.
pub const GET_SECRET: Endpoint<GetSecretRequest, Secret> = Endpoint::new("/api/project/{project}/secrets/get");
/// Sets a secret.
pub const SET_SECRET: Endpoint<SetSecretRequest, Secret> =
    Endpoint::new("/api/project/{project}/secrets/create_or_update");
/// Deletes secrets.
pub const DELETE_SECRETS: Endpoint<DeleteSecretsRequest, Void> =
    Endpoint::new("/api/project/{project}/secrets/delete");

/// Makes a repository known.
pub const INIT_REPO: Endpoint<InitRepoRequest, Void> = Endpoint::new("/api/project/{project}/repos/init");

/// A repository, and how this user reads it.
pub const GET_REPO: Endpoint<GetRepoRequest, RepoHeadWithCreds> =
    Endpoint::new("/api/project/{project}/repos/get");

/// The volumes of a project.
pub const LIST_VOLUMES: Endpoint<(), Vec<Volume>> = Endpoint::bare("/api/project/{project}/volumes/list");
/// A volume by name.
pub const GET_VOLUME: Endpoint<GetVolumeRequest, Volume> = Endpoint::new("/api/project/{project}/volumes/get");
/// Makes a volume.
pub const CREATE_VOLUME: Endpoint<CreateVolumeRequest, Volume> =
    Endpoint::new("/api/project/{project}/volumes/create");
/// Asks volumes to end; does not wait.
pub const DELETE_VOLUMES: Endpoint<DeleteVolumesRequest, Void> =
    Endpoint::new("/api/project/{project}/volumes/delete");

/// The gateways of a project.
pub const LIST_GATEWAYS: Endpoint<ListGatewaysRequest, Vec<Gateway>> =
    Endpoint::new("/api/project/{project}/gateways/list");
/// A gateway by name.
pub const GET_GATEWAY: Endpoint<GetGatewayRequest, Gateway> = Endpoint::new("/api/project/{project}/gateways/get");
/// Asks gateways to end; does not wait.
pub const DELETE_GATEWAYS: Endpoint<DeleteGatewaysRequest, Void> =
    Endpoint::new("/api/project/{project}/gateways/delete");

/// Makes a gateway the one of services that name none.
pub const SET_DEFAULT_GATEWAY: Endpoint<SetDefaultGatewayRequest, Void> =
    Endpoint::new("/api/project/{project}/gateways/set_default");
/// Sets the domain of a gateway's services.
pub const SET_WILDCARD_DOMAIN: Endpoint<SetWildcardDomainRequest, Void> =
    Endpoint::new("/api/project/{project}/gateways/set_wildcard_domain");

/// The exports of a project; servers without them refuse all these calls with a sentence.
pub const LIST_EXPORTS: Endpoint<(), serde_json::Value> = Endpoint::bare("/api/project/{project}/exports/list");
/// Makes an export.
pub const CREATE_EXPORT: Endpoint<CreateExportRequest, serde_json::Value> =
    Endpoint::new("/api/project/{project}/exports/create");
/// Changes an export.
pub const UPDATE_EXPORT: Endpoint<UpdateExportRequest, serde_json::Value> =
    Endpoint::new("/api/project/{project}/exports/update");
/// Deletes an export.
pub const DELETE_EXPORT: Endpoint<DeleteExportRequest, Void> =
    Endpoint::new("/api/project/{project}/exports/delete");
/// The imports of a project.
pub const LIST_IMPORTS: Endpoint<(), serde_json::Value> = Endpoint::bare("/api/project/{project}/imports/list");
/// Deletes an import.
pub const DELETE_IMPORT: Endpoint<DeleteImportRequest, Void> =
    Endpoint::new("/api/project/{project}/imports/delete");
