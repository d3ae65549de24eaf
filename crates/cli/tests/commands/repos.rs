//! `repos` of configurations: what is refused before a server is asked, and what a server is told.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::server::Server;
use crate::terminal::User;

const TASK: &str = "type: task\nname: x1\ncommands: [x]\nrepos: [code]\n";

/// The user's own settings of Git must not matter.
fn git(dir: &Path, arguments: &[&str]) -> String {
    let names = [("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_COMMITTER_NAME", "a")];
    let mut command = Command::new("git");
    command.current_dir(dir).args(arguments).envs(names).env("GIT_COMMITTER_EMAIL", "a@b");
    let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A user who has `git`.
fn user(server: &Server) -> User {
    User::of(server).with("PATH", &std::env::var("PATH").unwrap()).file("t.yml", TASK)
}

#[test]
fn a_folder_that_cannot_be_cloned_says_why() {
    let server = Server::start();
    let user = user(&server);
    let code = user.directory().join("code");
    let check = |expected: &str| {
        let ran = user.runs("apply -f t.yml -y");
        assert!(ran.out.starts_with(expected), "{}{}", ran.out, ran.err);
        assert_eq!(ran.code, 1);
    };
    check("Invalid repo path: code -> ");
    std::fs::create_dir(&code).unwrap();
    check("Git repo not found: ");
    git(&code, &["init", "-q", "-b", "main"]);
    git(&code, &["commit", "-q", "--allow-empty", "-m", "first"]);
    check("No remote branch is configured");
    git(&code, &["checkout", "-q", "--detach"]);
    check("Git repo in 'detached HEAD' state: ");
    assert!(server.requests().is_empty());
}

#[test]
fn a_repository_that_nobody_can_read_is_refused() {
    let server = Server::start();
    let user = user(&server);
    let origin = user.home.path().join("origin.git");
    let code = user.directory().join("code");
    git(user.home.path(), &["init", "-q", "--bare", "-b", "main", origin.to_str().unwrap()]);
    std::fs::create_dir(&code).unwrap();
    git(&code, &["init", "-q", "-b", "main"]);
    std::fs::write(code.join("f"), "one\n").unwrap();
    git(&code, &["add", "-A"]);
    git(&code, &["commit", "-q", "-m", "first"]);
    git(&code, &["remote", "add", "origin", origin.to_str().unwrap()]);
    git(&code, &["push", "-q", "-u", "origin", "main"]);
    git(&code, &["remote", "set-url", "origin", &format!("{}/o/app.git", server.url)]);
    let missing = json!({"detail": [{"msg": "Resource not found", "code": "resource_not_exists"}]});
    server.answer("/api/project/main/repos/get", 400, &missing);
    let ran = user.runs("apply -f t.yml -y");
    assert!(ran.out.starts_with("No valid default Git credentials found."), "{}{}", ran.out, ran.err);
    let asked = server.bodies("/api/project/main/repos/get");
    assert_eq!(asked[0]["include_creds"], json!(true));
    assert!(asked[0]["repo_id"].as_str().unwrap().starts_with("app-"), "{asked:?}");
}
