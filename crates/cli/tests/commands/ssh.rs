//! Entering jobs over SSH: the user's files while they are attached and after, and the way through the server.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::tungstenite::Message;

use crate::attached::{FIRST, begins, end, is, log, run, says_goodbye, server};
use crate::server::{Answer, Server, Socket, Tunnel};
use crate::terminal::{Act, Ran, User};

/// The name that the token `secret` gives to the user's key.
const KEY: &str = ".dstack/ssh/e5e9fa1b";
const CONFIG: &str = ".dstack/ssh/config";
const KNOWN_HOSTS: &str = ".dstack/ssh/known_hosts";
const PUBLIC: &str = "ssh-ed25519 AAAApublic someone\n";
const TUNNEL: &str = "/api/project/main/runs/long/ssh";

fn refused(status: u16, message: &str) -> Tunnel {
    let body = json!({"detail": [{"msg": message, "code": "error"}]}).to_string();
    Tunnel::Refused(Answer { status, body })
}

/// A run with SSH servers in its two jobs.
fn open_run() -> Value {
    let mut run = run(2, "running", "running");
    run["run_spec"]["ssh_key_pub"] = json!(PUBLIC);
    for (number, job) in run["jobs"].as_array_mut().unwrap().iter_mut().enumerate() {
        let key = format!("ssh-ed25519 AAAAhost{number} job");
        job["job_connection_info"] = json!({"attached_ssh_command": ["ssh", "long"], "ssh_host_key": key});
    }
    run
}

fn id(run: &Value, job: usize) -> String {
    run["jobs"][job]["job_submissions"][0]["id"].as_str().unwrap().to_owned()
}

/// A server whose run `long` can be entered.
fn open_server(run: &Value) -> Server {
    let server = Server::start();
    server.tunnel(Tunnel::Echoes);
    server.answer("/api/project/main/runs/get", 200, run);
    let user = json!({
        "id": FIRST, "username": "admin", "global_role": "admin", "active": true,
        "permissions": {"can_create_projects": true}, "creds": {"token": "secret"},
        "ssh_private_key": "PRIVATE\n", "ssh_public_key": PUBLIC,
    });
    server.answer("/api/users/get_my_user", 200, &user);
    hang(&server, run);
    server
}

fn hang(server: &Server, run: &Value) {
    let messages = vec![is(run), begins(0, FIRST), log(0, 0, "hello\n")];
    server.stream(Socket { messages, hangs: true, after_stop: Vec::new() });
}

/// Where copies of the user's files are, made while they were attached.
fn kept(user: &User) -> PathBuf {
    user.home.path().join("kept")
}

/// A user who looks at their files once attached.
fn looks(user: User) -> User {
    let (from, to) = (user.home.path().join(".dstack/ssh"), kept(&user));
    user.at("Press Ctrl+C", Act::Keep(from, to))
}

