//! Launches through an engine that goes away in the middle of every step: a pretended one, whose answers are the test's.

#![cfg(test)]

mod support;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::agent::*;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use support::*;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What the pretended engine says.
enum Answer {
    /// A document.
    Json(u16, String),
    /// The head of an answer and a part of its body, and then the end of the connection.
    Part(&'static str),
    /// Nothing: the engine died.
    Death,
}

/// How often each route was asked for, by method and path.
type Asked = BTreeMap<String, u32>;

/// What is answered on a route, as a function of what was asked for before.
type Script = fn(&str, &Asked) -> Answer;

/// An engine that says what a script says.
struct PretendedEngine {
    dir: TempDir,
    asked: Arc<Mutex<Asked>>,
}

impl PretendedEngine {
    fn start(script: Script) -> PretendedEngine {
        let engine = PretendedEngine { dir: tempfile::tempdir().unwrap(), asked: Arc::default() };
        let listener = UnixListener::bind(engine.socket()).unwrap();
        let asked = Arc::clone(&engine.asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that goes away is no failure of ours.
                tokio::spawn(serve(stream, Arc::clone(&asked), script));
            }
        });
        engine
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    fn agent(&self) -> Agent {
        let host = format!("unix://{}", self.socket().display());
        Agent::with_env(&["--docker", "auto"], &[("DOCKER_HOST", &host)])
    }

    fn times(&self, route: &str) -> u32 {
        self.asked.lock().unwrap().get(route).copied().unwrap_or(0)
    }
}

async fn serve(stream: UnixStream, asked: Arc<Mutex<Asked>>, script: Script) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<u64>().ok();
    let length = head.lines().find_map(length).unwrap_or(0);
    tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    // The version comes first, except where it is asked for.
    let path = path.strip_prefix("/v1.").and_then(|path| path.split_once('/')).map_or(path, |(_, path)| path);
    let route = format!("{method} {}", path.trim_start_matches('/'));
    let answer = {
        let mut asked = asked.lock().unwrap();
        let answer = script(&route, &asked);
        *asked.entry(route).or_default() += 1;
        answer
    };
    let (status, body) = match answer {
        Answer::Json(status, body) => (status, body),
        Answer::Part(body) => (200, body.to_owned()),
        Answer::Death => return Ok(()),
    };
    // Without a length the body ends with the connection.
    let head = format!("HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn container(image: &str) -> TaskSpec {
    let mut spec = process(&["/bin/true"]);
    spec.runtime = Runtime::Docker(Box::new(ContainerSpec {
        image: image.to_owned(),
        registry_auth: None,
        privileged: false,
        shm_size_bytes: None,
        network: ContainerNetwork::Host,
        mounts: Vec::new(),
        devices: Vec::new(),
        home_dir: None,
    }));
    spec
}

