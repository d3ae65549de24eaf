//! A client for SSH, for images without one: it runs a command on another node of the gang, as launchers of MPI and
//! others ask for it.
//!
//! It is this program by another name, and knows the nodes of its gang only: with their real ports, and with the keys
//! that their servers must show. So there is nothing to configure and nothing to trust.

mod args;
mod connection;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::Signal;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::SignalKind;
use tokio::time::timeout;

use self::args::Arguments;
use self::connection::{Connection, Target};
use crate::job::peers::{CLIENT_NAMES, KEY, NODES, NODES_VARIABLE, Node};
use crate::{names, wire};

/// What OpenSSH's client answers where it, and not the command, failed.
const OWN_FAILURE: u8 = 255;
/// How much of standard input is read at once.
const READ_BYTES: usize = 32 * 1024;
/// Which messages of a channel carry the error output.
const STDERR: u32 = 1;
/// How long the other side may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a command may take to end that was told to.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The longest list of nodes.
const NODES_BYTES_LIMIT: u64 = 16 << 20;

/// What stands after the program's name, if that is one of a client's.
pub(crate) fn arguments(mut all: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let name = all.next()?;
    let name = Path::new(&name).file_name()?.as_bytes();
    CLIENT_NAMES.iter().any(|client| client.as_bytes() == name).then(|| all.collect())
}

/// Runs the client to the end of its command, and answers that command's exit status.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let result = Arguments::parse(arguments).and_then(|arguments| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let status = runtime.block_on(go(&arguments));
        // A thread may still wait for standard input.
        runtime.shutdown_background();
        status
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(&format!("ssh: {error}"));
            ExitCode::from(OWN_FAILURE)
        }
    }
}

async fn go(arguments: &Arguments) -> Result<u8, String> {
    let dir = std::env::var_os(NODES_VARIABLE).map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| Path::new(wire::CONTAINER_PEERS).join("nodes"));
    let node = find(&read_nodes(&dir)?, &arguments.host).await?;
    if node.port == 0 && arguments.port.is_none() {
        return Err(format!("the node {} has no SSH server; the warnings of its job say why", node.address));
    }
    let target = Target::of(node, arguments, &dir.join(KEY));
    let mut signals = Signals::listen().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let connection = tokio::select! {
        connection = Connection::open(&target) => connection?,
        signal = signals.next() => return Ok(128 + signal as u8),
    };
    let (read, write) = connection.start(&arguments.command).await?;
    let receiving = receive(read);
    tokio::pin!(receiving);
    let feeding = async {
        let fed =
            if arguments.no_input { write.eof().await.map_err(io::Error::other) } else { feed(&write).await };
        // A command may end without reading all, and one that goes on is waited for.
        drop(fed);
        std::future::pending::<()>().await;
    };
    let told = tokio::select! {
        status = &mut receiving => Err(status),
        () = feeding => Err(Ok(OWN_FAILURE)),
        signal = signals.next() => Ok(signal),
    };
    let status = match told {
        Err(status) => status,
        Ok(signal) => {
            let name = signal.as_str().trim_start_matches("SIG").to_owned();
            // Who is told to end has its command told the same, which may have something to say about it: without us
            // its first word would be its last. Who is told twice does not wait.
            let ending = async {
                write.signal(sig(&name)).await.ok()?;
                receiving.await.ok()
            };
            tokio::select! {
                _ = timeout(LAST_WORDS, ending) => {}
                _ = signals.next() => {}
            }
            Ok(128 + signal as u8)
        }
    };
    connection.close().await;
    status.map_err(|error| format!("{}: {error}", target.node.address))
}

fn read_nodes(dir: &Path) -> Result<Vec<Node>, String> {
    use std::io::Read;
    let path = dir.join(NODES);
    let read = || -> io::Result<Vec<Node>> {
        let mut bytes = Vec::new();
        std::fs::File::open(&path)?.take(NODES_BYTES_LIMIT).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            "this client knows the nodes of a run with several nodes, once their commands start: there are none here"
                .to_owned()
        }
        _ => format!("cannot read `{}`: {error}", path.display()),
    })
}

/// The node of that address, or of a name of that address.
async fn find(nodes: &[Node], host: &str) -> Result<Node, String> {
    if let Some(node) = nodes.iter().find(|node| node.address == host) {
        return Ok(node.clone());
    }
    let addresses = names::resolve(host).await.map_err(|error| format!("cannot resolve `{host}`: {error}"))?;
    let has = |node: &&Node| node.address.parse().is_ok_and(|address| addresses.contains(&address));
    nodes.iter().find(has).cloned().ok_or_else(|| {
        format!(
            "`{host}` is no node of this run. This client, which dstack brings, knows no other hosts; an image with \
             OpenSSH's client does"
        )
    })
}

/// Sends standard input and its end.
async fn feed(write: &ChannelWriteHalf<Msg>) -> io::Result<()> {
    let mut input = tokio::io::stdin();
    loop {
        let mut buffer = bytes::BytesMut::with_capacity(READ_BYTES);
        if input.read_buf(&mut buffer).await? == 0 {
            return write.eof().await.map_err(io::Error::other);
        }
        write.data_bytes(buffer.freeze()).await.map_err(io::Error::other)?;
    }
}

