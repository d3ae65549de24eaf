//! The metadata service of a host, as the second version of it works: first a token, then questions.
//!
//! It is a process in a network of its own beside the host, one hop away. Tokens are sent with the time to live that
//! the launch allowed, so that the host's kernel drops those that would go too far.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::serve::IncomingStream;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::metadata::Metadata;

/// The header in which the life of a new token is asked for, and told.
const TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// The header in which a token is shown.
const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");

/// What proxies add, and what the service refuses to give tokens for.
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The longest life of a token.
const LONGEST_TTL: u64 = 21_600;

/// The most tokens that are remembered; older ones are forgotten.
const MAX_TOKENS: usize = 10_000;

/// The time to live of all that is not a token.
const FAR: u32 = 64;

/// The versions that can be asked for; all of them answer the same.
const VERSIONS: [&str; 9] = [
    "2009-04-04",
    "2016-09-02",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2024-04-11",
    "latest",
];

/// The tokens that were given out, each with its end, oldest first.
#[derive(Debug, Default)]
struct Tokens(VecDeque<(String, Instant)>);

#[derive(Debug)]
struct Service {
    file: PathBuf,
    tokens: Mutex<Tokens>,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    status: StatusCode,
    /// The life of the token that this is, if it is one.
    token_ttl: Option<u64>,
    body: Vec<u8>,
}

/// A connection, of which the time to live can be set.
#[derive(Debug, Clone)]
struct Connection(Arc<Option<TcpStream>>);

impl Connected<IncomingStream<'_, TcpListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Connection {
        Connection(Arc::new(stream.io().as_fd().try_clone_to_owned().ok().map(TcpStream::from)))
    }
}

/// Serves what stands in `file`, which may change at any time, until the process ends.
pub async fn metadata_service(file: PathBuf, address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let service = Arc::new(Service { file, tokens: Mutex::default() });
    let app = Router::new().fallback(any(handle)).with_state(service);
    axum::serve(listener, app.into_make_service_with_connect_info::<Connection>()).await.context("serve")
}

async fn handle(
    State(service): State<Arc<Service>>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let metadata: Result<Metadata> =
        std::fs::read(&service.file).map_err(Into::into).and_then(|text| Ok(serde_json::from_slice(&text)?));
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    };
    let said = {
        let mut tokens = service.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        answer(&metadata, &mut tokens, &method, uri.path(), &headers, Instant::now())
    };
    let reach = if said.token_ttl.is_some() { metadata.hop_limit } else { FAR };
    if let Some(Err(error)) = connection.0.as_ref().as_ref().map(|stream| stream.set_ttl(reach)) {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("set the hop limit: {error}\n")).into_response();
    }
    let mut response = (said.status, [(header::CONTENT_TYPE, "text/plain")], said.body).into_response();
    if let Some(ttl) = said.token_ttl {
        response.headers_mut().insert(TTL, ttl.into());
    }
    response
}

fn refuse(status: StatusCode) -> Said {
    let reason = status.canonical_reason().unwrap_or_default();
    let body = format!("<html><head><title>{status}</title></head><body><h1>{reason}</h1></body></html>\n");
    Said { status, token_ttl: None, body: body.into_bytes() }
}

fn tell(body: impl Into<Vec<u8>>) -> Said {
    Said { status: StatusCode::OK, token_ttl: None, body: body.into() }
}

/// From request to answer.
fn answer(
    metadata: &Metadata,
    tokens: &mut Tokens,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    now: Instant,
) -> Said {
    if !metadata.enabled {
        return refuse(StatusCode::FORBIDDEN);
    }
    if method == Method::PUT {
        return if path == "/latest/api/token" {
            tokens.give(headers, now)
        } else {
            refuse(StatusCode::NOT_FOUND)
        };
    }
    if method != Method::GET && method != Method::HEAD {
        return refuse(StatusCode::METHOD_NOT_ALLOWED);
    }
    let is_welcome = match headers.get(TOKEN) {
        Some(shown) => shown.to_str().is_ok_and(|shown| tokens.know(shown, now)),
        None => !metadata.tokens_required,
    };
    if !is_welcome {
        return refuse(StatusCode::UNAUTHORIZED);
    }
    let path = path.trim_start_matches('/');
    if path.is_empty() {
        return tell(VERSIONS.join("\n"));
    }
    let (version, path) = path.split_once('/').unwrap_or((path, ""));
    if !VERSIONS.contains(&version) {
        return refuse(StatusCode::NOT_FOUND);
    }
    look(metadata, path)
}

impl Tokens {
    /// Gives out a token for as long as the caller asks.
    fn give(&mut self, headers: &HeaderMap, now: Instant) -> Said {
        if headers.contains_key(FORWARDED) {
            return refuse(StatusCode::FORBIDDEN);
        }
        let ttl = headers.get(TTL).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=LONGEST_TTL).contains(ttl)) else {
            return refuse(StatusCode::BAD_REQUEST);
        };
        if self.0.len() == MAX_TOKENS {
            self.0.pop_front();
        }
        let token = URL_SAFE.encode(rand::random::<[u8; 40]>());
        self.0.push_back((token.clone(), now + Duration::from_secs(ttl)));
        Said { token_ttl: Some(ttl), ..tell(token) }
    }

    fn know(&self, shown: &str, now: Instant) -> bool {
        self.0.iter().any(|(token, ends_at)| token == shown && now < *ends_at)
    }
}

