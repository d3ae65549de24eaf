//! Ctrl-C, and questions that nobody answers.

use serde_json::{Value, json};

use crate::attached::{FIRST, begins, end, failed, is, log, run, server, user};
use crate::server::{Server, Socket};
use crate::terminal::{Act, Ran, User};

const STOP: &str = "/api/project/main/runs/stop";

/// A followed run that has written a line, and ends for this reason once it was asked to stop.
fn stopped(reason: &str, acts: &[(&str, Act)]) -> (Server, Ran) {
    let server = server(1);
    let mut last = run(1, "terminated", "terminated");
    last["termination_reason"] = json!(reason);
    last["jobs"][0]["job_submissions"][0]["termination_reason"] = json!("terminated_by_user");
    server.stream(Socket {
        messages: vec![is(&run(1, "running", "running")), begins(0, FIRST), log(0, 0, "hello\n")],
        hangs: false,
        after_stop: vec![is(&last), end()],
    });
    let user = acts.iter().fold(user(&server), |user, (text, act)| user.at(text, act.clone()));
    let ran = user.runs("apply -f t.yml");
    (server, ran)
}

const SUBMIT: (&str, Act) = ("Submit the run long? [y/n]: ", Act::Type("y\n"));
const PRESS: (&str, Act) = ("hello", Act::Interrupt);

#[test]
fn only_yes_and_no_are_answers() {
    let acts = [SUBMIT, PRESS, ("[y/n]: ", Act::Type("yes\n")), ("[y/n]: ", Act::Type("y\n"))];
    let (server, ran) = stopped("stopped_by_user", &acts);
    let expected = "hello\nStop the run long before detaching? [y/n]: Please enter Y or N\n\
                    Stop the run long before detaching? [y/n]: Stopped\n";
    assert!(ran.out.ends_with(expected), "{}", ran.out);
    assert_eq!(ran.code, 0);
    assert_eq!(server.bodies(STOP), [json!({"runs_names": ["long"], "abort": false})]);
}

#[test]
fn a_second_press_aborts() {
    let (server, ran) = stopped("aborted_by_user", &[SUBMIT, PRESS, ("[y/n]: ", Act::Interrupt)]);
    assert!(ran.out.ends_with("[y/n]: \nAborted\n"), "{}", ran.out);
    assert_eq!(ran.code, 0);
    assert_eq!(server.bodies(STOP), [json!({"runs_names": ["long"], "abort": true})]);
    let acts = [SUBMIT, PRESS, ("[y/n]: ", Act::Type("y\n")), ("Stopping...", Act::Interrupt)];
    let (server, ran) = stopped("aborted_by_user", &acts);
    assert!(ran.out.ends_with("Aborted\n"), "{}", ran.out);
    assert_eq!(server.bodies(STOP).last().unwrap()["abort"], true);
}

#[test]
fn presses_are_heard_while_the_server_does_not_answer_the_stop() {
    let server = server(1);
    server.stalls(STOP).stream(Socket {
        messages: vec![is(&run(1, "running", "running")), begins(0, FIRST), log(0, 0, "hello\n")],
        hangs: true,
        after_stop: Vec::new(),
    });
    let user = user(&server).at(SUBMIT.0, SUBMIT.1).at(PRESS.0, PRESS.1).at("[y/n]: ", Act::Type("y\n"));
    let user = user.at("Stopping...", Act::Interrupt).at("Aborting...", Act::Interrupt);
    let ran = user.runs("apply -f t.yml");
    assert!(ran.out.ends_with("[y/n]: Detached\n"), "{}", ran.out);
    assert!(ran.err.ends_with("Stopping...\nAborting...\n"), "{}", ran.err);
    assert_eq!(ran.code, 0);
}

