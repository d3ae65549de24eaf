//! Nodes of a gang that enter each other, and the client for it against our own server and OpenSSH's.
//!
//! Skipped, and said so, where `DSTACK_TEST_SSH` is not set.

#![cfg(test)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use api::agent::*;
use support::git::Sshd;
use support::ssh::*;
use support::*;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::time::{Instant, timeout};

/// The first two words of a public key.
fn without_comment(public: &str) -> String {
    public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// A node that the client knows.
struct Known<'a> {
    address: &'a str,
    port: u16,
    host_key: &'a str,
}

/// Our client, and what it needs.
struct Client {
    dir: TempDir,
}

impl Client {
    fn knowing(key: &str, nodes: &[Known<'_>]) -> Client {
        let client = Client { dir: tempfile::tempdir().unwrap() };
        symlink(binary(), client.path("ssh")).unwrap();
        fs::write(client.path("key"), key).unwrap();
        let nodes: Vec<_> = nodes
            .iter()
            .map(|node| {
                let host_key = without_comment(node.host_key);
                serde_json::json!({ "address": node.address, "port": node.port, "host_key": host_key })
            })
            .collect();
        fs::write(client.path("nodes.json"), serde_json::to_vec(&nodes).unwrap()).unwrap();
        client
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("ssh"));
        command.args(arguments).env("DSTACK_SSH_NODES", self.dir.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        finish(self.command(arguments)).await
    }

    /// Runs a command with this input.
    async fn feed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = async move {
            // A command may end without reading all.
            let _ = stdin.write_all(input).await;
        };
        let both = async { tokio::join!(child.wait_with_output(), feed).0.unwrap() };
        timeout(LONG, both).await.expect("the client ends")
    }
}

#[track_caller]
fn check(output: &Output, status: i32, printed: &str, errors: &str) {
    let found = (output.status.code(), stdout(output), stderr(output));
    assert_eq!(found, (Some(status), printed.to_owned(), errors.to_owned()));
}

/// What a client does with any server.
async fn check_conversation(client: &Client, host: &str) {
    let both = "echo out; echo err >&2; exit 7";
    check(&client.run(&["-x", "-q", "-T", host, both]).await, 7, "out\n", "err\n");
    // As every client, it joins its words by blanks, and a shell takes them apart again.
    check(&client.run(&[host, "echo", "a  b", "$((1 + 1))"]).await, 0, "a b 2\n", "");
    let bytes = noise(5_000_000);
    let echoed = client.feed(&[host, "cat"], &bytes).await;
    assert!(echoed.status.success() && echoed.stdout == bytes, "{}", stderr(&echoed));
    check(&client.feed(&["-n", host, "cat; echo end"], b"never read").await, 0, "end\n", "");
    // A command that does not read its input ends all the same.
    check(&client.feed(&[host, "true"], &bytes).await, 0, "", "");
    check(&client.run(&[host, "kill -TERM $$"]).await, 128 + 15, "", "");
    let shell = client.feed(&["-o", "BatchMode=yes", host], b"echo in a shell\nexit 3\n").await;
    assert_eq!(shell.status.code(), Some(3), "{}", stderr(&shell));
    assert!(stdout(&shell).contains("in a shell"), "{}", stdout(&shell));
    // Whoever reads no more is not printed to for ever.
    let piped = format!("{} {host} yes | head -n 1", client.path("ssh").display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &piped]).env("DSTACK_SSH_NODES", client.dir.path()).stdin(Stdio::null());
    check(&finish(shell).await, 0, "y\n", "");
}

/// It fails, with this in its message, and long before anybody's patience ends.
async fn check_failure(client: &Client, arguments: &[&str], told: &str) {
    let begun = Instant::now();
    let output = client.run(arguments).await;
    assert!(begun.elapsed() < DEADLINE, "{arguments:?} took {:?}", begun.elapsed());
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(255), ""), "{arguments:?}");
    let errors = stderr(&output);
    assert!(errors.starts_with("ssh: ") && errors.contains(told), "{arguments:?}: {errors}");
    assert!(!errors.contains("PRIVATE KEY"), "{errors}");
}

