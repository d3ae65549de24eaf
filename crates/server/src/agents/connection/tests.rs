//! Connections against agents that misbehave.

use std::convert::Infallible;

use api::agent::{
    AgentError, AgentErrorCode, LOG_FRAME_MAX_PAYLOAD, LOG_WINDOW, LogFrame, LogFrameKind, Resolved,
};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use uuid::Uuid;

use super::*;
use crate::clock::Clock;
use crate::ids::Ids;
use crate::logs::{LogStore, OPEN_LIMIT};
use crate::wake::Wake;

const DEADLINE: Duration = Duration::from_secs(10);

async fn surroundings(folder: &tempfile::TempDir) -> Surroundings {
    Surroundings {
        agent_program: Arc::new(crate::agents::hosts::AgentProgram::new(std::path::PathBuf::from("/nowhere"))),
        db: store::Db::open_memory().await.unwrap(),
        clock: Clock::System,
        ids: Ids::Random,
        wake: Wake::default(),
        logs: Arc::new(LogStore::open(folder.path().to_owned()).unwrap()),
        server_id: Uuid::from_u128(1).into(),
        epoch: 1,
        superseded: Arc::default(),
    }
}

#[test]
fn only_an_agent_that_knows_a_later_server_says_that_this_one_is_superseded() {
    let said = |code| OrderError::Refused(AgentError { code, message: "no".to_owned() });
    assert!(is_superseded_by(&said(AgentErrorCode::Fenced)));
    assert!(!is_superseded_by(&said(AgentErrorCode::OtherServer)));
    assert!(!is_superseded_by(&OrderError::Unreachable("no".to_owned())));
}

fn connection() -> Arc<Connection> {
    let id = Uuid::from_u128(2).into();
    Arc::new(Connection::new(id, Timestamp::UNIX_EPOCH, CancellationToken::new()))
}

fn running(job: JobId) -> TaskState {
    TaskState {
        id: job,
        generation: 1,
        phase: TaskPhase::Running,
        pull: None,
        started_at: None,
        exit: None,
        log_end: 0,
        resolved: Resolved::default(),
        warnings: vec![],
        unvisited_millis: None,
    }
}

#[tokio::test]
async fn news_of_a_host_are_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let (around, connection) = (surroundings(&folder).await, connection());
    let interruption =
        api::agent::Interruption { cloud: api::agent::Cloud::Ec2, action: "terminate".to_owned(), at: None };
    let news = HostNews { interruption: Some(interruption.clone()), ..HostNews::default() };
    // Nobody has greeted yet, so there is nothing to change.
    connection.apply(&around, AgentEvent::Host(Box::new(news.clone())));
    assert_eq!(connection.state().host, None);
    let host = HostInfo { hostname: "gpu-1".to_owned(), ..HostInfo::default() };
    connection.state().host = Some(Box::new(host));
    connection.apply(&around, AgentEvent::Host(Box::new(news)));
    let host = connection.state().host.clone().unwrap();
    assert_eq!((host.hostname.as_str(), host.interruption), ("gpu-1", Some(interruption)));
}

#[tokio::test]
async fn nothing_is_known_of_absence_while_an_agent_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (around, connection) = (surroundings(&folder).await, connection());
    let job = JobId(Uuid::from_u128(3));
    connection.learn(&around, TaskState { unvisited_millis: Some(5_000), ..running(job) });
    assert_eq!(connection.unvisited_since(job), None);
}

/// An agent that gives every request the same answer.
async fn agent(answer: AgentError) -> Sender {
    agent_that(move |request| {
        let is_head = request.method() == http::Method::HEAD;
        let body = if is_head { vec![] } else { serde_json::to_vec(&answer).unwrap() };
        let status = answer.code.http_status();
        async move { (status, body) }
    })
    .await
}