#[test]
fn a_press_while_the_stream_opens_asks_about_the_run() {
    let server = server(1);
    server.stalls("/api/project/main/runs/long/stream");
    let user = user(&server).at(SUBMIT.0, SUBMIT.1).at("submitted", Act::Interrupt);
    let ran = user.at("Stop the run long before detaching? [y/n]: ", Act::Type("n\n")).runs("apply -f t.yml");
    assert!(ran.out.ends_with("[y/n]: Detached\n"), "{}", ran.out);
    assert_eq!(ran.code, 0);
    assert!(server.bodies(STOP).is_empty());
}

#[test]
fn no_and_nobody_let_the_run_go_on() {
    for (answer, line) in [(Act::Type("n\n"), "[y/n]: Detached\n"), (Act::End, "[y/n]: \nDetached\n")] {
        let (server, ran) = stopped("stopped_by_user", &[SUBMIT, PRESS, ("[y/n]: ", answer)]);
        assert!(ran.out.ends_with(line), "{}", ran.out);
        assert_eq!(ran.code, 0);
        assert!(server.bodies(STOP).is_empty());
    }
}

#[test]
fn a_run_that_fails_before_it_is_stopped_has_failed() {
    let server = server(1);
    let mut last = run(1, "failed", "failed");
    failed(&mut last, 0, "2026-11-23T02:20:05Z", "container_exited_with_error", 3);
    server.stream(Socket {
        messages: vec![is(&run(1, "running", "running")), begins(0, FIRST), log(0, 0, "hello\n")],
        hangs: false,
        after_stop: vec![is(&last), end()],
    });
    let user = user(&server).at(SUBMIT.0, SUBMIT.1).at(PRESS.0, PRESS.1).at("[y/n]: ", Act::Type("y\n"));
    let ran = user.runs("apply -f t.yml");
    assert!(ran.out.contains("Exited (3)\n") && !ran.out.contains("Stopped"), "{}", ran.out);
    assert_eq!(ran.code, 1);
}

#[test]
fn silence_is_no_answer() {
    let ran = user(&server(1)).runs("apply -f t.yml");
    assert!(ran.out.ends_with("[y/n]: \nno answer: standard input is at its end; pass -y\n"), "{}", ran.out);
    assert_eq!(ran.code, 1);
    let ran = user(&server(1)).typing("n\n").runs("apply -f t.yml");
    assert!(ran.out.ends_with("[y/n]: \nExiting...\n"), "{}", ran.out);
    assert_eq!(ran.code, 0);
}

#[test]
fn what_reads_its_configuration_from_stdin_cannot_ask_there() {
    let ran = user(&server(1)).typing("type: task\ncommands: [x]\n").runs("apply -f -");
    assert_eq!(ran.out, "Cannot read configuration from stdin if -y/--yes is not specified\n");
    assert_eq!(ran.code, 1);
}

#[test]
fn a_press_at_a_question_cancels() {
    let server = server(1);
    for (line, question) in [("apply -f t.yml", "Submit the run"), ("stop long", "Are you sure")] {
        let ran = user(&server).at(question, Act::Interrupt).runs(line);
        assert!(ran.out.ends_with("[y/n]: \nCancelled by user\n"), "`{line}`: {}", ran.out);
        assert_eq!(ran.code, 1, "`{line}`");
    }
    assert!(server.bodies(STOP).is_empty());
}

