//! Tasks as plain processes, driven through the agent's socket.

#![cfg(test)]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use api::agent::*;
use futures_util::{StreamExt, stream};
use support::*;
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn a_task_runs_to_its_end_with_exactly_its_output() {
    let mut agent = Agent::new(&[]);
    let (state, log) = agent.run(&script("printf 'one\\ntwo'; exit 0")).await;
    assert_eq!(log, b"one\r\ntwo");
    let exit = state.exit.unwrap();
    assert_eq!((exit.reason, exit.exit_status), (ExitReason::Done, Some(0)));
    assert_eq!(state.log_end, 8);
    assert!(state.started_at.unwrap() <= exit.finished_at);
}

#[tokio::test]
async fn nothing_runs_before_go() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("echo ran");
    spec.released = false;
    agent.put(&spec).await;
    let ready = agent.wait_for(&spec, "ready", |state| state.phase == TaskPhase::Ready).await;
    assert_eq!((ready.log_end, ready.started_at), (0, None));
    assert!(ready.resolved.working_dir.unwrap().ends_with("/work"));
    assert_eq!(ready.resolved.username.as_deref(), Some("root"));
    assert!(processes_of(spec.id).is_empty());
    agent.order(&spec, "go").await;
    let log = agent.read_log(spec.id, 0).await;
    assert_eq!(log.bytes, b"ran\r\n");
    agent.order(&spec, "go").await;
    agent.forget(&spec).await;
    agent.forget(&spec).await;
    assert_eq!(agent.state(spec.id).await, None);
    assert!(!exists(&agent.home.path().join(format!("tasks/{}", spec.id))));
}

#[tokio::test]
async fn exit_statuses_and_signals_are_told() {
    let mut agent = Agent::new(&[]);
    let (failed, _) = agent.run(&script("echo why; echo so; exit 3")).await;
    let exit = failed.exit.unwrap();
    assert_eq!((exit.reason, exit.exit_status, exit.signal), (ExitReason::Failed, Some(3), None));
    assert_eq!(exit.message.as_deref(), Some("why\nso"));
    let (killed, _) = agent.run(&script("kill -KILL $$")).await;
    let exit = killed.exit.unwrap();
    assert_eq!((exit.exit_status, exit.signal), (Some(137), Some(9)));
    assert!(!exit.oom_killed);
    let (missing, _) = agent.run(&process(&["/no/such/program"])).await;
    let exit = missing.exit.unwrap();
    assert_eq!((exit.reason, exit.exit_status), (ExitReason::ExecutorError, None));
    assert!(exit.message.unwrap().contains("/no/such/program"));
}

#[tokio::test]
async fn a_job_that_ignores_polite_signals_is_killed_after_its_grace() {
    let mut agent = Agent::new(&[]);
    let spec = script("trap '' INT TERM HUP; echo up; while true; do sleep 0.05; done");
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    agent.stop(&spec, 1).await;
    let exit = agent.wait_sealed(&spec).await.exit.unwrap();
    assert_eq!((exit.reason, exit.signal), (ExitReason::Stopped, Some(9)));
    assert!(processes_of(spec.id).is_empty());
}

#[tokio::test]
async fn a_polite_job_may_finish_what_it_does() {
    let mut agent = Agent::new(&[]);
    let spec = script("trap 'echo saved; exit 7' TERM INT; echo up; while true; do sleep 0.05; done");
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    agent.stop(&spec, 60).await;
    let state = agent.wait_sealed(&spec).await;
    let exit = state.exit.unwrap();
    assert_eq!((exit.reason, exit.exit_status), (ExitReason::Stopped, Some(7)));
    assert_eq!(text(&agent.read_log(spec.id, 0).await.bytes), "up\nsaved\n");
}

