//! Requests to one agent over one standing HTTP/2 connection.

use std::convert::Infallible;
use std::time::Duration;

use api::agent::{AgentError, EPOCH_HEADER, LOG_WINDOW, NETWORK_HEADER, PING_INTERVAL_SECS};
use api::ids::JobId;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::{Entered, OrderError};

/// How long an agent may take to answer an order.
pub(super) const ORDER_TIMEOUT: Duration = Duration::from_secs(20);

/// Messages on their way into a job that wait for the connection.
const ENTRANCE_QUEUE: usize = 16;

/// The longest answer to an order, in bytes.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// What a request brings: all at once, or as it comes.
type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

/// Sends requests over one standing connection.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    http: SendRequest<RequestBody>,
    epoch: u64,
}

/// Begins to speak HTTP/2 over a stream.
pub(super) async fn handshake<S>(stream: S, epoch: u64) -> anyhow::Result<Sender>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let window = u32::try_from(2 * LOG_WINDOW).unwrap_or(u32::MAX);
    let (http, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(4 * window)
        .max_frame_size(256 * 1024)
        .keep_alive_interval(Duration::from_secs(PING_INTERVAL_SECS))
        .keep_alive_timeout(Duration::from_secs(2 * PING_INTERVAL_SECS))
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!("a connection to an agent ended: {error}");
        }
    });
    Ok(Sender { http, epoch })
}

impl Sender {
    /// Connects to the SSH server of a job.
    pub(super) async fn enter(&self, job: JobId) -> Result<Entered, OrderError> {
        let (input, bytes) = mpsc::channel(ENTRANCE_QUEUE);
        let frames = futures_util::stream::unfold(bytes, |mut bytes: mpsc::Receiver<Bytes>| async {
            let frame = bytes.recv().await.map(Frame::data)?;
            Some((Ok::<_, Infallible>(frame), bytes))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        let answer = self.stream_with("POST", &format!("/v1/tasks/{job}/ssh"), body).await?;
        let network = answer.headers().get(NETWORK_HEADER).cloned();
        let output = answer.into_body().into_data_stream().map_err(std::io::Error::other).boxed();
        Ok(Entered { input, output, network })
    }

    pub(super) async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &B,
    ) -> Result<T, OrderError> {
        let body = serde_json::to_vec(body).map_err(|error| OrderError::Unreachable(error.to_string()))?;
        let answer = self.request(method, path, body.into(), ORDER_TIMEOUT).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| OrderError::Unreachable(format!("the agent's answer is not understood: {error}")))
    }

    pub(super) async fn request(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, OrderError> {
        let (status, bytes) = self.exchange(method, path, body, limit).await?;
        if status.is_success() {
            return Ok(bytes);
        }
        match serde_json::from_slice::<AgentError>(&bytes) {
            Ok(error) => Err(OrderError::Refused(error)),
            Err(_) => Err(OrderError::Unreachable(format!("the agent answered {status}"))),
        }
    }

    /// Gives the status and the body of an answer, whatever it says.
    pub(super) async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), OrderError> {
        let exchange = async {
            let response = self.open(method, path, body).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let bytes = Limited::new(response.into_body(), ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| error.to_string())?
                .to_bytes();
            Ok::<_, String>((status, bytes))
        };
        tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| OrderError::Unreachable(format!("no answer within {} s", limit.as_secs())))?
            .map_err(OrderError::Unreachable)
    }

    pub(super) async fn open(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<http::Response<Incoming>> {
        self.open_with(method, path, Full::new(body).boxed_unsync()).await
    }

    async fn open_with(
        &self,
        method: &str,
        path: &str,
        body: RequestBody,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://agent{path}"))
            .header(EPOCH_HEADER, self.epoch)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)?;
        Ok(self.http.clone().send_request(request).await?)
    }

    /// Opens a stream of bytes.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, OrderError> {
        let answer = self.stream_with("GET", path, Full::default().boxed_unsync()).await?;
        Ok(answer.into_body())
    }

    /// Opens streams of bytes in both directions.
    async fn stream_with(
        &self,
        method: &str,
        path: &str,
        body: RequestBody,
    ) -> Result<Response<Incoming>, OrderError> {
        let unreachable = |error: String| OrderError::Unreachable(format!("{error}, asked for {path}"));
        let exchange = async {
            let opened = self.open_with(method, path, body).await;
            let response = opened.map_err(|error| unreachable(error.to_string()))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let answer = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
            let answer = answer.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            Err(match serde_json::from_slice::<AgentError>(&answer) {
                Ok(error) => OrderError::Refused(error),
                Err(_) => unreachable(format!("the agent answered {status}")),
            })
        };
        let answer = tokio::time::timeout(ORDER_TIMEOUT, exchange).await;
        answer.map_err(|_| unreachable(format!("no answer within {} s", ORDER_TIMEOUT.as_secs())))?
    }

    /// Says that a log has arrived up to `offset`.
    pub(super) async fn acknowledge(&self, job: JobId, offset: u64) -> Result<(), OrderError> {
        let path = format!("/v1/tasks/{job}/logs/ack");
        self.send::<_, ()>("POST", &path, &api::agent::LogAck { offset }).await
    }
}
