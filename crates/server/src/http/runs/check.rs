//! What is wrong with a submission, and what this server does not have. What it does not have is refused by name,
//! never accepted and left out.

use api::configurations::{Mount, RunConfiguration, Runtime};
use api::error::ErrorCode;
use api::jobs::JobSpec;
use api::repos::RepoData;
use api::runs::RunSpec;
use lifecycle::placement::profile_of;
use lifecycle::run::effective::{check_repo, check_submission, fill_defaults};
use lifecycle::run::interpolation::{interpolate, names_in};
use lifecycle::run::job_specs;
use store::blobs;

use crate::deps::Deps;
use crate::http::auth::Access;
use crate::http::error::{Error, Result, check_length};

/// Without a container nothing stands between a job and its host, not even where the host is a fleet's.
const PROCESS_OF_ADMIN: &str = "`runtime: process` is for global admins only: such jobs have all rights of the agent \
    on their host. Use an `image`";

/// A submission that can be run, as far as can be told before it is.
#[derive(Debug)]
pub(super) struct Checked {
    /// With the server's defaults.
    pub(super) effective: RunSpec,
    /// The jobs of one replica.
    pub(super) jobs: Vec<JobSpec>,
}

impl Checked {
    /// Fills defaults, checks, and makes the jobs.
    pub(super) async fn new(deps: &Deps, access: &Access, spec: &RunSpec) -> Result<Checked> {
        check_repo(spec).map_err(Error::bad_request)?;
        let mut effective = fill_defaults(spec.clone(), &access.user.ssh_public_key);
        if effective.run_name.is_none() {
            effective.run_name.clone_from(effective.configuration.common().name);
        }
        check_submission(&effective).map_err(Error::bad_request)?;
        check_supported(&effective)?;
        let runs_as_process = *effective.configuration.common().runtime == Some(Runtime::Process);
        if runs_as_process && !access.is_global_admin() {
            return Err(Error::bad_request(PROCESS_OF_ADMIN));
        }
        check_archives(deps, access, &effective).await?;
        check_registry_secrets(deps, access, &effective).await?;
        let jobs = job_specs(&effective, &deps.settings.default_image).map_err(Error::bad_request)?;
        Ok(Checked { effective, jobs })
    }

    /// Checks that the repository is known and has the code. Those that hold nothing need not be known.
    pub(super) async fn check_repo_exists(&self, deps: &Deps, access: &Access) -> Result<()> {
        let (Some(repo_id), Some(data)) = (&self.effective.repo_id, &self.effective.repo_data) else {
            return Ok(());
        };
        let code = self.effective.repo_code_hash.as_deref();
        if matches!(data, RepoData::Virtual {}) && code.is_none() {
            return Ok(());
        }
        let Some(repo) = store::repos::find(&deps.db, access.project.id, repo_id).await? else {
            let message = format!("Repo {repo_id} does not exist");
            return Err(Error::coded(ErrorCode::RepoDoesNotExist, message));
        };
        if let Some(code) = code
            && !blobs::has_code(&deps.db, repo.id, code).await?
        {
            return Err(Error::bad_request(format!(
                "The code {code} (`repo_code_hash`) of repo {repo_id} does not exist: upload it first"
            )));
        }
        Ok(())
    }
}

/// What a run of this server cannot have.
fn check_supported(spec: &RunSpec) -> Result<()> {
    let common = spec.configuration.common();
    let profile = profile_of(spec);
    let kind = match &spec.configuration {
        RunConfiguration::Task(_) | RunConfiguration::DevEnvironment(_) => None,
        RunConfiguration::Service(_) => Some("`type: service` is not supported by this server yet"),
    };
    let runs_as_process = *common.runtime == Some(Runtime::Process);
    let refusals = [
        (profile.schedule.is_some(), "`schedule` is not supported by this server yet"),
        (profile.utilization_policy.is_some(), "`utilization_policy` is not supported by this server yet"),
        (*common.docker == Some(true), "`docker: true` is not supported by this server yet"),
        (*common.dstack, "`dstack: true` is not supported by this server yet"),
        (
            !common.setup.is_empty(),
            "`setup` is not supported by this server: put its lines first in `commands` or `init`",
        ),
        (
            profile.backend_options.as_ref().is_some_and(|options| !options.is_empty()),
            "`backend_options` is not supported by this server: it has no such backend",
        ),
        (
            runs_as_process && !common.volumes.is_empty(),
            "`volumes` need a container, and `runtime: process` has none",
        ),
        (runs_as_process && *common.privileged, "`privileged` needs a container, and `runtime: process` has none"),
        (
            runs_as_process && common.registry_auth.is_some(),
            "`registry_auth` needs a container, and `runtime: process` has none",
        ),
    ];
    let refused = refusals.iter().find(|(is_set, _)| *is_set).map(|(_, message)| *message);
    if let Some(message) = kind.or(refused) {
        return Err(Error::bad_request(message));
    }
    check_uploads(spec)?;
    for mount in common.volumes {
        if let Mount::Volume(mount) = mount {
            let names: Vec<String> = mount.name.names().iter().map(|name| format!("'{name}'")).collect();
            return Err(Error::not_exists(format!("Volume [{}] not found", names.join(", "))));
        }
    }
    Ok(())
}

