//! What goes wrong, in which words and with which exit code.

use serde_json::{Value, json};

use crate::server::Server;
use crate::terminal::User;

fn check_status(status: u16, body: &Value, expected: &str) {
    let server = Server::start();
    server.answer("/api/runs/list", status, body);
    let ran = User::of(&server).runs("ps");
    let expected = expected.replace("{url}", &format!("{}/api/runs/list", server.url));
    assert!(ran.out.starts_with(&expected), "{status}: {}", ran.out);
    assert_eq!(ran.code, 1, "{status}");
}

#[test]
fn answers_of_the_server_become_sentences() {
    let detail = |msg: &str, code: Value| json!({"detail": [{"msg": msg, "code": code}]});
    check_status(400, &detail("boo", json!("error")), "boo\n");
    check_status(400, &detail("boo", json!("a_code_of_tomorrow")), "Unexpected error: status code 400 when");
    check_status(
        401,
        &json!({"detail": "Not authenticated"}),
        "Unexpected error: status code 401 when requesting {url}",
    );
    check_status(403, &json!({}), "Access to {url} is denied. Please check your access token\n");
    check_status(404, &json!({}), "Status code 404 when requesting {url}\n");
    check_status(405, &json!({}), "Status code 405 when requesting {url}\n");
    check_status(422, &json!({"detail": []}), "Server validation error: \n");
    check_status(500, &json!({}), "Unexpected error: status code 500 when requesting {url}");
    check_status(200, &json!({"not": "a list"}), "dstack server {url} answered in a form");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let user = User::new()
        .with("DSTACK_SERVER_URL", "http://127.0.0.1:1")
        .with("DSTACK_TOKEN", "t")
        .with("DSTACK_PROJECT", "main");
    let ran = user.runs("ps");
    assert_eq!(ran.out, "Failed to connect to dstack server http://127.0.0.1:1\n");
    assert_eq!(ran.code, 1);
}

#[test]
fn a_url_that_is_none_is_named() {
    let user =
        User::new().with("DSTACK_SERVER_URL", "nonsense").with("DSTACK_TOKEN", "t").with("DSTACK_PROJECT", "m");
    let ran = user.runs("ps");
    assert!(ran.out.starts_with("`nonsense` is not a server URL"), "{}", ran.out);
    assert_eq!(ran.code, 1);
}

#[test]
fn without_a_project_nothing_is_called() {
    let ran = User::new().runs("ps");
    assert_eq!(ran.out, "No default project, specify project name\n");
    assert_eq!(ran.code, 1);
    let ran = User::new().runs("ps --project nosuch");
    assert!(ran.out.starts_with("Project nosuch is not configured"), "{}", ran.out);
}

#[test]
fn what_is_typed_wrong_goes_to_stderr() {
    let cases = [
        ("ps --foo", 1, "--foo"),
        ("foo", 2, "foo"),
        ("logs", 2, "RUN_NAME"),
        ("fleet get x", 2, "--json"),
        ("run get --json", 2, "NAME"),
        ("apply -f x --spot --on-demand", 2, "--on-demand"),
        ("apply -f x --gpu a:b:c:1:2", 2, "--gpu"),
        ("offer --max-price x", 2, "--max-price"),
        ("offer --max-duration soon", 2, "--max-duration"),
        ("event --include-target-type foo", 2, "foo"),
    ];
    for (line, code, word) in cases {
        let ran = User::new().runs(line);
        assert_eq!(ran.code, code, "`{line}`: {}{}", ran.out, ran.err);
        assert!(ran.out.is_empty() && ran.err.contains(word), "`{line}`: {}{}", ran.out, ran.err);
    }
}

