//! Runs that are followed: logs as they come, reconnection, and how they end.

use api::agent::{LogFrame, LogFrameKind};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::server::{Server, Socket};
use crate::terminal::{Act, User};

pub(crate) const FIRST: &str = "80b0f384-8ca7-4baa-bf48-2e3cf3f42b7b";
const SECOND: &str = "152fa45c-b906-41b0-b502-d8982f9cd98b";
const STREAM: &str = "/api/project/main/runs/long/stream";

/// A run with this many nodes, all in one state.
pub(crate) fn run(nodes: usize, status: &str, job_status: &str) -> Value {
    let path = format!("{}/tests/golden/ps-verbose-running.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut run = golden["calls"][0]["body"][0].clone();
    run["status"] = json!(status);
    run["status_message"] = json!(status);
    let jobs = run["jobs"].as_array_mut().unwrap();
    jobs.truncate(nodes);
    for job in jobs {
        let last = &mut job["job_submissions"][0];
        last["status"] = json!(job_status);
        last["status_message"] = json!(job_status);
        last["image_pull_progress"] = Value::Null;
    }
    run
}

pub(crate) fn failed(run: &mut Value, job: usize, finished_at: &str, reason: &str, exit_status: i32) {
    let last = &mut run["jobs"][job]["job_submissions"][0];
    last["status"] = json!("failed");
    last["status_message"] = json!(format!("exited ({exit_status})"));
    last["exit_status"] = json!(exit_status);
    last["termination_reason"] = json!(reason);
    last["finished_at"] = json!(finished_at);
}

pub(crate) fn is(run: &Value) -> Message {
    Message::text(json!({ "run": run }).to_string())
}

pub(crate) fn begins(job_num: u32, id: &str) -> Message {
    Message::text(json!({"submission": {"job_num": job_num, "id": id}}).to_string())
}

pub(crate) fn end() -> Message {
    Message::text("\"end\"")
}

pub(crate) fn log(job_num: u32, offset: u64, text: &str) -> Message {
    let mut bytes = job_num.to_be_bytes().to_vec();
    // In two frames, as a server may cut them.
    let (head, tail) = text.split_at(text.len() / 2);
    for (offset, part) in [(offset, head), (offset + head.len() as u64, tail)] {
        let frame = LogFrame { kind: LogFrameKind::Data, offset, time_micros: 0, length: part.len() as u32 };
        bytes.extend(frame.encode());
        bytes.extend(part.as_bytes());
    }
    Message::binary(bytes)
}

pub(crate) fn says_goodbye(messages: Vec<Message>) -> Socket {
    Socket { messages, hangs: false, after_stop: Vec::new() }
}

/// A server where a plan of the run is made and applied.
pub(crate) fn server(nodes: usize) -> Server {
    let server = Server::start();
    let path = format!("{}/tests/golden/apply-task-two-nodes-detach.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for call in golden["calls"].as_array().unwrap() {
        let path = call["path"].as_str().unwrap();
        if !path.ends_with("runs/apply") {
            server.answer(path, 200, &call["body"]);
        }
    }
    server.answer("/api/project/main/runs/apply", 200, &run(nodes, "submitted", "submitted"));
    server.answer("/api/project/main/runs/get", 200, &run(nodes, "running", "running"));
    server.answer("/api/project/main/runs/stop", 200, &Value::Null);
    server
}

pub(crate) fn user(server: &Server) -> User {
    User::of(server).file("t.yml", "type: task\nname: long\ncommands: [x]\n")
}

#[test]
fn one_node_is_shown_as_it_writes_and_its_success_is_the_commands() {
    let server = server(1);
    server.stream(says_goodbye(vec![
        is(&run(1, "provisioning", "pulling")),
        is(&run(1, "running", "running")),
        begins(0, FIRST),
        log(0, 0, "hello\r\n50%\rno newline"),
        is(&run(1, "done", "done")),
        end(),
    ]));
    let ran = user(&server).runs("apply -f t.yml -y");
    let expected = " NAME  BACKEND          GPU              PRICE   STATUS   SUBMITTED \n \
                    long  aws (us-east-1)  gpu=H100:80GB:8  $55.04  running  02:11     \n\n\
                    long provisioning completed (running)\n\
                    hello\r\n50%\rno newline\nDone\n";
    assert!(ran.out.ends_with(expected), "{}", ran.out);
    // It has no image that could be pulled.
    assert_eq!(ran.err, "submitted\npreparing\n");
    assert_eq!(ran.code, 0);
    let request = server.requests().into_iter().find(|request| request.path == STREAM).unwrap();
    assert_eq!(request.query, "logs=true&replica=0&follow=true");
    assert_eq!(request.headers["authorization"], "Bearer secret");
}

#[test]
fn several_nodes_have_their_rank_before_each_line() {
    let server = server(2);
    server.stream(says_goodbye(vec![
        is(&run(2, "running", "running")),
        begins(0, FIRST),
        begins(1, SECOND),
        log(0, 0, "from 0, "),
        log(1, 0, "from 1\n"),
        log(0, 8, "still 0\nno newline"),
        is(&run(2, "done", "done")),
        end(),
    ]));
    let ran = user(&server).runs("apply -f t.yml -y");
    assert!(
        ran.out.ends_with("(running)\n[1] from 1\n[0] from 0, still 0\n[0] no newline\nDone\n"),
        "{}",
        ran.out
    );
    assert_eq!(ran.err, "[0] submitted\n[1] submitted\n");
}

#[test]
fn a_failure_names_the_node_that_was_its_cause() {
    let server = server(2);
    let mut last = run(2, "failed", "terminated");
    failed(&mut last, 0, "2026-11-23T02:20:05Z", "terminated_by_server", 143);
    failed(&mut last, 1, "2026-11-23T02:20:04Z", "container_exited_with_error", 3);
    last["jobs"][1]["job_submissions"][0]["termination_reason_message"] = json!("rank 1 gave up");
    server.stream(says_goodbye(vec![is(&run(2, "running", "running")), is(&last), end()]));
    let ran = user(&server).runs("apply -f t.yml -y");
    let expected = "Exited (3), node 1\n[1] rank 1 gave up\nCheck dstack logs -d long for more details.\n";
    assert!(ran.out.ends_with(expected), "{}", ran.out);
    assert_eq!(ran.code, 1);
}

#[test]
fn no_capacity_is_told_as_the_official_client_does() {
    let server = server(1);
    let mut last = run(1, "failed", "failed");
    let job = &mut last["jobs"][0]["job_submissions"][0];
    job["job_provisioning_data"] = Value::Null;
    job["job_runtime_data"] = Value::Null;
    job["status_message"] = json!("no capacity");
    job["termination_reason"] = json!("failed_to_start_due_to_no_capacity");
    job["termination_reason_message"] = json!("Could not reuse any instance for this job");
    server.stream(says_goodbye(vec![is(&last), end()]));
    let ran = user(&server).runs("apply -f t.yml -y");
    let expected = " NAME  BACKEND  RESOURCES  INSTANCE TYPE  PRICE  STATUS       PROBES  SUBMITTED  ERROR                                     \n \
                    long           -                         -      no capacity          02:11      Could not reuse any instance for this job \n\n\
                    long provisioning completed (failed)\nNo capacity\nCould not reuse any instance for this job\n";
    assert!(ran.out.ends_with(expected), "{}", ran.out);
    assert_eq!(ran.code, 1);
}

#[test]
fn what_a_node_waits_for_is_told_once() {
    let server = server(2);
    let mut waiting = run(2, "provisioning", "provisioning");
    waiting["jobs"][0]["job_submissions"][0]["waiting_for"] = json!("node 1 to be ready");
    server.stream(says_goodbye(vec![is(&waiting), is(&waiting), is(&run(2, "done", "done")), end()]));
    let ran = user(&server).runs("apply -f t.yml -y");
    assert_eq!(ran.err.matches("[0] provisioning, waiting for node 1 to be ready").count(), 1, "{}", ran.err);
    assert_eq!(ran.err.matches("[1] provisioning p5.48xlarge on aws").count(), 1, "{}", ran.err);
}

#[test]
fn a_cut_connection_goes_on_where_it_was() {
    let server = server(1);
    let beginning = vec![is(&run(1, "running", "running")), begins(0, FIRST), log(0, 0, "one two ")];
    server.stream(says_goodbye(beginning));
    // The server may say again what it has said; nobody sees it twice.
    server.stream(says_goodbye(vec![
        is(&run(1, "running", "running")),
        begins(0, FIRST),
        log(0, 4, "two three\n"),
        is(&run(1, "done", "done")),
        end(),
    ]));
    let ran = user(&server).runs("logs -f long");
    assert_eq!(ran.out, "one two three\n");
    assert_eq!(ran.err, "The connection to the server is lost; trying again\nThe server is there again\n");
    assert_eq!(ran.code, 0);
    let streams: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|request| request.path == STREAM)
        .map(|request| request.query)
        .collect();
    assert_eq!(streams[1], format!("logs=true&replica=0&follow=true&from={FIRST}%3A8"));
}