/// The files of a run come in uploads, which clients make of `files` and `repos`; the keys alone bring nothing.
fn check_uploads(spec: &RunSpec) -> Result<()> {
    let common = spec.configuration.common();
    if !common.repos.is_empty() && matches!(spec.repo_data, None | Some(RepoData::Virtual {})) {
        return Err(Error::bad_request(
            "`repos` is set, and yet `repo_data` names no repository: submit the run with the CLI, or send `repo_id` \
             and `repo_data`",
        ));
    }
    let (named, uploaded) = (common.files.len(), spec.file_archives.len());
    if uploaded < named {
        return Err(Error::bad_request(format!(
            "`files` names {named} paths, and yet `file_archives` names {uploaded} uploads: submit the run with the \
             CLI, or upload an archive of each path and send its identifier",
        )));
    }
    Ok(())
}

/// Archives are named by identifiers, which anybody could send: what others uploaded is not given away.
async fn check_archives(deps: &Deps, access: &Access, spec: &RunSpec) -> Result<()> {
    check_length("file_archives", spec.file_archives.len())?;
    for file in &spec.file_archives {
        let archive = blobs::get_archive(&deps.db, file.id).await?;
        if archive.is_none_or(|archive| archive.user_id != access.user.id) {
            return Err(Error::bad_request(format!(
                "The archive {} (`file_archives`) of `{}` does not exist: upload it first",
                file.id.0, file.path
            )));
        }
    }
    Ok(())
}

/// A registry's credentials are needed before the job starts, so what they name must be there already.
async fn check_registry_secrets(deps: &Deps, access: &Access, spec: &RunSpec) -> Result<()> {
    let Some(auth) = spec.configuration.common().registry_auth else { return Ok(()) };
    let refuse =
        |error: &dyn std::fmt::Display| Error::bad_request(format!("Secrets interpolation error: {error}"));
    let mut wanted = vec![];
    for text in [&auth.username, &auth.password] {
        wanted.extend(names_in(text).map_err(|error| refuse(&error))?);
    }
    let names: Vec<String> =
        wanted.iter().filter_map(|name| name.strip_prefix("secrets.")).map(str::to_owned).collect();
    let known = store::secrets::find_many(&deps.db, access.project.id, &names).await?;
    let lookup = |name: &str| {
        let name = name.strip_prefix("secrets.")?;
        known.iter().any(|secret| secret.name == name).then(String::new)
    };
    for text in [&auth.username, &auth.password] {
        interpolate(text, lookup).map_err(|error| refuse(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(keys: Value, expected: Option<&str>) {
        let mut configuration = json!({ "type": "task", "commands": ["x"] });
        let is_task = keys.get("type").is_none();
        if is_task {
            configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        } else {
            configuration = keys;
        }
        let spec: RunSpec = serde_json::from_value(json!({ "configuration": configuration })).unwrap();
        let refused = check_supported(&spec).err().map(|error| error.to_string());
        match expected {
            None => assert_eq!(refused, None),
            Some(expected) => assert!(refused.as_ref().is_some_and(|text| text.contains(expected)), "{refused:?}"),
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        check(json!({}), None);
        check(json!({ "volumes": ["/a:/b"] }), None);
        check(json!({ "schedule": { "cron": "0 0 * * *" } }), Some("`schedule`"));
        check(
            json!({ "utilization_policy": { "min_gpu_utilization": 10, "time_window": "10m" } }),
            Some("`utilization_policy`"),
        );
        check(json!({ "type": "dev-environment", "inactivity_duration": "2h" }), None);
        check(json!({ "type": "service", "port": 80, "commands": ["x"] }), Some("`type: service`"));
        check(json!({ "docker": true }), Some("`docker: true`"));
        check(json!({ "dstack": true }), Some("`dstack: true`"));
        check(json!({ "setup": ["a"] }), Some("`setup`"));
        check(json!({ "volumes": ["nov:/data"] }), Some("Volume ['nov'] not found"));
        check(json!({ "volumes": ["/a:/b"], "runtime": "process" }), Some("`volumes` need a container"));
        let auth = json!({ "username": "u", "password": "p" });
        check(json!({ "registry_auth": auth, "runtime": "process" }), Some("`registry_auth` needs a container"));
        check(json!({ "files": ["a.txt"] }), Some("`file_archives` names 0 uploads"));
        check(json!({ "repos": ["https://x.y/z.git"] }), Some("`repo_data` names no repository"));
    }
}
