//! A server that answers from a script, requests recorded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

/// One answer of a path. The last answer of a path is given again and again.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// What a live stream sends on one connection, and whether it then says goodbye or is cut.
#[derive(Debug, Clone)]
pub(crate) struct Socket {
    pub(crate) messages: Vec<Message>,
    /// Nothing more is sent, and the connection stays, until the client goes.
    pub(crate) hangs: bool,
    /// What is sent once the run was asked to stop.
    pub(crate) after_stop: Vec<Message>,
}

/// What stands at the other end of the way into a job.
#[derive(Debug, Clone)]
pub(crate) enum Tunnel {
    /// There is none.
    Refused(Answer),
    /// Everything comes back, until the client says goodbye. A ping comes before.
    Echoes,
    /// These bytes come, and then goodbye.
    Says(Vec<u8>),
}

/// A request that came in.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Script {
    answers: BTreeMap<String, VecDeque<Answer>>,
    sockets: VecDeque<Socket>,
    tunnel: Option<Tunnel>,
    /// What clients said in tunnels beside bytes.
    said_in_tunnels: Vec<Message>,
    stalled: BTreeSet<String>,
    requests: Vec<Request>,
}

/// The server; it lives as long as the process.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) url: String,
    script: Arc<Mutex<Script>>,
}

impl Server {
    pub(crate) fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server { url, script: Arc::default() };
        let script = Arc::clone(&server.script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let script = Arc::clone(&script);
                std::thread::spawn(move || serve(stream.unwrap(), &script));
            }
        });
        server
    }

    pub(crate) fn answer(&self, path: &str, status: u16, body: &Value) -> &Server {
        let answer = Answer { status, body: body.to_string() };
        self.script.lock().unwrap().answers.entry(path.to_owned()).or_default().push_back(answer);
        self
    }

    /// Never answers requests to a path.
    pub(crate) fn stalls(&self, path: &str) -> &Server {
        self.script.lock().unwrap().stalled.insert(path.to_owned());
        self
    }

    pub(crate) fn stream(&self, socket: Socket) -> &Server {
        self.script.lock().unwrap().sockets.push_back(socket);
        self
    }

    /// From now on there is this at the end of the way into every job.
    pub(crate) fn tunnel(&self, tunnel: Tunnel) -> &Server {
        self.script.lock().unwrap().tunnel = Some(tunnel);
        self
    }

    /// What clients said in tunnels beside bytes.
    pub(crate) fn said_in_tunnels(&self) -> Vec<Message> {
        self.script.lock().unwrap().said_in_tunnels.clone()
    }

    /// What a path would be answered.
    pub(crate) fn answers(&self, path: &str) -> Vec<Value> {
        let script = self.script.lock().unwrap();
        script.answers[path].iter().map(|answer| serde_json::from_str(&answer.body).unwrap()).collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.script.lock().unwrap().requests.clone()
    }

    /// The bodies of the requests to a path.
    pub(crate) fn bodies(&self, path: &str) -> Vec<Value> {
        self.requests().iter().filter(|request| request.path == path).map(Request::json).collect()
    }
}

fn serve(stream: TcpStream, script: &Mutex<Script>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read(&mut reader) {
        let key = request.headers.get("sec-websocket-key").cloned();
        script.lock().unwrap().requests.push(request.clone());
        if script.lock().unwrap().stalled.contains(&request.path) {
            // Until the client goes.
            let _gone = read(&mut reader);
            return;
        }
        if let Some(key) = key.as_ref().filter(|_| request.path.ends_with("/ssh")) {
            let tunnel = script.lock().unwrap().tunnel.clone();
            match tunnel.unwrap_or_else(|| Tunnel::Refused(unknown())) {
                Tunnel::Refused(answer) => respond(&stream, &answer),
                tunnel => return serve_tunnel(upgrade(stream, key), &tunnel, script),
            }
            continue;
        }
        if let Some(key) = key {
            let Some(socket) = script.lock().unwrap().sockets.pop_front() else {
                respond(&stream, &unknown());
                continue;
            };
            return serve_socket(stream, &key, socket, script);
        }
        let mut script = script.lock().unwrap();
        let answer = match script.answers.get_mut(&request.path) {
            Some(answers) if 1 < answers.len() => answers.pop_front().unwrap(),
            Some(answers) => answers[0].clone(),
            None => unknown(),
        };
        drop(script);
        respond(&stream, &answer);
    }
}

fn unknown() -> Answer {
    Answer { status: 404, body: r#"{"detail":"Not Found"}"#.to_owned() }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length != 0)?;
    let target = line.split(' ').nth(1)?.to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { path: path.to_owned(), query: query.to_owned(), headers, body })
}

fn respond(mut stream: &TcpStream, answer: &Answer) {
    let (status, length) = (answer.status, answer.body.len());
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    let _ = stream.write_all([head.as_bytes(), answer.body.as_bytes()].concat().as_slice());
}

#[expect(clippy::disallowed_methods, reason = "requests come in on other threads, which know nothing of this one")]
fn serve_socket(stream: TcpStream, key: &str, socket: Socket, script: &Mutex<Script>) {
    let mut websocket = upgrade(stream, key);
    for message in socket.messages {
        if websocket.send(message).is_err() {
            return;
        }
    }
    let is_stopped = || script.lock().unwrap().requests.iter().any(|request| request.path.ends_with("runs/stop"));
    while !socket.after_stop.is_empty() && !is_stopped() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for message in socket.after_stop {
        websocket.send(message).unwrap();
    }
    while socket.hangs && websocket.read().is_ok() {}
}

fn upgrade(mut stream: TcpStream, key: &str) -> WebSocket<TcpStream> {
    let accept = derive_accept_key(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    WebSocket::from_raw_socket(stream, Role::Server, None)
}

fn serve_tunnel(mut websocket: WebSocket<TcpStream>, tunnel: &Tunnel, script: &Mutex<Script>) {
    if let Tunnel::Says(bytes) = tunnel {
        for part in bytes.chunks(100_000) {
            websocket.send(Message::binary(part.to_vec())).unwrap();
        }
        websocket.close(None).unwrap();
    } else {
        websocket.send(Message::Ping("there?".into())).unwrap();
    }
    while let Ok(message) = websocket.read() {
        match message {
            Message::Binary(_) => websocket.send(message).unwrap(),
            message => script.lock().unwrap().said_in_tunnels.push(message),
        }
    }
}