#[test]
fn the_log_of_a_new_submission_follows_that_of_the_old_one() {
    let server = server(1);
    server.stream(says_goodbye(vec![
        is(&run(1, "running", "running")),
        begins(0, FIRST),
        log(0, 0, "first\n"),
        begins(0, SECOND),
        log(0, 0, "second\n"),
        end(),
    ]));
    let ran = user(&server).runs("logs -f long --job 0 --since 2026-11-23T00:00:00Z");
    assert_eq!(ran.out, "first\nsecond\n");
    let query = &server.requests().into_iter().find(|request| request.path == STREAM).unwrap().query;
    assert_eq!(query, "logs=true&replica=0&follow=true&job=0&since=2026-11-23T00%3A00%3A00Z");
}

#[test]
fn lost_bytes_are_announced() {
    let server = server(1);
    server.stream(says_goodbye(vec![
        is(&run(1, "running", "running")),
        begins(0, FIRST),
        log(0, 0, "one\n"),
        log(0, 100, "two\n"),
        end(),
    ]));
    let ran = user(&server).runs("logs -f long");
    assert_eq!(ran.out, "one\ntwo\n");
    assert!(ran.err.contains("96 bytes of the log are lost"), "{}", ran.err);
}

#[test]
fn a_server_without_streams_is_asked_again_and_again() {
    let page = |messages: &[&str], next_token: Value| {
        let logs: Vec<Value> = messages
            .iter()
            .map(|text| json!({"timestamp": "2026-11-23T02:12:00Z", "log_source": "stdout", "message": text}))
            .collect();
        json!({"logs": logs, "external_url": null, "next_token": next_token})
    };
    let server = Server::start();
    let others = self::server(1);
    for path in ["repos/init", "runs/get_plan", "runs/apply"] {
        let path = format!("/api/project/main/{path}");
        for answer in others.answers(&path) {
            server.answer(&path, 200, &answer);
        }
    }
    server.answer("/api/project/main/runs/get", 200, &run(1, "running", "running"));
    server.answer("/api/project/main/runs/get", 200, &run(1, "done", "done"));
    let logs = "/api/project/main/logs/poll";
    server.answer(logs, 200, &page(&["b25lCg=="], json!("1")));
    server.answer(logs, 200, &page(&["dHdvCg=="], Value::Null));
    server.answer(logs, 200, &page(&["dGhyZWU="], Value::Null));
    let ran = user(&server).runs("apply -f t.yml -y");
    assert!(ran.out.ends_with("(running)\none\ntwo\nthree\nDone\n"), "{}", ran.out);
    assert_eq!(ran.code, 0);
    let asked = server.bodies(logs);
    assert_eq!((&asked[1]["next_token"], &asked[2]["next_token"]), (&json!("1"), &Value::Null));
    assert_eq!(asked[2]["start_time"], "2026-11-23T02:12:00Z");
}

