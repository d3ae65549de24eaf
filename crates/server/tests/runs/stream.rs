//! A run's live stream, read with our own client.

use std::time::Duration;

use api::client::{Client, RunStream, RunStreamEvent, RunStreamOptions};
use api::ids::JobId;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{ADMIN, TestServer};
use crate::support::{main, waiting_task};

fn client(server: &TestServer) -> Client {
    Client::new(&server.url(""), ADMIN).unwrap()
}

fn options() -> RunStreamOptions {
    RunStreamOptions { logs: true, replica: 0, job: None, since: None, follow: true }
}

async fn pending_run(server: &TestServer) -> JobId {
    server.apply(waiting_task("train")).await;
    let run = server.wait_for_run("train", &["pending"]).await;
    serde_json::from_value(run["latest_job_submission"]["id"].clone()).unwrap()
}

fn append(server: &TestServer, job: JobId, offset: u64, text: &[u8]) {
    let now = server.server.deps.clock.now().as_microsecond();
    server.server.deps.logs.append(job, offset, now, text).unwrap();
}

async fn next(stream: &mut RunStream) -> Option<RunStreamEvent> {
    let event =
        tokio::time::timeout(Duration::from_mins(1), stream.next()).await.expect("the stream stands still");
    event.map(Result::unwrap)
}

/// Reads log bytes until there are so many.
async fn read_bytes(stream: &mut RunStream, count: usize) -> Vec<u8> {
    let mut read = vec![];
    while read.len() < count {
        match next(stream).await.expect("the stream ended") {
            RunStreamEvent::Log { bytes, .. } => read.extend_from_slice(&bytes),
            RunStreamEvent::Gap { bytes, .. } => panic!("{bytes} bytes are lost"),
            _ => {}
        }
    }
    read
}

async fn stop(server: &TestServer) {
    server.post(&main("runs/stop"), json!({"runs_names": ["train"], "abort": true})).await.ok();
}

#[tokio::test]
async fn a_stream_shows_the_run_its_bytes_and_its_end() {
    let server = TestServer::new().await;
    let job = pending_run(&server).await;
    append(&server, job, 0, b"hello ");
    let mut stream = RunStream::open(&client(&server), "main", "train", options()).await.unwrap();
    assert!(
        matches!(next(&mut stream).await, Some(RunStreamEvent::Submission { job_num: 0, id }) if id == job)
            || matches!(next(&mut stream).await, Some(RunStreamEvent::Submission { job_num: 0, id }) if id == job)
    );
    assert_eq!(read_bytes(&mut stream, 6).await, b"hello ");
    append(&server, job, 6, b"world");
    assert_eq!(read_bytes(&mut stream, 5).await, b"world");
    stop(&server).await;
    let mut last = None;
    while let Some(event) = next(&mut stream).await {
        if let RunStreamEvent::Run(run) = event {
            last = Some(run.status);
        }
    }
    assert_eq!(last.map(api::runs::RunStatus::as_str), Some("terminated"));
}

#[tokio::test]
async fn a_stream_that_does_not_follow_ends_at_what_is_there() {
    let server = TestServer::new().await;
    let job = pending_run(&server).await;
    append(&server, job, 0, b"one");
    let not_following = RunStreamOptions { follow: false, ..options() };
    let mut stream = RunStream::open(&client(&server), "main", "train", not_following).await.unwrap();
    assert_eq!(read_bytes(&mut stream, 3).await, b"one");
    while next(&mut stream).await.is_some() {}
    let silent = RunStreamOptions { follow: false, logs: false, ..options() };
    let mut stream = RunStream::open(&client(&server), "main", "train", silent).await.unwrap();
    while let Some(event) = next(&mut stream).await {
        assert!(matches!(event, RunStreamEvent::Run(_)), "{event:?}");
    }
}

#[tokio::test]
async fn errors_come_before_the_stream() {
    let server = TestServer::new().await;
    let error = RunStream::open(&client(&server), "main", "nosuch", options()).await.unwrap_err();
    assert!(error.to_string().contains("Run not found"), "{error}");
    server.apply(waiting_task("train")).await;
    let plain = server.request(reqwest::Method::GET, &main("runs/train/stream")).bearer_auth(ADMIN);
    let answer = crate::harness::answer(plain).await;
    answer.expect_bad_request("This address speaks WebSocket only", "error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_flows_fast_and_a_slow_reader_delays_nobody() {
    const LENGTH: usize = 64 * 1024 * 1024;
    let server = TestServer::new().await;
    let job = pending_run(&server).await;
    let block: Vec<u8> = (0..32 * 1024).map(|number| (number % 251) as u8).collect();
    for number in 0..LENGTH / block.len() {
        append(&server, job, (number * block.len()) as u64, &block);
    }
    // Nobody reads this one.
    let _slow = RunStream::open(&client(&server), "main", "train", options()).await.unwrap();
    let started = Instant::now();
    let mut stream = RunStream::open(&client(&server), "main", "train", options()).await.unwrap();
    let read = read_bytes(&mut stream, LENGTH).await;
    let seconds = started.elapsed().as_secs_f64();
    println!("{:.0} MB/s", LENGTH as f64 / 1e6 / seconds);
    assert_eq!(read.len(), LENGTH);
    assert!(read.chunks(block.len()).all(|part| part == block));
    let answer = server.post("/api/runs/list", Value::Null).await.ok();
    assert_eq!(answer.as_array().unwrap().len(), 1);
}