/// Attaches until the log comes, and then leaves.
fn attaches(user: &User, line: &str) -> Ran {
    let ran = user.runs(line);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    ran
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn visitor(server: &Server) -> User {
    looks(User::of(server)).at("hello", Act::Interrupt)
}

fn replaces_ssh(user: User, script: &str) -> User {
    let folder = user.home.path().join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let ssh = folder.join("ssh");
    std::fs::write(&ssh, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.display());
    user.with("PATH", &path)
}

#[test]
fn an_entry_leads_into_the_job_as_long_as_somebody_is_attached() {
    let run = open_run();
    let server = open_server(&run);
    let user = visitor(&server).file("~/.ssh/config", "Host other\n    User me\n");
    let users = user.home.path().join(".ssh/config");
    std::fs::set_permissions(&users, PermissionsExt::from_mode(0o640)).unwrap();
    let ran = attaches(&user, "attach long --logs");
    let expected = "Attached to run long (replica=0 job=0)\nTo connect to the run via SSH, use `ssh long`.\n\
                    Press Ctrl+C to detach...\nhello\n\nDetached\n";
    assert_eq!((ran.out.as_str(), ran.err.as_str()), (expected, ""));
    let home = user.home.path().display();
    let config = std::fs::read_to_string(kept(&user).join("config")).unwrap();
    let mark = config.lines().nth(1).unwrap().to_owned();
    assert!(mark.starts_with(&format!("    # attached by {}@", std::process::id())), "{mark}");
    let submission = id(&run, 0);
    let expected = format!(
        "Host long\n{mark}\n    User root\n    \
         ProxyCommand '/opt/dstack' ssh-proxy --project 'main' --replica 0 --job 0 long\n    \
         IdentityFile \"{home}/{KEY}\"\n    IdentitiesOnly yes\n    StrictHostKeyChecking yes\n    \
         HostKeyAlias dstack-{submission}\n    UserKnownHostsFile \"{home}/{KNOWN_HOSTS}\"\n"
    );
    assert_eq!(config, expected);
    let known = std::fs::read_to_string(kept(&user).join("known_hosts")).unwrap();
    assert_eq!(known, format!("dstack-{submission} ssh-ed25519 AAAAhost0\n"));
    // Nothing is left but the key and the line that includes the entries of later runs.
    assert_eq!((user.read(CONFIG), user.read(KNOWN_HOSTS)), (String::new(), String::new()));
    assert_eq!((user.read(KEY).as_str(), user.read(format!("{KEY}.pub")).as_str()), ("PRIVATE\n", PUBLIC));
    for file in [KEY, CONFIG, KNOWN_HOSTS] {
        assert_eq!(mode(&user.home.path().join(file)), 0o600, "{file}");
    }
    let included = "Include ~/.dstack/ssh/config\n\nHost other\n    User me\n";
    assert_eq!(user.read(".ssh/config"), included);
    assert_eq!(mode(&users), 0o640);
    // A second time there is nothing to include and no key to fetch.
    hang(&server, &run);
    attaches(&user, "attach long --logs");
    assert_eq!(user.read(".ssh/config"), included);
    let asked = server.requests().iter().filter(|request| request.path.ends_with("get_my_user")).count();
    assert_eq!(asked, 1);
    assert!(!format!("{}{}", ran.out, ran.err).contains("PRIVATE"));
}

#[test]
fn other_jobs_have_names_of_their_own_and_other_entries_stay() {
    let run = open_run();
    let server = open_server(&run);
    // Of the process 1 it is known that it lives; the other one lived on this machine long ago.
    let mine = |pid: u32| format!("{pid}@{}", nix::unistd::gethostname().unwrap().to_str().unwrap());
    let foreign = "Host foreign\n    User me\n";
    let living = format!("Host living\n    # attached by {}\n    HostKeyAlias dstack-a\n", mine(1));
    let elsewhere = "Host elsewhere\n    # attached by 1@another.machine\n    HostKeyAlias dstack-b\n";
    let dead = format!("Host dead\n    # attached by {}\n    HostKeyAlias dstack-c\n", mine(0x7fff_fff0));
    let user = visitor(&server)
        .file(&format!("~/{CONFIG}"), &format!("{foreign}{living}{dead}{elsewhere}"))
        .file(&format!("~/{KNOWN_HOSTS}"), "dstack-a k a\ndstack-b k b\ndstack-c k c\n");
    let ran = attaches(&user, "attach long --logs --job 1");
    let name = run["jobs"][1]["job_spec"]["job_name"].as_str().unwrap();
    assert!(ran.out.contains(&format!("(replica=0 job=1)\nTo connect to the run via SSH, use `ssh {name}`.\n")));
    let config = std::fs::read_to_string(kept(&user).join("config")).unwrap();
    assert!(config.starts_with(&format!("{foreign}{living}{elsewhere}Host {name}\n")), "{config}");
    assert!(config.contains(" --replica 0 --job 1 long\n"), "{config}");
    assert_eq!(user.read(CONFIG), format!("{foreign}{living}{elsewhere}"));
    assert_eq!(user.read(KNOWN_HOSTS), "dstack-a k a\ndstack-b k b\n");
    let tunnels: Vec<String> =
        server.requests().into_iter().filter(|request| request.path == TUNNEL).map(|it| it.query).collect();
    assert_eq!(tunnels, ["replica=0&job=1"]);
}

#[test]
fn without_ssh_server_only_the_log_is_there() {
    let run = open_run();
    let cases = [
        (refused(400, "the job `long` has no SSH server"), "the job `long` has no SSH server"),
        (refused(404, "Run not found"), "Run not found"),
    ];
    for (tunnel, why) in cases {
        let server = open_server(&run);
        server.tunnel(tunnel);
        let user = User::of(&server).at("hello", Act::Interrupt);
        let ran = attaches(&user, "attach long --logs");
        let expected = "Attached to run long (replica=0 job=0)\nPress Ctrl+C to detach...\nhello\n\nDetached\n";
        assert_eq!(ran.out, expected);
        assert_eq!(ran.err, format!("There is no way into run long by SSH: {why}\n"));
        assert!(!user.home.path().join(".ssh").exists());
        let ran = User::of(open_server(&run).tunnel(refused(400, why))).runs("attach long");
        let expected =
            format!("Failed to attach to run long: {why}. Follow its log with `dstack attach long --logs`\n");
        assert_eq!((ran.out, ran.code), (expected, 1));
    }
    // A server that knows of no SSH servers.
    let ran = User::of(&open_server(&self::run(2, "running", "running"))).runs("attach long");
    assert!(ran.out.starts_with("Failed to attach to run long: the job has no SSH server."), "{}", ran.out);
}

#[test]
fn a_run_of_another_key_is_entered_with_that_key() {
    let mut run = open_run();
    run["run_spec"]["ssh_key_pub"] = json!("ssh-ed25519 AAAAother");
    let ran = User::of(&open_server(&run)).runs("attach long");
    let expected = "Failed to attach to run long: the run was submitted with another SSH key; name it with \
                    `--ssh-identity`.";
    assert!(ran.out.starts_with(expected), "{}", ran.out);
    let user = visitor(&open_server(&run)).file("mine", "PRIVATE");
    attaches(&user, "attach long --logs --ssh-identity mine");
    let config = std::fs::read_to_string(kept(&user).join("config")).unwrap();
    assert!(config.contains(&format!("IdentityFile \"{}\"\n", user.directory().join("mine").display())));
    let user = visitor(&open_server(&run)).file("~/.dstack/ssh/id_rsa", "PRIVATE");
    let user = user.file("~/.dstack/ssh/id_rsa.pub", "ssh-ed25519 AAAAother me\n");
    attaches(&user, "attach long --logs");
    let config = std::fs::read_to_string(kept(&user).join("config")).unwrap();
    assert!(config.contains(".dstack/ssh/id_rsa\"\n"), "{config}");
}

#[test]
fn ports_are_forwarded_by_an_ssh_that_ends_with_the_command() {
    let mut run = open_run();
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    run["jobs"][0]["job_spec"]["app_specs"] = json!([{"port": 7, "map_to_port": free, "app_name": "app_0"}]);
    let server = open_server(&run);
    let script = "echo $$ > \"$DSTACK_TEST/pid\"; echo \"$@\" > \"$DSTACK_TEST/words\"; echo; exec sleep 600";
    let user = replaces_ssh(visitor(&server), script);
    let folder = user.home.path().to_owned();
    let user = user.with("DSTACK_TEST", folder.to_str().unwrap());
    let ran = attaches(&user, "attach long --logs --host 127.0.0.1");
    let expected =
        format!("(replica=0 job=0)\nForwarded ports (local -> remote):\n  - 127.0.0.1:{free} -> 7\nTo connect to");
    assert!(ran.out.contains(&expected), "{}{}", ran.out, ran.err);
    let config = folder.join(CONFIG);
    let expected = format!(
        "-F {} -N -o BatchMode=yes -o ExitOnForwardFailure=yes -o PermitLocalCommand=yes -o LocalCommand=echo -o \
         ControlMaster=no -o ControlPath=none -L 127.0.0.1:{free}:localhost:7 -- long\n",
        config.display()
    );
    assert_eq!(user.read("words"), expected);
    let stat = PathBuf::from(format!("/proc/{}/stat", user.read("pid").trim()));
    // Nobody but this process may be left to reap it.
    let is_over = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(" Z "));
    wait_for(is_over);
    // A port of the user's choice.
    hang(&server, &run);
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let ran = attaches(&user, &format!("attach long --logs --host 127.0.0.1 -p {port}:7"));
    assert_eq!(ran.err, format!("No ports are forwarded: Port {port} is already in use\n"));
}