#[test]
fn warnings_of_a_plan_are_shown() {
    let server = Server::start();
    let path = format!("{}/tests/golden/apply-task-two-nodes-detach.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for call in golden["calls"].as_array().unwrap() {
        let mut body = call["body"].clone();
        if call["path"].as_str().unwrap().ends_with("get_plan") {
            body["warnings"] = json!(["`LD_LIBRARY_PATH` is not expanded"]);
        }
        server.answer(call["path"].as_str().unwrap(), 200, &body);
    }
    let ran = user(&server).runs("apply -f t.yml -y -d");
    assert!(ran.out.contains("\nWarning: `LD_LIBRARY_PATH` is not expanded\n"), "{}", ran.out);
}

#[test]
fn an_active_run_that_cannot_be_changed_is_stopped_first() {
    let server = Server::start();
    let path = format!("{}/tests/golden/apply-task-no-changes.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for call in golden["calls"].as_array().unwrap() {
        let mut body = call["body"].clone();
        if call["path"].as_str().unwrap().ends_with("get_plan") {
            body["action"] = json!("create");
            body["current_resource"]["run_spec"]["configuration"]["priority"] = json!(20);
        }
        server.answer(call["path"].as_str().unwrap(), 200, &body);
    }
    server.answer("/api/project/main/runs/stop", 200, &Value::Null);
    server.answer("/api/project/main/runs/get", 200, &run(2, "terminating", "terminating"));
    server.answer("/api/project/main/runs/get", 200, &run(2, "terminated", "terminated"));
    server.answer("/api/project/main/runs/apply", 200, &run(2, "submitted", "submitted"));
    let ran = user(&server).runs("apply -f t.yml -y -d");
    let expected = "Active run long already exists. Detected changes that cannot be updated in-place:\n\
                    - Configuration properties:\n  - priority\n\nRun long submitted, detaching...\n";
    assert!(ran.out.ends_with(expected), "{}", ran.out);
    assert_eq!(server.bodies("/api/project/main/runs/stop"), [json!({"runs_names": ["long"], "abort": false})]);
}

