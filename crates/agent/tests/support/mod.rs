//! A host agent under test, and a small client that speaks its protocol.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::disallowed_methods,
    reason = "every test file uses another part of this"
)]

pub mod events;
pub mod git;
pub mod metadata;
pub mod ssh;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::agent::*;
use api::ids::{JobId, RunId, ServerId};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// How long anything may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_dstack-agent"))
}

/// Waits until `probe` answers something.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A host agent with a home of its own.
pub struct Agent {
    pub home: TempDir,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// A program that runs the agent, and its arguments, where it is not run as it is.
    pub wrapper: Vec<String>,
    pub server_id: ServerId,
    pub epoch: u64,
    child: Option<Child>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        // Tasks outlive their agent; a test must not leave any.
        for task in self.task_ids() {
            for process in processes_of(task) {
                kill_process(process);
            }
            let lock = self.home.path().join(format!("tasks/{task}/run/lock"));
            if let Ok(pid) = std::fs::read_to_string(lock).unwrap_or_default().trim().parse() {
                kill_supervisor(pid);
            }
        }
    }
}

/// Kills a process if it is one of ours.
fn kill_supervisor(pid: i32) {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if command.windows(4).any(|part| part == b"\0job") {
        kill_process(pid);
    }
}

pub fn kill_process(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
}

/// Processes with the task's identifier in their environment.
pub fn processes_of(task: JobId) -> Vec<i32> {
    let marker = format!("DSTACK_JOB_ID={task}");
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
        })
        .collect()
}

impl Agent {
    pub fn new(arguments: &[&str]) -> Agent {
        Agent::at(tempfile::Builder::new().prefix("agent").tempdir().unwrap(), arguments)
    }

    pub fn at(home: TempDir, arguments: &[&str]) -> Agent {
        let mut agent = Agent {
            home,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            server_id: ServerId(Uuid::new_v4()),
            epoch: 1,
            child: None,
        };
        agent.start();
        agent
    }

    /// An agent with variables beside those of the test.
    pub fn with_env(arguments: &[&str], environment: &[(&str, &str)]) -> Agent {
        let mut agent = Agent::new(arguments);
        agent.kill();
        agent.environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        agent.start();
        agent
    }

