//! First starts, later starts, and starts that must not succeed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{ADMIN, Home, TestServer};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_first_start_makes_everything() {
    let server = TestServer::new().await;
    let url = server.url("");
    let dir = server.home.server_dir();
    let config = fs::read_to_string(dir.join("config.yml")).unwrap();
    assert_eq!(config, "projects:\n- name: main\n  backends:\n  - type: local\nencryption:\n  keys: []\n");
    let cli = fs::read_to_string(server.home.path().join(".dstack/config.yml")).unwrap();
    let expected = format!("projects:\n- default: true\n  name: main\n  token: {ADMIN}\n  url: {url}\n");
    assert_eq!(cli, expected);
    for file in ["config.yml", "data/sqlite.db", "data/encryption.key"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(&server.home.path().join(".dstack/config.yml")), 0o600);
    assert_eq!(mode(&dir.join("data")), 0o700);
    let me = server.post("/api/users/get_my_user", Value::Null).await.ok();
    assert_eq!((&me["username"], &me["global_role"]), (&json!("admin"), &json!("admin")));
    assert_eq!(me["creds"]["token"], ADMIN);
    assert_eq!(server.server.admin_token(), ADMIN);
    let main = server.post("/api/projects/main/get", Value::Null).await.ok();
    assert_eq!((&main["owner"]["username"], &main["backends"]), (&json!("admin"), &json!([])));
    assert_eq!(main["members"][0]["project_role"], "admin");
    // Clients are not told of this machine; it is there all the same.
    let info = server.post("/api/project/main/backends/local/config_info", Value::Null).await.ok();
    assert_eq!(info["type"], "local");
}

#[tokio::test]
async fn a_later_start_keeps_everything() {
    let server = TestServer::new().await;
    let secret = json!({"name": "s", "value": "v"});
    server.post("/api/project/main/secrets/create_or_update", secret).await.ok();
    let before = server.post("/api/users/get_my_user", Value::Null).await.ok();
    let home = server.stop().await;
    fs::write(home.server_dir().join("config.yml"), "# mine\nprojects:\n- name: main\n- name: team\n").unwrap();
    let server = home.start(&["--token", "another"]).await;
    assert_eq!(server.server.admin_token(), ADMIN);
    assert_eq!(server.post("/api/users/get_my_user", Value::Null).await.ok(), before);
    let secret = server.post("/api/project/main/secrets/get", json!({"name": "s"})).await.ok();
    assert_eq!(secret["value"], "v");
    server.post("/api/projects/team/get", Value::Null).await.ok();
    let config = fs::read_to_string(server.home.server_dir().join("config.yml")).unwrap();
    assert!(config.starts_with("# mine\n"));
    let epoch = store::server_state::get(&server.server.deps.db, store::server_state::EPOCH).await.unwrap();
    assert_eq!(epoch.as_deref(), Some("2"));
}

#[tokio::test]
async fn backends_follow_the_config_file() {
    let home = Home::new();
    home.configure("projects:\n- name: main\n  backends:\n  - type: local\n    cpus: 2\n- name: team\n");
    let server = home.start(&[]).await;
    let at = "/api/project/main/backends/local/config_info";
    assert_eq!(server.post(at, Value::Null).await.ok()["cpus"], 2);
    let home = server.stop().await;
    home.configure("projects:\n- name: main\n  backends:\n  - type: local\n    cpus: 3\n  - type: gcp\n");
    let server = home.start(&[]).await;
    assert_eq!(server.post(at, Value::Null).await.ok()["cpus"], 3);
    let home = server.stop().await;
    home.configure("projects:\n- name: main\n");
    let server = home.start(&[]).await;
    server.post(at, Value::Null).await.expect_bad_request("Backend not available", "backend_not_available");
    // It is forgotten once nothing of ours is left where it buys.
    let kept = store::backends::all(&server.server.deps.db).await.unwrap();
    assert!(kept.iter().all(|row| row.draining), "{kept:?}");
    server::reconcile::tidy::pass(&server.server.deps).await.unwrap();
    assert_eq!(store::backends::all(&server.server.deps.db).await.unwrap(), []);
}