#[expect(clippy::disallowed_methods, reason = "the kernel tells nobody when a process is over")]
fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("it never happened");
}

#[test]
fn without_openssh_and_with_a_failing_one_it_is_said() {
    let run = open_run();
    let user = visitor(&open_server(&run)).with("PATH", "/nowhere");
    let ran = attaches(&user, "attach long --logs -p *:8000");
    assert_eq!(ran.err, "No ports are forwarded: OpenSSH's client `ssh` is not installed\n");
    assert!(ran.out.contains("use `ssh long`"), "{}", ran.out);
    let user = replaces_ssh(visitor(&open_server(&run)), "echo 'Permission denied.' >&2; exit 255");
    let ran = attaches(&user, "attach long --logs -p *:8000");
    assert_eq!(ran.err, "No ports are forwarded: Permission denied.\n");
}

#[test]
fn an_applied_run_can_be_entered_too() {
    let run = open_run();
    let server = server(2);
    server.tunnel(Tunnel::Echoes);
    let entered = open_server(&run);
    for answer in entered.answers("/api/users/get_my_user") {
        server.answer("/api/users/get_my_user", 200, &answer);
    }
    let mut done = run.clone();
    done["status"] = json!("done");
    server.stream(says_goodbye(vec![is(&run), begins(0, FIRST), log(0, 0, "hello\n"), is(&done), end()]));
    let user = User::of(&server).file("t.yml", "type: task\nname: long\ncommands: [x]\n");
    let (from, to) = (user.home.path().join(".dstack/ssh"), kept(&user));
    let user = user.at("provisioning completed", Act::Keep(from, to));
    let ran = user.runs("apply -f t.yml -y");
    assert!(ran.out.ends_with("Done\n") && ran.code == 0, "{}{}", ran.out, ran.err);
    assert!(std::fs::read_to_string(kept(&user).join("config")).unwrap().starts_with("Host long\n"));
    // The end of the run is the end of the way into it.
    assert_eq!((user.read(CONFIG), user.read(KNOWN_HOSTS)), (String::new(), String::new()));
}

