//! What needs no server, or only a glance at one: configuration, profiles, projects, help, completion.

use serde_json::{Value, json};

use crate::server::Server;
use crate::terminal::User;

const PROJECT: &str = "/api/projects/main/get";
const PLAN: &str = "/api/project/main/runs/get_plan";

/// A server that refuses every plan, after it has seen what was asked.
fn curious() -> Server {
    let server = Server::start();
    server.answer("/api/project/main/repos/init", 200, &Value::Null);
    let archive = json!({"id": "80b0f384-8ca7-4baa-bf48-2e3cf3f42b7b", "hash": "x"});
    server.answer("/api/files/upload_archive", 200, &archive);
    server.answer(PLAN, 400, &json!({"detail": [{"msg": "seen", "code": "error"}]}));
    server
}

fn planned(user: &User, server: &Server, line: &str) -> Value {
    let ran = user.runs(line);
    assert_eq!(ran.out, "seen\n", "`{line}`: {}", ran.err);
    server.bodies(PLAN).pop().unwrap()
}

#[test]
fn options_win_over_the_configuration() {
    let server = curious();
    let user = User::of(&server).with("FOO", "from here").file(
        "t.yml",
        "type: task\nimage: x\ncommands: ['echo ${{ run.args }} ${{ secrets.S }}', b]\nenv: [FOO, BAR=1]\n\
         registry_auth: {username: '${{ env.BAR }}', password: '${{ secrets.Q }}'}\n\
         ports: [8080, '80:8000']\nspot_policy: spot\nbackends: [gcp]\n",
    );
    let line = "apply -f t.yml -y -e BAZ=2 -e BAR=3 --gpu H100:2 --cpu 4.. --memory 1GB.. --disk 50GB -n nm -b aws \
                -b local -r us-east-1 --instance-type p5 --fleet f -R --spot-auto --retry --max-price 3 \
                --max-duration 1h -p 8000:8000 -p 77 --max-offers 7 --full-offers --unallocated x y";
    let plan = planned(&user, &server, line);
    let configuration = &plan["run_spec"]["configuration"];
    assert_eq!(configuration["commands"], json!(["echo x y ${{ secrets.S }}", "b"]));
    assert_eq!(configuration["env"], json!({"FOO": "from here", "BAR": "3", "BAZ": "2"}));
    assert_eq!(configuration["registry_auth"], json!({"username": "3", "password": "${{ secrets.Q }}"}));
    assert_eq!(
        configuration["ports"],
        json!([
            {"local_port": 8080, "container_port": 8080},
            {"local_port": 8000, "container_port": 8000},
            {"local_port": 77, "container_port": 77},
        ])
    );
    let resources = &configuration["resources"];
    assert_eq!(resources["gpu"]["name"], json!(["H100"]));
    assert_eq!(resources["gpu"]["count"], json!({"min": 2, "max": 2}));
    assert_eq!(resources["cpu"]["count"], json!({"min": 4, "max": null}));
    assert_eq!(resources["memory"], json!({"min": 1.0, "max": null}));
    assert_eq!(resources["disk"]["size"], json!({"min": 50.0, "max": 50.0}));
    assert_eq!(configuration["backends"], json!(["aws", "remote"]));
    assert_eq!(configuration["regions"], json!(["us-east-1"]));
    assert_eq!(configuration["instance_types"], json!(["p5"]));
    assert_eq!(configuration["spot_policy"], "auto");
    assert_eq!(configuration["retry"], true);
    assert_eq!(configuration["max_duration"], 3600);
    assert_eq!(configuration["max_price"], 3.0);
    assert_eq!(configuration["creation_policy"], "reuse");
    assert_eq!(configuration["fleets"], json!([{"project": null, "name": "f"}]));
    assert_eq!(plan["run_spec"]["run_name"], "nm");
    assert_eq!((&plan["max_offers"], &plan["full_offers"]), (&json!(7), &json!(true)));
    assert_eq!(plan["unallocated_resources"], true);
}