#[tokio::test]
async fn a_config_file_may_be_left_alone() {
    let home = Home::new();
    home.configure("no: sense\n");
    let server = home.start(&["--config-disabled"]).await;
    server.post("/api/projects/main/get", Value::Null).await.ok();
}

#[tokio::test]
async fn a_wrong_config_file_stops_the_start_with_its_line() {
    let home = Home::new();
    home.configure("projects:\n- name: main\n  backends:\n  - type: local\n    cpu: 2\n");
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("config.yml:5:5") && error.contains("did you mean `cpus`?"), "{error}");
    assert!(!home.server_dir().join("data/sqlite.db").exists());
    home.configure("projects:\n- name: main\nplugins:\n- my_plugin\n");
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("plugins are Python packages"), "{error}");
}

/// The part of `config.yml` with these keys.
fn keys(bytes: &[u8]) -> String {
    use base64::Engine as _;
    let key = |byte: &u8| {
        let secret = base64::engine::general_purpose::STANDARD.encode([*byte; 32]);
        format!("  - type: aes\n    name: k{byte}\n    secret: {secret}\n")
    };
    format!("encryption:\n  keys:\n{}", bytes.iter().map(key).collect::<String>())
}

#[tokio::test]
async fn keys_of_the_config_file_are_used_and_missed() {
    let home = Home::new();
    home.configure(&keys(&[1]));
    let server = home.start(&[]).await;
    let home = server.stop().await;
    assert!(!home.server_dir().join("data/encryption.key").exists());
    home.configure(&keys(&[2]));
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.starts_with("the encryption keys do not open this database"), "{error}");
    home.configure(&keys(&[2, 1]));
    let server = home.start(&[]).await;
    server.post("/api/users/get_my_user", Value::Null).await.ok();
    let secret = json!({"name": "s", "value": "v"});
    server.post("/api/project/main/secrets/create_or_update", secret).await.ok();
    // Each key that ever sealed something is missed, not the first one alone.
    let home = server.stop().await;
    home.configure(&keys(&[1]));
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.starts_with("the encryption keys do not open this database"), "{error}");
    home.configure(&keys(&[3, 1, 2]));
    let server = home.start(&[]).await;
    let secret = server.post("/api/project/main/secrets/get", json!({"name": "s"})).await.ok();
    assert_eq!(secret["value"], "v");
}

#[tokio::test]
async fn a_key_is_missed_in_databases_of_earlier_releases_too() {
    let home = Home::new();
    home.configure(&keys(&[1]));
    let server = home.start(&[]).await;
    let deps = &server.server.deps;
    // They kept something that was sealed in place of the names of keys.
    store::server_state::set(&deps.db, "sealing_check", &deps.sealer.seal("fits")).await.unwrap();
    store::server_state::set(&deps.db, "sealing_keys", "").await.unwrap();
    let home = server.stop().await;
    home.configure(&keys(&[2]));
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.starts_with("the encryption keys do not open this database"), "{error}");
    home.configure(&keys(&[2, 1]));
    let home = home.start(&[]).await.stop().await;
    home.configure(&keys(&[2]));
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.starts_with("the encryption keys do not open this database"), "{error}");
}

#[tokio::test]
async fn a_key_that_is_none_stops_the_start_with_its_line_and_is_not_told() {
    let home = Home::new();
    home.configure("encryption:\n  keys:\n  - type: aes\n    name: k1\n    secret: bXkgc2VjcmV0\n");
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("config.yml:3:") && error.contains("`k1`: the secret is not 32 bytes"), "{error}");
    home.configure("encryption:\n  keys:\n  - type: aes\n    name: k1\n    secrte: bXkgc2VjcmV0\n");
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("config.yml:5:") && !error.contains("bXkgc2VjcmV0"), "{error}");
}