#[tokio::test]
async fn a_daemon_that_hides_is_gone_after_the_end() {
    let mut agent = Agent::new(&[]);
    let dir = agent.home.path();
    let [daemon, go, one, two] = ["daemon.sh", "go", "one", "two"].map(|name| dir.join(name));
    let hidden = "trap '' TERM HUP INT; echo $$ > $1.new; mv $1.new $1; while true; do sleep 0.05; done";
    std::fs::write(&daemon, hidden).unwrap();
    let spec = script(&format!(
        "(setsid sh {daemon} {one} </dev/null >/dev/null 2>&1 &); \
         (env -i setsid sh {daemon} {two} </dev/null >/dev/null 2>&1 &); \
         while [ ! -e {go} ]; do sleep 0.02; done; echo done",
        daemon = daemon.display(),
        one = one.display(),
        two = two.display(),
        go = go.display(),
    ));
    agent.put(&spec).await;
    let mut pids = Vec::new();
    for file in [one, two] {
        let pid = || std::fs::read_to_string(&file).ok()?.trim().parse::<i32>().ok();
        pids.push(eventually("a daemon", async || pid()).await);
    }
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    std::fs::write(go, "").unwrap();
    let state = agent.wait_sealed(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done);
    assert!(processes_of(spec.id).is_empty());
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
}

#[tokio::test]
async fn the_environment_is_clean_literal_and_complete() {
    let mut agent = Agent::new(&[]);
    let mut spec = process(&["/usr/bin/env", "-0"]);
    spec.env.insert("LITERAL".to_owned(), "a:$HOME:`id`:${X}".to_owned());
    spec.env.insert("DSTACK_RUN_NAME".to_owned(), "mine".to_owned());
    spec.cluster = ClusterInfo {
        node_rank: 1,
        node_ips: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
        gpus_per_node: vec![8, 4],
    };
    let (state, log) = agent.run(&spec).await;
    let log = String::from_utf8(log).unwrap().replace("\r\n", "\n");
    let variables: std::collections::BTreeMap<&str, &str> =
        log.split('\0').filter_map(|line| line.split_once('=')).collect();
    let check = |name: &str, value: &str| assert_eq!(variables.get(name), Some(&value), "{name}");
    check("LITERAL", "a:$HOME:`id`:${X}");
    check("DSTACK_RUN_NAME", "mine");
    check("DSTACK_RUN_ID", &spec.run_id.to_string());
    check("DSTACK_JOB_ID", &spec.id.to_string());
    check("DSTACK_NODES_NUM", "2");
    check("DSTACK_NODE_RANK", "1");
    check("DSTACK_NODES_IPS", "10.0.0.1\n10.0.0.2");
    check("DSTACK_MASTER_NODE_IP", "10.0.0.1");
    check("DSTACK_GPUS_PER_NODE", "4");
    check("DSTACK_GPUS_NUM", "12");
    check("DSTACK_WORKING_DIR", &state.resolved.working_dir.unwrap());
    check("HOME", "/root");
    check("USER", "root");
    let hostfile = std::fs::read_to_string(variables["DSTACK_MPI_HOSTFILE"]).unwrap();
    assert_eq!(hostfile, "10.0.0.1 slots=8\n10.0.0.2 slots=4\n");
    let allowed = ["PATH", "HOME", "USER", "LANG", "LITERAL"];
    for name in variables.keys() {
        assert!(name.starts_with("DSTACK_") || allowed.contains(name), "{name} leaked");
    }
}

#[tokio::test]
async fn a_job_may_run_as_another_user_in_its_own_directory() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("id -un; id -G; touch mine && ls; cat $DSTACK_MPI_HOSTFILE; ls ../run");
    spec.user = Some("nobody".to_owned());
    spec.cluster.node_ips = vec!["10.0.0.9".to_owned()];
    let (state, log) = agent.run(&spec).await;
    let log = text(&log);
    assert!(log.starts_with("nobody\n65534\nmine\n10.0.0.9\n"), "{log}");
    assert!(log.contains("Permission denied"), "{log}");
    assert_eq!(state.resolved.username.as_deref(), Some("nobody"));
    let mut spec = script("true");
    spec.user = Some("no-such-user".to_owned());
    let exit = agent.run(&spec).await.0.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::ExecutorError);
    assert!(exit.message.unwrap().contains("no-such-user"));
}