    pub fn command(&self) -> Command {
        let mut command = match self.wrapper.as_slice() {
            [] => Command::new(binary()),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
        };
        command.envs(self.environment.iter().cloned());
        command.arg("host").arg("--home").arg(self.home.path()).args(&self.arguments);
        if !self.arguments.iter().any(|argument| argument == "--docker") {
            command.args(["--docker", "off"]);
        }
        command
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.path().join("agent.log"))
            .unwrap();
        let child = self.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.unwrap());
    }

    /// `kill -9`, as a crash would end it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("agent.log")).unwrap_or_default()
    }

    pub fn task_ids(&self) -> Vec<JobId> {
        let Ok(entries) = std::fs::read_dir(self.home.path().join("tasks")) else {
            return Vec::new();
        };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    pub async fn try_connect(&self) -> Option<Client> {
        let stream = UnixStream::connect(self.home.path().join("agent.sock")).await.ok()?;
        Client::over(stream, self.epoch).await
    }

    /// A client of the running agent; one that a fail point ended is started again.
    pub async fn client(&mut self) -> Client {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(client) = self.try_connect().await {
                return client;
            }
            if self.has_exited() {
                self.start();
            }
            assert!(Instant::now() < end, "the agent does not come up: {}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Repeats a request over crashes of the agent until it is answered.
    pub async fn insist<T: DeserializeOwned>(
        &mut self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AgentError> {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut client = self.client().await;
            match timeout(Duration::from_secs(20), client.request(method, path, body)).await {
                Ok(Some(answer)) => return answer,
                _ => assert!(Instant::now() < end, "no answer to {path}: {}", self.log()),
            }
        }
    }

    pub async fn put(&mut self, spec: &TaskSpec) -> TaskState {
        self.insist("PUT", &format!("/v1/tasks/{}", spec.id), spec).await.unwrap()
    }

    /// Uploads a blob and answers its name.
    pub async fn upload(&mut self, blob: Vec<u8>) -> String {
        use sha2::Digest;
        let hash = hex::encode(sha2::Sha256::digest(&blob));
        let mut client = self.client().await;
        let kept = client.send("PUT", &format!("/v1/blobs/{hash}"), blob.into()).await.unwrap();
        assert_eq!(kept.status(), 200);
        hash
    }

    pub async fn order(&mut self, spec: &TaskSpec, verb: &str) -> TaskState {
        let order = TaskOrder { generation: spec.generation };
        self.insist("POST", &format!("/v1/tasks/{}/{verb}", spec.id), &order).await.unwrap()
    }

    /// Lets a node of a gang start, with what is known of its peers by then.
    pub async fn go(&mut self, spec: &TaskSpec, ssh_ports: &[u16]) -> TaskState {
        let order = GoOrder { generation: spec.generation, ssh_ports: ssh_ports.to_vec() };
        self.insist("POST", &format!("/v1/tasks/{}/go", spec.id), &order).await.unwrap()
    }

    pub async fn stop(&mut self, spec: &TaskSpec, grace_secs: u64) -> TaskState {
        let order = StopOrder { generation: spec.generation, grace_secs };
        self.insist("POST", &format!("/v1/tasks/{}/stop", spec.id), &order).await.unwrap()
    }

    pub async fn forget(&mut self, spec: &TaskSpec) {
        let order = TaskOrder { generation: spec.generation };
        let path = format!("/v1/tasks/{}/forget", spec.id);
        self.insist::<()>("POST", &path, &order).await.unwrap();
    }

    pub async fn hello(&mut self) -> Hello {
        let request = HelloRequest { server_id: self.server_id, epoch: self.epoch, protocol: PROTOCOL_VERSION };
        self.insist("POST", "/v1/hello", &request).await.unwrap()
    }

    pub async fn state(&mut self, id: JobId) -> Option<TaskState> {
        self.hello().await.tasks.into_iter().find(|state| state.id == id)
    }

    pub async fn wait_for(
        &mut self,
        spec: &TaskSpec,
        what: &str,
        mut holds: impl FnMut(&TaskState) -> bool,
    ) -> TaskState {
        let end = Instant::now() + DEADLINE;
        loop {
            let state = self.state(spec.id).await;
            if let Some(state) = state.as_ref().filter(|state| holds(state)) {
                return state.clone();
            }
            assert!(Instant::now() < end, "{what}: {state:#?}\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn wait_sealed(&mut self, spec: &TaskSpec) -> TaskState {
        self.wait_for(spec, "sealed", |state| state.phase == TaskPhase::Sealed).await
    }

    /// Runs a task to its end and answers its state and its whole log.
    pub async fn run(&mut self, spec: &TaskSpec) -> (TaskState, Vec<u8>) {
        self.put(spec).await;
        let log = self.read_log(spec.id, 0).await;
        assert!(log.gaps.is_empty(), "{:?}", log.gaps);
        (self.wait_sealed(spec).await, log.bytes)
    }

    /// Reads a log to its end over all crashes, acknowledging it as a server does.
    pub async fn read_log(&mut self, id: JobId, offset: u64) -> Log {
        let mut log = Log { next: offset, ..Log::default() };
        let end = Instant::now() + 2 * DEADLINE;
        while log.end.is_none() {
            let mut client = self.client().await;
            client.follow_log(id, &mut log).await;
            assert!(Instant::now() < end, "the log does not end at {}: {}", log.next, self.log());
        }
        log
    }
}

/// What was read of a log.
#[derive(Debug, Default)]
pub struct Log {
    pub bytes: Vec<u8>,
    pub next: u64,
    pub gaps: Vec<(u64, u64)>,
    pub times: Vec<i64>,
    pub end: Option<u64>,
}

/// One connection to an agent.
pub struct Client {
    sender: http2::SendRequest<Full<Bytes>>,
    epoch: u64,
}

impl Client {
    pub async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
        epoch: u64,
    ) -> Option<Client> {
        let io = TokioIo::new(stream);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
        tokio::spawn(connection);
        Some(Client { sender, epoch })
    }

    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Option<hyper::Response<hyper::body::Incoming>> {
        let request = hyper::Request::builder()
            .method(method)
            .uri(format!("http://agent{path}"))
            .header(EPOCH_HEADER, self.epoch)
            .body(Full::new(body))
            .unwrap();
        self.sender.ready().await.ok()?;
        self.sender.send_request(request).await.ok()
    }

    /// None: the connection broke.
    pub async fn request<T: DeserializeOwned>(
        &mut self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Option<Result<T, AgentError>> {
        let bytes = Bytes::from(serde_json::to_vec(body).unwrap());
        let response = self.send(method, path, bytes).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await.ok()?.to_bytes();
        if status.is_success() {
            return Some(Ok(serde_json::from_slice(&bytes).unwrap()));
        }
        let error: AgentError = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(status.as_u16(), error.code.http_status());
        Some(Err(error))
    }

    /// Reads frames until the log or the connection ends.
    pub async fn follow_log(&mut self, id: JobId, log: &mut Log) {
        let path = format!("/v1/tasks/{id}/logs?offset={}", log.next);
        let Some(response) = self.send("GET", &path, Bytes::new()).await else {
            return;
        };
        if !response.status().is_success() {
            sleep(Duration::from_millis(10)).await;
            return;
        }
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        let mut acked = log.next;
        while let Some(Ok(frame)) = body.frame().await {
            buffer.extend_from_slice(frame.data_ref().unwrap());
            while take_frame(&mut buffer, log) {}
            if log.next > acked + LOG_WINDOW / 2 {
                acked = log.next;
                let path = format!("/v1/tasks/{id}/logs/ack");
                let answer = self.request::<()>("POST", &path, &LogAck { offset: acked }).await;
                if answer.is_none() {
                    return;
                }
            }
        }
    }
}

pub fn take_frame(buffer: &mut BytesMut, log: &mut Log) -> bool {
    let Some(header) = buffer.first_chunk::<LOG_FRAME_HEADER>() else {
        return false;
    };
    let frame = LogFrame::decode(header).expect("the stream is whole");
    let length = LOG_FRAME_HEADER + frame.length as usize;
    if buffer.len() < length {
        return false;
    }
    let mut bytes = buffer.split_to(length);
    bytes.advance(LOG_FRAME_HEADER);
    match frame.kind {
        LogFrameKind::Data => {
            assert_eq!(frame.offset, log.next, "data follows data");
            log.bytes.extend_from_slice(&bytes);
            log.times.push(frame.time_micros);
            log.next += u64::from(frame.length);
        }
        LogFrameKind::Gap => {
            log.gaps.push((log.next, frame.offset));
            log.next = frame.offset;
        }
        LogFrameKind::End => log.end = Some(frame.offset),
    }
    true
}

/// A task that runs a shell script as a process, and does not wait for `go`.
pub fn script(text: &str) -> TaskSpec {
    process(&["/bin/sh", "-c", text])
}

pub fn process(argv: &[&str]) -> TaskSpec {
    TaskSpec {
        id: JobId(Uuid::new_v4()),
        generation: 1,
        job_name: "train-0-0".to_owned(),
        run_id: RunId(Uuid::new_v4()),
        run_name: "train".to_owned(),
        project_name: "main".to_owned(),
        runtime: Runtime::Process,
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        env: std::collections::BTreeMap::new(),
        cluster: ClusterInfo { node_rank: 0, node_ips: vec!["127.0.0.1".to_owned()], gpus_per_node: vec![0] },
        share: HostShare { gpu_count: Some(0), ..HostShare::default() },
        user: None,
        working_dir: None,
        python: None,
        code: None,
        files: Vec::new(),
        repo_id: None,
        max_duration_secs: None,
        stop_grace_secs: 10,
        released: true,
        ssh: None,
        stay: None,
        gang: None,
    }
}

/// Whether a process lives, zombies not counted.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with('Z'))
}

/// An archive with one file.
pub fn archive(path: &str, text: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    archive.into_inner().unwrap()
}

/// The log as text with the terminal's line ends made plain.
pub fn text(log: &[u8]) -> String {
    String::from_utf8_lossy(log).replace("\r\n", "\n")
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
