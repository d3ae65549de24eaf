//! The way into a task from the server: bytes of a request and its answer, joined to the task's SSH server.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio_util::io::ReaderStream;

/// How long a server on the same machine may take to accept.
const CONNECT: Duration = Duration::from_secs(5);

/// How much is read at once.
const BUFFER: usize = 64 * 1024;

/// Connects to a port of this machine, which is where every task's server is reached.
pub(super) async fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What comes from the stream is the answer's body; what the request brings goes into it.
pub(super) fn join(stream: TcpStream, request: Body) -> Body {
    let (from, to) = stream.into_split();
    // It ends with the connection at the latest.
    tokio::spawn(async move {
        let _ = write(request, to).await;
    });
    Body::from_stream(ReaderStream::with_capacity(from, BUFFER))
}

async fn write(request: Body, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut data = request.into_data_stream();
    while let Some(bytes) = data.next().await {
        to.write_all(&bytes.map_err(io::Error::other)?).await?;
    }
    to.shutdown().await
}
