//! Fleets of machines over SSH: which keys are sent and which are refused, what a plan says, and how far machines are.
//!
//! The keys in `tests/keys` are for these tests only and open nothing.

use serde_json::{Value, json};

use crate::server::Server;
use crate::terminal::{Act, User};

const PLAN: &str = "/api/project/main/fleets/get_plan";
const APPLY: &str = "/api/project/main/fleets/apply";
const GET: &str = "/api/project/main/fleets/get";

fn key(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A public key without its comment.
fn line(name: &str) -> String {
    key(name).split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// A server that refuses every plan, after it has seen what was asked.
fn curious() -> Server {
    let server = Server::start();
    server.answer(PLAN, 400, &json!({"detail": [{"msg": "seen", "code": "error"}]}));
    server
}

#[test]
fn keys_are_sent_beside_the_files_that_hold_them() {
    let server = curious();
    let user = User::of(&server)
        .file("~/.ssh/id_ed25519", &key("ed25519"))
        .file("keys/host", &key("rsa-pem"))
        .file("keys/proxy", &key("ecdsa"))
        .file("keys/jump", &key("rsa-pkcs8"))
        .file(
            "configs/f.yml",
            "type: fleet\nname: lab\nssh_config:\n  user: me\n  identity_file: ~/.ssh/id_ed25519\n  \
             proxy_jump: {hostname: p, user: u, identity_file: keys/proxy}\n  hosts:\n    - 10.0.0.5\n    \
             - hostname: 10.0.0.6\n      identity_file: keys/host\n      \
             proxy_jump: {hostname: q, port: 2222, user: u, identity_file: ./keys/../keys/jump}\n",
        );
    let ran = user.runs("apply -f configs/f.yml -y");
    assert_eq!((ran.out.as_str(), ran.code), ("seen\n", 1), "{}", ran.err);
    let ssh = &server.bodies(PLAN)[0]["spec"]["configuration"]["ssh_config"];
    let check = |value: &Value, file: &str, private: &str, public: &str| {
        assert_eq!(value["identity_file"], file);
        assert_eq!(value["ssh_key"], json!({"public": line(public), "private": key(private)}), "{file}");
    };
    check(ssh, "~/.ssh/id_ed25519", "ed25519", "ed25519.pub");
    check(&ssh["proxy_jump"], "keys/proxy", "ecdsa", "ecdsa.pub");
    assert_eq!(ssh["hosts"][0], "10.0.0.5");
    check(&ssh["hosts"][1], "keys/host", "rsa-pem", "rsa.pub");
    check(&ssh["hosts"][1]["proxy_jump"], "./keys/../keys/jump", "rsa-pkcs8", "rsa.pub");
}

#[test]
fn every_usual_form_of_a_key_is_read() {
    let pairs = [
        ("ed25519", "ed25519.pub"),
        ("ed25519-pkcs8", "ed25519-pkcs8.pub"),
        ("ecdsa", "ecdsa.pub"),
        ("ecdsa-pem", "ecdsa.pub"),
        ("ecdsa-pkcs8", "ecdsa.pub"),
        // OpenSSH leaves out the zeros that a private number begins with.
        ("ecdsa-521-short", "ecdsa-521-short.pub"),
        ("rsa", "rsa.pub"),
        ("rsa-pem", "rsa.pub"),
        ("rsa-pkcs8", "rsa.pub"),
    ];
    for (private, public) in pairs {
        let server = curious();
        let user = User::of(&server)
            .file("id", &key(private))
            .file("f.yml", "type: fleet\nssh_config: {user: me, identity_file: id, hosts: [a]}\n");
        assert_eq!(user.runs("apply -f f.yml -y").out, "seen\n", "{private}");
        let sent = &server.bodies(PLAN)[0]["spec"]["configuration"]["ssh_config"]["ssh_key"];
        assert_eq!(sent["public"], line(public), "{private}");
    }
}

#[test]
fn without_identity_files_nothing_is_read() {
    let server = curious();
    let user = User::of(&server).file("f.yml", "type: fleet\nssh_config: {user: me, hosts: [a, {hostname: b}]}\n");
    assert_eq!(user.runs("apply -f f.yml -y").out, "seen\n");
    let ssh = &server.bodies(PLAN)[0]["spec"]["configuration"]["ssh_config"];
    assert_eq!((&ssh["ssh_key"], &ssh["hosts"][1]["ssh_key"]), (&Value::Null, &Value::Null));
}

/// What is said of a key file with this text, named by a host.
fn refused(text: &str) -> String {
    let server = curious();
    let user = User::of(&server).file("id.pub", text).file(
        "f.yml",
        "type: fleet\nssh_config:\n  user: me\n  hosts:\n    - hostname: a\n    - hostname: b\n      \
         identity_file: id.pub\n",
    );
    let ran = user.runs("apply -f f.yml -y");
    assert_eq!((ran.code, ran.err.as_str()), (1, ""), "{}", ran.out);
    assert!(server.requests().is_empty(), "nothing is asked of the server");
    let lines: Vec<&str> = text.lines().filter(|line| 20 < line.len()).collect();
    assert!(lines.iter().all(|line| !ran.out.contains(line)), "the key is shown: {}", ran.out);
    let place = "\n --> f.yml:7:7\n  |\n7 |       identity_file: id.pub\n  |       ^^^^^^^^^^^^^\n";
    assert!(ran.out.ends_with(place), "{}", ran.out);
    let path = user.directory().join("id.pub");
    let message = ran.out.replace(place, "").replace(path.to_str().unwrap(), "DIR/id.pub");
    message.replace(user.directory().join("id").to_str().unwrap(), "DIR/id")
}

#[test]
fn keys_that_are_of_no_use_are_refused_where_they_are_named() {
    const NAMED: &str = "at `DIR/id.pub` (`ssh_config.hosts[1].identity_file`)";
    for name in ["encrypted", "encrypted-pem", "encrypted-pkcs8"] {
        let expected = format!(
            "error: The SSH key {NAMED} is protected by a passphrase, which the server has nobody to ask for; take \
             it off with `ssh-keygen -p -N '' -f DIR/id.pub`, or name a key that is for these hosts only"
        );
        assert_eq!(refused(&key(name)), expected, "{name}");
    }
    let public = format!(
        "error: Expected a private key {NAMED}, got a public key; name its private half, probably `DIR/id`"
    );
    assert_eq!(refused(&key("ed25519.pub")), public);
    let putty = format!(
        "error: The SSH key {NAMED} is written by PuTTY; convert it with \
         `puttygen DIR/id.pub -O private-openssh -o DIR/id.pub.openssh`, and name the new file"
    );
    assert_eq!(refused("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n"), putty);
    for damaged in ["", "hello\n", &key("ed25519")[..300]] {
        let message = refused(damaged);
        assert!(message.starts_with(&format!("error: Unsupported or invalid SSH key {NAMED}: ")), "{message}");
        assert!(message.contains("`ssh-keygen -y -f DIR/id.pub`"), "{message}");
    }
    assert!(refused(&"x".repeat(70_000)).contains("it holds no whole private key"));
}

#[test]
fn keys_that_cannot_be_read_are_refused_where_they_are_named() {
    let server = curious();
    let user = User::of(&server)
        .file("folder/x", "")
        .file("missing.yml", "type: fleet\nssh_config: {user: me, identity_file: nope, hosts: [a]}\n")
        .file("folder.yml", "type: fleet\nssh_config: {user: me, identity_file: folder, hosts: [a]}\n")
        .file(
            "proxy.yml",
            "type: fleet\nssh_config:\n  user: me\n  hosts:\n  - hostname: a\n    proxy_jump:\n      hostname: b\n      \
             user: c\n      identity_file: ~/nope\n",
        );
    let cases = [
        (
            "missing.yml",
            "missing.yml:2:24",
            "work/nope` (`ssh_config.identity_file`): there is no such file; a relative",
        ),
        ("folder.yml", "folder.yml:2:24", "work/folder` (`ssh_config.identity_file`): Is a directory"),
        (
            "proxy.yml",
            "proxy.yml:9:7",
            "nope` (`ssh_config.hosts[0].proxy_jump.identity_file`): there is no such file",
        ),
    ];
    for (file, place, message) in cases {
        let ran = user.runs(&format!("apply -f {file} -y"));
        assert!(ran.out.starts_with("error: Unable to read the SSH key at `/"), "{}", ran.out);
        assert!(ran.out.contains(message) && ran.out.contains(&format!(" --> {place}\n")), "{}", ran.out);
        assert_eq!(ran.code, 1, "{file}");
    }
    assert!(server.requests().is_empty());
}

/// A spec of a fleet of these hosts, its key as a server repeats it, or without.
fn spec(hosts: &[&str], private: Option<&str>) -> Value {
    let ssh_key = private.map(|private| json!({"public": "ssh-ed25519 AAAA", "private": private}));
    let ssh = json!({"user": "me", "identity_file": "id", "ssh_key": ssh_key, "hosts": hosts});
    let configuration = json!({"type": "fleet", "name": "lab", "placement": "cluster", "ssh_config": ssh});
    json!({"configuration": configuration, "configuration_path": "f.yml", "profile": {"name": "default"}})
}

fn instance(number: u32, hostname: &str, status: &str) -> Value {
    let is_joined = status == "idle" || status == "busy";
    let resources = json!({
        "cpus": if is_joined { 8 } else { 0 }, "memory_mib": if is_joined { 32 * 1024 } else { 0 },
        "gpus": if is_joined { json!([{"name": "A10", "memory_mib": 24 * 1024}]) } else { json!([]) },
        "spot": false, "disk": {"size_mib": if is_joined { 102_400 } else { 0 }},
        "cpu_arch": is_joined.then_some("x86"),
    });
    json!({
        "id": format!("a2b1a12c-b8cd-4da5-be09-1d9a8e4a29{number:02}"), "project_name": "main", "backend": "remote",
        "instance_type": {"name": "instance", "resources": resources}, "name": format!("lab-{number}"),
        "fleet_id": null, "fleet_name": "lab", "instance_num": number, "hostname": hostname, "status": status,
        "created": "2026-11-23T02:20:32Z", "region": "remote", "price": 0.0, "total_blocks": 1,
    })
}

fn joining(number: u32, hostname: &str, step: &str, message: Option<&str>) -> Value {
    let mut instance = instance(number, hostname, "provisioning");
    instance["progress"] = json!({"step": step, "message": message});
    instance
}

fn failed(number: u32, hostname: &str, message: &str) -> Value {
    let mut instance = instance(number, hostname, "terminated");
    instance["termination_reason"] = json!("error");
    instance["termination_reason_message"] = json!(message);
    instance
}

fn fleet(hosts: &[&str], instances: &[Value]) -> Value {
    json!({
        "id": "cb5b5878-4447-4711-b634-257c184f1aa3", "name": "lab", "project_name": "main",
        "spec": spec(hosts, None), "created_at": "2026-11-23T02:20:32Z", "status": "active", "instances": instances,
    })
}

const SECRET: &str = "the very private half";
const HOSTS: [&str; 2] = ["10.0.0.5", "gpu-10.lab"];

/// A server that makes a fleet of two hosts, which then is in one state after the other.
fn server(current: Option<&Value>, states: &[Vec<Value>]) -> Server {
    let server = Server::start();
    let plan = json!({
        "project_name": "main", "user": "me", "spec": spec(&HOSTS, Some(SECRET)),
        "effective_spec": spec(&HOSTS, None), "current_resource": current, "offers": [], "total_offers": 0,
        "action": if current.is_some() { "update" } else { "create" },
    });
    server.answer(PLAN, 200, &plan);
    for (index, instances) in states.iter().enumerate() {
        server.answer(if index == 0 { APPLY } else { GET }, 200, &fleet(&HOSTS, instances));
    }
    server
}

fn user(server: &Server) -> User {
    let mut user = User::of(server).file("id", &key("ed25519")).file(
        "f.yml",
        "type: fleet\nname: lab\nplacement: cluster\nssh_config:\n  user: me\n  identity_file: id\n  \
         hosts: [10.0.0.5, gpu-10.lab]\n",
    );
    user.now = Some("2026-11-23T02:20:50Z".parse().unwrap());
    user
}

const HEAD: &str = " Project        main    \n \
                    User           me      \n \
                    Configuration  f.yml   \n \
                    Type           fleet   \n \
                    Fleet type     ssh     \n \
                    Nodes          2       \n \
                    Placement      cluster \n\n";

#[test]
fn hosts_are_followed_step_by_step_until_all_are_joined() {
    let states = [
        vec![instance(0, HOSTS[0], "pending"), instance(1, HOSTS[1], "pending")],
        vec![joining(0, HOSTS[0], "connecting", None), joining(1, HOSTS[1], "connecting", None)],
        vec![
            joining(0, HOSTS[0], "checking", None),
            joining(1, HOSTS[1], "connecting", Some("connection refused")),
        ],
        vec![instance(0, HOSTS[0], "idle"), joining(1, HOSTS[1], "connecting", Some("connection refused"))],
        vec![instance(0, HOSTS[0], "idle"), joining(1, HOSTS[1], "dancing", None)],
        vec![instance(0, HOSTS[0], "idle"), instance(1, HOSTS[1], "idle")],
    ];
    let server = server(None, &states);
    let ran = user(&server).runs("apply -f f.yml -y");
    let progress = "[0] 10.0.0.5    pending\n\
                    [1] gpu-10.lab  pending\n\
                    [0] 10.0.0.5    connecting\n\
                    [1] gpu-10.lab  connecting\n\
                    [0] 10.0.0.5    checking\n\
                    [1] gpu-10.lab  connecting: connection refused\n\
                    [0] 10.0.0.5    idle\n\
                    [1] gpu-10.lab  joining\n\
                    [1] gpu-10.lab  idle\n";
    assert_eq!(ran.err, progress);
    let table = " NAME           NODES  GPU             SPOT  BACKEND       PRICE  STATUS  CREATED \n \
                 lab            2                            ssh                  active  02:20   \n    \
                 instance=0         gpu=A10:24GB:1        ssh (remote)         idle    02:20   \n    \
                 instance=1         gpu=A10:24GB:1        ssh (remote)         idle    02:20   \n";
    assert_eq!(ran.out, format!("{HEAD}Fleet lab does not exist yet.\n{table}"));
    assert_eq!(ran.code, 0);
    // What is applied is the plan's own spec, keys included.
    let applied = &server.bodies(APPLY)[0]["plan"]["spec"]["configuration"]["ssh_config"];
    assert_eq!(applied["ssh_key"]["private"], SECRET);
}

#[test]
fn a_host_that_fails_is_named_with_the_reason() {
    const REASON: &str = "sudo asks for a password on gpu-10.lab: let `me` use it without, or name root";
    let states = [
        vec![joining(0, HOSTS[0], "starting", None), joining(1, HOSTS[1], "checking", None)],
        vec![instance(0, HOSTS[0], "idle"), failed(1, HOSTS[1], REASON)],
    ];
    let ran = user(&server(None, &states)).runs("apply -f f.yml -y");
    assert!(ran.err.ends_with(&format!("[0] 10.0.0.5    idle\n[1] gpu-10.lab  terminated: error ({REASON})\n")));
    let ending = format!(
        "\n\n[1] gpu-10.lab  terminated: error ({REASON})\n\n\
         Some instances failed. Check the table above for errors.\n"
    );
    assert!(ran.out.replace(" \n", "\n").ends_with(&ending), "{}", ran.out);
    assert!(ran.out.contains(" ERROR"), "{}", ran.out);
    assert!(!ran.out.contains(SECRET) && !ran.err.contains(SECRET));
    assert_eq!(ran.code, 1);
}

#[test]
fn hosts_are_added_and_removed_in_place() {
    let before =
        fleet(&["10.0.0.5", "10.0.0.4"], &[instance(0, HOSTS[0], "busy"), instance(1, "10.0.0.4", "idle")]);
    let states = [
        vec![
            instance(0, HOSTS[0], "busy"),
            instance(1, "10.0.0.4", "terminating"),
            joining(2, HOSTS[1], "greeting", None),
        ],
        vec![instance(0, HOSTS[0], "busy"), instance(2, HOSTS[1], "idle")],
    ];
    let server = server(Some(&before), &states);
    let ran = user(&server).at("[y/n]: ", Act::Type("y\n")).runs("apply -f f.yml");
    let expected = format!(
        "{HEAD}Found fleet lab. Detected changes that can be updated in-place:\n\
         - Configuration properties:\n  - ssh_config\n\nUpdate the fleet in-place? [y/n]: "
    );
    assert!(ran.out.starts_with(&expected), "{}", ran.out);
    let progress = "[0] 10.0.0.5    busy\n\
                    [1] 10.0.0.4    terminating\n\
                    [2] gpu-10.lab  greeting\n\
                    [2] gpu-10.lab  idle\n";
    assert_eq!((ran.err.as_str(), ran.code), (progress, 0));
    assert_eq!(server.bodies("/api/project/main/fleets/delete"), Vec::<Value>::new());
}

#[test]
fn other_changes_make_the_fleet_anew() {
    let mut before = fleet(&HOSTS, &[instance(0, HOSTS[0], "idle"), instance(1, HOSTS[1], "idle")]);
    before["spec"]["configuration"]["ssh_config"]["user"] = json!("you");
    let server = server(Some(&before), &[vec![instance(0, HOSTS[0], "idle"), instance(1, HOSTS[1], "idle")]]);
    let mut plan = server.answers(PLAN)[0].clone();
    plan["action"] = json!("create");
    let other = Server::start();
    other.answer(PLAN, 200, &plan);
    let ran = user(&other).typing("n\n").runs("apply -f f.yml");
    let expected = "Found fleet lab. Detected changes that cannot be updated in-place:\n\
                    - Configuration properties:\n  - ssh_config\n\nRe-create the fleet? [y/n]: \nExiting...\n";
    assert!(ran.out.ends_with(expected), "{}", ran.out);
}

#[test]
fn without_changes_nothing_is_done() {
    let before = fleet(&HOSTS, &[instance(0, HOSTS[0], "idle"), instance(1, HOSTS[1], "idle")]);
    let ran = user(&server(Some(&before), &[])).runs("apply -f f.yml -y");
    assert_eq!(ran.out, format!("{HEAD}No configuration changes detected. Use --force to apply anyway.\n"));
    assert_eq!(ran.code, 0);
}

#[test]
fn without_changes_hosts_that_are_missing_are_tried_again() {
    let before = fleet(&HOSTS, &[instance(0, HOSTS[0], "idle"), failed(1, HOSTS[1], "no such user")]);
    let states = [
        vec![instance(0, HOSTS[0], "idle"), instance(1, HOSTS[1], "pending")],
        vec![instance(0, HOSTS[0], "idle"), instance(1, HOSTS[1], "idle")],
    ];
    let server = server(Some(&before), &states);
    let ran = user(&server).runs("apply -f f.yml -y");
    let found = "Found fleet lab. No configuration changes detected, but 1 host is missing.\n NAME ";
    assert!(ran.out.starts_with(&format!("{HEAD}{found}")), "{}", ran.out);
    assert_eq!(ran.code, 0);
    assert_eq!(server.bodies("/api/project/main/fleets/delete"), Vec::<Value>::new());
}

#[test]
fn ctrl_c_lets_the_hosts_be_joined_in_the_background() {
    let server = server(None, &[vec![joining(0, HOSTS[0], "delivering", None)]]);
    server.answer(GET, 200, &fleet(&HOSTS, &[joining(0, HOSTS[0], "delivering", None)]));
    let user = user(&server).at("Create the fleet?", Act::Type("y\n")).at("delivering", Act::Interrupt);
    let ran = user.at("Delete the fleet before exiting? [y/n]: ", Act::Type("n\n")).runs("apply -f f.yml");
    assert!(ran.out.ends_with("Exiting... Fleet provisioning will continue in the background.\n"), "{}", ran.out);
    assert_eq!((ran.err.as_str(), ran.code), ("[0] 10.0.0.5  delivering\n", 0));
}

#[test]
fn hosts_are_listed_with_what_they_have() {
    let mut split = instance(1, HOSTS[1], "idle");
    (split["total_blocks"], split["busy_blocks"]) = (json!(4), json!(0));
    split["gpu_driver"] = json!({"vendor": "nvidia", "version": "570.1"});
    let mut fleet = fleet(&HOSTS, &[instance(0, HOSTS[0], "provisioning"), split]);
    // What is wanted of machines that are there already says nothing about them.
    fleet["spec"]["configuration"]["resources"] =
        json!({"gpu": {"name": ["H100"], "count": {"min": 1, "max": 1}}});
    let server = Server::start();
    server.answer("/api/project/main/fleets/list", 200, &json!([fleet]));
    let table = |line: &str| user(&server).runs(line).out;
    let expected = " NAME           NODES  GPU             SPOT  BACKEND       PRICE  STATUS        CREATED    \n \
                    lab            2                            ssh                  active        18 sec ago \n    \
                    instance=0                               ssh (remote)         provisioning  18 sec ago \n    \
                    instance=1         gpu=A10:24GB:1        ssh (remote)         0/4 busy      18 sec ago \n\n";
    assert_eq!(table("fleet"), expected);
    let verbose = table("fleet -v");
    assert!(verbose.contains(" lab            2 (cluster) "), "{verbose}");
    let has = "cpu=x86:8 mem=32GB disk=100GB gpu=A10:24GB:1  570.1 ";
    assert_eq!(verbose.matches("cpu=").count(), 1, "{verbose}");
    assert!(verbose.contains(has), "{verbose}");
}

#[test]
fn the_example_is_a_fleet_of_three_hosts() {
    let server = curious();
    let user = User::of(&server)
        .file("~/.ssh/id_ed25519", &key("ed25519"))
        .file("fleet.yml", include_str!("../../../../examples/ssh-fleet/fleet.dstack.yml"));
    assert_eq!(user.runs("apply -f fleet.yml -y").out, "seen\n");
    let ssh = &server.bodies(PLAN)[0]["spec"]["configuration"]["ssh_config"];
    assert_eq!((ssh["hosts"].as_array().unwrap().len(), &ssh["hosts"][2]["blocks"]), (3, &json!(8)));
}
