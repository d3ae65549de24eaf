//! The way to the SSH server of a job: one TCP connection's bytes over one WebSocket of the server.

use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::socket::{self, Socket};
use super::{Client, ClientError};
use crate::agent::{NETWORK_HEADER, network_of_this_process};
use crate::error::ErrorBody;

/// Bytes of one message that is sent at most.
const CHUNK: usize = 64 * 1024;

/// The longest message that is taken.
const MESSAGE_LIMIT: usize = 1024 * 1024;

/// How often a ping keeps the connection known to whatever stands between.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long the other end may take to say goodbye, and to send what it still had.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);

/// The job whose SSH server is meant: that of its last submission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunTunnelTarget {
    /// The replica.
    pub replica: u32,
    /// The job's number in it.
    pub job: u32,
}

/// An open way to a job's SSH server. Dropping it closes the connection.
#[derive(Debug)]
pub struct RunTunnel {
    socket: Socket,
    base_url: String,
    network: Option<String>,
}

impl RunTunnel {
    /// Connects. A refusal tells in the server's words why there is no way to this job.
    pub async fn open(
        client: &Client,
        project: &str,
        run: &str,
        target: RunTunnelTarget,
    ) -> Result<RunTunnel, ClientError> {
        let path = format!("/api/project/{}/runs/{}/ssh", super::escape(project), super::escape(run));
        let query = [("replica", target.replica.to_string()), ("job", target.job.to_string())];
        let (socket, headers) = socket::open(client, &path, &query, MESSAGE_LIMIT, of_answer).await?;
        let network = headers.get(NETWORK_HEADER).and_then(|network| network.to_str().ok()).map(str::to_owned);
        Ok(RunTunnel { socket, base_url: client.base_url.clone(), network })
    }

    /// Whether the job's ports are those of the network that this process is in.
    pub fn is_in_our_network(&self) -> bool {
        self.network.is_some() && self.network == network_of_this_process()
    }

    /// Closes the connection before anything was said on it.
    pub async fn close(mut self) {
        // It is over either way.
        let _ = tokio::time::timeout(GOODBYE_LIMIT, self.socket.close(None)).await;
    }

    /// Carries bytes both ways until the other end closes, or `reader` ends and the other end has said goodbye. Nothing
    /// is read that cannot be passed on, so either side slows the other down.
    pub async fn join(
        self,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
    ) -> Result<(), ClientError> {
        let (sink, stream) = self.socket.split();
        let mut receiving = Box::pin(receive(stream, writer));
        let result = tokio::select! {
            received = &mut receiving => received,
            sent = send(reader, sink) => match sent {
                // What is on its way still arrives.
                Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    tokio::time::timeout(GOODBYE_LIMIT, receiving).await.unwrap_or(Ok(()))
                }
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Ok(()),
            Err(error) => Err(ClientError::Interrupted { url: self.base_url, source: Box::new(error) }),
        }
    }
}

/// Sends what is read until it ends, and then says goodbye.
async fn send(mut reader: impl AsyncRead + Unpin, mut sink: SplitSink<Socket, Message>) -> Result<(), Error> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    let mut buffer = vec![0; CHUNK];
    loop {
        let message = tokio::select! {
            read = reader.read(&mut buffer) => match read? {
                0 => break,
                count => Message::Binary(Bytes::copy_from_slice(&buffer[..count])),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        sink.send(message).await?;
    }
    sink.send(Message::Close(None)).await
}

/// Writes what comes until the other end says goodbye. Reading answers its pings.
async fn receive(mut stream: SplitStream<Socket>, mut writer: impl AsyncWrite + Unpin) -> Result<(), Error> {
    while let Some(message) = stream.next().await {
        match message? {
            Message::Binary(bytes) => {
                writer.write_all(&bytes).await?;
                writer.flush().await?;
            }
            Message::Close(_) => break,
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
    writer.shutdown().await?;
    Ok(())
}

/// What an answer other than an upgrade means. Unlike elsewhere a 404 has words: it names what there is not, unless
/// the server does not know such tunnels at all.
fn of_answer(status: u16, url: String, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { detail }) if status == 404 && !detail.is_empty() => ClientError::of_answer(400, url, body),
        _ => ClientError::of_answer(status, url, body),
    }
}
