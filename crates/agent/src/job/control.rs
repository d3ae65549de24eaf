//! The supervisor's end of the socket to the host agent: whole statuses out, orders in.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::disk::{Heir, ShortPath};
use crate::wire::{self, JobStatus, Order};

/// How many host agents may be connected: one, and one that is about to notice that it is gone.
const CLIENTS_LIMIT: usize = 8;
/// How much a client may send without a line's end, and how much it may leave unread.
const BUFFER_LIMIT: usize = 256 * 1024;
/// How long the last status may take to leave.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// The listening socket and the connections to it.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    greeted: bool,
    gone: bool,
}

impl Control {
    /// Listens in the run folder. Nobody else does: the caller has the lock.
    pub(crate) fn listen(dir: &Path, heir: Heir) -> io::Result<Control> {
        let socket = ShortPath::new(dir, wire::SOCKET)?;
        match std::fs::remove_file(socket.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket.path())?;
        heir.give(socket.path())?;
        listener.set_nonblocking(true)?;
        Ok(Control { listener, clients: Vec::new() })
    }

    /// What to poll for reading.
    pub(crate) fn readable(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(clients)
    }

    /// Whether a client has not taken all that it was sent.
    pub(crate) fn has_output(&self) -> bool {
        self.clients.iter().any(|client| !client.output.is_empty())
    }

    /// Takes in new clients, greets them with the status, and answers the orders that came.
    pub(crate) fn receive(&mut self, status: &JobStatus) -> Vec<Order> {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client::new(stream));
            }
            if self.clients.len() > CLIENTS_LIMIT {
                self.clients.remove(0);
            }
        }
        let line = to_line(status);
        let mut orders = Vec::new();
        for client in &mut self.clients {
            if !std::mem::replace(&mut client.greeted, true) {
                client.send(&line);
            }
            client.read(&mut orders);
        }
        self.clients.retain(|client| !client.gone);
        orders
    }

    /// Sends the status to everybody who listens.
    pub(crate) fn report(&mut self, status: &JobStatus) {
        let line = to_line(status);
        for client in self.clients.iter_mut().filter(|client| client.greeted) {
            client.send(&line);
        }
        self.clients.retain(|client| !client.gone);
    }

    /// Goes on with what could not be sent at once.
    pub(crate) fn flush(&mut self) {
        for client in &mut self.clients {
            client.flush();
        }
        self.clients.retain(|client| !client.gone);
    }

    /// Sends the rest, waiting for slow readers a little. What does not arrive is in the exit file.
    pub(crate) fn flush_before_end(&mut self) {
        for client in self.clients.iter_mut().filter(|client| !client.output.is_empty()) {
            let _ = client.stream.set_nonblocking(false);
            let _ = client.stream.set_write_timeout(Some(LAST_WRITE_TIMEOUT));
            let _ = client.stream.write_all(&client.output);
        }
    }
}

impl Client {
    fn new(stream: UnixStream) -> Client {
        Client { stream, input: Vec::new(), output: Vec::new(), greeted: false, gone: false }
    }

    fn send(&mut self, line: &[u8]) {
        self.output.extend_from_slice(line);
        self.flush();
        // A client that reads nothing is worth no memory; a later one gets the whole status anyway.
        self.gone |= self.output.len() > BUFFER_LIMIT;
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => {
                    self.output.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn read(&mut self, orders: &mut Vec<Order>) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.gone |= error.kind() != io::ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            // A newer agent may send what this supervisor does not know.
            orders.extend(serde_json::from_slice::<Order>(&line).ok());
        }
        self.gone |= self.input.len() > BUFFER_LIMIT;
    }
}

fn to_line(status: &JobStatus) -> Vec<u8> {
    let mut line = serde_json::to_vec(status).unwrap_or_default();
    line.push(b'\n');
    line
}
