//! A stream of bytes in both directions over one channel.

use std::fmt;
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use russh::ChannelMsg;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};

use crate::exec::STDERR;
use crate::session::{OpenChannel, Session};
use crate::words::TailBytes;
use crate::{Error, Status, words};

/// How many messages wait between the channel and the reader.
const WAITING: usize = 16;

/// Bytes to and from something on a host: a command, a port, a socket. Dropping it closes the channel.
///
/// Reading ends cleanly only where the other side ended; when the connection is lost, reading and writing are errors
/// that say why. Read it as the bytes come: see [`Session`].
pub struct Stream {
    session: Session,
    incoming: mpsc::Receiver<Bytes>,
    /// What was received and not read.
    current: Bytes,
    outgoing: Pin<Box<dyn AsyncWrite + Send + Sync>>,
    ending: watch::Receiver<Ending>,
    /// Becomes ready when writing makes no sense any more, which a full window would never notice.
    over: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

/// What is known about the end of a channel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    pub(crate) over: Option<Over>,
    pub(crate) status: Status,
    pub(crate) stderr: TailBytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// By the other side, as it should.
    Closed,
    /// With the connection.
    Lost,
}

/// How the command of a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub status: Status,
    /// The last lines of its error output, in one line.
    pub stderr: String,
}

impl Stream {
    pub(crate) fn start(session: Session, mut channel: OpenChannel, first: Vec<u8>) -> Stream {
        let (sender, incoming) = mpsc::channel(WAITING);
        let (tell, ending) = watch::channel(Ending::default());
        let outgoing = Box::pin(channel.both().1.make_writer());
        tokio::spawn(pump(channel, sender, tell));
        let (mut closed, watched) = (ending.clone(), session.clone());
        let over = Box::pin(async move {
            tokio::select! {
                // An error says that the pump is gone, so the channel is too.
                _ = closed.wait_for(|ending| ending.over.is_some()) => {}
                _ = watched.closed() => {}
            }
        });
        Stream { session, incoming, current: first.into(), outgoing, ending, over }
    }

    /// The session that carries it.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The last lines of what the command has printed to its error output so far, in one line.
    pub fn stderr(&self) -> String {
        words::last_lines(&self.ending.borrow().stderr.clone().into_bytes())
    }

    /// Waits for the end of the command, dropping what it still prints.
    pub async fn exit(self) -> crate::Result<Exit> {
        let ending = self.into_ending().await?;
        Ok(Exit { status: ending.status, stderr: words::last_lines(&ending.stderr.into_bytes()) })
    }

    pub(crate) async fn into_ending(mut self) -> crate::Result<Ending> {
        while self.incoming.recv().await.is_some() {}
        // The reader's end is told before the channel's.
        let _ = self.ending.wait_for(|ending| ending.over.is_some()).await;
        let ending = self.ending.borrow().clone();
        match ending.over {
            Some(Over::Closed) => Ok(ending),
            Some(Over::Lost) | None => Err(self.session.lost("it was closed")),
        }
    }

    fn lost(&self) -> IoError {
        let error: Error = self.session.lost("it was closed");
        IoError::new(ErrorKind::ConnectionReset, error)
    }

    /// Why nothing can be written any more.
    fn write_error(&self) -> IoError {
        match self.ending.borrow().over {
            Some(Over::Closed) => IoError::from(ErrorKind::BrokenPipe),
            Some(Over::Lost) | None => self.lost(),
        }
    }
}

/// Moves what the channel brings to the reader, until either is gone.
async fn pump(mut channel: OpenChannel, sender: mpsc::Sender<Bytes>, tell: watch::Sender<Ending>) {
    let mut sender = Some(sender);
    let over = loop {
        let reader_is_gone = async {
            match &sender {
                Some(sender) => sender.closed().await,
                // After the end of the output, the reader's end is noticed by nobody listening for the rest.
                None => tell.closed().await,
            }
        };
        let message = tokio::select! {
            message = channel.read.wait() => message,
            () = reader_is_gone => return,
        };
        match message {
            None => break Over::Lost,
            Some(ChannelMsg::Close) => break Over::Closed,
            Some(ChannelMsg::Eof) => sender = None,
            Some(ChannelMsg::Data { data }) => {
                if let Some(reader) = &sender
                    && reader.send(data).await.is_err()
                {
                    return;
                }
            }
            Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => {
                tell.send_modify(|ending| ending.stderr.push(&data));
            }
            Some(other) => {
                if let Some(status) = status_of(&other) {
                    tell.send_modify(|ending| ending.status = status);
                }
            }
        }
    };
    // Before the reader sees the end, so that it can tell a good one from a bad one.
    tell.send_modify(|ending| ending.over = Some(over));
}

/// How a command ended, if the message says so.
pub(crate) fn status_of(message: &ChannelMsg) -> Option<Status> {
    match message {
        ChannelMsg::ExitStatus { exit_status } => Some(Status::Exited(*exit_status)),
        ChannelMsg::ExitSignal { signal_name, .. } => {
            let name = match signal_name {
                russh::Sig::Custom(name) => name.clone(),
                known => format!("{known:?}"),
            };
            Some(Status::Signaled(name))
        }
        _ => None,
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<IoResult<()>> {
        while self.current.is_empty() {
            match ready!(self.incoming.poll_recv(cx)) {
                Some(bytes) => self.current = bytes,
                None if self.ending.borrow().over == Some(Over::Lost) => return Poll::Ready(Err(self.lost())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current[..length]);
        self.current.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<IoResult<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.ending.borrow().over.is_some() || self.session.is_closed() {
            return Poll::Ready(Err(self.write_error()));
        }
        if let Poll::Ready(result) = self.outgoing.as_mut().poll_write(cx, buf) {
            return Poll::Ready(result.map_err(|_| self.write_error()));
        }
        ready!(self.over.as_mut().poll(cx));
        Poll::Ready(Err(self.write_error()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        self.outgoing.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        if self.ending.borrow().over.is_some() || self.session.is_closed() {
            return Poll::Ready(Ok(()));
        }
        self.outgoing.as_mut().poll_shutdown(cx).map(|_| Ok(()))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?}, {:?})", self.session, *self.ending.borrow())
    }
}