/// The value at a path, or the list of what lies below it.
fn look(metadata: &Metadata, path: &str) -> Said {
    let path = path.trim_end_matches('/');
    if path == "user-data" {
        return metadata.user_data().map_or_else(|| refuse(StatusCode::NOT_FOUND), tell);
    }
    if let Some(value) = metadata.values.get(path) {
        return tell(value.clone());
    }
    let below = if path.is_empty() { String::new() } else { format!("{path}/") };
    // A name that has more below it ends in a slash.
    let mut names = BTreeMap::new();
    for rest in metadata.values.keys().filter_map(|known| known.strip_prefix(&below)) {
        let (name, is_folder) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
        names.insert(name, is_folder);
    }
    if path.is_empty() && metadata.user_data().is_some() {
        names.insert("user-data", false);
    }
    if names.is_empty() {
        return refuse(StatusCode::NOT_FOUND);
    }
    let line = |(name, is_folder): (&str, bool)| match path {
        // The first level has no slashes, and keys are listed with their names.
        "" => name.to_owned(),
        "meta-data/public-keys" => format!("{name}=key"),
        _ if is_folder => format!("{name}/"),
        _ => name.to_owned(),
    };
    tell(names.into_iter().map(line).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(tokens_required: bool) -> Metadata {
        let text = serde_json::json!({
            "enabled": true,
            "tokens_required": tokens_required,
            "hop_limit": 2,
            "user_data": "I2Nsb3Vk",
            "values": {
                "dynamic/instance-identity/document": "{}",
                "meta-data/instance-id": "i-1",
                "meta-data/placement/region": "us-west-2",
                "meta-data/public-keys/0/openssh-key": "ssh-ed25519 AAAA",
            },
        });
        serde_json::from_value(text).unwrap()
    }

    fn headers(given: &[(HeaderName, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn nothing_is_told_without_a_token_that_lives() {
        let (metadata, mut tokens, now) = (metadata(true), Tokens::default(), Instant::now());
        let path = "/latest/meta-data/instance-id";
        let mut ask = |method: &Method, path: &str, given: &[(HeaderName, &str)], now| {
            let said = answer(&metadata, &mut tokens, method, path, &headers(given), now);
            (said.status.as_u16(), String::from_utf8(said.body).unwrap())
        };
        assert_eq!(ask(&Method::GET, path, &[], now).0, 401);
        assert_eq!(ask(&Method::GET, path, &[(TOKEN, "guessed")], now).0, 401);
        for ttl in ["0", "21601", "soon"] {
            assert_eq!(ask(&Method::PUT, "/latest/api/token", &[(TTL, ttl)], now).0, 400, "{ttl}");
        }
        assert_eq!(ask(&Method::PUT, "/latest/api/token", &[], now).0, 400);
        assert_eq!(ask(&Method::PUT, "/latest/api/token", &[(TTL, "60"), (FORWARDED, "10.0.0.1")], now).0, 403);
        let (status, token) = ask(&Method::PUT, "/latest/api/token", &[(TTL, "60")], now);
        assert_eq!(status, 200);
        assert_eq!(ask(&Method::GET, path, &[(TOKEN, &token)], now), (200, "i-1".to_owned()));
        let later = now + Duration::from_mins(1);
        assert_eq!(ask(&Method::GET, path, &[(TOKEN, &token)], later).0, 401);
    }

    #[test]
    fn folders_are_listed_as_the_service_lists_them() {
        let (metadata, mut tokens, now) = (metadata(false), Tokens::default(), Instant::now());
        let mut ask = |path: &str| {
            let said = answer(&metadata, &mut tokens, &Method::GET, path, &HeaderMap::new(), now);
            (said.status.as_u16(), String::from_utf8(said.body).unwrap())
        };
        let mut check = |path: &str, expected: &str| assert_eq!(ask(path), (200, expected.to_owned()), "{path}");
        check("/latest/", "dynamic\nmeta-data\nuser-data");
        check("/latest/meta-data/", "instance-id\nplacement/\npublic-keys/");
        check("/2021-03-23/meta-data/placement/", "region");
        check("/latest/meta-data/public-keys/", "0=key");
        check("/latest/meta-data/public-keys/0/", "openssh-key");
        check("/latest/user-data", "#cloud");
        assert_eq!(ask("/latest/meta-data/spot/instance-action").0, 404);
        assert_eq!(ask("/yesterday/meta-data/").0, 404);
    }

    #[test]
    fn a_service_that_is_switched_off_forbids_all() {
        let mut metadata = metadata(false);
        metadata.enabled = false;
        let mut tokens = Tokens::default();
        for method in [Method::GET, Method::PUT] {
            let said = answer(&metadata, &mut tokens, &method, "/latest/", &HeaderMap::new(), Instant::now());
            assert_eq!(said.status, StatusCode::FORBIDDEN);
        }
    }
}