#[tokio::test]
async fn the_client_speaks_with_opensshs_server() {
    let Some(sshd) = Sshd::start("").await else { return };
    let host_key = sshd.known_host().split_once(' ').unwrap().1.to_owned();
    let known = |host_key| [Known { address: "127.0.0.1", port: sshd.port, host_key }];
    let client = Client::knowing(&sshd.key, &known(&host_key));
    check_conversation(&client, "127.0.0.1").await;
    check(&client.run(&["-l", "root", "localhost", "echo by name"]).await, 0, "by name\n", "");
    // Nothing that an option says makes it trust another key.
    let stranger = sshd.other_public();
    let fooled = Client::knowing(&sshd.key, &known(&stranger));
    let careless = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "127.0.0.1", "true"];
    check_failure(&fooled, &careless, "shows another key than its own").await;
    let outsider = Client::knowing(&sshd.other_key, &known(&host_key));
    check_failure(&outsider, &["127.0.0.1", "true"], "does not let `root` in").await;
    // A key of one's own comes before the gang's.
    fs::write(outsider.path("own"), &sshd.key).unwrap();
    let own = outsider.path("own").display().to_string();
    check(&outsider.run(&["-i", &own, "127.0.0.1", "echo in"]).await, 0, "in\n", "");
}

#[tokio::test]
async fn failures_are_quick_and_say_why() {
    if !is_available() {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    let (key, public) = make_key(&keys.path().join("gang"), "ed25519").await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let nodes = [("127.0.0.1", free_port()), ("127.0.0.2", 0), ("127.0.0.1", silent_port)];
    let client = |at: usize| {
        let (address, port) = nodes[at];
        Client::knowing(&key, &[Known { address, port, host_key: &public }])
    };
    check_failure(&client(0), &["127.0.0.1", "true"], "connect to 127.0.0.1 port").await;
    check_failure(&client(1), &["127.0.0.2", "true"], "has no SSH server").await;
    check_failure(&client(2), &["-o", "ConnectTimeout=1", "127.0.0.1", "true"], "did not answer within 1 s").await;
    check_failure(&client(0), &["10.255.0.1", "true"], "`10.255.0.1` is no node of this run").await;
    check_failure(&client(0), &["-L", "1:a:2", "127.0.0.1"], "does not know `-L`").await;
    check_failure(&client(0), &[], "no node is named").await;
    let without_key = client(0);
    fs::remove_file(without_key.path("key")).unwrap();
    check_failure(&without_key, &["127.0.0.1", "true"], "cannot read the gang's key").await;
    let alone = client(0);
    fs::remove_file(alone.path("nodes.json")).unwrap();
    check_failure(&alone, &["127.0.0.1", "true"], "a run with several nodes").await;
}

/// A job that can be entered, and a client that knows it.
async fn entrance() -> (Entrance, Client) {
    let keys = tempfile::tempdir().unwrap();
    let (key, public) = make_key(&keys.path().join("gang"), "ed25519").await;
    let job = Entrance::open_with(|spec| {
        if let Some(ssh) = &mut spec.ssh {
            ssh.authorized_keys.push(public);
        }
        // The tester's own shell may have much to say.
        spec.env.insert("SHELL".to_owned(), "/bin/sh".to_owned());
    })
    .await;
    let host_key = fs::read_to_string(job.path("host.pub")).unwrap();
    let client = Client::knowing(&key, &[Known { address: "127.0.0.1", port: job.port, host_key: &host_key }]);
    (job, client)
}

#[tokio::test]
async fn the_client_speaks_with_our_own_server() {
    if !is_available() {
        return;
    }
    let (job, client) = entrance().await;
    check_conversation(&client, "127.0.0.1").await;
    // Commands see what the job's own command does.
    let seen = client.run(&["127.0.0.1", "echo $DSTACK_RUN_NAME $DSTACK_NODE_RANK $DSTACK_JOB_ID"]).await;
    check(&seen, 0, &format!("train 0 {}\n", job.spec.id), "");
    job.close().await;
}

/// A client whose command runs, and what it prints after its first line.
async fn started(client: &Client, text: &str) -> (tokio::process::Child, BufReader<ChildStdout>) {
    let mut child = client.command(&["127.0.0.1", text]).stdout(Stdio::piped()).spawn().unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    timeout(DEADLINE, printed.read_line(&mut line)).await.expect("the command starts").unwrap();
    assert_eq!(line, "up\n");
    (child, printed)
}

fn send(client: &tokio::process::Child, signal: &str) {
    let pid = nix::unistd::Pid::from_raw(client.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, signal.parse::<nix::sys::signal::Signal>().unwrap()).unwrap();
}

#[tokio::test]
async fn whoever_ends_the_client_ends_its_command_and_hears_its_last_words() {
    if !is_available() {
        return;
    }
    let (job, client) = entrance().await;
    for (signal, status) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let text = format!("trap 'echo heard {signal}; exit' {signal}; echo up; while :; do sleep 0.05; done");
        let (mut child, mut printed) = started(&client, &text).await;
        send(&child, &format!("SIG{signal}"));
        let ended = timeout(DEADLINE, child.wait()).await.expect("the client ends").unwrap();
        assert_eq!(ended.code(), Some(status));
        let mut line = String::new();
        printed.read_line(&mut line).await.unwrap();
        assert_eq!(line, format!("heard {signal}\n"));
    }
    job.close().await;
}