#[tokio::test]
async fn a_user_whom_a_folder_keeps_out_is_told_which() {
    use std::os::unix::fs::PermissionsExt;
    let outer = tempfile::Builder::new().prefix("closed").tempdir().unwrap();
    // As the folder of a server's data is.
    std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let home = tempfile::Builder::new().prefix("agent").tempdir_in(outer.path()).unwrap();
    let mut agent = Agent::at(home, &[]);
    let mut spec = script("cat $DSTACK_MPI_HOSTFILE");
    spec.user = Some("nobody".to_owned());
    let exit = agent.run(&spec).await.0.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::ExecutorError);
    let told = format!("`{}` is closed to it", outer.path().display());
    assert!(exit.message.as_ref().unwrap().contains(&told), "{exit:?}");
    // Elsewhere it may run all the same, and a number that nobody has has no home of its own.
    let mut spec = script("id -u; echo $HOME; pwd");
    spec.user = Some("4711".to_owned());
    spec.working_dir = Some("/tmp".to_owned());
    let (_, log) = agent.run(&spec).await;
    assert_eq!(text(&log), "4711\n/\n/tmp\n");
}

#[tokio::test]
async fn a_supervisor_that_cannot_begin_leaves_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let ended = std::process::Command::new(binary()).args(["job", "--dir"]).arg(dir.path()).output().unwrap();
    assert!(!ended.status.success());
    let words = std::fs::read_to_string(dir.path().join("supervisor.log")).unwrap();
    assert!(words.contains("No such file"), "{words}");
}

#[tokio::test]
async fn an_upload_that_is_cut_short_leaves_nothing() {
    let mut agent = Agent::new(&[]);
    agent.hello().await;
    let blobs = agent.home.path().join("blobs");
    let count = || std::fs::read_dir(&blobs).unwrap().count();
    let stream = tokio::net::UnixStream::connect(agent.home.path().join("agent.sock")).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let half = hyper::body::Frame::data(bytes::Bytes::from("half of it"));
    let endless = stream::iter([Ok::<_, Infallible>(half)]).chain(stream::pending());
    let request = hyper::Request::put(format!("http://agent/v1/blobs/{}", "0".repeat(64)))
        .header(EPOCH_HEADER, agent.epoch)
        .body(http_body_util::StreamBody::new(endless))
        .unwrap();
    let upload = tokio::spawn(sender.send_request(request));
    eventually("the upload", async || (count() == 1).then_some(())).await;
    connection.abort();
    upload.abort();
    eventually("its end", async || (count() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_virtual_environment_comes_first_or_its_lack_is_told() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("command -v python; echo $VIRTUAL_ENV");
    spec.python = Some("3.11".to_owned());
    let (state, log) = agent.run(&spec).await;
    // What its makers keep for later is the task's as well.
    assert!(exists(&agent.home.path().join(format!("tasks/{}/caches/uv", spec.id))));
    match state.exit.unwrap() {
        exit if exit.reason == ExitReason::Done => {
            let venv = text(&log).lines().last().unwrap().to_owned();
            assert!(venv.ends_with("/venv"), "{venv}");
            assert_eq!(text(&log), format!("{venv}/bin/python\n{venv}\n"));
        }
        exit => assert!(exit.message.unwrap().contains("python: 3.11")),
    }
    spec = script("true");
    spec.python = Some("3.99".to_owned());
    let exit = agent.run(&spec).await.0.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::ExecutorError);
    assert!(exit.message.unwrap().contains("python: 3.99"));
}

#[tokio::test]
async fn a_reader_that_acknowledges_nothing_gets_one_window() {
    use http_body_util::BodyExt;
    let mut agent = Agent::new(&[]);
    let spec = script("seq 1 1000000");
    agent.put(&spec).await;
    agent.wait_sealed(&spec).await;
    let mut client = agent.client().await;
    let path = format!("/v1/tasks/{}/logs?offset=0", spec.id);
    let mut body = client.send("GET", &path, bytes::Bytes::new()).await.unwrap().into_body();
    let (mut log, mut buffer) = (Log::default(), bytes::BytesMut::new());
    while log.next < LOG_WINDOW {
        let frame = timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        buffer.extend_from_slice(frame.data_ref().unwrap());
        while take_frame(&mut buffer, &mut log) {}
    }
    assert_eq!(log.next, LOG_WINDOW);
    assert!(timeout(Duration::from_millis(500), body.frame()).await.is_err(), "more came than one window");
}

#[tokio::test]
async fn acknowledged_segments_are_removed() {
    let mut agent = Agent::new(&[]);
    let spec = script("seq 1 3000000");
    agent.put(&spec).await;
    let log = agent.read_log(spec.id, 0).await;
    assert!(log.gaps.is_empty());
    let end = agent.wait_sealed(&spec).await.log_end;
    let path = format!("/v1/tasks/{}/logs/ack", spec.id);
    agent.insist::<()>("POST", &path, &LogAck { offset: end }).await.unwrap();
    let logs = agent.home.path().join(format!("tasks/{}/run/logs", spec.id));
    let size: u64 = std::fs::read_dir(logs).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size < 6 << 20, "{size} bytes are left");
}