#[test]
fn log_bytes_wait_for_the_news_that_the_nodes_are_up() {
    let server = server(1);
    server.stream(says_goodbye(vec![
        is(&run(1, "provisioning", "pulling")),
        begins(0, FIRST),
        log(0, 0, "hello\n"),
        is(&run(1, "running", "running")),
        log(0, 6, "again\n"),
        is(&run(1, "done", "done")),
        end(),
    ]));
    let ran = user(&server).runs("apply -f t.yml -y");
    assert!(ran.out.ends_with("long provisioning completed (running)\nhello\nagain\nDone\n"), "{}", ran.out);
    // News that do not come are waited for only so long.
    let server = self::server(1);
    server.stream(Socket {
        messages: vec![is(&run(1, "provisioning", "pulling")), begins(0, FIRST), log(0, 0, "hello\n")],
        hangs: true,
        after_stop: Vec::new(),
    });
    let ran = user(&server).at("hello", Act::Interrupt).runs("apply -f t.yml -y");
    assert!(ran.out.ends_with("long provisioning completed (provisioning)\nhello\nDetached\n"), "{}", ran.out);
}

#[test]
fn a_node_that_starts_later_disturbs_no_log() {
    let server = server(2);
    let up = run(2, "running", "running");
    let mut partly = up.clone();
    partly["jobs"][1]["job_submissions"][0]["status"] = json!("pulling");
    server.stream(says_goodbye(vec![
        is(&up),
        begins(0, FIRST),
        log(0, 0, "one, "),
        is(&partly),
        log(0, 5, "two\n"),
        is(&up),
        is(&run(2, "done", "done")),
        end(),
    ]));
    let ran = user(&server).runs("apply -f t.yml -y");
    assert!(ran.out.ends_with("long provisioning completed (running)\n[0] one, two\nDone\n"), "{}", ran.out);
    assert_eq!(ran.out.matches("provisioning completed").count(), 1, "{}", ran.out);
    assert_eq!(ran.err, "[0] submitted\n[1] submitted\n");
}

