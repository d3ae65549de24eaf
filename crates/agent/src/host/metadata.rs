//! EC2's instance metadata service: which machine this is, and whether it is taken back.
//!
//! It is asked only where the server has said that the host is a machine of EC2, with version 2 of its protocol alone,
//! directly and never through a proxy. Credentials are never asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::agent::{Cloud, CloudMachine, HostNews, Interruption};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::host::state::Host;

/// Where the service is on every machine of EC2.
const USUAL_URL: &str = "http://169.254.169.254";
/// How long one question may take, from the connection to the last byte.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long the start of an agent may wait to learn which machine it runs on.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;
/// For how long a token is asked for, in seconds; one that is refused is replaced.
const TOKEN_TTL_SECS: &str = "21600";
/// How often it is asked whether the machine is taken back: a notice comes two minutes before that.
const POLL: Duration = Duration::from_millis(500);
/// How soon after a notice the machine's jobs are to hear of it.
const NOTICE_TO_JOB: Duration = Duration::from_secs(2);
/// How much of that is left for the way to the server and back once the agent has read the notice. Nothing on it waits
/// for a time to come.
const AGENT_TO_JOB: Duration = Duration::from_millis(500);
// A notice may come just after a question, and the next one may follow something that took as long as it could.
const _: () =
    assert!(POLL.as_millis() + TIMEOUT.as_millis() + AGENT_TO_JOB.as_millis() <= NOTICE_TO_JOB.as_millis());
/// How often it is asked at least, where the service does not answer.
const SLOWEST_POLL: Duration = Duration::from_secs(5);
/// In how many of those times it is asked as well whether the machine is likely to be taken back.
const REBALANCE_EVERY: u32 = 10;

/// The service, as seen from this machine.
#[derive(Debug)]
pub(crate) struct Metadata {
    /// Where it is.
    address: SocketAddr,
    token: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("it does not answer within {} s", TIMEOUT.as_secs())]
    Slow,
    #[error("{0}")]
    Broken(String),
    #[error("it answers {0}")]
    Refused(StatusCode),
}

/// The body of a notice that the machine is taken back.
#[derive(Debug, Deserialize)]
struct InstanceAction {
    action: String,
    time: Option<String>,
}

/// The body of a notice that the machine is likely to be taken back.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rebalance {
    notice_time: Timestamp,
}

impl Metadata {
    /// The service where this process is told that it is, or where it is on every machine.
    pub(crate) fn from_env() -> anyhow::Result<Metadata> {
        let name = "DSTACK_AGENT_METADATA_URL";
        let url = std::env::var(name).unwrap_or_else(|_| USUAL_URL.to_owned());
        Metadata::at(&url).map_err(|error| anyhow::anyhow!("`{name}`: {error}"))
    }

    fn at(url: &str) -> Result<Metadata, String> {
        let uri: Uri = url.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.ok_or_else(|| format!("`{url}` does not begin with `http://` and a host"))?;
        let with_port = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        // A name would have to be looked up, which this program does without the system's library only.
        let address = with_port.parse().map_err(|_| format!("the host of `{url}` is no address of IP"))?;
        Ok(Metadata { address, token: None })
    }

    /// The text at a path below `latest/meta-data`; none if there is nothing.
    async fn get(&mut self, path: &str) -> Result<Option<String>, Error> {
        let path = format!("/latest/meta-data/{path}");
        let is_new = self.token.is_none();
        let answer = self.get_once(&path).await;
        // A machine that was asleep has a token that is too old.
        if matches!(answer, Err(Error::Refused(StatusCode::UNAUTHORIZED))) {
            self.token = None;
            if !is_new {
                return self.get_once(&path).await;
            }
        }
        answer
    }

    async fn get_once(&mut self, path: &str) -> Result<Option<String>, Error> {
        let token = if let Some(token) = &self.token {
            token.clone()
        } else {
            let request = Request::builder()
                .method(Method::PUT)
                .uri("/latest/api/token")
                .header("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_TTL_SECS);
            let token = self.send(request).await?;
            let token = token.ok_or(Error::Refused(StatusCode::NOT_FOUND))?;
            self.token = Some(token.clone());
            token
        };
        self.send(Request::builder().uri(path).header("x-aws-ec2-metadata-token", token)).await
    }

    async fn send(&self, request: http::request::Builder) -> Result<Option<String>, Error> {
        timeout(TIMEOUT, self.exchange(request)).await.map_err(|_| Error::Slow)?
    }

    /// One question on a connection of its own: there are few, and none that is kept can be broken.
    async fn exchange(&self, request: http::request::Builder) -> Result<Option<String>, Error> {
        let broken = |error: &dyn std::fmt::Display| Error::Broken(error.to_string());
        let request = request.header(header::HOST, self.address.to_string()).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| broken(&error))?;
        let stream = TcpStream::connect(self.address).await.map_err(|error| broken(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        // It ends with the answer's body; what breaks it is told there.
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(Error::Refused(status)),
        }
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| Error::Broken(error.to_string()))?.to_bytes();
        let text = String::from_utf8(body.to_vec()).map_err(|error| broken(&error))?;
        Ok(Some(text.trim().to_owned()))
    }