#[test]
fn files_that_cannot_be_applied_say_why() {
    let user = User::new()
        .file("typo.yml", "type: task\nname: x\ncomands:\n  - echo\n")
        .file("volume.yml", "type: volume\nname: v1\nbackend: aws\nregion: us-east-1\nsize: 100GB\n")
        .file("fleet.yml", "type: fleet\nname: f1\nnodes: 1\n")
        .file("env.yml", "type: task\nname: x1\ncommands: [x]\nenv: [NOT_SET]\n")
        .file("ref.yml", "type: task\nname: x1\ncommands: ['echo ${{ env.X }}']\n")
        .file("repo.yml", "type: task\nname: x1\ncommands: [x]\nrepos: [missing]\n")
        .file("files.yml", "type: task\nname: x1\ncommands: [x]\nfiles: [missing.py]\n")
        .file("dir.yml", "type: task\ncommands: [x]\nworking_dir: sub\n")
        .file("task.yml", "type: task\ncommands: [x]\n");
    let cases = [
        ("apply -f missing.yml", "Configuration file missing.yml does not exist\n"),
        ("apply", "No configuration file specified via `-f` and no default .dstack.yml configuration found\n"),
        ("apply -f volume.yml -y", "volumes are not supported yet"),
        ("apply -f fleet.yml --gpu 1", "Unrecognized arguments"),
        ("apply -f env.yml -y", "Environment variable NOT_SET is not set\n"),
        ("apply -f ref.yml -y", "Failed to interpolate due to missing vars: ['env.X']\n"),
        ("apply -f repo.yml -y", "Invalid repo path: missing -> "),
        (
            "apply -f task.yml -y --repo-branch dev",
            "`--repo-branch` and `--repo-hash` choose a state of a repository",
        ),
        ("init", "No default project"),
        ("attach x -p 80:8000 -p 81:8000", "`-p` names the port 8000 of the run twice\n"),
        ("attach x -p 80:8000 -p 80:8001", "`-p` names the local port 80 twice\n"),
        ("apply -f dir.yml -y", "error: working_dir must be absolute\n --> dir.yml:3:1\n"),
        ("validate dir.yml", "error: working_dir must be absolute\n"),
        ("apply -f task.yml -y -p 80:8000 -p 80:8001", "`-p` names the local port 80 twice\n"),
        ("apply -f -", "Cannot read configuration from stdin if -y/--yes is not specified\n"),
        ("logs x --since soon", "Invalid datetime format\n"),
        ("run get --id zz --json", "Invalid UUID format: zz\n"),
        ("offer --group-by region", "Cannot group by 'region' without also grouping by 'gpu'\n"),
        (
            "offer --group-by gpu,foo",
            "Invalid group-by value: 'foo'. Valid choices are: backend, count, gpu, region\n",
        ),
    ];
    for (line, expected) in cases {
        let ran = user.runs(line);
        assert!(ran.out.starts_with(expected), "`{line}`: {}{}", ran.out, ran.err);
        assert_eq!(ran.code, 1, "`{line}`");
    }
    let ran = user.runs("apply -f typo.yml -y");
    for part in ["typo.yml", "3", "comands", "commands", "^"] {
        assert!(ran.out.contains(part), "no `{part}` in: {}", ran.out);
    }
    let server = Server::start();
    server.answer("/api/project/main/repos/init", 200, &Value::Null);
    let user = User::of(&server).file("files.yml", "type: task\nname: x1\ncommands: [x]\nfiles: [missing.py]\n");
    let ran = user.runs("apply -f files.yml -y");
    assert!(ran.out.contains("missing.py` of `files` does not exist"), "{}", ran.out);
}

#[test]
fn missing_things_are_named() {
    let server = Server::start();
    let missing = json!({"detail": [{"msg": "Resource not found", "code": "resource_not_exists"}]});
    for noun in ["runs", "fleets", "volumes", "gateways", "secrets"] {
        server.answer(&format!("/api/project/main/{noun}/get"), 400, &missing);
    }
    let user = User::of(&server)
        .file("task.yml", "type: task\nname: train\ncommands: [x]\n")
        .file("fleet.yml", "type: fleet\nname: tpl\nnodes: 1\n");
    let cases = [
        ("run get x --json", "Run x not found\n"),
        ("metrics x", "Run x not found\n"),
        ("volume get x --json", "Volume not found\n"),
        ("volume delete x -y", "Volume x does not exist\n"),
        ("gateway get x --json", "Resource not found\n"),
        ("secret get x", "Resource not found\n"),
        ("fleet delete x -y", "Fleet x does not exist\n"),
        ("delete -f task.yml -y", "Run train does not exist\n"),
        ("destroy -f fleet.yml -y", "Fleet tpl does not exist\n"),
    ];
    for (line, expected) in cases {
        let ran = user.runs(line);
        assert_eq!(ran.out, expected, "`{line}`");
        assert_eq!(ran.code, 1, "`{line}`");
    }
}

#[test]
fn jobs_that_are_not_there_have_no_metrics() {
    let path = format!("{}/tests/golden/run-get.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let server = Server::start();
    server.answer("/api/project/main/runs/get", 200, &golden["calls"][0]["body"]);
    let user = User::of(&server);
    for (line, wanted) in [("metrics x --job 9", "job=9"), ("metrics x --replica 2 --job 0", "replica=2 job=0")] {
        let ran = user.runs(line);
        assert_eq!(ran.out, format!("Run x has no job matching {wanted}\n"));
        assert_eq!(ran.code, 1);
    }
    let mut waiting = golden["calls"][0]["body"].clone();
    waiting["jobs"] = json!([]);
    let early = Server::start();
    early.answer("/api/project/main/runs/get", 200, &waiting);
    let ran = User::of(&early).runs("metrics x");
    assert_eq!((ran.out.lines().count(), ran.code), (1, 0), "only the titles: {}", ran.out);
    server.answer("/api/runs/list", 200, &json!([]));
    let ran = user.runs("ps --json -w");
    assert_eq!((ran.out.as_str(), ran.code), ("JSON output is not supported together with --watch\n", 1));
}
