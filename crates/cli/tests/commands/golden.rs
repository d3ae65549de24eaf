//! Output and exit codes, compared with what the official CLI made of the same answers.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::server::Server;
use crate::terminal::{Ran, User};

#[derive(Deserialize)]
struct Golden {
    now: Option<Timestamp>,
    commands: Vec<Command>,
    calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Command {
    command: String,
    exit_code: u8,
    stdout: String,
}

#[derive(Deserialize)]
struct Call {
    path: String,
    status: u16,
    body: Value,
}

const LONG: &str = "type: task\nname: long\nnodes: 2\ncommands: [sleep 1]\nresources: {gpu: H100:8}\n";
const FAILING: &str = "type: task\nname: failing\ncommands: [exit 3]\nresources: {gpu: H100:8}\n";
const TEMPLATE: &str = "type: fleet\nname: tpl\nnodes: 0..2\nplacement: cluster\nresources: {gpu: H100:8}\n";

fn load(name: &str) -> Golden {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn user(golden: &Golden) -> (Server, User) {
    let server = Server::start();
    for call in &golden.calls {
        server.answer(&call.path, call.status, &call.body);
    }
    let mut user = User::of(&server)
        .typing("n\n")
        .file("task.dstack.yml", "type: task\nname: train\nnodes: 2\ncommands: [echo hello]\n")
        .file("long.dstack.yml", LONG)
        .file("fail.dstack.yml", FAILING)
        .file("svc.dstack.yml", "type: service\nname: svc\nport: 8000\ncommands: [x]\n")
        .file("dev.dstack.yml", "type: dev-environment\nname: dev\nide: vscode\n")
        .file("fleet.dstack.yml", TEMPLATE)
        .file("fleet_upd.dstack.yml", TEMPLATE)
        .file("fleet_recreate.dstack.yml", TEMPLATE)
        .file("cpufleet.dstack.yml", "type: fleet\nname: fix\nnodes: 1\n")
        .file("cpuf.dstack.yml", "type: fleet\nname: cpuf\nnodes: 0..4\n");
    user.now = golden.now;
    (server, user)
}

/// What differs for good reason: terminals turn newlines into `\r\n`, and the run's log has it.
fn normalised(text: &str) -> String {
    text.replace("\r\n", "\n")
}

fn assert_same(ours: &str, theirs: &str, what: &str) {
    let mut lines = ours.split('\n').zip(theirs.split('\n')).enumerate();
    if let Some((number, (ours, theirs))) = lines.find(|(_, (ours, theirs))| ours != theirs) {
        panic!("line {} of {what}\n  ours: {ours:?}\ntheirs: {theirs:?}", number + 1);
    }
    assert_eq!(ours.len(), theirs.len(), "{what}: {ours}");
}

fn check(name: &str) -> (Server, Ran) {
    let golden = load(name);
    let (server, user) = user(&golden);
    let mut last = None;
    for command in &golden.commands {
        let line = command.command.replace("http://127.0.0.1:3990", &server.url);
        let line = line.strip_prefix("dstack ").unwrap();
        let ran = user.runs(line);
        assert_same(&normalised(&ran.out), &command.stdout, &format!("`{line}` of {name}; stderr: {}", ran.err));
        assert_eq!(ran.code, command.exit_code, "`{line}` of {name}");
        last = Some(ran);
    }
    (server, last.unwrap())
}

macro_rules! golden {
    ($($test:ident: $($name:literal)+;)+) => {$(
        #[test]
        fn $test() {
            $(check($name);)+
        }
    )+};
}

golden! {
    ps_reads_as_the_official_one: "ps" "ps-empty" "ps-all-empty" "ps-all-after-stop" "ps-verbose-running"
        "ps-verbose-service";
    rare_states_of_runs_read_as_the_official_ones: "shapes-ps-a" "shapes-ps-b";
    rare_states_of_fleets_read_as_the_official_ones: "shapes-fleet" "shapes-fleet-gpu";
    fleets_are_listed: "fleet-list-empty" "fleet-list-verbose" "fleet-list-idle" "fleet-list-busy"
        "fleet-list-terminating";
    fleets_are_deleted: "fleet-delete" "fleet-delete-instance" "fleet-delete-instance-busy" "delete-fleet";
    a_missing_fleet_is_an_error: "fleet-get-missing";
    offers_are_listed: "offer" "shapes-offer-2" "shapes-offer-3" "offer-group-by" "offer-group-by-empty";
    logs_are_printed: "logs-finished" "logs-diagnose" "logs-since" "logs-job" "logs-no-run";
    runs_are_stopped: "stop" "stop-abort" "stop-no-run";
    runs_are_deleted: "delete-run";
    secrets_are_kept: "secret-set" "secret-list" "secret-get" "secret-delete";
    events_are_listed: "event" "event-since" "event-within-run" "event-within-fleet";
    volumes_are_listed: "volume-list" "volume-list-empty" "volume-delete";
    gateways_are_listed: "gateway-list" "gateway-list-empty";
    what_the_server_does_not_have_it_says: "export-list" "import-list" "login";
    plans_of_tasks_are_shown: "apply-task-no-fleets" "apply-task-two-nodes-detach" "apply-task-reuse-detach"
        "apply-task-no-changes" "apply-task-answer-no";
    plans_of_services_and_dev_environments_are_shown: "apply-service-answer-no" "apply-service-detach"
        "apply-dev-environment-answer-no" "apply-dev-environment-detach";
    plans_of_fleets_are_shown: "apply-fleet-no-offers" "apply-fleet-no-changes" "apply-fleet-template"
        "apply-fleet-update" "apply-fleet-recreate-in-use" "apply-fleet-cpu" "apply-fleet-fixed";
}

/// Compares JSON as values: what it says counts, not in which order.
fn check_json(name: &str) {
    let golden = load(name);
    let (_server, user) = user(&golden);
    let ran = user.runs(golden.commands[0].command.strip_prefix("dstack ").unwrap());
    assert_eq!(ran.code, golden.commands[0].exit_code);
    let ours: Value = serde_json::from_str(&ran.out).unwrap();
    let theirs: Value = serde_json::from_str(&golden.commands[0].stdout).unwrap();
    let lines = |value: Value| serde_json::to_string_pretty(&without_additions(value)).unwrap();
    assert_same(&lines(ours), &lines(theirs), name);
    let is_laid_out = |text: &str| 1 < text.lines().count();
    assert_eq!(is_laid_out(&ran.out), is_laid_out(&golden.commands[0].stdout), "{name}");
}

// The official client prints defaults of keys that it was not sent.
fn without_additions(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_additions(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_additions).collect()),
        // Both print times with as many digits as they like.
        Value::String(text) => match text.parse::<Timestamp>() {
            Ok(time) => Value::String(time.to_string()),
            Err(_) => Value::String(text),
        },
        value => value,
    }
}

