//! What is secret is neither in the database's files, nor readable by others.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{ADMIN, TestServer};

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn nothing_secret_is_in_the_files_of_the_server() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    let secret = json!({"name": "s", "value": "VALUE-OF-A-SECRET"});
    server.post("/api/project/main/secrets/create_or_update", secret).await.ok();
    let repo = json!({"repo_id": "z", "repo_info": {"repo_type": "remote", "repo_name": "z"},
        "repo_creds": {"clone_url": "u", "oauth_token": "TOKEN-OF-A-REPO", "private_key": "KEY-OF-A-REPO"}});
    server.post("/api/project/main/repos/init", repo).await.ok();
    let task = json!({"type": "task", "image": "x/y", "commands": ["true"],
        "registry_auth": {"username": "u", "password": "PASSWORD-OF-A-REGISTRY"}});
    let plan = json!({"plan": {"run_spec": {"run_name": "r1", "configuration": task}}, "force": false});
    let run = server.post("/api/project/main/runs/apply", plan).await.ok();
    assert_eq!(run["run_spec"]["configuration"]["registry_auth"]["password"], "PASSWORD-OF-A-REGISTRY");
    let config = ::backends::BackendConfig {
        kind: "cloud".to_owned(),
        config: json!({"type": "cloud", "creds": {"secret_key": "KEY-OF-A-CLOUD"}}),
    };
    let project = store::projects::find_by_name(&server.server.deps.db, "main").await.unwrap().unwrap();
    server::accounts::set_backend(&server.server.deps, project.id, &config).await.unwrap();
    let me = server.post("/api/users/get_my_user", Value::Null).await.ok();
    // A line from the middle of the key, which all keys have of their own.
    let private_key = me["ssh_private_key"].as_str().unwrap().lines().nth(3).unwrap().to_owned();

    let home = server.stop().await;
    let secrets = [
        ADMIN,
        &bob,
        "VALUE-OF-A-SECRET",
        "TOKEN-OF-A-REPO",
        "KEY-OF-A-REPO",
        "KEY-OF-A-CLOUD",
        "PASSWORD-OF-A-REGISTRY",
        &private_key,
        "OPENSSH PRIVATE KEY",
    ];
    let files = files_below(&home.server_dir());
    assert!(files.iter().any(|file| file.ends_with("sqlite.db")), "{files:?}");
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for secret in secrets {
            assert!(!holds(&bytes, secret), "`{secret}` is in {}", file.display());
        }
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} may be read by others: {mode:o}", file.display());
    }
    // The test looks where things are: what is not secret is found.
    assert!(holds(&std::fs::read(home.server_dir().join("data/sqlite.db")).unwrap(), "bob"));
}