    /// Which machine this is.
    async fn machine(&mut self) -> Result<CloudMachine, Error> {
        let instance_id = self.get("instance-id").await?.filter(|id| !id.is_empty());
        let instance_id = instance_id.ok_or_else(|| Error::Broken("it knows no `instance-id`".to_owned()))?;
        Ok(CloudMachine {
            cloud: Cloud::Ec2,
            instance_id,
            instance_type: self.get("instance-type").await?,
            zone: self.get("placement/availability-zone").await?,
        })
    }

    /// Whether the machine is taken back.
    async fn interruption(&mut self) -> Result<Option<Interruption>, Error> {
        let Some(text) = self.get("spot/instance-action").await? else { return Ok(None) };
        let notice: InstanceAction = read(&text)?;
        // A time that cannot be read is no reason to miss the rest.
        let at = notice.time.and_then(|time| time.parse().ok());
        Ok(Some(Interruption { cloud: Cloud::Ec2, action: notice.action, at }))
    }

    /// Since when it is likely that the machine is taken back.
    async fn rebalance_at(&mut self) -> Result<Option<Timestamp>, Error> {
        let Some(text) = self.get("events/recommendations/rebalance").await? else { return Ok(None) };
        Ok(Some(read::<Rebalance>(&text)?.notice_time))
    }
}

fn read<'text, T: Deserialize<'text>>(text: &'text str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Broken(format!("it says `{text}`: {error}")))
}

/// Which machine this is, if the service says so soon enough for the start of an agent.
pub(crate) async fn first_look(metadata: &mut Metadata) -> Option<CloudMachine> {
    match timeout(FIRST_TIMEOUT, metadata.machine()).await {
        Ok(Ok(machine)) => Some(machine),
        // It is asked again, and what fails then is told.
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Asks again and again, and tells who listens what has changed.
pub(crate) async fn follow(host: Arc<Host>, mut metadata: Metadata) {
    let mut delay = POLL;
    let mut is_silent = false;
    for turn in 0_u32.. {
        let notice = ask_for_notice(&host, &mut metadata).await;
        // What else is of interest must not keep the next notice waiting, nor hide the last one.
        delay = if notice.is_ok() { POLL } else { (delay * 2).min(SLOWEST_POLL) };
        let rest = ask_for_rest(&host, &mut metadata, turn % REBALANCE_EVERY == 0);
        let rest = timeout(TIMEOUT, rest).await.unwrap_or(Err(Error::Slow));
        let trouble = match (notice, rest) {
            (Err(error), _) => Some(format!("is of no use, so nobody is warned of spot interruptions: {error}")),
            (Ok(()), Err(error)) => Some(format!("does not answer everything: {error}")),
            (Ok(()), Ok(())) => None,
        };
        let was_silent = std::mem::replace(&mut is_silent, trouble.is_some());
        match trouble {
            Some(trouble) if !was_silent => warn!("EC2's metadata service at {} {trouble}", metadata.address),
            None if was_silent => info!("EC2's metadata service answers again"),
            _ => {}
        }
        sleep(delay).await;
    }
}

async fn ask_for_notice(host: &Host, metadata: &mut Metadata) -> Result<(), Error> {
    let interruption = metadata.interruption().await?;
    learn(host, |news| news.interruption = interruption);
    Ok(())
}

async fn ask_for_rest(host: &Host, metadata: &mut Metadata, with_rebalance: bool) -> Result<(), Error> {
    if host.news.borrow().cloud.is_none() {
        let machine = metadata.machine().await?;
        learn(host, |news| news.cloud = Some(machine));
    }
    if with_rebalance {
        let rebalance_at = metadata.rebalance_at().await?;
        learn(host, |news| news.rebalance_at = rebalance_at);
    }
    Ok(())
}

/// Changes what is known, and tells who listens if that changes anything.
fn learn(host: &Host, change: impl FnOnce(&mut HostNews)) {
    host.news.send_if_modified(|news| {
        let before = news.clone();
        change(news);
        if news.interruption != before.interruption {
            info!("EC2 takes the machine back: {:?}", news.interruption);
        }
        *news != before
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_are_asked() {
        let check = |url: &str, expected: Result<&str, &str>| match (Metadata::at(url), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.address.to_string(), expected),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (found, _) => panic!("{url}: {found:?}"),
        };
        check(USUAL_URL, Ok("169.254.169.254:80"));
        check("http://127.0.0.1:8080/", Ok("127.0.0.1:8080"));
        check("http://[fd00:ec2::254]", Ok("[fd00:ec2::254]:80"));
        check("https://169.254.169.254", Err("does not begin with `http://`"));
        check("169.254.169.254", Err("does not begin with `http://`"));
        check("http://metadata.internal", Err("is no address of IP"));
        check("http://", Err("is no URL"));
    }
}
