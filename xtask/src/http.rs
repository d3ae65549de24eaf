//! A small HTTP/1.1 client: one connection, one request at a time, no more than the chores need.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// One kept connection to a server.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    token: String,
    stream: BufReader<TcpStream>,
}

/// What the server said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, token: &str) -> Result<Client> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { address, token: token.to_owned(), stream: BufReader::new(stream) })
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Answer> {
        self.request("GET", path, b"")
    }

    pub(crate) fn post(&mut self, path: &str, body: &serde_json::Value) -> Result<Answer> {
        self.request("POST", path, body.to_string().as_bytes())
    }

    /// Posts and expects success.
    pub(crate) fn call(&mut self, path: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
        let answer = self.post(path, body)?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status == 200, "{path} answered {}: {text}", answer.status);
        serde_json::from_str(&text).with_context(|| format!("read the answer of {path}"))
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            self.token,
            body.len(),
        );
        let mut message = head.into_bytes();
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message).context("send the request")?;
        self.answer().with_context(|| format!("read the answer to {method} {path}"))
    }

    fn answer(&mut self) -> Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.with_context(|| format!("`{first}` is no status line"))?;
        let mut length = None;
        let mut chunked = false;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => length = Some(value.trim().parse().context("read the length")?),
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
                None => break,
            }
        }
        let body = match (length, chunked) {
            (_, true) => self.chunks()?,
            (Some(length), false) => self.bytes(length)?,
            (None, false) => bail!("the answer has no length"),
        };
        Ok(Answer { status, body })
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length = usize::from_str_radix(line.trim(), 16).context("read a chunk's length")?;
            body.extend(self.bytes(length)?);
            self.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line)?;
        ensure!(read > 0, "the server closed the connection");
        Ok(line.trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves one canned answer and returns what the client made of it.
    fn check(canned: &'static str) -> Answer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).unwrap();
            stream.write_all(canned.as_bytes()).unwrap();
        });
        let answer = Client::connect(address, "token").unwrap().get("/").unwrap();
        server.join().unwrap();
        answer
    }

    #[test]
    fn an_answer_ends_at_its_length() {
        let answer = check("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull and more");
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"null".as_slice()));
    }

    #[test]
    fn chunks_are_put_together() {
        let answer =
            check("HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nnu\r\n2\r\nll\r\n0\r\n\r\n");
        assert_eq!((answer.status, answer.body.as_slice()), (400, b"null".as_slice()));
    }
}