/// An agent that answers as it is told.
async fn agent_that<F>(answer: impl Fn(http::Request<Incoming>) -> F + Send + 'static) -> Sender
where
    F: Future<Output = (u16, Vec<u8>)> + Send + 'static,
{
    handshake(stream_to(answer), 1).await.unwrap()
}

/// The way to an agent that answers as it is told.
fn stream_to<F>(answer: impl Fn(http::Request<Incoming>) -> F + Send + 'static) -> tokio::io::DuplexStream
where
    F: Future<Output = (u16, Vec<u8>)> + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answer = answer(request);
        async move {
            let (status, body) = answer.await;
            let body = Full::new(Bytes::from(body));
            Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
        }
    });
    tokio::spawn(async move {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(theirs), service).await;
    });
    ours
}

/// The way to the agent of a machine of a cloud, which greets and then tells the same of itself again.
fn stream_to_machine(greets_as: &str, tells: &str) -> tokio::io::DuplexStream {
    let machine = |id: &str| CloudMachine {
        cloud: api::agent::Cloud::Ec2,
        instance_id: id.to_owned(),
        instance_type: None,
        zone: None,
    };
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        version: "1".to_owned(),
        binary_sha256: String::new(),
        instance_id: None,
        boot_id: "1".to_owned(),
        now: Timestamp::UNIX_EPOCH,
        host: HostInfo { cloud: Some(machine(greets_as)), ..HostInfo::default() },
        tasks: vec![],
    };
    let news = HostNews { cloud: Some(machine(tells)), ..HostNews::default() };
    let events = [AgentEvent::Snapshot(vec![]), AgentEvent::Host(Box::new(news))];
    let lines = events.map(|event| serde_json::to_string(&event).unwrap() + "\n").concat();
    stream_to(move |request| {
        let is_hello = request.uri().path() == "/v1/hello";
        let answer = if is_hello { serde_json::to_vec(&hello).unwrap() } else { lines.clone().into_bytes() };
        async move { (200, answer) }
    })
}

#[tokio::test]
async fn the_agent_of_another_machine_is_not_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    let around = surroundings(&folder).await;
    let cloud = backends::fake::FakeCloud::new(backends::fake::FakeSetup::default());
    let machine = backends::Machine {
        key: backends::MachineKey { launch_id: Uuid::from_u128(4).into(), index: 0 },
        provider_id: "i-0a".to_owned(),
        state: backends::MachineState::Running,
        hostname: Some("10.0.0.1".to_owned()),
        internal_ip: None,
        container_network: None,
        region: "r1".to_owned(),
        zone: None,
        ended_because: None,
        lacked_room: false,
        login: None,
        network_path: vec![],
    };
    let route = Route::Machine(cloud.backend(around.server_id), Box::new(machine), None);
    let expected = "another machine answers at 10.0.0.1: i-0b instead of i-0a";
    let stranger = connection();
    let ended = listen(&stranger, &around, &route, stream_to_machine("i-0b", "i-0b")).await;
    assert_eq!(ended.unwrap_err().to_string(), expected);
    assert!(matches!(stranger.host(), HostSeen::Unknown { .. }));
    // It says so later.
    let ended = listen(&connection(), &around, &route, stream_to_machine("i-0a", "i-0b")).await;
    assert_eq!(ended.unwrap_err().to_string(), expected);
    let right = connection();
    listen(&right, &around, &route, stream_to_machine("i-0a", "i-0a")).await.unwrap();
    assert!(matches!(right.host(), HostSeen::Connected(_)));
}

#[tokio::test]
async fn a_log_is_read_on_while_what_came_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let around = surroundings(&folder).await;
    let job: JobId = Uuid::from_u128(3).into();
    // The agent's window, after which it would wait.
    let (piece, pieces) = (LOG_FRAME_MAX_PAYLOAD as u64, LOG_WINDOW / LOG_FRAME_MAX_PAYLOAD as u64);
    let frame = |kind, offset, length| LogFrame { kind, offset, time_micros: 0, length }.encode().to_vec();
    let mut log: Vec<u8> = (0..pieces)
        .flat_map(|nth| {
            let header = frame(LogFrameKind::Data, nth * piece, piece as u32);
            [header, vec![b'x'; piece as usize]].concat()
        })
        .collect();
    log.extend(frame(LogFrameKind::End, LOG_WINDOW, 0));
    let logs = around.logs.clone();
    let sender = agent_that(move |request| {
        let (log, logs) = (log.clone(), logs.clone());
        async move {
            if request.method() == http::Method::GET {
                return (200, log);
            }
            // No acknowledgement is answered before all is there.
            while logs.received(job) < LOG_WINDOW {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (200, b"null".to_vec())
        }
    });
    let reading = log_pull::run(connection(), around.clone(), sender.await, job, CancellationToken::new());
    tokio::time::timeout(DEADLINE, reading).await.expect("nobody waits for an answer before reading on");
    assert!(around.logs.end(job).complete);
    assert_eq!(around.logs.received(job), LOG_WINDOW);
}