#[test]
fn profiles_are_sent_beside_the_configuration() {
    let server = curious();
    let task = "type: task\ncommands: [x]\nbackends: [gcp]\n";
    let profiles = "profiles:\n- {name: big, max_price: 9}\n- {name: usual, default: true, regions: [r1]}\n";
    let user = User::of(&server)
        .file("t.yml", task)
        .file(".dstack/profiles.yml", profiles)
        .file("~/.dstack/profiles.yml", "profiles:\n- {name: mine, spot_policy: spot}\n");
    let profile = |user: &User, line: &str| planned(user, &server, line)["run_spec"]["profile"].clone();
    let usual = profile(&user, "apply -f t.yml -y");
    assert_eq!((&usual["name"], &usual["regions"]), (&json!("usual"), &json!(["r1"])));
    assert_eq!(profile(&user, "apply -f t.yml -y --profile big")["max_price"], 9.0);
    assert_eq!(profile(&user, "apply -f t.yml -y --profile mine")["spot_policy"], "spot");
    assert_eq!(profile(&user, "apply -f t.yml -y --no-profile")["name"], "no-profile");
    let ran = user.runs("apply -f t.yml -y --profile nope");
    assert_eq!(ran.out, "No such profile: nope\n");

    let named =
        User::of(&server).with("DSTACK_PROFILE", "big").file("t.yml", task).file(".dstack/profiles.yml", profiles);
    assert_eq!(profile(&named, "apply -f t.yml -y")["name"], "big");
    assert_eq!(profile(&named, "apply -f t.yml -y --profile usual")["name"], "usual");
    let none = User::of(&server).with("DSTACK_NO_PROFILE", "1").file("t.yml", task);
    assert_eq!(profile(&none, "apply -f t.yml -y")["name"], "no-profile");
    // What is typed wins over the environment, and there wanting none over wanting one.
    let both = User::of(&server)
        .with("DSTACK_NO_PROFILE", "on")
        .with("DSTACK_PROFILE", "big")
        .file("t.yml", task)
        .file(".dstack/profiles.yaml", profiles);
    assert_eq!(profile(&both, "apply -f t.yml -y")["name"], "no-profile");
    assert_eq!(profile(&both, "apply -f t.yml -y --profile big")["name"], "big");
    let off = User::of(&server).with("DSTACK_NO_PROFILE", "0").file("t.yml", task);
    assert_eq!(profile(&off, "apply -f t.yml -y")["name"], "default");
    let odd = User::of(&server).with("DSTACK_NO_PROFILE", "maybe").file("t.yml", task);
    assert_eq!(odd.runs("apply -f t.yml -y").out, "Invalid bool value: DSTACK_NO_PROFILE=maybe\n");
    let plain = User::of(&server).file("t.yml", task);
    assert_eq!(profile(&plain, "apply -f t.yml -y")["name"], "default");
}

#[test]
fn files_are_packed_uploaded_and_mapped() {
    let server = curious();
    let user = User::of(&server)
        .file("configs/t.yml", "type: task\ncommands: [x]\nfiles: ['src:/app', main.py]\n")
        .file("configs/src/a.py", "a")
        .file("configs/main.py", "b");
    let plan = planned(&user, &server, "apply -f configs/t.yml -y");
    let folder = user.directory().join("configs");
    assert_eq!(
        plan["run_spec"]["configuration"]["files"],
        json!([
            {"local_path": folder.join("src"), "path": "/app"},
            {"local_path": folder.join("main.py"), "path": "main.py"},
        ])
    );
    assert_eq!(plan["run_spec"]["file_archives"][0]["path"], "/app");
    let uploads: Vec<_> =
        server.requests().into_iter().filter(|request| request.path == "/api/files/upload_archive").collect();
    assert_eq!(uploads.len(), 2);
    let text = String::from_utf8_lossy(&uploads[0].body).into_owned();
    assert!(text.contains("name=\"file\"; filename=\""), "{text}");
}

#[test]
fn a_configuration_can_come_from_stdin() {
    let server = curious();
    let user = User::of(&server).typing("type: task\ncommands: [x]\n");
    assert_eq!(planned(&user, &server, "apply -f - -y")["run_spec"]["configuration_path"], "-");
}