#[tokio::test]
async fn secrets_are_in_no_argument_and_gone_from_the_disk_once_it_runs() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("echo up; sleep 1000");
    spec.env.insert("TOKEN".to_owned(), "s3cr3t-value".to_owned());
    agent.put(&spec).await;
    agent.wait_for(&spec, "started", |state| state.started_at.is_some()).await;
    let found =
        std::process::Command::new("grep").args(["-rl", "s3cr3t-value"]).arg(agent.home.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert!(!agent.log().contains("s3cr3t"));
    agent.stop(&spec, 0).await;
    agent.wait_sealed(&spec).await;
}

#[tokio::test]
async fn a_job_that_runs_too_long_is_ended() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("sleep 1000");
    spec.max_duration_secs = Some(1);
    let (state, _) = agent.run(&spec).await;
    let exit = state.exit.unwrap();
    assert_eq!(exit.reason, ExitReason::MaxDurationExceeded);
    // The shell dies of the signal, or says so of its child.
    assert_eq!(exit.exit_status, Some(130));
}

#[tokio::test]
async fn a_stop_overtakes_a_flood() {
    let mut agent = Agent::new(&[]);
    let spec = process(&["/usr/bin/yes", "a line that is printed again and again"]);
    agent.put(&spec).await;
    agent.wait_for(&spec, "flood", |state| state.log_end > 20_000_000).await;
    let before = Instant::now();
    agent.stop(&spec, 300).await;
    agent.wait_sealed(&spec).await;
    let took = before.elapsed();
    // Not after the grace, and not after what the flood has queued.
    assert!(took < DEADLINE, "{took:?}");
}

#[tokio::test]
async fn a_supervisor_that_nobody_reaches_is_stopped_all_the_same() {
    let mut agent = Agent::new(&[]);
    let spec = script("echo up; sleep 1000");
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    let run = agent.home.path().join("tasks").join(spec.id.to_string()).join("run");
    std::fs::remove_file(run.join("job.sock")).unwrap();
    // The next agent has never heard of it.
    agent.restart();
    agent.stop(&spec, 0).await;
    assert_eq!(agent.wait_sealed(&spec).await.exit.unwrap().reason, ExitReason::Stopped);
    assert!(processes_of(spec.id).is_empty());
}

#[tokio::test]
async fn a_stop_before_the_start_leaves_nothing_behind() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("echo ran");
    spec.released = false;
    agent.put(&spec).await;
    agent.stop(&spec, 300).await;
    let state = agent.wait_sealed(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Stopped);
    let state = agent.order(&spec, "go").await;
    assert_eq!((state.phase, state.log_end), (TaskPhase::Sealed, 0));
}

