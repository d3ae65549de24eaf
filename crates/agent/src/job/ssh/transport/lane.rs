//! One channel of a connection as the rest of the server sees it: bytes in, bytes out, and the word that it is over.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::gate::Gate;

/// How much of a program's output is read at once; a packet holds no more.
const READ_BYTES: usize = 32 * 1024;

/// A channel.
#[derive(Debug)]
pub(in crate::job::ssh) struct Lane {
    /// What the client sends.
    pub(in crate::job::ssh) inlet: Arc<Inlet>,
    /// What it is sent.
    pub(in crate::job::ssh) outlet: Outlet,
}

/// Bytes from the client, kept until they are taken.
#[derive(Debug)]
pub(in crate::job::ssh) struct Inlet {
    gate: Arc<Gate>,
    state: Mutex<State>,
    arrived: Notify,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Bytes>,
    ended: bool,
}

impl Inlet {
    pub(super) fn new(gate: Arc<Gate>, closed: CancellationToken) -> Inlet {
        Inlet { gate, state: Mutex::default(), arrived: Notify::new(), closed }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes; answers whether there is room for them.
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        if state.ended || bytes.is_empty() {
            return true;
        }
        let has_room = self.gate.add(bytes.len());
        state.queue.push_back(Bytes::copy_from_slice(bytes));
        drop(state);
        self.arrived.notify_one();
        has_room
    }

    /// Nothing more will come.
    pub(super) fn finish(&self) {
        self.state().ended = true;
        self.arrived.notify_one();
    }

    /// The channel is over. What has come before may still be taken.
    pub(super) fn close(&self) {
        self.finish();
        self.closed.cancel();
    }

    /// Throws away what waits, and whatever else comes.
    pub(in crate::job::ssh) fn discard(&self) {
        let mut state = self.state();
        state.ended = true;
        let waiting = std::mem::take(&mut state.queue);
        drop(state);
        self.gate.remove(waiting.iter().map(Bytes::len).sum());
        self.arrived.notify_one();
    }

    /// Ends when the channel does.
    pub(in crate::job::ssh) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// The next bytes. None: nothing more will come.
    pub(in crate::job::ssh) async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state();
                if let Some(bytes) = state.queue.pop_front() {
                    drop(state);
                    self.gate.remove(bytes.len());
                    return Some(bytes);
                }
                if state.ended {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }

    /// Hands all that comes to a writer, until either has enough.
    pub(in crate::job::ssh) async fn pump(&self, mut writer: impl AsyncWrite + Unpin) {
        while let Some(bytes) = self.next().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
        // Whoever reads no more must not hold back the other channels.
        self.discard();
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Which of a program's two outputs bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::job::ssh) enum Output {
    /// Standard output, and all that a forwarded connection carries.
    Standard,
    /// Standard error.
    Error,
}

/// Bytes to the client.
#[derive(Debug, Clone)]
pub(in crate::job::ssh) struct Outlet {
    half: Arc<ChannelWriteHalf<Msg>>,
    handle: Handle,
    gate: Arc<Gate>,
    closed: CancellationToken,
}

impl Outlet {
    pub(super) fn new(half: ChannelWriteHalf<Msg>, handle: Handle, inlet: &Inlet) -> Outlet {
        Outlet { half: Arc::new(half), handle, gate: inlet.gate.clone(), closed: inlet.closed.clone() }
    }

    /// The channel's number.
    pub(super) fn id(&self) -> ChannelId {
        self.half.id()
    }

    /// Sends bytes as soon as the client has room for them.
    pub(in crate::job::ssh) async fn send(&self, output: Output, bytes: Bytes) -> io::Result<()> {
        tokio::select! {
            // Room that a channel would get never comes once it is over.
            () = self.closed.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
            sent = self.send_all(output, bytes) => sent,
        }
    }

    async fn send_all(&self, output: Output, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.half.writable_packet_size().await;
            let waits = (room == 0).then(|| self.gate.output_waits());
            let part = bytes.split_to(if room == 0 { bytes.len() } else { room.min(bytes.len()) });
            let sent = match output {
                Output::Standard => self.half.data_bytes(part).await,
                Output::Error => self.half.extended_data_bytes(1, part).await,
            };
            drop(waits);
            sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }

    /// Sends what a reader has, until either has enough.
    pub(in crate::job::ssh) async fn pump(&self, output: Output, mut reader: impl AsyncRead + Unpin) {
        let mut buffer = bytes::BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            let read = tokio::select! {
                () = self.closed.cancelled() => return,
                read = reader.read_buf(&mut buffer) => read,
            };
            if !read.is_ok_and(|length| length > 0) || self.send(output, buffer.split().freeze()).await.is_err() {
                return;
            }
        }
    }

    /// Says that nothing more will be sent.
    pub(in crate::job::ssh) async fn finish(&self) {
        let _ = self.half.eof().await;
    }

    /// Ends the channel.
    pub(in crate::job::ssh) async fn close(&self) {
        let _ = self.half.close().await;
    }

    /// Says how the program ended: by a status, or by a signal.
    pub(in crate::job::ssh) async fn tell_exit(&self, exit: Exit) {
        let _ = match exit {
            Exit::Status(status) => self.handle.exit_status_request(self.id(), status).await,
            Exit::Signal { name, dumped } => {
                let name = signal_of(name);
                self.handle.exit_signal_request(self.id(), name, dumped, String::new(), String::new()).await
            }
        };
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::job::ssh) enum Exit {
    /// With a status.
    Status(u32),
    /// By a signal.
    Signal {
        /// The signal's name without `SIG`.
        name: &'static str,
        /// A core was left.
        dumped: bool,
    },
}

fn signal_of(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}

/// The name of a signal without `SIG`.
pub(super) fn name_of(signal: &Sig) -> &str {
    match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name,
    }
}
