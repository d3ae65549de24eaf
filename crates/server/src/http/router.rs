//! Every route of the server, in one list.

use std::any::Any;
use std::sync::Arc;

use api::backends::{BackendType, BackendYaml, BackendYamlRequest, DeleteBackendsRequest};
use api::events::{Event, ListEventsRequest};
use api::files::{FileArchive, GetArchiveByHashRequest};
use api::fleets::{
    ApplyFleetPlanRequest, DeleteFleetInstancesRequest, DeleteFleetsRequest, Fleet, FleetPlan,
    GetFleetPlanRequest, GetFleetRequest, ListFleetsRequest, ListProjectFleetsRequest,
};
use api::gpus::{GpuList, ListGpusRequest};
use api::instances::{
    GetInstanceHealthChecksRequest, GetInstanceHealthChecksResponse, GetInstanceRequest, Instance,
    ListInstancesRequest,
};
use api::logs::{JobSubmissionLogs, PollLogsRequest};
use api::projects::{
    CreateProjectRequest, DeleteProjectsRequest, ListProjectsRequest, Project, ProjectList, RemoveMembersRequest,
    SetMembersRequest, UpdateProjectRequest,
};
use api::repos::{DeleteReposRequest, GetRepoRequest, InitRepoRequest, RepoHead, RepoHeadWithCreds};
use api::runs::{
    ApplyRunPlanRequest, DeleteRunsRequest, GetRunPlanRequest, GetRunRequest, ListRunsRequest, Run, RunPlan,
    RunStreamMessage, StopRunsRequest,
};
use api::secrets::{DeleteSecretsRequest, GetSecretRequest, Secret, SetSecretRequest};
use api::users::{
    AddPublicKeyRequest, CreateUserRequest, DeletePublicKeysRequest, DeleteUsersRequest, ListUsersRequest,
    PublicKeyInfo, User, UserList, UserWithCreds, UsernameRequest,
};
use api::why::{ProjectNotes, Why, WhyRequest};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Router};
use http::Method;
use serde_json::Value;
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;

use super::error::Error;
use super::extract::json_response;
use super::openapi::{Nothing, QueryKey, Routes};
use super::{
    absent, backends, docs, events, files, fleet_apply, fleets, gpus, info, instances, logs, members, projects,
    repos, runs, secrets, users, version, why,
};
use crate::deps::Deps;

/// What the address of a live stream may say.
const STREAM_QUERY: &[QueryKey] = &[
    QueryKey::optional("logs", "boolean"),
    QueryKey::optional("replica", "integer"),
    QueryKey::optional("job", "integer"),
    QueryKey { kind: ("string", Some("date-time")), ..QueryKey::optional("since", "string") },
    QueryKey::optional("follow", "boolean"),
    QueryKey::optional("from", "string"),
];

/// What the address of a way into a job may say.
const ENTER_QUERY: &[QueryKey] = &[QueryKey::optional("replica", "integer"), QueryKey::optional("job", "integer")];

/// What the address of a job's numbers may say.
const METRICS_QUERY: &[QueryKey] = &[
    QueryKey { kind: ("string", Some("uuid")), ..QueryKey::optional("run_id", "string") },
    QueryKey::optional("replica_num", "integer"),
    QueryKey::optional("job_num", "integer"),
    QueryKey::optional("limit", "integer"),
    QueryKey { kind: ("string", Some("date-time")), ..QueryKey::optional("after", "string") },
    QueryKey { kind: ("string", Some("date-time")), ..QueryKey::optional("before", "string") },
];

/// The whole server as one service.
pub fn router(deps: Deps) -> Router {
    let routes = project_routes(account_routes(Routes::default()));
    let routes = run_routes(fleet_routes(absent_routes(things_routes(routes))));
    let (router, description) = routes.finish();
    let description = Bytes::from(description);
    router
        .route("/openapi.json", get(move || async move { json_response(description) }))
        // Not a redirect: clients that look for the server here would take the place that it leads to for the server's.
        .route("/", get(docs::page))
        .route("/api/docs", get(docs::page))
        .route("/redoc", get(docs::page))
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        .layer(Extension(Arc::new(runs::RunRows::default())))
        .layer(middleware::from_fn(version::check))
        // Each reader of a body has a limit of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(after_panic))
        .layer(middleware::from_fn(log_request))
        .with_state(deps)
}