#[tokio::test]
async fn a_client_that_is_told_again_to_end_does_not_wait() {
    if !is_available() {
        return;
    }
    let (job, client) = entrance().await;
    let (mut child, _printed) = started(&client, "trap '' TERM; echo up; sleep 1000007").await;
    let ended = async {
        loop {
            // Two that come at once are one, so it is told until it hears.
            send(&child, "SIGTERM");
            if let Ok(ended) = timeout(Duration::from_millis(100), child.wait()).await {
                break ended.unwrap();
            }
        }
    };
    assert_eq!(timeout(DEADLINE, ended).await.expect("the client ends").code(), Some(143));
    job.close().await;
}

#[tokio::test]
async fn many_clients_may_come_at_once() {
    if !is_available() {
        return;
    }
    let (job, client) = entrance().await;
    // More than a server talks to before it knows them.
    let runs = (0..100).map(|number| {
        let mut command = client.command(&[
            "-o",
            "ConnectTimeout=120",
            "127.0.0.1",
            &format!("echo {number}; exit {}", number % 8),
        ]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        (number, command.spawn().unwrap())
    });
    let runs: Vec<_> = runs.collect();
    for (number, child) in runs {
        let output = timeout(LONG, child.wait_with_output()).await.expect("the client ends").unwrap();
        check(&output, number % 8, &format!("{number}\n"), "");
    }
    job.close().await;
}

/// Where the nodes of a gang are. Other tests use the same machine.
fn addresses() -> [String; 2] {
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    [1, 2].map(|number| format!("127.{}.{low}.{number}", 64 + high % 64))
}

/// Two nodes of a gang with an agent each, ready and waiting for `go`.
async fn gang(port: u16, commands: [&str; 2]) -> Vec<(Agent, TaskSpec)> {
    let keys = tempfile::tempdir().unwrap();
    let (private_key, public) = make_key(&keys.path().join("gang"), "ed25519").await;
    let mut host_keys = Vec::new();
    for name in ["host-0", "host-1"] {
        host_keys.push(make_key(&keys.path().join(name), "ed25519").await);
    }
    let node_ips = addresses();
    let mut nodes = Vec::new();
    for (rank, command) in commands.into_iter().enumerate() {
        let mut spec = script(command);
        spec.released = false;
        spec.cluster =
            ClusterInfo { node_rank: rank as u32, node_ips: node_ips.to_vec(), gpus_per_node: vec![0, 0] };
        spec.ssh = Some(SshServer {
            host_key: host_keys[rank].0.clone(),
            authorized_keys: vec![public.clone()],
            port,
            listen: SshListen::Loopback,
            peer_address: Some(node_ips[rank].parse().unwrap()),
            required: false,
            over_host: None,
            keep_alive_secs: 30,
        });
        spec.gang = Some(GangAccess {
            private_key: private_key.clone(),
            host_keys: host_keys.iter().map(|(_, public)| without_comment(public)).collect(),
            ports: vec![],
        });
        let mut agent = Agent::new(&[]);
        agent.put(&spec).await;
        agent.wait_for(&spec, "ready", |state| state.phase == TaskPhase::Ready).await;
        nodes.push((agent, spec));
    }
    nodes
}

async fn ports_of(nodes: &mut [(Agent, TaskSpec)], port: u16) -> Vec<u16> {
    let mut ports = Vec::new();
    for (agent, spec) in nodes {
        ports.push(agent.state(spec.id).await.unwrap().resolved.ports[&port]);
    }
    ports
}

#[tokio::test]
async fn nodes_enter_each_other_at_the_ports_that_they_found() {
    if !is_available() {
        return;
    }
    let port = free_port();
    let visit = "for ip in $DSTACK_NODES_IPS; do dstack-ssh $ip 'echo rank $DSTACK_NODE_RANK'; done; \
                 dstack-ssh $(echo $DSTACK_NODES_IPS | cut -d ' ' -f 2) \
                 \"dstack-ssh $DSTACK_MASTER_NODE_IP 'echo back at \\$DSTACK_NODE_RANK'\"; \
                 echo $OMPI_MCA_plm_rsh_agent $PRTE_MCA_plm_ssh_agent $HYDRA_LAUNCHER_EXEC";
    let mut nodes = gang(port, [visit, "sleep 1000000"]).await;
    let ports = ports_of(&mut nodes, port).await;
    // Both are on one machine, so only one of them could have the usual port.
    assert!(ports[0] == port && ports[1] != port, "{ports:?}");
    for (agent, spec) in &mut nodes {
        // What an agent was told outlives it.
        agent.go(spec, &ports).await;
        agent.restart();
    }
    let (agent, spec) = &mut nodes[0];
    let log = text(&agent.read_log(spec.id, 0).await.bytes);
    assert_eq!(log, "rank 0\nrank 1\nback at 0\ndstack-ssh dstack-ssh dstack-ssh\n");
    assert_eq!(agent.state(spec.id).await.unwrap().warnings, Vec::<String>::new());
    let (agent, spec) = &mut nodes[1];
    agent.stop(spec, 0).await;
    agent.wait_sealed(spec).await;
}

/// The files below a folder that hold a text.
fn files_with(text: &str, dir: &Path) -> Vec<String> {
    let found = std::process::Command::new("grep").args(["-rlF", text]).arg(dir).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_gangs_key_lies_where_only_the_jobs_user_reads_it() {
    if !is_available() {
        return;
    }
    let port = free_port();
    let mut nodes = gang(port, ["sleep 1000000", "sleep 1000000"]).await;
    let ports = ports_of(&mut nodes, port).await;
    for (agent, spec) in &mut nodes {
        agent.go(spec, &ports).await;
        agent.wait_for(spec, "started", |state| state.started_at.is_some()).await;
        let gang = spec.gang.clone().unwrap();
        let secret = gang.private_key.lines().nth(2).unwrap().to_owned();
        let tasks = agent.home.path().join("tasks");
        let key = tasks.join(spec.id.to_string()).join("peers/nodes/key");
        assert_eq!(files_with(&secret, agent.home.path()), [key.display().to_string()]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&key), mode(key.parent().unwrap())), (0o600, 0o700));
        for pid in processes_of(spec.id) {
            for file in ["cmdline", "environ"] {
                let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                assert!(!String::from_utf8_lossy(&text).contains(&secret), "{pid} {file}");
            }
        }
        assert!(!format!("{spec:?}").contains(&secret));
        agent.stop(spec, 0).await;
        agent.wait_sealed(spec).await;
        agent.forget(spec).await;
        assert_eq!(files_with(&secret, agent.home.path()), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_job_is_stopped_also_while_it_is_told_of_its_peers() {
    if !is_available() {
        return;
    }
    let port = free_port();
    let mut nodes = gang(port, ["echo ran", "echo ran"]).await;
    let (agent, spec) = &mut nodes[0];
    // Nothing can be written there any more, which keeps nobody from starting.
    let place = agent.home.path().join("tasks").join(spec.id.to_string()).join("peers/nodes");
    fs::remove_dir_all(&place).unwrap();
    agent.go(spec, &[port, port]).await;
    assert_eq!(text(&agent.read_log(spec.id, 0).await.bytes), "ran\n");
    let warnings = agent.wait_sealed(spec).await.warnings;
    assert!(
        warnings.iter().any(|warning| warning.contains("cannot enter the gang's other nodes")),
        "{warnings:?}"
    );
    let (agent, spec) = &mut nodes[1];
    agent.go(spec, &[port, port]).await;
    agent.stop(spec, 0).await;
    let sealed = timeout(Duration::from_secs(30), agent.wait_sealed(spec)).await.expect("it ends");
    assert!(sealed.exit.is_some());
}
