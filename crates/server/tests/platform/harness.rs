//! A server of the test's own, in this process, on a port of its own.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use server::startup::Surroundings;
use server::{Server, ServerArgs};

pub(crate) const ADMIN: &str = "tok-admin-123";

/// A server and the home of who started it.
pub(crate) struct TestServer {
    pub(crate) home: Home,
    pub(crate) server: Server,
    client: Client,
}

/// A home folder that is gone after the test.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The server's folder.
    pub(crate) fn server_dir(&self) -> PathBuf {
        self.path().join(".dstack/server")
    }

    /// Writes `config.yml` before the server starts.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::create_dir_all(self.server_dir()).unwrap();
        std::fs::write(self.server_dir().join("config.yml"), text).unwrap();
    }

    /// Tries to start a server here.
    pub(crate) async fn try_start(&self, more: &[&str]) -> anyhow::Result<Server> {
        let dir = self.server_dir();
        let fixed = ["dstack server", "--host", "127.0.0.1", "--server-dir", dir.to_str().unwrap()];
        let told = |flag: &str| more.contains(&flag);
        let port = if told("-p") { &[][..] } else { &["-p", "0"] };
        let token = if told("--token") { &[][..] } else { &["--token", ADMIN] };
        let args = fixed.iter().chain(port).chain(token).chain(more).copied();
        let args = ServerArgs::parse_from(args);
        let surroundings = Surroundings { home: Some(self.path().to_owned()), ..Surroundings::of_process() };
        Server::start(&args, surroundings).await
    }

    /// Starts a server here.
    pub(crate) async fn start(self, more: &[&str]) -> TestServer {
        let server = self.try_start(more).await.unwrap();
        TestServer { home: self, server, client: Client::builder().no_proxy().build().unwrap() }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    #[track_caller]
    pub(crate) fn expect_bad_request(self, message: &str, code: &str) {
        let expected = json!({ "detail": [{ "msg": message, "code": code }] });
        assert_eq!((self.status, self.body), (400, expected));
    }

    #[track_caller]
    pub(crate) fn expect_denied(self) {
        let expected = json!({ "detail": { "msg": "Access denied", "code": null } });
        assert_eq!((self.status, self.body), (403, expected));
    }
}

impl TestServer {
    pub(crate) async fn new() -> TestServer {
        Home::new().start(&[]).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// Posts as the user with this token; a null body is no body.
    pub(crate) async fn post_as(&self, token: &str, path: &str, body: Value) -> Answer {
        let request = self.request(Method::POST, path).bearer_auth(token);
        let request = if body.is_null() { request } else { request.json(&body) };
        answer(request).await
    }

    /// Posts as the admin.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_as(ADMIN, path, body).await
    }

    /// Makes a user and gives their token.
    pub(crate) async fn user(&self, name: &str) -> String {
        self.post("/api/users/create", json!({"username": name, "global_role": "user"})).await.ok();
        let user = self.post("/api/users/get_user", json!({"username": name})).await.ok();
        user["creds"]["token"].as_str().unwrap().to_owned()
    }

    /// Stops the server and gives its home back.
    pub(crate) async fn stop(self) -> Home {
        self.server.stop().await;
        self.home
    }
}

/// Sends a request; a body that is no JSON is given as text.
pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status: StatusCode = response.status();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
    Answer { status: status.as_u16(), body }
}
