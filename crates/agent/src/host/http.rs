//! The agent's HTTP interface: thin handlers over the host's state and its tasks.

use std::sync::Arc;

use api::agent::{
    AgentError, AgentErrorCode, EPOCH_HEADER, GoOrder, HelloRequest, LogAck, NETWORK_HEADER, SSH_PORT, StopOrder,
    TaskOrder, TaskPhase, TaskSpec, TaskState, network_of_this_process,
};
use api::ids::JobId;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, head, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;

use crate::host::state::{Host, refuse};
use crate::host::task::{Message, spawn_new};
use crate::host::{blobs, entrance, news, streams};

/// The longest request that is not a blob.
const REQUEST_LIMIT: usize = 16 << 20;

type App = State<Arc<Host>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// An [`AgentError`] as an answer.
pub(crate) struct Refusal(AgentError);

impl From<AgentError> for Refusal {
    fn from(error: AgentError) -> Refusal {
        Refusal(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status());
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(self.0)).into_response()
    }
}

/// The routes of the agent.
pub(crate) fn router(host: Arc<Host>) -> Router {
    let blobs = Router::new()
        .route("/v1/blobs/{sha256}", head(blobs::head).put(blobs::put))
        .route("/v1/tasks/{id}/ssh", post(ssh))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/v1/hello", post(hello))
        .route("/v1/events", get(streams::events))
        .route("/v1/tasks/{id}", put(put_task))
        .route("/v1/tasks/{id}/go", post(go))
        .route("/v1/tasks/{id}/stop", post(stop))
        .route("/v1/tasks/{id}/forget", post(forget))
        .route("/v1/tasks/{id}/logs", get(logs))
        .route("/v1/tasks/{id}/logs/ack", post(ack))
        .route("/v1/shutdown", post(shutdown))
        .layer(DefaultBodyLimit::max(REQUEST_LIMIT))
        .merge(blobs)
        .fallback(unknown_route)
        .layer(middleware::from_fn_with_state(host.clone(), check_epoch))
        .with_state(host)
}

async fn check_epoch(State(host): App, request: Request, next: Next) -> Result<Response, Refusal> {
    let header = request.headers().get(EPOCH_HEADER);
    let epoch = header
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok())
        .ok_or_else(|| {
            let message = format!("the header `{EPOCH_HEADER}` is missing or not a number");
            refuse(AgentErrorCode::InvalidRequest, message)
        })?;
    // A stranger's hello must not raise the epoch; `hello` looks at both.
    if request.uri().path() != "/v1/hello" {
        host.check_epoch(epoch)?;
    }
    Ok(next.run(request).await)
}

async fn unknown_route() -> Refusal {
    refuse(AgentErrorCode::InvalidRequest, "there is no such route").into()
}

async fn hello(State(host): App, body: Body) -> Answer<api::agent::Hello> {
    let request: HelloRequest = read(body).await?;
    // Whoever comes back may have been away for long.
    news::look(&host).await;
    let info = host.info().await;
    let answered = tokio::task::spawn_blocking(move || host.hello(&request, info)).await;
    Ok(Json(answered.map_err(internal)??))
}

async fn put_task(State(host): App, Path(id): Path<JobId>, body: Body) -> Answer<TaskState> {
    let spec: Box<TaskSpec> = read(body).await?;
    if spec.id != id {
        return Err(refuse(AgentErrorCode::InvalidRequest, "the spec is of another task").into());
    }
    let task = host.task_or(id, || spawn_new(&host, id));
    Ok(Json(task.ask(|reply| Message::Put(spec, reply)).await?))
}

async fn go(State(host): App, Path(id): Path<JobId>, body: Body) -> Answer<TaskState> {
    let order: GoOrder = read(body).await?;
    Ok(Json(host.task(id)?.ask(|reply| Message::Go(order, reply)).await?))
}

async fn stop(State(host): App, Path(id): Path<JobId>, body: Body) -> Answer<TaskState> {
    let order: StopOrder = read(body).await?;
    Ok(Json(host.task(id)?.ask(|reply| Message::Stop(order, reply)).await?))
}

async fn forget(State(host): App, Path(id): Path<JobId>, body: Body) -> Answer<()> {
    let order: TaskOrder = read(body).await?;
    let Ok(task) = host.task(id) else {
        // Forgetting twice is as good as once.
        return match host.tombstone(id) {
            Some(_) => Ok(Json(())),
            None => Err(refuse(AgentErrorCode::UnknownTask, format!("no task {id}")).into()),
        };
    };
    Ok(Json(task.ask(|reply| Message::Forget(order, reply)).await?))
}

#[derive(serde::Deserialize)]
struct LogsQuery {
    #[serde(default)]
    offset: u64,
}

async fn logs(
    State(host): App,
    Path(id): Path<JobId>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Refusal> {
    let task = host.task(id)?;
    Ok(Body::from_stream(streams::logs(&task, query.offset)).into_response())
}

/// Joins the request and its answer to a connection to the task's SSH server, until either side ends.
async fn ssh(State(host): App, Path(id): Path<JobId>, body: Body) -> Result<Response, Refusal> {
    let resolved = host.task(id)?.snapshot().map(|state| state.resolved).unwrap_or_default();
    let port = resolved.ports.get(&SSH_PORT).copied();
    let none = || refuse(AgentErrorCode::WrongPhase, "the job has no SSH server, or not yet");
    let stream = entrance::connect(port.ok_or_else(none)?).await.map_err(|error| {
        let message = format!("the job's SSH server does not answer: {error}");
        refuse(AgentErrorCode::WrongPhase, message)
    })?;
    let network = resolved.on_host_network.then(network_of_this_process).flatten();
    let network = network.and_then(|network| HeaderValue::try_from(network).ok());
    let headers = network.map(|network| [(NETWORK_HEADER, network)]);
    Ok((headers, entrance::join(stream, body)).into_response())
}

async fn ack(State(host): App, Path(id): Path<JobId>, body: Body) -> Answer<()> {
    let ack: LogAck = read(body).await?;
    host.task(id)?.acknowledge(&ack).await;
    Ok(Json(()))
}

async fn shutdown(State(host): App) -> Answer<()> {
    let running = host.snapshot().into_iter().find(|state| state.phase < TaskPhase::Sealed);
    if let Some(state) = running {
        let message = format!("the task {} has not ended", state.id);
        return Err(refuse(AgentErrorCode::WrongPhase, message).into());
    }
    host.shutdown.send_replace(true);
    Ok(Json(()))
}

/// Reads a request's JSON, whatever its content type says.
async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let invalid = |error: String| Refusal(refuse(AgentErrorCode::InvalidRequest, error));
    let bytes = axum::body::to_bytes(body, REQUEST_LIMIT).await.map_err(|error| invalid(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(format!("the request: {error}")))
}

/// A failure of ours.
pub(crate) fn internal(error: impl std::fmt::Display) -> AgentError {
    refuse(AgentErrorCode::Internal, error.to_string())
}
