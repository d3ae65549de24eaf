//! HTTP around the simulation, as thin as it can be: requests in, replies out, in their time.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::auth::Request;
use crate::call::Outcome;
use crate::control::ControlError;
use crate::simulator::Simulator;

/// Where orders are given.
pub const CONTROL_PATH: &str = "/_ec2sim";

/// How long the world is left alone at the most; what is due sooner happens sooner.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// A simulation that is served. It ends with this value.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// What clients are to be told as their endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until it ends, which it does not by itself.
    pub async fn wait(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Serves a simulation at an address, of which the port may be 0.
pub async fn serve(simulator: Simulator, address: SocketAddr) -> Result<Server> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let address = listener.local_addr().context("ask for the address")?;
    let order = get(look).post(control);
    let app = Router::new()
        .route(&format!("{CONTROL_PATH}/{{*name}}"), order)
        .fallback(any(call))
        .layer(DefaultBodyLimit::max(4 * 1024 * 1024))
        .with_state(simulator.clone());
    let serving = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!("stopped serving: {error}");
        }
    });
    let ticking = tokio::spawn(async move {
        loop {
            let next = simulator.advance();
            let rest = next.and_then(|at| Duration::try_from(at.duration_since(simulator.now())).ok());
            tokio::time::sleep(rest.unwrap_or(LONGEST_REST).clamp(Duration::from_millis(1), LONGEST_REST)).await;
        }
    });
    Ok(Server { address, tasks: vec![serving, ticking] })
}

async fn call(
    State(simulator): State<Simulator>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let request = Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        headers: headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        body: body.to_vec(),
    };
    let reply = simulator.call(&request);
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    match reply.outcome {
        Outcome::Answer(answer) => {
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let headers = [
                (header::CONTENT_TYPE.as_str(), answer.content_type.to_owned()),
                ("x-amzn-requestid", answer.request_id),
            ];
            (status, headers, answer.body).into_response()
        }
        // A body that fails before its first byte: the connection is closed in the middle of the answer.
        Outcome::Cut => {
            let broken = std::io::Error::other("the connection is cut on request");
            let body = Body::from_stream(futures_util::stream::once(async move { Err::<Bytes, _>(broken) }));
            (StatusCode::OK, [(header::CONTENT_LENGTH, "1000000")], body).into_response()
        }
    }
}

async fn look(State(simulator): State<Simulator>, Path(name): Path<String>) -> Response {
    answer(simulator.look(&name))
}

async fn control(State(simulator): State<Simulator>, Path(name): Path<String>, body: Bytes) -> Response {
    let body = if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice::<Value>(&body) };
    answer(body.map_err(|error| ControlError(error.to_string())).and_then(|body| simulator.control(&name, &body)))
}

fn answer(result: Result<Value, ControlError>) -> Response {
    match result {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, axum::Json(json!({"error": error.0}))).into_response(),
    }
}
