//! Git over HTTP: each question is a request of its own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body_util::{BodyDataStream, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::io::StreamReader;

use super::dial::{Dialer, SILENCE};
use super::error::Error;
use super::url::{Scheme, Url};

/// How often a repository may say that it is elsewhere.
const MOVES_LIMIT: usize = 5;

/// Who asks.
pub(super) const AGENT: &str = concat!("dstack-agent/", env!("CARGO_PKG_VERSION"));

/// A repository behind a web server.
pub(super) struct HttpRemote {
    url: Url,
    /// Sent to this host only.
    login: Option<(String, String)>,
}

/// What a web server answers.
pub(super) type Body = StreamReader<BytesStream, Bytes>;
type BytesStream = std::pin::Pin<Box<dyn futures_util::Stream<Item = std::io::Result<Bytes>> + Send>>;

impl HttpRemote {
    /// The repository at `url`, read with `login`.
    pub(super) fn new(url: &Url, login: Option<(String, String)>) -> HttpRemote {
        HttpRemote { url: url.clone(), login }
    }

    /// Asks what the repository has.
    pub(super) async fn advertisement(&mut self, dialer: &mut Dialer) -> Result<Body, Error> {
        for _ in 0..=MOVES_LIMIT {
            let path = "/info/refs?service=git-upload-pack";
            let request = self.request(Method::GET, path, "application/x-git-upload-pack-advertisement");
            let answer = self.send(dialer, request, Vec::new()).await?;
            if answer.status().is_redirection() {
                self.move_to(&answer)?;
                continue;
            }
            return body_of(answer, "application/x-git-upload-pack-advertisement");
        }
        Err(Error::Unreachable(format!("`{}` moves from place to place", self.url)))
    }

    /// Asks something of the repository.
    pub(super) async fn ask(&mut self, dialer: &mut Dialer, question: Vec<u8>) -> Result<Body, Error> {
        let kind = "application/x-git-upload-pack-result";
        let request = self
            .request(Method::POST, "/git-upload-pack", kind)
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request");
        let answer = self.send(dialer, request, question).await?;
        body_of(answer, kind)
    }

    fn request(&self, method: Method, path: &str, accept: &str) -> http::request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.path.trim_end_matches('/')))
            .header(HOST, self.url.authority())
            .header(USER_AGENT, format!("git/{AGENT}"))
            .header(ACCEPT, accept)
            .header(HeaderName::from_static("git-protocol"), "version=2");
        if let Some((user, password)) = &self.login {
            request =
                request.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
        }
        request
    }

    async fn send(
        &self,
        dialer: &mut Dialer,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Error> {
        let broken = |error: &dyn std::fmt::Display| {
            Error::Unreachable(format!("the connection to `{}` broke: {error}", self.url.authority()))
        };
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| Error::Other(error.to_string()))?;
        let stream = TokioIo::new(dialer.connect(&self.url).await?);
        let handshake = hyper::client::conn::http1::handshake(stream).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        // It ends with the answer's body; what breaks it is told there.
        tokio::spawn(connection);
        let answer = timeout(SILENCE, sender.send_request(request)).await;
        answer.map_err(|_| Error::Stalled(SILENCE.as_secs()))?.map_err(|error| broken(&error))
    }

    /// Takes the place that an answer names, and the login only along to the same host.
    fn move_to(&mut self, answer: &Response<Incoming>) -> Result<(), Error> {
        let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or(Error::NotGit)?;
        let text = if location.starts_with('/') {
            format!("{}{location}", self.url.origin())
        } else {
            location.to_owned()
        };
        let mut moved = Url::parse(&text).map_err(Error::Other)?;
        let end = moved.path.find("/info/refs").unwrap_or(moved.path.len());
        moved.path.truncate(end);
        let is_same = moved.host == self.url.host;
        let is_safe =
            moved.scheme == Scheme::Https || moved.scheme == self.url.scheme && moved.port == self.url.port;
        if !(is_same && is_safe) {
            self.login = None;
        }
        if moved.scheme == Scheme::Ssh {
            return Err(Error::NotGit);
        }
        self.url = moved;
        Ok(())
    }
}

fn body_of(answer: Response<Incoming>, kind: &str) -> Result<Body, Error> {
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Error::Unauthorized),
        StatusCode::NOT_FOUND | StatusCode::GONE => return Err(Error::NotFound),
        status => return Err(Error::Refused(format!("the web server answers {status}"))),
    }
    let found = answer.headers().get(CONTENT_TYPE).and_then(|found| found.to_str().ok()).unwrap_or_default();
    if found != kind {
        return Err(Error::NotGit);
    }
    let bytes: BytesStream = Box::pin(BodyDataStream::new(answer.into_body()).map_err(std::io::Error::other));
    Ok(StreamReader::new(bytes))
}