#[tokio::test]
async fn older_generations_and_epochs_are_refused() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("sleep 1000");
    spec.generation = 5;
    agent.put(&spec).await;
    let again = agent.put(&spec).await;
    assert_eq!(again.generation, 5);
    let path = format!("/v1/tasks/{}", spec.id);
    spec.generation = 4;
    let refused = agent.insist::<TaskState>("PUT", &path, &spec).await.unwrap_err();
    assert_eq!(refused.code, AgentErrorCode::Fenced);
    let order = StopOrder { generation: 4, grace_secs: 0 };
    let stop = format!("{path}/stop");
    let refused = agent.insist::<TaskState>("POST", &stop, &order).await.unwrap_err();
    assert_eq!(refused.code, AgentErrorCode::Fenced);
    agent.hello().await;
    agent.epoch = 7;
    agent.hello().await;
    agent.epoch = 6;
    agent.restart();
    let order = StopOrder { generation: 5, grace_secs: 0 };
    let refused = agent.insist::<TaskState>("POST", &stop, &order).await.unwrap_err();
    assert_eq!(refused.code, AgentErrorCode::Fenced);
    agent.epoch = 7;
    let own = agent.server_id;
    agent.server_id = api::ids::ServerId(spec.run_id.0);
    let request = HelloRequest { server_id: agent.server_id, epoch: 9, protocol: 1 };
    let refused = agent.insist::<Hello>("POST", "/v1/hello", &request).await.unwrap_err();
    assert_eq!(refused.code, AgentErrorCode::OtherServer);
    agent.server_id = own;
    spec.generation = 5;
    agent.stop(&spec, 0).await;
    agent.wait_sealed(&spec).await;
}

#[tokio::test]
async fn a_newer_spec_replaces_one_that_has_not_started() {
    let mut agent = Agent::new(&[]);
    let mut spec = script("echo old");
    spec.released = false;
    agent.put(&spec).await;
    agent.wait_for(&spec, "ready", |state| state.phase == TaskPhase::Ready).await;
    let mut newer = script("echo new");
    newer.id = spec.id;
    newer.generation = 2;
    let (state, log) = agent.run(&newer).await;
    assert_eq!((text(&log).as_str(), state.generation), ("new\n", 2));
    newer.generation = 3;
    assert_eq!(agent.put(&newer).await.phase, TaskPhase::Sealed);
}

#[tokio::test]
async fn a_forgotten_task_does_not_run_again() {
    let mut agent = Agent::new(&[]);
    let spec = script("echo once");
    agent.run(&spec).await;
    agent.forget(&spec).await;
    let path = format!("/v1/tasks/{}", spec.id);
    let refused = agent.insist::<TaskState>("PUT", &path, &spec).await.unwrap_err();
    assert_eq!(refused.code, AgentErrorCode::Fenced);
}

#[tokio::test]
async fn a_second_agent_on_the_same_home_exits_with_a_message() {
    let mut agent = Agent::new(&[]);
    agent.hello().await;
    let second = agent.command().output().unwrap();
    assert!(!second.status.success());
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(told.contains("another agent already runs"), "{told}");
}