/// Dies once at each step of a launch, of which some have had their effect, and refuses the last one.
fn dies_at_every_step(route: &str, asked: &Asked) -> Answer {
    let times = |route: &str| asked.get(route).copied().unwrap_or(0);
    // The first container is there, although its making was not confirmed.
    let has_first = 0 < times("POST containers/create") && times("DELETE containers/first") == 0;
    let json = |text: &str| Answer::Json(200, text.to_owned());
    match (route, times(route)) {
        ("GET version", _) => json(r#"{"ApiVersion":"1.45","Version":"27"}"#),
        ("GET info", _) => json(r#"{"ServerVersion":"27"}"#),
        (
            "GET containers/json"
            | "GET images/pretended:1/json"
            | "POST images/create"
            | "POST containers/create"
            | "POST containers/second/start",
            0,
        ) => Answer::Death,
        ("GET containers/json", _) if has_first => json(r#"[{"Id":"first"}]"#),
        ("GET containers/json", _) => json("[]"),
        ("GET containers/first/json", _) => json(r#"{"Id":"first","State":{"Status":"created","Running":false}}"#),
        ("GET images/pretended:1/json", 1..=4) => Answer::Json(404, r#"{"message":"no such image"}"#.to_owned()),
        ("GET images/pretended:1/json", _) => json(r#"{"Id":"sha256:1","Config":{}}"#),
        // An engine that is told to end closes its connections in good order.
        ("POST images/create", 1) => {
            Answer::Part(r#"{"status":"Downloading","progressDetail":{"current":5,"total":9},"id":"a1"}"#)
        }
        ("POST images/create", _) => json(r#"{"status":"Status: Downloaded newer image for pretended:1"}"#),
        ("POST containers/create", _) => Answer::Json(201, r#"{"Id":"second","Warnings":[]}"#.to_owned()),
        ("POST containers/second/start", _) => Answer::Json(500, r#"{"message":"the last word"}"#.to_owned()),
        ("DELETE containers/first" | "DELETE containers/second", _) => Answer::Json(204, String::new()),
        (route, _) => Answer::Json(500, format!(r#"{{"message":"{route} was not expected"}}"#)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_goes_away_at_any_step_is_waited_for() {
    let engine = PretendedEngine::start(dies_at_every_step);
    let mut agent = engine.agent();
    let spec = container("pretended:1");
    agent.put(&spec).await;
    let exit = agent.wait_sealed(&spec).await.exit.unwrap();
    let seen = engine.asked.lock().unwrap().clone();
    assert_eq!(exit.message.as_deref(), Some("the last word"), "{seen:#?}\n{}", agent.log());
    assert_eq!(exit.reason, ExitReason::CreatingContainerError);
    assert_eq!(engine.times("DELETE containers/first"), 1, "{seen:#?}");
    assert_eq!((engine.times("POST images/create"), engine.times("POST containers/create")), (3, 3), "{seen:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_always_goes_away_is_not_waited_for_for_ever() {
    let engine = PretendedEngine::start(|route, _| match route {
        "GET version" => Answer::Json(200, r#"{"ApiVersion":"1.45"}"#.to_owned()),
        _ => Answer::Death,
    });
    let mut agent = engine.agent();
    let spec = container("pretended:1");
    agent.put(&spec).await;
    let told = |state: &TaskState| state.exit.is_some();
    let exit = agent.wait_for(&spec, "exit", told).await.exit.unwrap();
    let message = exit.message.unwrap();
    assert!(message.contains("the container engine went away 11 times"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_cut_short_leaves_the_copy_that_is_here_and_a_warning() {
    let engine = PretendedEngine::start(|route, _| {
        let json = |status: u16, text: &str| Answer::Json(status, text.to_owned());
        match route {
            "GET version" => json(200, r#"{"ApiVersion":"1.45","Version":"27"}"#),
            "GET info" => json(200, r#"{"ServerVersion":"27"}"#),
            "GET containers/json" => json(200, "[]"),
            "GET images/pretended:latest/json" => json(200, r#"{"Id":"sha256:1","Config":{}}"#),
            "POST images/create" => {
                Answer::Part(r#"{"status":"Downloading","progressDetail":{"current":5,"total":9},"id":"a1"}"#)
            }
            "POST containers/create" => json(201, r#"{"Id":"second","Warnings":[]}"#),
            "DELETE containers/second" => json(204, ""),
            _ => json(500, r#"{"message":"the last word"}"#),
        }
    });
    let mut agent = engine.agent();
    let spec = container("pretended:latest");
    agent.put(&spec).await;
    let state = agent.wait_sealed(&spec).await;
    assert_eq!(state.exit.unwrap().message.as_deref(), Some("the last word"), "{}", agent.log());
    assert_eq!((engine.times("POST images/create"), engine.times("POST containers/create")), (1, 1));
    let is_told = |warning: &String| warning.contains("it cannot be refreshed: its pull was cut short");
    assert!(state.warnings.iter().any(is_told), "{:?}", state.warnings);
}

/// Has a container that runs, and cannot end it at once.
fn kills_at_the_second_attempt(route: &str, asked: &Asked) -> Answer {
    let json = |status: u16, text: &str| Answer::Json(status, text.to_owned());
    match (route, asked.get(route).copied().unwrap_or(0)) {
        ("GET version", _) => json(200, r#"{"ApiVersion":"1.45","Version":"27"}"#),
        ("GET info", _) => json(200, r#"{"ServerVersion":"27"}"#),
        ("GET containers/json", _) => json(200, r#"[{"Id":"first"}]"#),
        ("GET containers/first/json", _) => {
            json(200, r#"{"Id":"first","State":{"Status":"running","Running":true}}"#)
        }
        ("POST containers/first/kill", 1) => json(409, r#"{"message":"container first is not running"}"#),
        _ => json(500, r#"{"message":"tried to kill container, but did not receive an exit event"}"#),
    }
}

/// Holds a supervisor's lock, as a container's first process does.
fn hold(lock: &Path) -> std::fs::File {
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(lock).unwrap();
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_killed_yet_is_killed_again_before_its_task_is_sealed() {
    let engine = PretendedEngine::start(kills_at_the_second_attempt);
    let mut agent = engine.agent();
    let spec = container("pretended:1");
    agent.put(&spec).await;
    agent.wait_for(&spec, "container", |state| state.resolved.container_id.is_some()).await;
    let _lock = hold(&agent.home.path().join(format!("tasks/{}/run/lock", spec.id)));
    agent.stop(&spec, 0).await;
    agent.wait_sealed(&spec).await;
    assert_eq!(engine.times("POST containers/first/kill"), 2, "{}", agent.log());
}