#[tokio::test]
async fn the_log_of_a_task_that_the_agent_does_not_know_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let around = surroundings(&folder).await;
    let job: JobId = Uuid::from_u128(3).into();
    let unknown = AgentError { code: AgentErrorCode::UnknownTask, message: "no task".to_owned() };
    let sender = agent(unknown).await;
    let reading = log_pull::run(connection(), around.clone(), sender, job, CancellationToken::new());
    tokio::time::timeout(DEADLINE, reading).await.expect("nobody asks for ever");
    assert!(around.logs.end(job).complete);
}

#[tokio::test]
async fn logs_that_are_over_are_not_remembered_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let around = surroundings(&folder).await;
    for number in 0..=OPEN_LIMIT as u128 {
        log_pull::complete(&around, Uuid::from_u128(number).into()).await.unwrap();
    }
    let open = around.logs.count_open();
    assert!(open < OPEN_LIMIT, "{open} logs are open");
}

#[tokio::test]
async fn a_reader_that_was_cancelled_leaves_its_successor_alone() {
    let folder = tempfile::tempdir().unwrap();
    let around = surroundings(&folder).await;
    let job: JobId = Uuid::from_u128(3).into();
    let (connection, reader) = (connection(), CancellationToken::new());
    connection.state().pulling.insert(job, CancellationToken::new());
    connection.pulled(job, &reader.child_token());
    assert!(connection.state().pulling.is_empty());
    connection.state().pulling.insert(job, CancellationToken::new());
    reader.cancel();
    let sender = agent(AgentError { code: AgentErrorCode::Internal, message: "no".to_owned() }).await;
    log_pull::run(connection.clone(), around, sender, job, reader).await;
    assert!(connection.state().pulling.contains_key(&job));
}

/// What is seen of a file at an agent that gives this answer.
async fn blob_seen(code: AgentErrorCode) -> Result<BlobSeen, OrderError> {
    let sender = agent(AgentError { code, message: "no".to_owned() }).await;
    let connection = connection();
    connection.state().sender = Some(sender);
    connection.blob("00").await
}

#[tokio::test]
async fn a_file_is_missing_only_where_the_agent_says_so() {
    assert_eq!(blob_seen(AgentErrorCode::UnknownTask).await.unwrap(), BlobSeen::Missing);
    assert!(matches!(blob_seen(AgentErrorCode::Internal).await, Err(OrderError::Unreachable(_))));
}

#[tokio::test]
async fn a_file_whose_bytes_are_gone_is_lost() {
    let sender = agent(AgentError { code: AgentErrorCode::Internal, message: "no".to_owned() }).await;
    let connection = connection();
    connection.state().sender = Some(sender);
    assert_eq!(connection.upload("00", Box::pin(async { Ok(None) })).await.unwrap(), BlobSeen::Lost);
    let sent = connection.upload("00", Box::pin(async { Ok(Some(vec![1])) })).await;
    assert!(matches!(sent, Err(OrderError::Refused(_))));
}

#[tokio::test]
async fn the_log_of_a_task_that_the_agent_forgets_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let around = surroundings(&folder).await;
    let job: JobId = Uuid::from_u128(3).into();
    let connection = connection();
    let reader = CancellationToken::new();
    {
        let mut state = connection.state();
        state.tasks.insert(job, running(job));
        state.pulling.insert(job, reader.clone());
    }
    connection.apply(&around, AgentEvent::Forgotten(job));
    assert!(reader.is_cancelled());
    let complete = async {
        while !around.logs.end(job).complete {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, complete).await.expect("nothing more of it will come");
}
