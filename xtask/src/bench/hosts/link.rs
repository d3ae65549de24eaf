//! A long way to a host: a proxy that passes on what comes after a fixed delay, as fast as it comes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// Listens on a port of this machine and passes everything on to `to` and back, each way after `one_way`. Ends with
/// this process.
pub(super) fn start(to: SocketAddr, one_way: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen for the proxy")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            thread::spawn(move || {
                // What the handshake takes on a real way.
                thread::sleep(2 * one_way);
                // Whoever connected sees by the end of the connection that this failed.
                let _ = join(&near, to, one_way);
            });
        }
    });
    Ok(address)
}

fn join(near: &TcpStream, to: SocketAddr, one_way: Duration) -> Result<()> {
    let far = TcpStream::connect(to)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    carry(near.try_clone()?, far.try_clone()?, one_way);
    carry(far, near.try_clone()?, one_way);
    Ok(())
}

/// Carries one direction: one thread says when each piece is due, another one waits for that.
fn carry(mut from: TcpStream, mut to: TcpStream, one_way: Duration) {
    let (on_the_way, arrives) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        loop {
            let mut piece = vec![0; CHUNK];
            let length = from.read(&mut piece).unwrap_or(0);
            piece.truncate(length);
            if on_the_way.send((Instant::now() + one_way, piece)).is_err() || length == 0 {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in arrives {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if piece.is_empty() || to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_after_the_delay_and_so_does_its_end() {
        let echo = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = start(echo.local_addr().unwrap(), Duration::from_millis(20)).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = echo.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let started = Instant::now();
        let mut stream = TcpStream::connect(address).unwrap();
        let sent = vec![7; 1_000_000];
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert_eq!(back.len(), sent.len());
        assert!(Duration::from_millis(80) <= started.elapsed());
        server.join().unwrap();
    }
}