#[test]
fn projects_are_added_listed_and_deleted() {
    let server = Server::start();
    let golden: Value = serde_json::from_str(
        &std::fs::read_to_string(format!("{}/tests/golden/project-add.json", env!("CARGO_MANIFEST_DIR"))).unwrap(),
    )
    .unwrap();
    server.answer(PROJECT, 200, &golden["calls"][0]["body"]);
    server.answer("/api/projects/other/get", 200, &golden["calls"][0]["body"]);
    let user = User::new();
    let add = |name: &str| user.runs(&format!("project add --name {name} --url {}/ --token tok -n", server.url));
    let ran = add("main");
    let config = user.home.path().join(".dstack/config.yml");
    assert_eq!(ran.out, format!("Configuration updated at {}\n", config.display()));
    assert_eq!(add("other").code, 0);
    let url = &server.url;
    let ran = user.runs("project");
    let expected = format!(
        " PROJECT  URL{:width$}  DEFAULT \n main     {url}     ✓    \n other    {url}          \n",
        "",
        width = url.len() - 3
    );
    assert_eq!(ran.out, expected);
    assert_eq!(user.runs("project set-default other").out, "OK\n");
    assert!(user.runs("project list").out.contains(&format!("other    {url}     ✓")));
    assert_eq!(user.runs("project delete --name main -y").out, "OK\n");
    assert!(!user.read(".dstack/config.yml").contains("main"));
    assert_eq!(user.runs("project set-default zz").out, "Project 'zz' not found\n");
    let list = server.requests().len();
    assert_eq!(user.runs("ps").code, 1);
    assert_eq!(server.requests()[list].headers["authorization"], "Bearer tok");
}

#[test]
fn a_project_that_cannot_be_reached_is_not_added() {
    for (name, status) in [("project-add-badtoken", 403), ("project-add-badproject", 404)] {
        let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let server = Server::start();
        server.answer(golden["calls"][0]["path"].as_str().unwrap(), status, &golden["calls"][0]["body"]);
        let user = User::new();
        let command = &golden["commands"][0];
        let line = command["command"].as_str().unwrap().replace("http://127.0.0.1:3990", &server.url);
        let ran = user.runs(line.strip_prefix("dstack ").unwrap());
        let expected = command["stdout"].as_str().unwrap().replace("http://127.0.0.1:3990", &server.url);
        assert_eq!(ran.out, expected);
        assert_eq!(ran.code, 1);
        assert!(!user.home.path().join(".dstack/config.yml").exists());
    }
}

#[test]
fn users_of_projects_are_shown_when_asked_for() {
    let path = format!("{}/tests/golden/project-list-verbose.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let server = Server::start();
    server.answer("/api/users/get_my_user", 200, &golden["calls"][0]["body"]);
    let config = format!("projects:\n- default: true\n  name: main\n  token: t\n  url: {}\n", server.url);
    let user = User::new().file("~/.dstack/config.yml", &config);
    let ran = user.runs("project list -v");
    // The ports differ, and so may the width of the address.
    let words = |text: &str| text.replace("http://127.0.0.1:3990", &server.url).split_whitespace().count();
    assert_eq!(words(&ran.out), words(golden["commands"][0]["stdout"].as_str().unwrap()));
    assert!(ran.out.contains("admin     ✓"), "{}", ran.out);
}

#[test]
fn a_valid_file_is_printed_in_its_canonical_form() {
    let user =
        User::new().file("t.yml", "type: task\nname: train\nnodes: 2\ncommands: [x]\nresources: {gpu: H100:8}\n");
    let ran = user.runs("validate t.yml");
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("nodes: 2\n") && !ran.out.contains("null"), "{}", ran.out);
    let ran = user.runs("validate t.yml --json");
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["resources"]["gpu"]["name"], json!(["H100"]));
    assert_eq!(value["python"], Value::Null);
    assert_eq!(ran.out.lines().count(), 1);
}

#[test]
fn an_invalid_file_is_shown_where_it_is_wrong() {
    let user = User::new().file("t.yml", "type: task\ncommands: [x]\nresources:\n  gpus: 1\n");
    let ran = user.runs("validate t.yml");
    assert_eq!(ran.code, 1);
    for part in ["t.yml", "gpus: 1", "^", "gpu"] {
        assert!(ran.out.contains(part), "no `{part}` in: {}", ran.out);
    }
}

