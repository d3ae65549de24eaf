//! What somebody should know before they submit a run: accepted, and yet perhaps not what they meant.

use api::configurations::{ResourcesSpec, Runtime};
use api::ids::ProjectId;
use api::runs::RunSpec;
use lifecycle::placement::{Gang, Pool};

use crate::deps::Deps;
use crate::http::error::Result;

/// The home in containers unless the configuration says otherwise.
const DEFAULT_HOME: &str = "/root";

/// The warnings of a plan.
pub(super) async fn warnings(
    deps: &Deps,
    project: ProjectId,
    spec: &RunSpec,
    gang: &Gang,
    pool: &Pool,
) -> Result<Vec<String>> {
    let mut warnings = literal_variables(spec);
    if may_be_process(deps, project, spec, gang).await? {
        warnings.extend(without_container(spec));
    }
    // Whoever has no fleet is told so by every client.
    if !pool.fleets.is_empty() {
        warnings.extend(gang.obstacle(pool));
    }
    Ok(warnings)
}

/// Whether the jobs would be plain processes if the run were placed now.
async fn may_be_process(deps: &Deps, project: ProjectId, spec: &RunSpec, gang: &Gang) -> Result<bool> {
    if *spec.configuration.common().runtime == Some(Runtime::Process) {
        return Ok(true);
    }
    if gang.needs_docker {
        return Ok(false);
    }
    let opened = deps.backends.of_project(&deps.db, project).await?;
    let wanted = gang.profile.backends.as_ref();
    Ok(opened.iter().any(|open| {
        let capabilities = open.backend.capabilities();
        let named = wanted.is_none_or(|list| list.contains(&backends::wire_type_of(&open.kind)));
        named && capabilities.processes_without_image && (gang.user_is_admin || !capabilities.admins_only)
    }))
}

/// Values are passed as they are written: nothing puts variables into them.
fn literal_variables(spec: &RunSpec) -> Vec<String> {
    let env = spec.configuration.common().env;
    env.known()
        .filter_map(|(name, value)| {
            let variable = first_variable(value)?;
            Some(format!(
                "`env`: the value of `{name}` is passed literally, `{variable}` in it is not replaced; set it in \
                 `commands` with `export` instead"
            ))
        })
        .collect()
}

/// The first `$X` or `${X}` of a text. `$$` is an escape, and `${{` belongs to the server.
fn first_variable(text: &str) -> Option<&str> {
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let after = &rest[dollar + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            rest = tail;
            continue;
        }
        if after.starts_with("{{") {
            rest = after;
            continue;
        }
        let inside = after.strip_prefix('{').unwrap_or(after);
        let length = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
        let starts_name = inside.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if starts_name {
            let braces = usize::from(inside.len() < after.len());
            let end = (dollar + 1 + braces + length + braces).min(rest.len());
            return rest.get(dollar..end);
        }
        rest = after;
    }
    None
}

/// What only a container can have.
fn without_container(spec: &RunSpec) -> Vec<String> {
    let common = spec.configuration.common();
    let resources = common.resources;
    let default = ResourcesSpec::default();
    let mut told = vec![];
    if resources.shm_size.is_some() {
        told.push("`shm_size`");
    }
    if *common.nvcc == Some(true) {
        told.push("`nvcc`");
    }
    if common.home_dir != DEFAULT_HOME {
        told.push("`home_dir`");
    }
    let mut warnings = vec![];
    if !told.is_empty() {
        warnings.push(format!(
            "{} have no effect where jobs run as plain processes; name an `image` to run in a container",
            told.join(", ")
        ));
    }
    if resources.memory != default.memory || resources.cpu.count != default.cpu.count {
        warnings.push(
            "where jobs run as plain processes, `memory` and `cpu` choose the machine but do not limit the job"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check_warnings(keys: &Value, of: impl Fn(&RunSpec) -> Vec<String>, expected: &[&str]) {
        let mut configuration = json!({ "type": "task", "commands": ["x"] });
        configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let spec: RunSpec = serde_json::from_value(json!({ "configuration": configuration })).unwrap();
        let warnings = of(&spec);
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        for (warning, part) in warnings.iter().zip(expected) {
            assert!(warning.contains(part), "{warnings:?}");
        }
    }

    #[test]
    fn what_only_a_container_has_is_told() {
        check_warnings(&json!({}), without_container, &[]);
        let keys = json!({ "nvcc": true, "home_dir": "/home/me", "resources": { "shm_size": "1GB" } });
        check_warnings(&keys, without_container, &["`shm_size`, `nvcc`, `home_dir` have no effect"]);
    }

    #[track_caller]
    fn check(value: &str, expected: Option<&str>) {
        assert_eq!(first_variable(value), expected, "{value}");
    }

    #[test]
    fn variables_in_values_are_found() {
        check("/opt/lib:$LD_LIBRARY_PATH", Some("$LD_LIBRARY_PATH"));
        check("${HOME}/x", Some("${HOME}"));
        check("${X:-1}", Some("${X:"));
        check("$$HOME", None);
        check("${{ secrets.a }}", None);
        check("${{ secrets.a }}$B", Some("$B"));
        check("costs 5$", None);
        check("$5", None);
        check("é$É$a", Some("$a"));
    }
}
