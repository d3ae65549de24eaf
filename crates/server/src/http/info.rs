//! What the server tells of itself.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use schemars::JsonSchema;
use serde::Serialize;
use store::runs::{self, RunCounts};

use super::auth::bearer_token;
use super::error::{Error, Result};
use super::extract::Json;
use super::version::SERVER_VERSION;
use crate::deps::Deps;
use crate::sealing::token_hash;

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

/// Numbers for Prometheus, where they are wanted. They have a token of their own, which need not be set.
pub async fn prometheus(State(deps): State<Deps>, headers: HeaderMap) -> Result<Response> {
    if let Some(wanted) = &deps.settings.prometheus_token_hash {
        let token = bearer_token(&headers).ok_or_else(Error::not_authenticated)?;
        if token_hash(token) != *wanted {
            return Err(Error::invalid_token());
        }
    }
    if !deps.settings.prometheus_metrics {
        return Err(Error::route_not_found());
    }
    let counts = runs::count_by_owner(&deps.db).await?;
    let mut response = metrics(&counts).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

/// A number of runs.
type CountOf = fn(&RunCounts) -> u64;

/// The official counters of runs, each with its help.
const RUN_COUNTERS: [(&str, &str, CountOf); 4] = [
    ("dstack_run_count_total", "Total runs count", |counts| counts.all),
    ("dstack_run_count_terminated_total", "Terminated runs count", |counts| counts.terminated),
    ("dstack_run_count_failed_total", "Failed runs count", |counts| counts.failed),
    ("dstack_run_count_done_total", "Done runs count", |counts| counts.done),
];

fn metrics(counts: &[RunCounts]) -> String {
    let mut text = format!(
        "# HELP dstack_server_info The version of the server\n# TYPE dstack_server_info gauge\n\
         dstack_server_info{{version=\"{SERVER_VERSION}\"}} 1\n"
    );
    for (name, help, count_of) in RUN_COUNTERS {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} counter\n"));
        for counts in counts {
            // Names have no characters that would need an escape.
            let (project, user) = (&counts.project, &counts.user);
            let count = count_of(counts);
            text.push_str(&format!(
                "{name}{{dstack_project_name=\"{project}\",dstack_user_name=\"{user}\"}} {count}.0\n"
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_in_the_official_form() {
        let counts = RunCounts {
            project: "main".to_owned(),
            user: "admin".to_owned(),
            all: 7,
            terminated: 4,
            failed: 2,
            done: 1,
        };
        let text = metrics(&[counts]);
        let official = "# HELP dstack_run_count_total Total runs count\n# TYPE dstack_run_count_total counter\n\
                        dstack_run_count_total{dstack_project_name=\"main\",dstack_user_name=\"admin\"} 7.0\n\
                        # HELP dstack_run_count_terminated_total Terminated runs count\n";
        assert!(text.contains(official), "{text}");
        assert!(text.ends_with(
            "dstack_run_count_done_total{dstack_project_name=\"main\",dstack_user_name=\"admin\"} 1.0\n"
        ));
    }
}