/// Tells the log, where it wants details, what was asked and how long the answer took to begin.
async fn log_request(request: Request, next: Next) -> Response {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return next.run(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), began.elapsed());
    tracing::debug!("{method} {path} was answered {status} after {took:.1?}");
    response
}

/// The official answers where no route fits: GET finds nothing, and nothing else is allowed.
async fn no_route(method: Method) -> Error {
    if method == Method::GET || method == Method::HEAD {
        Error::route_not_found()
    } else {
        Error::method_not_allowed()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands over what was thrown")]
fn after_panic(thrown: Box<dyn Any + Send>) -> Response {
    let message = thrown.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| thrown.downcast_ref::<&str>().copied()).unwrap_or("no message");
    tracing::error!("a request panicked: {message}");
    Error::after_panic().into_response()
}

fn account_routes(routes: Routes) -> Routes {
    routes
        .get::<info::Health, _, _>("/healthcheck", info::healthcheck)
        .public()
        .get::<Nothing, _, _>("/metrics", info::prometheus)
        .public()
        .post::<Nothing, info::ServerInfo, _, _>("/api/server/get_info", info::get_info)
        .public()
        .post::<ListUsersRequest, UserList, _, _>("/api/users/list", users::list)
        .without_body()
        .post::<Nothing, UserWithCreds, _, _>("/api/users/get_my_user", users::get_my_user)
        .post::<UsernameRequest, UserWithCreds, _, _>("/api/users/get_user", users::get_user)
        .post::<CreateUserRequest, User, _, _>("/api/users/create", users::create)
        .post::<CreateUserRequest, User, _, _>("/api/users/update", users::update)
        .post::<UsernameRequest, UserWithCreds, _, _>("/api/users/refresh_ssh_key", users::refresh_ssh_key)
        .post::<UsernameRequest, UserWithCreds, _, _>("/api/users/refresh_token", users::refresh_token)
        .post::<DeleteUsersRequest, Nothing, _, _>("/api/users/delete", users::delete)
        .post::<Nothing, Vec<PublicKeyInfo>, _, _>("/api/users/public_keys/list", users::list_public_keys)
        .post::<AddPublicKeyRequest, PublicKeyInfo, _, _>("/api/users/public_keys/add", users::add_public_key)
        .post::<DeletePublicKeysRequest, Nothing, _, _>("/api/users/public_keys/delete", users::delete_public_keys)
        .post::<Nothing, Vec<Value>, _, _>("/api/auth/list_providers", absent::list_providers)
        .public()
        .post::<Value, Value, _, _>("/api/auth/get_next_redirect", absent::get_next_redirect)
        .public()
        .post::<ListEventsRequest, Vec<Event>, _, _>("/api/events/list", events::list)
        .without_body()
}

fn project_routes(routes: Routes) -> Routes {
    routes
        .post::<ListProjectsRequest, ProjectList, _, _>("/api/projects/list", projects::list)
        .without_body()
        .post::<Nothing, Vec<Project>, _, _>("/api/projects/list_only_no_fleets", projects::list_only_no_fleets)
        .post::<CreateProjectRequest, Project, _, _>("/api/projects/create", projects::create)
        .post::<DeleteProjectsRequest, Nothing, _, _>("/api/projects/delete", projects::delete)
        .post::<Nothing, Project, _, _>("/api/projects/{project_name}/get", projects::get)
        .post::<SetMembersRequest, Project, _, _>("/api/projects/{project_name}/set_members", members::set)
        .post::<SetMembersRequest, Project, _, _>("/api/projects/{project_name}/add_members", members::add)
        .post::<RemoveMembersRequest, Project, _, _>(
            "/api/projects/{project_name}/remove_members",
            members::remove,
        )
        .post::<UpdateProjectRequest, Project, _, _>("/api/projects/{project_name}/update", projects::update)
        .post::<Nothing, Vec<BackendType>, _, _>("/api/backends/list_types", backends::list_types)
        .public()
        .post::<Value, Value, _, _>("/api/project/{project_name}/backends/create", backends::create)
        .post::<Value, Value, _, _>("/api/project/{project_name}/backends/update", backends::update)
        .post::<DeleteBackendsRequest, Nothing, _, _>(
            "/api/project/{project_name}/backends/delete",
            backends::delete,
        )
        .post::<Nothing, Value, _, _>(
            "/api/project/{project_name}/backends/{backend_name}/config_info",
            backends::config_info,
        )
        .post::<BackendYamlRequest, Nothing, _, _>(
            "/api/project/{project_name}/backends/create_yaml",
            backends::create_yaml,
        )
        .post::<BackendYamlRequest, Nothing, _, _>(
            "/api/project/{project_name}/backends/update_yaml",
            backends::update_yaml,
        )
        .post::<Nothing, BackendYaml, _, _>(
            "/api/project/{project_name}/backends/{backend_name}/get_yaml",
            backends::get_yaml,
        )
}

fn things_routes(routes: Routes) -> Routes {
    routes
        .post::<Nothing, Vec<RepoHead>, _, _>("/api/project/{project_name}/repos/list", repos::list)
        .post::<GetRepoRequest, RepoHeadWithCreds, _, _>("/api/project/{project_name}/repos/get", repos::get)
        .post::<InitRepoRequest, Nothing, _, _>("/api/project/{project_name}/repos/init", repos::init)
        .post::<DeleteReposRequest, Nothing, _, _>("/api/project/{project_name}/repos/delete", repos::delete)
        .upload::<Nothing, _, _>("/api/project/{project_name}/repos/upload_code", repos::upload_code)
        .query(&[QueryKey { required: true, ..QueryKey::optional("repo_id", "string") }])
        .post::<GetArchiveByHashRequest, FileArchive, _, _>(
            "/api/files/get_archive_by_hash",
            files::get_archive_by_hash,
        )
        .upload::<FileArchive, _, _>("/api/files/upload_archive", files::upload_archive)
        .post::<Nothing, Vec<Secret>, _, _>("/api/project/{project_name}/secrets/list", secrets::list)
        .post::<GetSecretRequest, Secret, _, _>("/api/project/{project_name}/secrets/get", secrets::get)
        .post::<SetSecretRequest, Secret, _, _>(
            "/api/project/{project_name}/secrets/create_or_update",
            secrets::create_or_update,
        )
        .post::<DeleteSecretsRequest, Nothing, _, _>("/api/project/{project_name}/secrets/delete", secrets::delete)
}

fn fleet_routes(routes: Routes) -> Routes {
    routes
        .post::<ListFleetsRequest, Vec<Fleet>, _, _>("/api/fleets/list", fleets::list)
        .without_body()
        .post::<ListProjectFleetsRequest, Vec<Fleet>, _, _>(
            "/api/project/{project_name}/fleets/list",
            fleets::list_of_project,
        )
        .without_body()
        .post::<GetFleetRequest, Fleet, _, _>("/api/project/{project_name}/fleets/get", fleets::get)
        .post::<GetFleetPlanRequest, FleetPlan, _, _>(
            "/api/project/{project_name}/fleets/get_plan",
            fleet_apply::get_plan,
        )
        .post::<ApplyFleetPlanRequest, Fleet, _, _>("/api/project/{project_name}/fleets/apply", fleet_apply::apply)
        .post::<DeleteFleetsRequest, Nothing, _, _>("/api/project/{project_name}/fleets/delete", fleets::delete)
        .post::<DeleteFleetInstancesRequest, Nothing, _, _>(
            "/api/project/{project_name}/fleets/delete_instances",
            fleets::delete_instances,
        )
        .post::<ListInstancesRequest, Vec<Instance>, _, _>("/api/instances/list", instances::list)
        .without_body()
        .post::<GetInstanceRequest, Instance, _, _>("/api/project/{project_name}/instances/get", instances::get)
        .post::<GetInstanceHealthChecksRequest, GetInstanceHealthChecksResponse, _, _>(
            "/api/project/{project_name}/instances/get_instance_health_checks",
            instances::get_health_checks,
        )
        .post::<WhyRequest, Why, _, _>("/api/project/{project_name}/why", why::why)
        .post::<(), ProjectNotes, _, _>("/api/project/{project_name}/notes", why::project_notes)
}

fn run_routes(routes: Routes) -> Routes {
    routes
        .post::<ListRunsRequest, Vec<Run>, _, _>("/api/runs/list", runs::list)
        .without_body()
        .post::<GetRunRequest, Run, _, _>("/api/project/{project_name}/runs/get", runs::get)
        .post::<GetRunPlanRequest, RunPlan, _, _>("/api/project/{project_name}/runs/get_plan", runs::get_plan)
        .post::<ApplyRunPlanRequest, Run, _, _>("/api/project/{project_name}/runs/apply", runs::apply)
        .post::<StopRunsRequest, Nothing, _, _>("/api/project/{project_name}/runs/stop", runs::stop)
        .post::<DeleteRunsRequest, Nothing, _, _>("/api/project/{project_name}/runs/delete", runs::delete)
        .get::<RunStreamMessage, _, _>("/api/project/{project_name}/runs/{run_name}/stream", runs::stream)
        .query(STREAM_QUERY)
        .get::<String, _, _>("/api/project/{project_name}/runs/{run_name}/ssh", runs::enter)
        .query(ENTER_QUERY)
        .post::<ListGpusRequest, GpuList, _, _>("/api/project/{project_name}/gpus/list", gpus::list)
        .post::<PollLogsRequest, JobSubmissionLogs, _, _>("/api/project/{project_name}/logs/poll", logs::poll)
}

fn absent_routes(routes: Routes) -> Routes {
    let routes = routes
        .get::<Value, _, _>("/api/project/{project_name}/metrics/job/{run_name}", absent::job_metrics)
        .query(METRICS_QUERY)
        .post::<Nothing, Vec<Value>, _, _>("/api/project/{project_name}/templates/list", absent::none_for_members)
        .post::<Value, Value, _, _>("/api/sshproxy/get_upstream", absent::no_sshproxy)
        .public()
        .post::<Value, Vec<Value>, _, _>("/api/volumes/list", absent::none_for_users)
        .post::<Nothing, Vec<Value>, _, _>("/api/project/{project_name}/volumes/list", absent::none_for_members)
        .post::<Value, Value, _, _>("/api/project/{project_name}/volumes/get", absent::not_found_for_members)
        .post::<Value, Value, _, _>("/api/project/{project_name}/volumes/create", absent::create_volume)
        .post::<Value, Nothing, _, _>("/api/project/{project_name}/volumes/delete", absent::delete_volumes)
        .post::<Value, Vec<Value>, _, _>("/api/project/{project_name}/gateways/list", absent::none_for_viewers)
        .post::<Value, Value, _, _>("/api/project/{project_name}/gateways/get", absent::not_found_for_members)
        .post::<Value, Nothing, _, _>("/api/project/{project_name}/gateways/delete", absent::delete_gateways);
    let routes = ["get_plan", "apply", "create"].into_iter().fold(routes, |routes, verb| {
        let path = format!("/api/project/{{project_name}}/gateways/{verb}");
        routes.post::<Value, Value, _, _>(&path, absent::no_gateways)
    });
    let routes = ["set_default", "set_wildcard_domain"].into_iter().fold(routes, |routes, verb| {
        let path = format!("/api/project/{{project_name}}/gateways/{verb}");
        routes.post::<Value, Value, _, _>(&path, absent::not_found_for_admins)
    });
    let lists = ["exports/list", "imports/list"].into_iter().fold(routes, |routes, list| {
        let path = format!("/api/project/{{project_name}}/{list}");
        routes.post::<Nothing, Value, _, _>(&path, absent::no_exports_for_members)
    });
    let verbs = ["exports/create", "exports/update", "exports/delete", "imports/delete"];
    let routes = verbs.into_iter().fold(lists, |routes, verb| {
        let path = format!("/api/project/{{project_name}}/{verb}");
        routes.post::<Value, Value, _, _>(&path, absent::no_exports_for_admins)
    });
    proxy_routes(routes)
}

fn proxy_routes(routes: Routes) -> Routes {
    let all = ["get", "post", "put", "delete", "patch", "head", "options"];
    let service = "/proxy/services/{project_name}/{run_name}";
    routes
        .methods(service, &all, any(absent::to_service_root))
        .methods(&format!("{service}/"), &[], any(absent::no_service))
        .methods(&format!("{service}/{{*path}}"), &all, any(absent::no_service))
        .get::<Value, _, _>("/proxy/models/{project_name}/models", absent::list_models)
        .post::<Value, Value, _, _>("/proxy/models/{project_name}/chat/completions", absent::no_model)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_like_every_other_failure_of_the_server() {
        async fn panics() {
            panic!("no details of this are told");
        }
        let router: Router = Router::new().route("/", get(panics)).layer(CatchPanicLayer::custom(after_panic));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(body, "{\"detail\":\"Internal Server Error\"}");
    }
}