/// Prints what the command prints, and answers its exit status once all of it is out.
async fn receive(mut read: ChannelReadHalf) -> Result<u8, String> {
    let (mut output, mut errors) = (tokio::io::stdout(), tokio::io::stderr());
    let mut status = None;
    while let Some(message) = read.wait().await {
        let printed = match message {
            ChannelMsg::Data { data } => print(&mut output, &data).await,
            ChannelMsg::ExtendedData { data, ext: STDERR } => print(&mut errors, &data).await,
            ChannelMsg::ExitStatus { exit_status } => {
                status = Some(u8::try_from(exit_status).unwrap_or(OWN_FAILURE));
                Ok(())
            }
            ChannelMsg::ExitSignal { signal_name, .. } => {
                status = Some(status_of(&signal_name));
                Ok(())
            }
            ChannelMsg::Failure => return Err("the node does not run commands".to_owned()),
            ChannelMsg::Close => break,
            _ => Ok(()),
        };
        if printed.is_err() {
            // As if the pipe had ended us, which is what happens to programs that do not care.
            return Ok(128 + Signal::SIGPIPE as u8);
        }
    }
    status.ok_or_else(|| "the connection broke".to_owned())
}

async fn print(output: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    output.write_all(bytes).await?;
    output.flush().await
}

/// The status with which a shell tells of a signal.
fn status_of(signal: &Sig) -> u8 {
    // The library keeps the names of signals to itself, but prints them.
    let name = match signal {
        Sig::Custom(name) => name.clone(),
        known => format!("{known:?}"),
    };
    format!("SIG{name}").parse::<Signal>().map_or(OWN_FAILURE, |signal| 128 + signal as u8)
}

fn sig(name: &str) -> Sig {
    match name {
        "HUP" => Sig::HUP,
        "INT" => Sig::INT,
        "TERM" => Sig::TERM,
        other => Sig::Custom(other.to_owned()),
    }
}

/// The signals that end a client and its command.
struct Signals {
    hangup: Option<tokio::signal::unix::Signal>,
    interrupt: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    /// Waits for those that were not ignored before, as `nohup` and shells do for programs in the background.
    fn listen() -> io::Result<Signals> {
        let ignored = ignored_signals();
        let listen = |signal: Signal| {
            let is_ignored = ignored & (1 << (signal as u32 - 1)) != 0;
            let kind = SignalKind::from_raw(signal as i32);
            (!is_ignored).then(|| tokio::signal::unix::signal(kind)).transpose()
        };
        Ok(Signals {
            hangup: listen(Signal::SIGHUP)?,
            interrupt: listen(Signal::SIGINT)?,
            terminate: listen(Signal::SIGTERM)?,
        })
    }

    async fn next(&mut self) -> Signal {
        async fn came(signal: &mut Option<tokio::signal::unix::Signal>) {
            match signal {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = came(&mut self.hangup) => Signal::SIGHUP,
            () = came(&mut self.interrupt) => Signal::SIGINT,
            () = came(&mut self.terminate) => Signal::SIGTERM,
        }
    }
}

/// Those that this process was started to ignore, as the kernel's mask.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[expect(clippy::print_stderr, reason = "the client's last word goes to standard error")]
fn say(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_a_client_by_its_name_only() {
        let check = |words: &[&str], expected: Option<&[&str]>| {
            let found = arguments(words.iter().map(OsString::from));
            let expected = expected.map(|words| words.iter().map(OsString::from).collect::<Vec<_>>());
            assert_eq!(found, expected, "{words:?}");
        };
        check(&["ssh", "a", "b"], Some(&["a", "b"]));
        check(&["/dstack/peers/bin/dstack-ssh"], Some(&[]));
        check(&["/proc/self/exe", "ssh"], None);
        check(&["dstack-agent", "host"], None);
        check(&[], None);
    }

    #[tokio::test]
    async fn nodes_are_found_by_address_and_by_name() {
        let node = |address: &str| Node { address: address.to_owned(), port: 1, host_key: String::new() };
        let nodes = [node("10.0.0.1"), node("127.0.0.1"), node("fd00::1")];
        let check = async |host: &str, expected: Option<&str>| {
            let found = find(&nodes, host).await.ok();
            assert_eq!(found.as_ref().map(|node| node.address.as_str()), expected, "{host}");
        };
        check("10.0.0.1", Some("10.0.0.1")).await;
        check("localhost", Some("127.0.0.1")).await;
        check("fd00:0::1", Some("fd00::1")).await;
        check("10.0.0.2", None).await;
    }

    #[test]
    fn statuses_are_those_of_shells() {
        assert_eq!(status_of(&Sig::TERM), 143);
        assert_eq!(status_of(&Sig::Custom("USR2".to_owned())), 128 + 12);
        assert_eq!(status_of(&Sig::Custom("nonsense".to_owned())), 255);
    }
}
