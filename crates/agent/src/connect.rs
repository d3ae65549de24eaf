//! `dstack-agent connect`: the far end of an SSH connection, joined to the host agent's socket.

use std::path::Path;

use anyhow::Context;
use api::agent::MAGIC_LINE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::disk::ShortPath;

/// How much is moved at once.
const BUFFER: usize = 64 * 1024;

/// Pumps bytes between standard input and output and the socket until either side ends.
pub(crate) fn run(socket: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(pump(socket)).or_else(|error| {
        // Whoever reads our output may go first.
        let reader_is_gone = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if reader_is_gone == Some(std::io::ErrorKind::BrokenPipe) { Ok(()) } else { Err(error) }
    });
    // Standard input is read on a thread that cannot be interrupted.
    runtime.shutdown_background();
    result
}

async fn pump(socket: &Path) -> anyhow::Result<()> {
    let parent = socket.parent().unwrap_or(Path::new("."));
    let name = socket.file_name().and_then(|name| name.to_str()).context("a socket has a name")?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let short =
        ShortPath::new(parent, name).with_context(|| format!("the agent's folder `{}`", parent.display()))?;
    let stream = UnixStream::connect(short.path())
        .await
        .with_context(|| format!("the agent does not listen on `{}`", socket.display()))?;
    let (mut from_agent, mut to_agent) = stream.into_split();
    let mut stdout = tokio::io::stdout();
    stdout.write_all(MAGIC_LINE.as_bytes()).await?;
    stdout.flush().await?;
    let outbound = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; BUFFER];
        loop {
            match stdin.read(&mut buffer).await? {
                0 => return anyhow::Ok(()),
                length => to_agent.write_all(&buffer[..length]).await?,
            }
        }
    };
    let inbound = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from_agent.read(&mut buffer).await? {
                0 => return anyhow::Ok(()),
                length => stdout.write_all(&buffer[..length]).await?,
            }
            stdout.flush().await?;
        }
    };
    tokio::select! {
        ended = outbound => ended,
        ended = inbound => ended,
    }
}