#[test]
fn a_retry_says_why_and_until_when() {
    let server = server(2);
    let mut waiting = run(2, "pending", "terminated");
    failed(&mut waiting, 0, "2026-11-23T02:20:05Z", "terminated_by_server", 143);
    failed(&mut waiting, 1, "2026-11-23T02:20:04Z", "container_exited_with_error", 3);
    waiting["jobs"][1]["job_submissions"][0]["waiting_for"] = json!("the next try, until 2026-11-23 03:11 UTC");
    let mut last = run(2, "failed", "terminated");
    failed(&mut last, 1, "2026-11-23T02:20:04Z", "container_exited_with_error", 3);
    last["error"] = json!("retry limit exceeded");
    server.stream(says_goodbye(vec![is(&run(2, "running", "running")), is(&waiting), is(&last), end()]));
    let ran = user(&server).runs("apply -f t.yml -y");
    let expected = "retrying: exited (3), node 1, waiting for the next try, until 2026-11-23 03:11 UTC\n";
    assert!(ran.err.ends_with(expected), "{}", ran.err);
    assert!(ran.out.contains("Exited (3), node 1\nRetry limit exceeded\nCheck dstack logs -d"), "{}", ran.out);
}

#[test]
fn nobody_is_sent_to_look_why_a_run_that_was_stopped_ended() {
    let server = server(1);
    let mut last = run(1, "terminated", "terminated");
    last["termination_reason"] = json!("stopped_by_user");
    last["latest_job_submission"]["status_message"] = json!("stopped");
    last["jobs"][0]["job_submissions"][0]["status_message"] = json!("stopped");
    last["jobs"][0]["job_submissions"][0]["termination_reason"] = json!("terminated_by_user");
    server.stream(says_goodbye(vec![is(&run(1, "running", "running")), is(&last), end()]));
    let ran = user(&server).runs("apply -f t.yml -y");
    assert!(ran.out.ends_with("Stopped\n"), "{}", ran.out);
    assert_eq!(ran.code, 1);
}

#[test]
fn attaching_shows_the_log_of_one_job() {
    let server = server(2);
    let messages = vec![is(&run(2, "running", "running")), begins(1, FIRST), log(1, 0, "hello\n")];
    server.stream(Socket { messages: messages.clone(), hangs: true, after_stop: Vec::new() });
    let ran = user(&server).at("hello", Act::Interrupt).runs("attach long --logs --job 1");
    let attached = "Attached to run long (replica=0 job=1)\nPress Ctrl+C to detach...\nhello\n";
    assert_eq!(ran.out, format!("{attached}\nDetached\n"));
    assert_eq!(ran.code, 0);
    let request = server.requests().into_iter().find(|request| request.path == STREAM).unwrap();
    assert_eq!(request.query, "logs=true&replica=0&follow=true&job=1");
    server.stream(says_goodbye([messages, vec![is(&run(2, "done", "done")), end()]].concat()));
    let ran = user(&server).runs("attach long --logs --job 1");
    assert_eq!((ran.out, ran.code), (format!("{attached}Done\n"), 0));
    let ran = user(&server).runs("attach long --logs --job 7");
    assert_eq!(ran.out, "Failed to attach to run long: it has no replica=0 job=7\n");
    assert_eq!(ran.code, 1);
}