#[test]
fn help_names_every_command_and_every_official_option() {
    let help = User::new().runs("--help");
    assert_eq!(help.code, 0);
    let commands = "apply attach delete event export fleet import gateway init offer login logs metrics project ps run \
                    secret server stop volume completion validate why";
    for command in commands.split(' ') {
        assert!(help.out.contains(&format!("\n  {command} ")), "no {command} in: {}", help.out);
    }
    let options = [
        (
            "apply -h task",
            "--project --file --yes --force --detach --verbose --ssh-identity --port --host --name --max-offers \
             --full-offers --unallocated --env --cpu --gpu --memory --disk --profile --no-profile --max-price \
             --max-duration --backend --region --instance-type --fleet --reuse --dont-destroy --idle-duration --spot \
             --on-demand --spot-auto --spot-policy --retry --no-retry --retry-duration --repo --repo-branch \
             --repo-hash --no-repo --token --git-identity [RUN_ARGS]",
        ),
        ("ps -h", "--project --all --verbose --watch --last --format --json"),
        ("logs -h", "--project --diagnose --replica --job --since --follow"),
        ("stop -h", "--project --abort --yes"),
        ("why -h", "--project --run --fleet --instance --json"),
        ("fleet -h", "--project --watch --verbose"),
        ("fleet get -h", "--id --json"),
        ("fleet delete -h", "--instance --yes"),
        (
            "offer -h",
            "--project --format --json --group-by --max-offers --full-offers --unallocated --gpu --fleet",
        ),
        (
            "event -h",
            "--watch --since --target-fleet --target-run --target-volume --target-gateway --target-secret \
             --within-fleet --within-run --within-gateway --include-target-type",
        ),
        ("project add -h", "--name --url --token --yes --no"),
        ("metrics -h", "--watch --replica --job"),
        ("export create --help", "--importer --fleet --gateway --global"),
        ("export update -h", "--add-importer --remove-fleet --set-global --unset-global"),
        ("import delete --help", "--yes"),
        ("gateway -h", "--format --json --watch --verbose"),
        ("gateway update -h", "--set-default --domain"),
        ("login -h", "--url --provider --yes --no"),
    ];
    for (line, expected) in options {
        let ran = User::new().runs(line);
        assert_eq!(ran.code, 0, "`{line}`: {}", ran.err);
        for option in expected.split_whitespace() {
            assert!(ran.out.contains(option), "no {option} in `{line}`: {}", ran.out);
        }
    }
}

#[test]
fn the_version_is_that_of_the_official_client() {
    for line in ["--version", "-v"] {
        assert_eq!(User::new().runs(line).out, "0.22.5\n");
    }
    assert!(User::new().runs_words(&[]).out.contains("Usage: dstack"));
}

#[test]
fn completion_scripts_have_the_shell_ask_this_program() {
    for (shell, word) in [("bash", "complete -o"), ("zsh", "#compdef dstack"), ("fish", "complete --keep-order")] {
        let ran = User::new().runs(&format!("completion {shell}"));
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains(word) && ran.out.contains("COMPLETE"), "{shell}: {}", ran.out);
    }
}

#[test]
fn fleets_take_a_name_and_the_default_profile() {
    let server = Server::start();
    let path = "/api/project/main/fleets/get_plan";
    server.answer(path, 400, &json!({"detail": [{"msg": "seen", "code": "error"}]}));
    let user = User::of(&server)
        .file("f.yml", "type: fleet\nnodes: 0..2\n")
        .file(".dstack/profiles.yml", "profiles:\n- {name: usual, default: true, regions: [r1]}\n");
    assert_eq!(user.runs("apply -f f.yml -y -n mine").out, "seen\n");
    let spec = &server.bodies(path)[0]["spec"];
    assert_eq!(spec["configuration"]["name"], "mine");
    assert_eq!(spec["profile"]["regions"], json!(["r1"]));
    assert_eq!(spec["configuration"]["nodes"], json!({"min": 0, "max": 2}));
}

