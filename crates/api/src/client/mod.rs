//! The typed client of the HTTP API, for the CLI and for tests.
//!
//! [`Client::call`] takes one of the constants of [`endpoints`]; a run's live stream is [`RunStream`], and
//! [`RunTunnel`] leads to the SSH server of one of its jobs.

pub mod endpoints;
mod error;
mod poll;
mod socket;
mod stream;
mod tunnel;

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use endpoints::Endpoint;
pub use error::ClientError;
pub use stream::{RunStream, RunStreamEvent, RunStreamOptions};
pub use tunnel::{RunTunnel, RunTunnelTarget};

use crate::files::FileArchive;

/// The version that the client announces.
pub const CLIENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The request header that carries the client's version.
pub const VERSION_HEADER: &str = "x-api-version";

/// What is not written as it is in a path or a query: all but the unreserved characters of RFC 3986.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How often a request is sent at most when nobody answers, the first time included.
const CONNECT_ATTEMPTS: u32 = 3;

/// The pause between two of them.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// How long the server's machine may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server and who talks to it. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    version: String,
}

// The default headers of `http` carry the token.
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server at `url`. Nothing is sent yet. An empty `token` sends none.
    pub fn new(url: &str, token: &str) -> Result<Client, ClientError> {
        Client::with_version(url, token, CLIENT_VERSION)
    }

    /// The same, announcing another version.
    pub fn with_version(url: &str, token: &str, version: &str) -> Result<Client, ClientError> {
        let base_url = url.trim_end_matches('/').to_owned();
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(version) {
            headers.insert(VERSION_HEADER, value);
        }
        if !token.is_empty()
            && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}"))
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http1_only();
        if !base_url.starts_with("https:") {
            // Reading the machine's certificates takes longer than a whole call.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| ClientError::of_transport(&base_url, error))?;
        Ok(Client { http, base_url, version: version.to_owned() })
    }

    /// The server's URL, without a slash at the end.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The version that the client announces.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Calls `endpoint`. `project` stands for `{project}` in its path.
    pub async fn call<Q, A>(&self, endpoint: &Endpoint<Q, A>, project: &str, body: &Q) -> Result<A, ClientError>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        let path = endpoint.path.replace("{project}", &escape(project));
        let url = format!("{}{path}", self.base_url);
        let mut request = self.http.post(&url);
        if endpoint.has_body {
            let body = serde_json::to_vec(body)
                .map_err(|source| ClientError::Incomprehensible { url: url.clone(), source: Box::new(source) })?;
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        self.answer(url, self.send(request).await?).await
    }

    /// Calls a path with GET and no body.
    pub async fn get<A: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<A, ClientError> {
        let url = self.url(path, query);
        let response = self.send(self.http.request(Method::GET, &url)).await?;
        self.answer(url, response).await
    }

    /// Uploads a tar of files under its SHA-256 in hex.
    pub async fn upload_archive(&self, hash: &str, tar: Vec<u8>) -> Result<FileArchive, ClientError> {
        self.upload(format!("{}/api/files/upload_archive", self.base_url), hash, tar).await
    }

    /// Uploads the code of a repository that is not committed; `hash` is its SHA-256 in hex.
    pub async fn upload_code(
        &self,
        project: &str,
        repo_id: &str,
        hash: &str,
        code: Vec<u8>,
    ) -> Result<(), ClientError> {
        let path = format!("/api/project/{}/repos/upload_code", escape(project));
        let url = self.url(&path, &[("repo_id", repo_id.to_owned())]);
        self.upload::<serde::de::IgnoredAny>(url, hash, code).await.map(drop)
    }

    async fn upload<A: DeserializeOwned>(
        &self,
        url: String,
        hash: &str,
        bytes: Vec<u8>,
    ) -> Result<A, ClientError> {
        let part = reqwest::multipart::Part::bytes(bytes).file_name(hash.to_owned());
        let form = reqwest::multipart::Form::new().part("file", part);
        // A form cannot be sent twice, so an unreachable server is found out here at once.
        let response = self
            .http
            .post(&url)
            .multipart(form)
            .send()
            .await
            .map_err(|error| ClientError::of_transport(&self.base_url, error))?;
        self.answer(url, response).await
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> String {
        let mut url = format!("{}{path}", self.base_url);
        for (index, (key, value)) in query.iter().enumerate() {
            let mark = if index == 0 { '?' } else { '&' };
            url = format!("{url}{mark}{key}={}", escape(value));
        }
        url
    }

    /// Sends a request, again if nobody answered: then it was not sent.
    async fn send(&self, mut request: RequestBuilder) -> Result<Response, ClientError> {
        let mut attempt = 1;
        loop {
            let again = if attempt < CONNECT_ATTEMPTS { request.try_clone() } else { None };
            let error = match request.send().await {
                Ok(response) => return Ok(response),
                Err(error) => ClientError::of_transport(&self.base_url, error),
            };
            let (ClientError::Unreachable { .. }, Some(again)) = (&error, again) else { return Err(error) };
            request = again;
            attempt += 1;
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }

    async fn answer<A: DeserializeOwned>(&self, url: String, response: Response) -> Result<A, ClientError> {
        let status = response.status();
        let body = response
            .bytes()
            .await
            .map_err(|source| ClientError::Interrupted { url: self.base_url.clone(), source: Box::new(source) })?;
        if !status.is_success() {
            return Err(ClientError::of_answer(status.as_u16(), url, &body));
        }
        serde_json::from_slice(&body)
            .map_err(|source| ClientError::Incomprehensible { url, source: Box::new(source) })
    }
}

/// Writes `text` so that it is one segment of a path or one value of a query.
fn escape(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}
