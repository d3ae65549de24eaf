//! The code of a task: uploaded, or a Git repository that its user can read.

use api::agent::{CodeDelivery, GitRepo};
use api::jobs::JobSpec;
use api::repos::{RepoCreds, RepoData};
use lifecycle::run::Run;
use store::repos;

use crate::deps::Deps;

/// Where the code of a job goes unless its configuration says otherwise.
const REPO_DIR: &str = "/workflow";

/// The code that a job is given, or why it cannot be, for people.
pub(super) async fn code_of(
    deps: &Deps,
    run: &Run,
    spec: &JobSpec,
    in_container: bool,
) -> store::Result<Result<Option<CodeDelivery>, String>> {
    if !has_code(spec) {
        return Ok(Ok(None));
    }
    let git = match git_of(deps, run, spec).await? {
        Ok(git) => git,
        Err(message) => return Ok(Err(message)),
    };
    Ok(Ok(Some(CodeDelivery {
        blob_sha256: spec.repo_code_hash.clone(),
        repo_dir: repo_path(spec.repo_dir.as_deref().unwrap_or(REPO_DIR), in_container),
        skip_if_exists: spec.repo_exists_action.as_deref() == Some("skip"),
        git,
    })))
}

/// Where the commands begin; that may be in the code.
pub(super) fn working_dir_of(spec: &JobSpec, in_container: bool) -> Option<String> {
    let dir = spec.working_dir.as_deref()?;
    let follows_code = has_code(spec) && spec.repo_dir.as_deref().unwrap_or(REPO_DIR) == REPO_DIR;
    Some(if follows_code { repo_path(dir, in_container) } else { dir.to_owned() })
}

fn has_code(spec: &JobSpec) -> bool {
    spec.repo_code_hash.is_some() || !matches!(spec.repo_data, None | Some(RepoData::Virtual {}))
}

/// The repository that a job clones, with what the run's user reads it by.
async fn git_of(deps: &Deps, run: &Run, spec: &JobSpec) -> store::Result<Result<Option<GitRepo>, String>> {
    let Some(RepoData::Remote { repo_branch, repo_hash, repo_config_name, repo_config_email, .. }) =
        &spec.repo_data
    else {
        return Ok(Ok(None));
    };
    let name = run.spec.repo_id.as_deref().unwrap_or_default();
    let creds = match creds_of(deps, run, name).await? {
        Ok(creds) => creds,
        Err(message) => return Ok(Err(message)),
    };
    Ok(Ok(Some(GitRepo {
        url: creds.clone_url,
        token: creds.oauth_token,
        private_key: creds.private_key,
        branch: repo_branch.clone(),
        hash: repo_hash.clone(),
        all_branches: spec.single_branch == Some(false),
        user_name: repo_config_name.clone(),
        user_email: repo_config_email.clone(),
    })))
}

async fn creds_of(deps: &Deps, run: &Run, name: &str) -> store::Result<Result<RepoCreds, String>> {
    let sealed = match repos::find(&deps.db, run.project_id, name).await? {
        Some(repo) => repos::sealed_creds(&deps.db, repo.id, run.user_id).await?,
        None => return Ok(Err(format!("the repo {name} no longer exists"))),
    };
    let Some(sealed) = sealed else {
        return Ok(Err(format!("the server does not know where the repo {name} is: run `dstack init`")));
    };
    // What is wrong with the text is not told: it holds secrets.
    let unreadable = || format!("the credentials of the repo {name} cannot be read: run `dstack init` again");
    let text = deps.sealer.unseal(&sealed).map_err(|_| unreadable());
    Ok(text.and_then(|text| serde_json::from_str(&text).map_err(|_| unreadable())))
}

/// A path in terms of where uploaded code goes. The default is made for containers: on a host it would be one folder
/// for everybody, and within the task's own folder it is nobody else's.
fn repo_path(path: &str, in_container: bool) -> String {
    let within = path.strip_prefix(REPO_DIR).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match within {
        Some(_) if !in_container => path.trim_start_matches('/').to_owned(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploaded_code_of_a_process_stays_in_its_own_folder() {
        let check = |path, in_container, expected| assert_eq!(repo_path(path, in_container), expected);
        check("/workflow", true, "/workflow");
        check("/workflow", false, "workflow");
        check("/workflow/train", false, "workflow/train");
        check("/workflows", false, "/workflows");
        check("/data/code", false, "/data/code");
        check("~/code", false, "~/code");
    }
}