#[test]
fn help_is_that_of_the_type() {
    let shown = |line: &str| {
        let ran = User::new().runs(line);
        assert_eq!(ran.code, 0, "`{line}`: {}", ran.err);
        ran.out
    };
    let general = shown("apply -h");
    assert!(general.contains("--detach") && !general.contains("--gpu") && !general.contains("--env"), "{general}");
    assert!(
        general.ends_with("Type `dstack apply -h CONFIGURATION_TYPE` to see configuration-specific options.\n\n")
    );
    let fleet = shown("apply -h fleet");
    assert!(fleet.contains("--name") && fleet.contains("--env") && !fleet.contains("--gpu"), "{fleet}");
    let volume = shown("apply -h volume");
    assert!(volume.contains("--name") && !volume.contains("--env"), "{volume}");
    let service = shown("apply -h service");
    assert!(service.contains("--gpu") && !service.contains("--port"), "{service}");
    assert_eq!(User::new().runs("apply -h bogus").code, 2);
    let run = shown("run");
    assert!(run.contains("get") && run.contains("Usage: dstack run"), "{run}");
}

#[test]
fn there_are_no_presets() {
    for line in ["preset list", "preset"] {
        let ran = User::new().runs(line);
        assert_eq!(ran.out, " NAME  ID  BASE  CONSTRAINTS  BENCHMARK    STATUS  SUBMITTED \n\n");
        assert_eq!(ran.code, 0);
    }
    let ran = User::new().runs("preset create -f x.yml");
    assert_eq!(ran.out, "`dstack preset create` is not supported yet by this version of dstack\n");
    assert_eq!(ran.code, 1);
}

#[test]
fn one_file_has_one_name() {
    let server = curious();
    let user = User::of(&server).file("a/t.yml", "type: task\ncommands: [x]\n");
    for path in ["a/t.yml", "./a/t.yml", "a/../a/t.yml"] {
        let plan = planned(&user, &server, &format!("apply -f {path} -y"));
        assert_eq!(plan["run_spec"]["configuration_path"], "a/t.yml");
    }
}

#[test]
fn what_groups_are_called_may_have_spaces() {
    let server = Server::start();
    server.answer("/api/project/main/gpus/list", 200, &json!({"gpus": []}));
    let ran = User::of(&server).runs_words(&["offer", "--group-by", "gpu, backend"]);
    assert_eq!(ran.code, 0, "{}", ran.out);
    assert_eq!(server.bodies("/api/project/main/gpus/list")[0]["group_by"], json!(["backend"]));
}