/// Runs `dstack ssh-proxy` while `talk` has the other end of its stdin and stdout.
fn proxy<T: Send>(user: &User, line: &str, talk: impl AsyncFnOnce(DuplexStream) -> T + Send) -> (Ran, T) {
    let (inner, outer) = tokio::io::duplex(16 * 1024);
    *user.pipe.lock().unwrap() = Some(inner);
    std::thread::scope(|scope| {
        let talking = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(talk(outer))
        });
        let ran = user.runs(line);
        (ran, talking.join().unwrap())
    })
}

fn megabyte() -> Vec<u8> {
    (0..1_048_576_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn a_megabyte_goes_through_both_ways() {
    let server = Server::start();
    server.tunnel(Tunnel::Echoes);
    let bytes = megabyte();
    let (ran, came) = proxy(&User::of(&server), "ssh-proxy --project main long --job 1", async |pipe| {
        let (mut reader, mut writer) = tokio::io::split(pipe);
        let mut came = vec![0; bytes.len()];
        let (read, written) = tokio::join!(reader.read_exact(&mut came), writer.write_all(&bytes));
        read.and(written.map(|()| 0)).unwrap();
        // The end of stdin is the end of the connection, which the other end is told.
        writer.shutdown().await.unwrap();
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
        came
    });
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    assert_eq!(Sha256::digest(&came), Sha256::digest(&bytes));
    let said = server.said_in_tunnels();
    assert!(said.contains(&Message::Pong("there?".into())) && said.contains(&Message::Close(None)), "{said:?}");
    let request = server.requests().into_iter().find(|request| request.path == TUNNEL).unwrap();
    assert_eq!((request.query.as_str(), &*request.headers["authorization"]), ("replica=0&job=1", "Bearer secret"));
}

#[test]
fn the_other_end_may_close_first() {
    let server = Server::start();
    let bytes = megabyte();
    server.tunnel(Tunnel::Says(bytes.clone()));
    let (ran, came) = proxy(&User::of(&server), "ssh-proxy --project main long", async |mut pipe| {
        let mut came = Vec::new();
        pipe.read_to_end(&mut came).await.unwrap();
        came
    });
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(Sha256::digest(&came), Sha256::digest(&bytes));
}

#[test]
fn why_there_is_no_way_is_one_line_on_stderr() {
    let server = Server::start();
    let url = format!("{}{TUNNEL}?replica=0&job=0", server.url);
    let cases = [
        (refused(404, "Run not found"), "Run not found".to_owned()),
        (refused(400, "the job does not\nrun"), "the job does not run".to_owned()),
        (refused(403, "Access denied"), format!("Access to {url} is denied. Please check your access token")),
        (
            Tunnel::Refused(Answer { status: 404, body: r#"{"detail":"Not Found"}"#.to_owned() }),
            format!("Status code 404 when requesting {url}"),
        ),
    ];
    for (tunnel, expected) in cases {
        server.tunnel(tunnel);
        let (ran, ()) = proxy(&User::of(&server), "ssh-proxy --project main long", async |_| {});
        assert_eq!((ran.out.as_str(), ran.code), ("", 255));
        assert_eq!(ran.err, format!("dstack ssh-proxy: {expected}\n"));
    }
    let (ran, ()) = proxy(&User::new(), "ssh-proxy --project main long", async |_| {});
    assert_eq!(ran.code, 255);
    assert!(ran.err.starts_with("dstack ssh-proxy: Project main is not configured"), "{}", ran.err);
}
