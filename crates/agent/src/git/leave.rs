//! What a job's own `git` needs to read and write the repository of its run: the credentials in files that only the
//! job's user reads, and variables that name these files. Nothing of the user's or of the clone is changed.

use std::collections::BTreeMap;
use std::path::Path;

use api::agent::GitRepo;
use percent_encoding::{NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use super::remote::{Login, http_login};
use super::url::{Scheme, Url};
use crate::shell::quote;

/// A file that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Secret {
    /// Its name in the folder.
    pub(crate) name: &'static str,
    /// What is in it.
    pub(crate) text: String,
}

/// The file of credentials, in the form of `git credential-store`.
const CREDENTIALS: &str = "credentials";
/// The file of the private key.
const KEY: &str = "key";
/// Where `ssh` notes hosts that it did not know. The user's own file may be shared.
const KNOWN_HOSTS: &str = "known_hosts";

/// The files to put into `folder`, and `env` completed so that `git` finds them. What the user set wins.
pub(crate) fn credentials(repo: &GitRepo, folder: &Path, env: &mut BTreeMap<String, String>) -> Vec<Secret> {
    let Ok(url) = Url::parse(&repo.url) else { return Vec::new() };
    if let Some(key) = repo.private_key.as_ref().filter(|_| repo.token.is_none()) {
        let file = folder.join(KEY);
        let known = format!("UserKnownHostsFile=\"{}\" ~/.ssh/known_hosts", folder.join(KNOWN_HOSTS).display());
        let command = format!(
            "ssh -i {} -o StrictHostKeyChecking=accept-new -o {}",
            quote(&file.to_string_lossy()),
            quote(&known)
        );
        env.entry("GIT_SSH_COMMAND".to_owned()).or_insert(command);
        return vec![Secret { name: KEY, text: format!("{}\n", key.trim_end()) }];
    }
    let url = if url.scheme == Scheme::Ssh { url.over_https() } else { url };
    let login = Login { token: repo.token.clone(), private_key: None };
    let Some((user, password)) = http_login(&url, &login) else { return Vec::new() };
    let file = folder.join(CREDENTIALS);
    let helper = format!("store --file={}", quote(&file.to_string_lossy()));
    add_setting(env, &format!("credential.{}.helper", url.origin()), &helper);
    let scheme = if url.scheme == Scheme::Http { "http" } else { "https" };
    let text = format!("{scheme}://{}:{}@{}\n", escape(&user), escape(&password), url.authority());
    vec![Secret { name: CREDENTIALS, text }]
}

/// Adds a setting of `git` to those that the environment has already.
fn add_setting(env: &mut BTreeMap<String, String>, key: &str, value: &str) {
    let count = env.get("GIT_CONFIG_COUNT").and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
    env.insert(format!("GIT_CONFIG_KEY_{count}"), key.to_owned());
    env.insert(format!("GIT_CONFIG_VALUE_{count}"), value.to_owned());
    env.insert("GIT_CONFIG_COUNT".to_owned(), (count + 1).to_string());
}

/// As it stands in an address.
fn escape(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(url: &str, token: Option<&str>, key: Option<&str>) -> GitRepo {
        GitRepo {
            url: url.to_owned(),
            token: token.map(str::to_owned),
            private_key: key.map(str::to_owned),
            branch: None,
            hash: None,
            all_branches: false,
            user_name: None,
            user_email: None,
        }
    }

    #[test]
    fn a_token_becomes_a_file_of_credentials_for_its_host_only() {
        let mut env = BTreeMap::from([("GIT_CONFIG_COUNT".to_owned(), "1".to_owned())]);
        let repo = repo("git@git.example.com:org/app.git", Some("a/b"), None);
        let files = credentials(&repo, Path::new("/it's"), &mut env);
        assert_eq!(files[0].text, "https://oauth2:a%2Fb@git.example.com\n");
        assert_eq!(env["GIT_CONFIG_COUNT"], "2");
        assert_eq!(env["GIT_CONFIG_KEY_1"], "credential.https://git.example.com.helper");
        assert_eq!(env["GIT_CONFIG_VALUE_1"], r"store --file='/it'\''s/credentials'");
    }

    #[test]
    fn what_the_user_set_wins_and_public_repositories_leave_nothing() {
        let mut env = BTreeMap::from([("GIT_SSH_COMMAND".to_owned(), "mine".to_owned())]);
        let private = repo("git@git.example.com:org/app.git", None, Some("key"));
        assert_eq!(
            credentials(&private, Path::new("/d"), &mut env),
            [Secret { name: KEY, text: "key\n".to_owned() }]
        );
        assert_eq!(env["GIT_SSH_COMMAND"], "mine");
        assert_eq!(credentials(&repo("https://git.example.com/a", None, None), Path::new("/d"), &mut env), []);
        assert_eq!(env.len(), 1);
    }
}
