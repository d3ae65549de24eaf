//! What the server tells of itself.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::error::{Error, Result};
use super::extract::Json;
use super::version::SERVER_VERSION;
use crate::deps::Deps;

/// The answer of `server/get_info`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServerInfo {
    /// The official version whose API this server speaks.
    server_version: &'static str,
}

/// The answer of `/healthcheck`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    /// Always `running`.
    status: &'static str,
}

pub async fn get_info() -> Json<ServerInfo> {
    Json(ServerInfo { server_version: SERVER_VERSION })
}

pub async fn healthcheck() -> Json<Health> {
    Json(Health { status: "running" })
}

/// Numbers for Prometheus, where they are wanted.
pub async fn prometheus(State(deps): State<Deps>) -> Result<Response> {
    if !deps.settings.prometheus_metrics {
        return Err(Error::route_not_found());
    }
    let text = format!(
        "# HELP dstack_server_info The version of the server\n# TYPE dstack_server_info gauge\n\
         dstack_server_info{{version=\"{SERVER_VERSION}\"}} 1\n"
    );
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