#[test]
fn attaching_waits_for_the_run_and_refuses_one_that_failed() {
    let golden = run(1, "provisioning", "provisioning");
    let waiting = Server::start();
    waiting.answer("/api/project/main/runs/get", 200, &golden);
    waiting.stream(says_goodbye(vec![
        is(&golden),
        is(&run(1, "running", "running")),
        begins(0, FIRST),
        log(0, 0, "hello\n"),
        is(&run(1, "done", "done")),
        end(),
    ]));
    let ran = user(&waiting).runs("attach long --logs");
    let expected = "\nProvisioning long completed (running)\nAttached to run long (replica=0 job=0)\n";
    assert!(ran.out.contains(expected) && ran.out.ends_with("hello\nDone\n"), "{}", ran.out);
    // A run that is tried again is waited for again, and the line that was begun ends.
    waiting.stream(says_goodbye(vec![
        is(&run(1, "running", "running")),
        begins(0, FIRST),
        log(0, 0, "50%"),
        is(&run(1, "pending", "terminated")),
        is(&run(1, "done", "done")),
        end(),
    ]));
    let ran = user(&waiting).runs("attach long --logs");
    assert!(ran.out.contains("Press Ctrl+C to detach...\n50%\n"), "{}", ran.out);
    assert!(ran.err.lines().count() == 3 && ran.out.ends_with("Done\n"), "{}{}", ran.err, ran.out);
    let failed = Server::start();
    failed.answer("/api/project/main/runs/get", 200, &run(1, "failed", "failed"));
    let ran = user(&failed).runs("attach long --logs");
    assert_eq!((ran.out.as_str(), ran.code), ("Run long is failed\n", 1));
}

#[test]
fn an_image_is_pulled_and_counted() {
    let server = server(1);
    let mut pulling = run(1, "provisioning", "pulling");
    pulling["jobs"][0]["job_submissions"][0]["waiting_for"] = json!("its image");
    pulling["jobs"][0]["job_submissions"][0]["image_pull_progress"] =
        json!({"downloaded_bytes": 5, "extracted_bytes": 0, "total_bytes": 10, "is_total_bytes_final": true});
    server.stream(says_goodbye(vec![is(&pulling), is(&run(1, "done", "done")), end()]));
    let ran = user(&server).runs("apply -f t.yml -y");
    assert_eq!(ran.err, "submitted\npulling\n");
}

#[test]
fn a_listing_tells_what_a_run_waits_for_that_has_no_machines_yet() {
    let reason = "instance lab-0 to start (us-west-2a: InsufficientInstanceCapacity; next us-west-2b)";
    for (status, is_told) in [("provisioning", true), ("running", false)] {
        let server = server(2);
        let mut waiting = run(2, "provisioning", status);
        waiting["jobs"][0]["job_submissions"][0]["waiting_for"] = json!(reason);
        server.answer("/api/runs/list", 200, &json!([waiting]));
        let ran = user(&server).runs("ps");
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_eq!(ran.out.contains(&format!("\nlong waits for {reason}\n")), is_told, "{}", ran.out);
    }
}

#[test]
fn listings_name_the_node_that_a_run_failed_for_and_why() {
    let server = server(2);
    let mut failed_run = run(2, "failed", "terminated");
    failed(&mut failed_run, 0, "2026-11-23T02:20:05Z", "terminated_by_server", 143);
    failed(&mut failed_run, 1, "2026-11-23T02:20:04Z", "creating_container_error", 1);
    let last = &mut failed_run["jobs"][1]["job_submissions"][0];
    last["status_message"] = json!("error");
    last["error"] = json!("runner error");
    last["termination_reason_message"] = json!("cannot pull `nosuch`: not found\nmore");
    server.answer("/api/runs/list", 200, &json!([failed_run]));
    let ran = user(&server).runs("ps");
    assert!(ran.out.lines().nth(1).unwrap().contains("  error, node 1  "), "{}", ran.out);
    let ran = user(&server).runs("ps -v");
    let lines: Vec<&str> = ran.out.lines().map(str::trim_end).collect();
    for line in [1, 3] {
        assert!(lines[line].ends_with("cannot pull `nosuch`: not found"), "{}", ran.out);
    }
    assert!(!lines[2].contains("cannot"), "{}", ran.out);
}