#[test]
fn gateways_are_listed_deleted_and_updated_as_the_official_client_does() {
    let path = format!("{}/tests/golden/gateway-get.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let gateway = &golden["calls"][0]["body"];
    let server = Server::start();
    for verb in ["get", "list", "delete", "set_default", "set_wildcard_domain"] {
        let body = if verb == "list" { json!([gateway]) } else { gateway.clone() };
        server.answer(&format!("/api/project/main/gateways/{verb}"), 200, &body);
    }
    let user = User::of(&server);
    for line in ["gateway --json", "gateway list --format json", "gateway --json list"] {
        let listing: Value = serde_json::from_str(&user.runs(line).out).unwrap();
        assert_eq!(listing["gateways"][0]["name"], gateway["name"], "`{line}`");
    }
    let ran = user.runs("gateway --json -w");
    assert_eq!((ran.out.as_str(), ran.code), ("JSON output is not supported together with --watch\n", 1));
    let ran = user.runs("gateway delete gw1 -y");
    assert!(ran.out.starts_with(" NAME") && ran.out.ends_with("\n\nGateway deleted\n"), "{}", ran.out);
    let ran = User::of(&server).typing("n\n").runs("gateway delete gw1");
    assert!(ran.out.ends_with("Do you want to delete the gateway? [y/n]: Exiting...\n"), "{}", ran.out);
    let ran = user.runs("gateway update gw1 --set-default");
    assert!(ran.out.starts_with(" NAME") && ran.code == 0, "{}", ran.out);
    assert_eq!(server.bodies("/api/project/main/gateways/set_default"), [json!({"name": "gw1"})]);
    assert_eq!(user.runs("gateway update gw1 --domain x.org").code, 0);
    let expected = json!({"name": "gw1", "wildcard_domain": "x.org"});
    assert_eq!(server.bodies("/api/project/main/gateways/set_wildcard_domain"), [expected]);
}

#[test]
fn help_has_its_colours_wherever_it_is_asked_for() {
    let mut user = User::new();
    user.terminal.colour = true;
    let lines: [&[&str]; 4] = [&[], &["-h"], &["apply", "-h"], &["run"]];
    for words in lines {
        let ran = user.runs_words(words);
        assert!(ran.out.contains("\x1b["), "{words:?}: {}", ran.out);
    }
}

#[test]
fn exports_are_asked_for_in_the_official_words() {
    let server = Server::start();
    for path in ["exports/create", "exports/update", "exports/delete", "imports/delete"] {
        server.answer(&format!("/api/project/main/{path}"), 200, &json!({"name": "e1"}));
    }
    let cases = [
        (
            "export create e1 --importer p1 --fleet f1 --gateway g1",
            "exports/create",
            json!({"name": "e1", "is_global": false, "importer_projects": ["p1"], "exported_fleets": ["f1"],
                   "exported_gateways": ["g1"]}),
        ),
        (
            "export update e1 --add-fleet f1 --remove-gateway g1 --set-global",
            "exports/update",
            json!({"name": "e1", "set_global": true, "unset_global": false, "add_importer_projects": [],
                   "remove_importer_projects": [], "add_exported_fleets": ["f1"], "remove_exported_fleets": [],
                   "add_exported_gateways": [], "remove_exported_gateways": ["g1"]}),
        ),
        ("export delete e1 -y", "exports/delete", json!({"name": "e1"})),
        ("import delete p1/e1 -y", "imports/delete", json!({"export_name": "e1", "export_project_name": "p1"})),
    ];
    for (line, path, expected) in cases {
        let ran = User::of(&server).runs(line);
        assert_eq!(ran.code, 0, "`{line}`: {}", ran.out);
        assert_eq!(server.bodies(&format!("/api/project/main/{path}")), [expected], "`{line}`");
    }
}

#[test]
fn fleets_of_other_projects_can_be_read_but_not_deleted() {
    let path = format!("{}/tests/golden/fleet-get.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let server = Server::start();
    server.answer("/api/project/team/fleets/get", 200, &golden["calls"][0]["body"]);
    let user = User::of(&server);
    let ran = user.runs("fleet get team/tpl --json");
    assert_eq!(ran.code, 0, "{}", ran.out);
    assert_eq!(server.bodies("/api/project/team/fleets/get")[0]["name"], "tpl");
    let ran = user.runs("fleet delete team/tpl -y");
    assert!(ran.out.starts_with("The <project>/<fleet> format is not supported for fleet names."), "{}", ran.out);
    assert_eq!(ran.code, 1);
}

#[test]
fn a_fleet_is_retried_while_it_owes_instances() {
    let path = format!("{}/tests/golden/apply-fleet-fixed.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = [
        (1, "\nSome instances failed. Provisioning will be retried in the background.\n"),
        (0, "\nSome instances failed. Check the table above for errors.\n"),
    ];
    for (least, expected) in cases {
        let server = Server::start();
        for call in golden["calls"].as_array().unwrap() {
            let mut body = call["body"].clone();
            if let Some(instance) = body.pointer_mut("/instances/0") {
                instance["status"] = json!("terminated");
                body["spec"]["configuration"]["nodes"] = json!({"min": least, "target": 1, "max": 1});
            }
            server.answer(call["path"].as_str().unwrap(), 200, &body);
        }
        let ran = User::of(&server).file("f.yml", "type: fleet\nname: fix\nnodes: 1\n").runs("apply -f f.yml -y");
        assert!(ran.out.ends_with(expected), "{}", ran.out);
        assert_eq!(ran.code, 1);
    }
}

#[test]
fn a_fleet_that_is_bought_tells_what_was_refused_and_what_is_asked_next() {
    let path = format!("{}/tests/golden/apply-fleet-fixed.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (plan, fleet) = (&golden["calls"][0], &golden["calls"][1]);
    let server = Server::start();
    server.answer(plan["path"].as_str().unwrap(), 200, &plan["body"]);
    let refused = "us-west-2a: InsufficientInstanceCapacity; next us-west-2b";
    let later = "us-west-2b: RequestLimitExceeded, asked again at 12:03:05 UTC";
    let states =
        [("pending", None), ("provisioning", Some(refused)), ("provisioning", Some(later)), ("idle", None)];
    for (index, (status, purchase)) in states.into_iter().enumerate() {
        let mut body = fleet["body"].clone();
        body["instances"][0]["status"] = json!(status);
        body["instances"][0]["purchase"] = json!(purchase);
        let path = if index == 0 { fleet["path"].as_str().unwrap() } else { "/api/project/main/fleets/get" };
        server.answer(path, 200, &body);
    }
    let ran = User::of(&server).file("f.yml", "type: fleet\nname: fix\nnodes: 1\n").runs("apply -f f.yml -y");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let lines: Vec<&str> = ran.err.lines().collect();
    let [pending, first, second, _] = lines[..] else { panic!("{}", ran.err) };
    assert_eq!(pending, "[0] pending");
    assert!(first.starts_with("[0] provisioning") && first.ends_with(&format!(": {refused}")), "{first}");
    assert!(second.starts_with("[0] provisioning") && second.ends_with(&format!(": {later}")), "{second}");
}

#[test]
fn ps_tells_of_backends_that_are_let_go() {
    let server = Server::start();
    server.answer("/api/runs/list", 200, &json!([]));
    server.answer(PROJECT, 200, &json!({"project_name": "main"}));
    let note = "backend aws of project main is draining: 2 machines left";
    server.answer("/api/project/main/notes", 200, &json!({ "notes": [note] }));
    let ran = User::of(&server).runs("ps");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.ends_with(&format!("{note}\n")), "{}", ran.out);
}

#[test]
fn why_tells_what_is_next_before_what_was() {
    let server = Server::start();
    let at = |time: &str| format!("2026-03-01T12:{time}Z");
    let attempt = |time: &str, zone: &str, outcome: &str, code: Option<&str>, message: Option<&str>| {
        json!({
            "at": at(time), "backend": "aws", "instance_type": "p5.48xlarge", "region": "us-west-2", "zone": zone,
            "spot": false, "price": 55.04, "count": 2, "least": 2, "outcome": outcome, "made": null,
            "kind": code.map(|_| "no_capacity"), "code": code, "message": message, "next_try_at": null,
        })
    };
    let why = json!({
        "kind": "fleet", "name": "my-efa-fleet", "id": "80b0f384-8ca7-4baa-bf48-2e3cf3f42b7b",
        "project_name": "main", "status": "active", "reason": "aws has no room in us-west-2a",
        "next": [{"at": at("05:00"), "what": "it buys again"}, {"at": null, "what": "raise the quota L-417A185B"}],
        "attempts": [
            attempt("00:00", "us-west-2a", "failed", Some("InsufficientInstanceCapacity"), Some("no p5.48xlarge here")),
            attempt("00:01", "us-west-2b", "bought", None, None),
        ],
        "story": [{"at": at("00:00"), "about": ["fleet my-efa-fleet"], "actor": null, "message": "Fleet created"}],
        "notes": ["backend aws of project main is draining: 1 machine left"],
    });
    server.answer(PROJECT, 200, &json!({"project_name": "main"}));
    server.answer("/api/project/main/why", 200, &why);
    let ran = User::of(&server).runs("why my-efa-fleet");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let expected = [
        "fleet my-efa-fleet is active",
        "aws has no room in us-west-2a",
        "backend aws of project main is draining: 1 machine left",
        "",
        "What happens next",
        " - 2026-03-01 12:05:00: it buys again",
        " - raise the quota L-417A185B",
        "",
        "What was tried",
        " TIME                 BACKEND           INSTANCE TYPE    PRICE   RESULT  ERROR",
        " 2026-03-01 12:00:00  aws (us-west-2a)  2 × p5.48xlarge  $55.04  failed  InsufficientInstanceCapacity: no p5.48xlarge here",
        " 2026-03-01 12:00:01  aws (us-west-2b)  2 × p5.48xlarge  $55.04  bought",
        "",
        "What happened",
        "[2026-03-01 12:00:00] Fleet created",
    ];
    assert_eq!(ran.out.lines().map(str::trim_end).collect::<Vec<_>>(), expected);
    let asked = server.bodies("/api/project/main/why").pop().unwrap();
    assert_eq!(asked["name"], "my-efa-fleet");
    let ran = User::of(&server).runs("why my-efa-fleet --json");
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["next"], why["next"]);
}