#[test]
fn json_says_what_the_official_one_says() {
    let names = [
        "ps-json",
        "offer-json",
        "offer-json-empty",
        "run-get",
        "run-get-dev",
        "fleet-get",
        "fleet-get-with-instances",
        "volume-get",
        "gateway-get",
    ];
    for name in names {
        check_json(name);
    }
}

#[test]
fn every_recording_is_used() {
    let this = include_str!("golden.rs");
    let projects = include_str!("local.rs");
    for entry in std::fs::read_dir(format!("{}/tests/golden", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap().replace(".json", "");
        let is_used = this.contains(&format!("\"{name}\"")) || projects.contains(&name);
        assert!(is_used, "{name} is not compared with anything");
    }
}

#[test]
fn requests_are_those_of_the_official_client() {
    let (server, _) = check("apply-task-two-nodes-detach");
    let plan = &server.bodies("/api/project/main/runs/get_plan")[0];
    assert_eq!(plan["max_offers"], 3);
    assert_eq!(plan["run_spec"]["repo_id"], "none");
    assert_eq!(plan["run_spec"]["repo_data"], serde_json::json!({"repo_type": "virtual"}));
    assert_eq!(plan["run_spec"]["configuration_path"], "long.dstack.yml");
    assert_eq!(plan["run_spec"]["profile"]["name"], "default");
    let apply = &server.bodies("/api/project/main/runs/apply")[0];
    let golden = load("apply-task-two-nodes-detach");
    let planned = golden.calls.iter().find(|call| call.path.ends_with("get_plan")).unwrap();
    // What is applied is the plan's own spec, not the one that was asked for.
    assert_eq!(
        without_additions(apply["plan"]["run_spec"].clone()),
        without_additions(planned.body["run_spec"].clone())
    );
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.headers["authorization"] == "Bearer secret"));
    assert!(requests.iter().all(|request| request.headers["x-api-version"] == "0.22.5"));
}

#[test]
fn calls_without_a_body_say_so() {
    let (server, _) = check("secret-list");
    let request = &server.requests()[0];
    assert!(request.body.is_empty());
    assert!(!request.headers.contains_key("content-type"));
}