#[test]
fn a_press_while_an_apply_waits_leaves_it() {
    let path = format!("{}/tests/golden/apply-task-no-changes.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let waiting = Server::start();
    for call in golden["calls"].as_array().unwrap() {
        waiting.answer(call["path"].as_str().unwrap(), 200, &call["body"]);
    }
    waiting.answer(STOP, 200, &Value::Null);
    waiting.answer("/api/project/main/runs/get", 200, &run(2, "terminating", "terminating"));
    let ran = user(&waiting).at("Stopping run...", Act::Interrupt).runs("apply -f t.yml -y --force");
    assert!(ran.out.ends_with("\nOperation interrupted by user. Exiting...\n"), "{}", ran.out);
    assert_eq!(ran.err, "Stopping run...\n");
    assert_eq!(ran.code, 0);
}

#[test]
fn a_press_ends_what_is_watched() {
    let server = server(1);
    server.answer("/api/runs/list", 200, &json!([run(1, "running", "running")]));
    let ran = user(&server).at("SUBMITTED", Act::Interrupt).runs("ps -w");
    assert_eq!((ran.code, ran.out.lines().count()), (0, 2), "{}", ran.out);
    server.stream(Socket {
        messages: vec![is(&run(1, "running", "running")), begins(0, FIRST), log(0, 0, "hello\n")],
        hangs: true,
        after_stop: Vec::new(),
    });
    let ran = user(&server).at("hello", Act::Interrupt).runs("logs -f long");
    assert_eq!((ran.code, ran.out.as_str()), (0, "hello\n"));
}

#[test]
fn without_a_terminal_listings_are_told_apart() {
    let server = server(1);
    server.answer("/api/runs/list", 200, &json!([run(1, "running", "running")]));
    let ran = user(&server).at("\n\n NAME", Act::Interrupt).runs("ps -w");
    assert_eq!(ran.out.matches(" NAME").count(), 2, "{}", ran.out);
}

#[test]
fn a_listing_that_is_watched_fits_the_terminal() {
    let server = server(1);
    let runs: Vec<Value> = (0..30).map(|_| run(1, "running", "running")).collect();
    server.answer("/api/runs/list", 200, &json!(runs));
    let mut user = user(&server).at("\x1b[9A\x1b[J NAME", Act::Interrupt);
    user.terminal.out = true;
    user.terminal.width = Some(100);
    user.terminal.height = Some(10);
    let ran = user.runs("ps -w");
    let (first, second) = ran.out.split_once("\x1b[9A\x1b[J").unwrap();
    assert_eq!((first.lines().count(), first.lines().last()), (9, Some("…")));
    assert_eq!(first, second);
}

/// A user who makes a fleet of which the only instance is still on its way.
fn slow_fleet() -> (Server, User) {
    let path = format!("{}/tests/golden/apply-fleet-fixed.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let server = Server::start();
    for call in golden["calls"].as_array().unwrap() {
        let mut body = call["body"].clone();
        for instance in body["instances"].as_array_mut().into_iter().flatten() {
            instance["status"] = json!("provisioning");
        }
        server.answer(call["path"].as_str().unwrap(), 200, &body);
    }
    let user = User::of(&server).file("f.yml", "type: fleet\nname: fix\nnodes: 1\n");
    let user = user.at("Create the fleet?", Act::Type("y\n")).at("provisioning", Act::Interrupt);
    (server, user)
}

#[test]
fn the_question_about_a_fleet_can_be_cancelled_too() {
    const DELETE: &str = "Delete the fleet before exiting? [y/n]: ";
    let (_, user) = slow_fleet();
    let ran = user.at(DELETE, Act::Interrupt).runs("apply -f f.yml");
    assert!(ran.out.ends_with("[y/n]: \nCancelled by user\n"), "{}", ran.out);
    assert_eq!(ran.code, 1);
    let (_, user) = slow_fleet();
    let ran = user.at(DELETE, Act::Type("n\n")).runs("apply -f f.yml");
    let expected = "Exiting... Fleet provisioning will continue in the background.\n";
    assert!(ran.out.ends_with(expected), "{}", ran.out);
    assert_eq!(ran.code, 0);
    // The server takes its time.
    let (server, user) = slow_fleet();
    server.stalls("/api/project/main/fleets/delete");
    let user = user.at(DELETE, Act::Type("y\n")).at("Deleting fleet...", Act::Interrupt);
    let ran = user.runs("apply -f f.yml");
    assert!(ran.out.ends_with("[y/n]: \nCancelled by user\n"), "{}", ran.out);
    assert_eq!(ran.code, 1);
}