#[tokio::test]
async fn an_agent_listens_before_it_knows_where_it_is() {
    let home = tempfile::Builder::new().prefix("agent").tempdir().unwrap();
    // What it reads of itself after it has looked at the machine waits for us.
    let owner = home.path().join("agent.json");
    nix::unistd::mkfifo(&owner, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = home.path().join("agent.sock");
    let mut agent = Agent::at(home, &[]);
    eventually("the socket", async || tokio::net::UnixStream::connect(&socket).await.ok()).await;
    let tell = move || std::fs::write(owner, r#"{"server_id":null,"epoch":0}"#);
    tokio::task::spawn_blocking(tell).await.unwrap().unwrap();
    assert!(agent.hello().await.host.cpus > 0);
}

#[tokio::test]
async fn an_idle_agent_exits_by_itself_and_a_busy_one_does_not() {
    let mut agent = Agent::new(&["--idle-exit-secs", "1"]);
    let spec = script("sleep 3; echo ran");
    agent.put(&spec).await;
    eventually("exit", async || agent.has_exited().then_some(())).await;
    assert!(agent.log().contains("nothing to do"));
    assert_eq!(text(&agent.read_log(spec.id, 0).await.bytes), "ran\n");
}

#[tokio::test]
async fn output_beyond_the_cap_becomes_a_gap() {
    let mut agent = Agent::new(&["--log-cap-bytes", "12000000"]);
    let spec = script("seq 1 6000000");
    agent.put(&spec).await;
    let state = agent.wait_sealed(&spec).await;
    let log = agent.read_log(spec.id, 0).await;
    assert_eq!(log.gaps.len(), 1);
    assert_eq!(log.gaps[0].0, 0);
    assert_eq!(log.end, Some(state.log_end));
    assert_eq!(log.gaps[0].1 + log.bytes.len() as u64, state.log_end);
    assert!(log.bytes.len() <= 12_000_000);
    assert!(log.bytes.ends_with(b"5999999\r\n6000000\r\n"));
}

#[tokio::test]
async fn log_times_tell_when_lines_were_printed() {
    let mut agent = Agent::new(&[]);
    let go = agent.home.path().join("go");
    let spec = script(&format!("echo one; while [ ! -e {} ]; do sleep 0.02; done; echo two", go.display()));
    let before = Instant::now();
    agent.put(&spec).await;
    agent.wait_for(&spec, "output", |state| state.log_end > 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::write(go, "").unwrap();
    agent.wait_sealed(&spec).await;
    let took = before.elapsed().as_micros() as i64;
    let times = agent.read_log(spec.id, 0).await.times;
    let between = times.last().unwrap() - times.first().unwrap();
    assert!((500_000..=took).contains(&between), "{times:?} {took}");
}

#[tokio::test]
async fn the_event_stream_tells_every_change() {
    use http_body_util::BodyExt;
    let mut agent = Agent::new(&[]);
    let mut client = agent.client().await;
    let response = client.send("GET", "/v1/events", bytes::Bytes::new()).await.unwrap();
    let mut body = response.into_body();
    let spec = script("echo hello");
    agent.put(&spec).await;
    agent.wait_sealed(&spec).await;
    agent.forget(&spec).await;
    let mut text = String::new();
    let forgotten = format!("{{\"forgotten\":\"{}\"}}", spec.id);
    while !text.contains(&forgotten) {
        let frame = timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("{\"snapshot\":[]}"));
    assert!(text.contains("\"phase\":\"sealed\""), "{text}");
}

#[tokio::test]
async fn connect_joins_stdio_to_the_socket() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut agent = Agent::new(&[]);
    agent.hello().await;
    let mut child = tokio::process::Command::new(binary())
        .args(["connect", "--socket"])
        .arg(agent.home.path().join("agent.sock"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).await.unwrap();
    assert_eq!(line, MAGIC_LINE);
    let stream = tokio::io::join(stdout, child.stdin.take().unwrap());
    let mut client = Client::over(stream, 1).await.unwrap();
    let request = HelloRequest { server_id: agent.server_id, epoch: 1, protocol: 1 };
    let hello: Hello = client.request("POST", "/v1/hello", &request).await.unwrap().unwrap();
    assert!(hello.host.cpus > 0);
    drop(client);
    let status = timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn code_and_files_arrive_before_the_command() {
    use sha2::Digest;
    let mut agent = Agent::new(&[]);
    let blob = archive("src/main.txt", "hello");
    let hash = hex::encode(sha2::Sha256::digest(&blob));
    let mut spec = script("cat repo/src/main.txt there/main.txt; pwd");
    spec.code = Some(CodeDelivery {
        blob_sha256: Some(hash.clone()),
        repo_dir: "repo".to_owned(),
        skip_if_exists: false,
        git: None,
    });
    spec.files = vec![FileDelivery { blob_sha256: hash.clone(), path: "there".to_owned() }];
    let path = format!("/v1/tasks/{}", spec.id);
    let refused = agent.insist::<TaskState>("PUT", &path, &spec).await.unwrap_err();
    assert_eq!(refused.code, AgentErrorCode::InvalidRequest);
    let mut client = agent.client().await;
    let blob_path = format!("/v1/blobs/{hash}");
    let missing = client.send("HEAD", &blob_path, bytes::Bytes::new()).await.unwrap();
    assert_eq!(missing.status(), 404);
    let wrong = client.send("PUT", &blob_path, bytes::Bytes::from("other")).await.unwrap();
    assert_eq!(wrong.status(), 400);
    let kept = client.send("PUT", &blob_path, blob.into()).await.unwrap();
    assert_eq!(kept.status(), 200);
    let (state, log) = agent.run(&spec).await;
    let work = state.resolved.working_dir.unwrap();
    assert_eq!(text(&log), format!("hellohello{work}\n"));
}