#[tokio::test]
async fn a_config_file_that_was_lost_takes_nothing_away() {
    let home = Home::new();
    home.configure("projects:\n- name: main\n  backends:\n  - type: local\n    cpus: 3\n");
    let home = home.start(&[]).await.stop().await;
    let file = home.server_dir().join("config.yml");
    fs::remove_file(&file).unwrap();
    let server = home.start(&[]).await;
    let info = server.post("/api/project/main/backends/local/config_info", Value::Null).await.ok();
    assert_eq!(info["cpus"], 3);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_first_start_that_cannot_write_the_config_file_is_a_first_start_again() {
    let home = Home::new();
    // The draft of the file would get this name.
    let obstacle = home.server_dir().join(format!(".config.yml.{}", std::process::id()));
    fs::create_dir_all(&obstacle).unwrap();
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.starts_with("write `") && error.contains("config.yml"), "{error}");
    fs::remove_dir(&obstacle).unwrap();
    let server = home.start(&[]).await;
    assert!(server.home.server_dir().join("config.yml").exists());
    server.post("/api/project/main/backends/local/config_info", Value::Null).await.ok();
}

#[tokio::test]
async fn one_database_file_is_one_servers_whatever_its_folder() {
    let shared = tempfile::tempdir().unwrap();
    let url = format!("sqlite:///{}", shared.path().join("shared.db").display());
    let server = Home::new().start(&["--database-url", &url]).await;
    let error = format!("{:#}", Home::new().try_start(&["--database-url", &url]).await.unwrap_err());
    assert!(error.starts_with("another dstack server uses") && error.contains("shared.db"), "{error}");
    let home = server.stop().await;
    home.start(&["--database-url", &url]).await;
    // Nor is a file shared that its own server was told nothing of.
    let server = TestServer::new().await;
    let url = format!("sqlite:///{}", server.home.server_dir().join("data/sqlite.db").display());
    let error = format!("{:#}", Home::new().try_start(&["--database-url", &url]).await.unwrap_err());
    assert!(error.starts_with("another dstack server uses") && error.contains("sqlite.db"), "{error}");
}

#[tokio::test]
async fn a_second_server_on_the_same_files_is_refused() {
    let server = TestServer::new().await;
    let error = format!("{:#}", server.home.try_start(&[]).await.unwrap_err());
    assert!(error.starts_with("another dstack server uses"), "{error}");
    let port = server.server.address.port().to_string();
    let error = format!("{:#}", Home::new().try_start(&["-p", &port]).await.unwrap_err());
    assert!(error.starts_with(&format!("port {port} of 127.0.0.1 is in use")), "{error}");
}

#[tokio::test]
async fn another_default_project_of_the_cli_stays_without_a_terminal() {
    let home = Home::new();
    let cli = home.path().join(".dstack/config.yml");
    fs::create_dir_all(cli.parent().unwrap()).unwrap();
    let other = "projects:\n- default: true\n  name: other\n  token: t\n  url: u\n";
    fs::write(&cli, other).unwrap();
    let server = home.start(&["-n"]).await;
    assert_eq!(fs::read_to_string(&cli).unwrap(), other);
    let home = server.stop().await;
    let server = home.start(&["-y"]).await;
    let text = fs::read_to_string(&cli).unwrap();
    assert!(text.contains("- default: false\n  name: other") && text.contains("- default: true\n  name: main"));
    server.stop().await;
}

#[tokio::test]
async fn a_stopped_server_lets_go_of_port_and_files() {
    let server = TestServer::new().await;
    let address = server.server.address;
    let home = server.stop().await;
    let server = home.start(&["-p", &address.port().to_string()]).await;
    server.post("/api/users/get_my_user", Value::Null).await.ok();
}

#[tokio::test]
async fn a_database_that_cannot_be_used_stops_the_start_with_a_hint() {
    let home = TestServer::new().await.stop().await;
    let file = home.server_dir().join("data/sqlite.db");
    fs::write(&file, "this is no database, but long enough to be looked at as one".repeat(20)).unwrap();
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("the file is damaged") || error.contains("not a database"), "{error}");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("sqlite.db"), "{error}");
}
