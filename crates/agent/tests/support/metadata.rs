//! EC2's metadata service, as strict as the real one about its tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};

/// A service on a port of its own.
pub struct Metadata {
    pub url: String,
    state: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Texts by path below `latest/meta-data/`.
    texts: BTreeMap<String, String>,
    /// The tokens that are good.
    tokens: Vec<String>,
    tokens_given: usize,
    /// It takes questions and never answers.
    silent: bool,
    /// The path after whose answer it falls silent.
    last_words: Option<String>,
    /// The paths that were asked for with a good token.
    asked: Vec<String>,
    /// What no client may do.
    faults: Vec<String>,
}

impl Metadata {
    /// A service that knows a machine.
    pub async fn of_machine(instance_id: &str) -> Metadata {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(Known::default()));
        let router = Router::new().fallback(answer).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let service = Metadata { url, state };
        service.set("instance-id", instance_id);
        service.set("instance-type", "p5.48xlarge");
        service.set("placement/availability-zone", "us-east-2a");
        service.set("iam/security-credentials/", "a-role");
        service
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.state.lock().unwrap()
    }

    pub fn set(&self, path: &str, text: &str) {
        self.known().texts.insert(path.to_owned(), text.to_owned());
    }

    /// No token that was given before is good any more.
    pub fn forget_tokens(&self) {
        self.known().tokens.clear();
    }

    pub fn be_silent(&self, silent: bool) {
        self.known().silent = silent;
    }

    /// Tells this whoever asks first for the path, and nobody anything after it.
    pub fn set_last_words(&self, path: &str, text: &str) {
        let mut known = self.known();
        known.texts.insert(path.to_owned(), text.to_owned());
        known.last_words = Some(path.to_owned());
    }

    /// How often a path was asked for with a good token.
    pub fn asked(&self, path: &str) -> usize {
        self.known().asked.iter().filter(|asked| *asked == path).count()
    }

    pub fn tokens_given(&self) -> usize {
        self.known().tokens_given
    }

    /// Checks that nothing was asked that may not be.
    pub fn check(&self) {
        let known = self.known();
        assert!(known.faults.is_empty(), "{:?}", known.faults);
        let secret = known.asked.iter().find(|path| path.contains("iam") || path.contains("identity-credentials"));
        assert_eq!(secret, None, "credentials were asked for");
    }
}

async fn answer(State(state): State<Arc<Mutex<Known>>>, request: Request<Body>) -> Response {
    let silent = state.lock().unwrap().silent;
    if silent {
        std::future::pending::<()>().await;
    }
    let mut known = state.lock().unwrap();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if path == "/latest/api/token" {
        return known.token(&method, request.headers());
    }
    let token = header(request.headers(), "x-aws-ec2-metadata-token");
    let Some(token) = token else {
        known.faults.push(format!("{method} {path} without a token"));
        return StatusCode::UNAUTHORIZED.into_response();
    };
    if !known.tokens.contains(&token) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(path) = path.strip_prefix("/latest/meta-data/").filter(|_| method == Method::GET) else {
        known.faults.push(format!("{method} {path}"));
        return StatusCode::NOT_FOUND.into_response();
    };
    known.asked.push(path.to_owned());
    known.silent |= known.last_words.as_deref() == Some(path);
    known.texts.get(path).cloned().map_or(StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}

impl Known {
    fn token(&mut self, method: &Method, headers: &HeaderMap) -> Response {
        let ttl = header(headers, "x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse::<u32>().ok());
        let is_right = method == Method::PUT && ttl.is_some_and(|ttl| (1..=21_600).contains(&ttl));
        if !is_right || headers.contains_key("x-forwarded-for") {
            self.faults.push(format!("a token asked for by {method} with {headers:?}"));
            return StatusCode::BAD_REQUEST.into_response();
        }
        self.tokens_given += 1;
        let token = format!("token-{}", self.tokens_given);
        self.tokens.push(token.clone());
        token.into_response()
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
