//! The official command line 0.22.5 inside of jobs, on each way that it knows: its logs, forwarded ports, `ssh` and
//! `scp` after it; and what its user's key opens, and does not.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::hosts::{Lan, Options, TINY_IMAGE, TestHost, User};
use crate::rig::{Ended, FLEET, Rig, Setup, TOKEN, end, free_address, program, seq, wait_for};
use crate::ssh_fleets::{agent_of, fleet};

const PATIENCE: Duration = Duration::from_mins(2);

/// How many lines a job writes before anybody is attached.
const LINES: u32 = 2000;

/// The official command line with a home of its own.
struct Official<'a> {
    rig: &'a Rig,
    client: PathBuf,
}

/// Where a job runs, and what it has there.
struct Place {
    /// The lines of its configuration that say so.
    lines: String,
    /// A command that serves `it works` at a port, and goes on.
    serve: String,
    /// A file whose coming ends the job.
    stop: String,
}

/// A command that runs beside the test.
struct Running {
    child: Child,
    output: PathBuf,
}

impl Running {
    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    #[track_caller]
    fn waits_for(&self, text: &str) {
        wait_for(text, PATIENCE, || self.text().contains(text).then_some(()));
    }

    /// Waits for its end, and answers its exit status and what it printed.
    #[track_caller]
    fn ends(mut self) -> (Option<i32>, String) {
        let status = wait_for("the end of the official client", PATIENCE, || self.child.try_wait().unwrap());
        (status.code(), self.text())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the official client said:\n{}", self.text());
        }
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

impl<'a> Official<'a> {
    /// The client of a user who is logged in.
    fn of(rig: &'a Rig, client: PathBuf) -> Official<'a> {
        let official = Official { rig, client };
        fs::create_dir_all(official.home().join("bin")).unwrap();
        // OpenSSH looks for known hosts in the home that the system knows, whatever `HOME` says.
        let ssh = official.home().join("bin/ssh");
        let known = official.home().join("known_hosts");
        if known.exists() {
            let text = format!("#!/bin/sh\nexec /usr/bin/ssh -o UserKnownHostsFile={} \"$@\"\n", known.display());
            fs::write(&ssh, text).unwrap();
            fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let add = ["project", "add", "--name", "main", "--url", &rig.url(), "--token", TOKEN, "-y"];
        end(&mut official.command(&add)).expect_status(0);
        official
    }

    fn home(&self) -> PathBuf {
        self.rig.dir.join("official-home")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.rig.command(&self.client, "official-home");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(args).env("PATH", format!("{}:{path}", self.home().join("bin").display()));
        command.env_remove("SSH_AUTH_SOCK");
        command
    }

    fn start(&self, args: &[&str]) -> Running {
        let output = self.rig.dir.join(format!("official-{}", args[0]));
        let file = File::create(&output).unwrap();
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Running { child: command.spawn().unwrap(), output }
    }

    fn config(&self) -> PathBuf {
        self.home().join(".dstack/ssh/config")
    }

    /// The user's key, which the client has fetched.
    fn identity(&self) -> String {
        let config = fs::read_to_string(self.config()).unwrap();
        let line = config.lines().find_map(|line| line.trim().strip_prefix("IdentityFile ")).unwrap();
        line.trim_matches('"').replace('~', &self.home().display().to_string())
    }

    /// One of OpenSSH's programs, as attaching has configured it.
    fn openssh(&self, name: &str, args: &[&str]) -> Ended {
        let mut command = Command::new(name);
        command.arg("-F").arg(self.config()).args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        let known = self.home().join("known_hosts");
        if known.exists() {
            command.args(["-o", &format!("UserKnownHostsFile={}", known.display())]);
        }
        end(command.args(args).env_remove("SSH_AUTH_SOCK"))
    }

    fn write_task(&self, name: &str, place: &Place, status: u8) -> [u16; 2] {
        let [local, remote] = [free_address().port(), free_address().port()];
        let Place { lines, serve, stop } = place;
        let serve = serve.replace("PORT", &remote.to_string());
        let text = format!(
            "type: task\nname: {name}\n{lines}\nports: [\"{local}:{remote}\"]\ncommands:\n  - seq 1 {LINES}\n  - \
             {serve}\n  - until [ -e {stop} ]; do sleep 0.1; done\n  - seq 1 {LINES}\n  - exit {status}\n\
             resources: {{cpu: 1.., memory: 64MB.., disk: 1GB..}}\n"
        );
        self.rig.write("task.dstack.yml", &text);
        [local, remote]
    }

    /// All that users do in one place.
    fn walk(&self, place: &Place) {
        self.follow_to_the_end(place);
        self.attach_and_enter(place);
    }

    /// An attached `apply`: a port, the log from its first line to its last, and the exit status.
    fn follow_to_the_end(&self, place: &Place) {
        let [local, _] = self.write_task("followed", place, 3);
        let applied = self.start(&["apply", "-f", "task.dstack.yml", "-R", "-y"]);
        wait_for("the answer at the forwarded port", PATIENCE, || {
            let is_over = self.rig.run(&["run", "get", "followed", "--json"]);
            assert!(!is_over.text().contains("\"failed\""), "{}", applied.text());
            fetch(local).contains("it works").then_some(())
        });
        // The job may end before this command has.
        self.openssh("ssh", &["followed", &format!("touch {}", place.stop)]);
        let (status, text) = applied.ends();
        assert_eq!(status, Some(1), "{text}");
        assert_is_complete(&text);
        assert_eq!(self.rig.run_status("followed"), "failed");
        assert_eq!(self.rig.submission("followed", 0)["exit_status"], 3);
    }

    /// `attach --logs` to a run that began before, then `ssh` and `scp`.
    fn attach_and_enter(&self, place: &Place) {
        let [local, _] =
            self.write_task("attached", &Place { stop: format!("{}2", place.stop), ..place.copy() }, 0);
        end(&mut self.command(&["apply", "-f", "task.dstack.yml", "-R", "-y", "-d"])).expect_status(0);
        self.rig.wait_for_status("attached", "running");
        let attached = self.start(&["attach", "attached", "--logs"]);
        attached.waits_for("use `ssh attached`");
        wait_for("the answer at the forwarded port", PATIENCE, || fetch(local).contains("it works").then_some(()));
        let said = self.openssh("ssh", &["attached", "echo $DSTACK_RUN_NAME; exit 7"]).expect_status(7);
        assert_eq!(said.text().trim(), "attached");
        let bytes: Vec<u8> =
            (0..2_000_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        fs::write(self.rig.dir.join("there"), &bytes).unwrap();
        let [there, back] = ["there", "back"].map(|name| self.rig.dir.join(name).display().to_string());
        let far = format!("attached:{}-file", place.stop);
        self.openssh("scp", &[&there, &far]).expect_status(0);
        self.openssh("scp", &[&far, &back]).expect_status(0);
        assert!(fs::read(&back).unwrap() == bytes, "what came back is not what went there");
        self.openssh("ssh", &["attached", &format!("touch {}2", place.stop)]);
        let (status, text) = attached.ends();
        assert_eq!(status, Some(0), "{text}");
        assert_is_complete(&text);
    }
}

impl Place {
    fn copy(&self) -> Place {
        Place { lines: self.lines.clone(), serve: self.serve.clone(), stop: self.stop.clone() }
    }

    /// Plain processes of this machine.
    fn here(rig: &Rig) -> Place {
        let www = rig.dir.join("www");
        fs::create_dir_all(&www).unwrap();
        fs::write(www.join("index.html"), "it works\n").unwrap();
        Place {
            lines: String::new(),
            serve: format!("python3 -m http.server PORT -d {} >/dev/null 2>&1 &", www.display()),
            stop: rig.dir.join("stop").display().to_string(),
        }
    }

    /// A container of the small image, which hosts have.
    fn in_tiny_container() -> Place {
        Place {
            lines: format!("image: {TINY_IMAGE}"),
            serve: "mkdir -p /tmp/www; echo it works > /tmp/www/index.html; httpd -p PORT -h /tmp/www".to_owned(),
            stop: "/tmp/stop".to_owned(),
        }
    }
}

/// What a web server says; nothing where none answers.
fn fetch(port: u16) -> String {
    let mut text = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Fails unless every line of a job's log is there once and in order.
#[track_caller]
fn assert_is_complete(text: &str) {
    // Behind the end of a run that failed its last lines are repeated as the reason.
    let log = text.split("Exited (").next().unwrap_or_default();
    let numbers = log.lines().map(str::trim_end).filter(|line| line.parse::<u32>().is_ok());
    let written = seq(LINES).repeat(2);
    let first_wrong = numbers.clone().zip(written.lines()).position(|(shown, line)| shown != line);
    assert_eq!((first_wrong, numbers.count()), (None, 2 * LINES as usize), "the log is not what was written");
}

#[test]
fn the_official_client_enters_jobs_of_this_machine() {
    let test = "the_official_client_enters_jobs_of_this_machine";
    let Some(client) = program("DSTACK_TEST_OFFICIAL_CLI", test) else { return };
    let setup = Setup { containers: true, ..Setup::default() };
    let Some(rig) = Rig::start_with(test, setup) else { return };
    let official = Official::of(&rig, client);
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    official.walk(&Place::here(&rig));
    let boxed = Place {
        lines: format!("image: {}", crate::rig::IMAGE),
        serve: "mkdir /tmp/www; echo it works > /tmp/www/index.html; python3 -m http.server PORT -d /tmp/www >/dev/null 2>&1 &".to_owned(),
        stop: "/tmp/stop".to_owned(),
    };
    official.attach_and_enter(&boxed);
}

/// The user's file of keys on a host: its bytes, its mode and its owner.
fn keys_of(host: &TestHost, user: &str) -> String {
    let file = format!("~{user}/.ssh/authorized_keys");
    host.exec(&format!("stat -c '%a %U:%G' {file}; cat {file}")).expect_status(0).text()
}

#[track_caller]
fn wait_for_keys(host: &TestHost, user: &str, expected: &str) {
    let mut last = String::new();
    wait_for("the keys as they were", PATIENCE, || {
        last = keys_of(host, user);
        (last == expected).then_some(())
    });
}

#[test]
fn the_official_client_goes_over_hosts_and_gets_nothing_else_there() {
    let test = "the_official_client_goes_over_hosts_and_gets_nothing_else_there";
    let Some(client) = program("DSTACK_TEST_OFFICIAL_CLI", test) else { return };
    let Some(rig) = Rig::start_with(test, Setup { containers: true, ..Setup::default() }) else { return };
    let Some(lan) = Lan::start(test) else { return };
    let options = Options {
        docker: true,
        user: User::named("ada"),
        sshd_config: "AllowStreamLocalForwarding no",
        set_up: "printf '# mine\\n\\nssh-rsa AAAA\\377 old' >> ~ada/.ssh/authorized_keys\nchmod 640 \
                 ~ada/.ssh/authorized_keys\n"
            .to_owned(),
        ..Options::default()
    };
    let host = lan.host("one", &options);
    // The last line has no end yet, and gets one with ours.
    host.exec("echo >> ~ada/.ssh/authorized_keys").expect_status(0);
    let before = keys_of(&host, "ada");
    let official = Official::of(&rig, client);
    rig.write("fleet.dstack.yml", &fleet(&lan, "ada", &[&host], ""));
    let applied = end(&mut official.command(&["apply", "-f", "fleet.dstack.yml", "-y"])).expect_status(0);
    assert!(applied.text().contains("idle"), "{}", applied.text());
    assert_eq!(keys_of(&host, "ada"), before);
    official.walk(&Place::in_tiny_container());
    wait_for_keys(&host, "ada", &before);

    let sleep = format!(
        "type: task\nname: long\nimage: {TINY_IMAGE}\ncommands: [sleep 3600]\nresources: {{cpu: 1.., memory: 64MB.., disk: 1GB..}}\n"
    );
    rig.write("long.dstack.yml", &sleep);
    end(&mut official.command(&["apply", "-f", "long.dstack.yml", "-R", "-y", "-d"])).expect_status(0);
    rig.wait_for_status("long", "running");
    let attached = official.start(&["attach", "long"]);
    attached.waits_for("use `ssh long`");
    nothing_else_opens(&official, &rig, &host);
    drop(attached);

    // The host keeps its own word while nobody asks it: the agent dies, and the job ends beyond a cut.
    assert_ne!(keys_of(&host, "ada"), before);
    let agent = agent_of(&host);
    host.exec(&format!("kill -KILL {}", agent.replace('\n', " "))).expect_status(0);
    wait_for("the next agent", PATIENCE, || {
        (agent_of(&host) != agent && !agent_of(&host).is_empty()).then_some(())
    });
    assert!(keys_of(&host, "ada").starts_with(&before));
    host.cut_network();
    host.exec("docker kill $(docker ps -q)").expect_status(0);
    wait_for_keys(&host, "ada", &before);
    host.restore_network();
    rig.wait_for_status("long", "failed");

    // Whoever leaves takes the lines along, even those of an agent that could not.
    rig.run(&["fleet", "delete", "own", "-y"]).expect_status(0);
    assert_eq!(keys_of(&host, "ada"), before);
}

/// What the user's key opens on the host while the job runs: the job, and nothing else.
fn nothing_else_opens(official: &Official<'_>, rig: &Rig, host: &TestHost) {
    let identity = official.identity();
    let address = host.address().to_string();
    let ssh = |args: &[&str]| {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-i", &identity, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]);
        command.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]);
        end(command.args(args).env_remove("SSH_AUTH_SOCK"))
    };
    let there = format!("ada@{address}");
    let port = rig.submission("long", 0)["job_runtime_data"]["ports"]["10022"].to_string();
    // The official way, by hand; both names of the port's machine are good.
    let jump = format!(
        "ProxyCommand=ssh -F none -i {identity} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o \
         UserKnownHostsFile=/dev/null -o LogLevel=ERROR -W %h:%p {there}"
    );
    for name in ["root@localhost", "root@127.0.0.1", "anybody@localhost"] {
        let entered = ssh(&["-o", &jump, "-p", &port, name, "echo $DSTACK_RUN_NAME"]).expect_status(0);
        assert_eq!(entered.text().trim(), "long");
    }
    // A shell, a command, files, with and without a terminal.
    let refused = ssh(&["-tt", &there]);
    assert_ne!(refused.status, Some(0));
    assert!(refused.stderr.contains("PTY allocation request failed"), "{}", refused.stderr);
    // What a subsystem says to its user goes nowhere.
    assert_eq!(ssh(&["-s", &there, "sftp"]).expect_status(1).text(), "");
    for args in [&[&*there, "id"][..], &[&there]] {
        let refused = ssh(args).expect_status(1);
        assert!(
            refused.stderr.contains("This key leads through this host to a job of dstack"),
            "{}",
            refused.stderr
        );
        assert!(!refused.text().contains("uid="), "{}", refused.text());
    }
    // Another port, or another machine.
    for target in ["localhost:22", "127.0.0.1:22", &format!("{address}:22")] {
        let refused = ssh(&["-W", target, &there]);
        assert_ne!(refused.status, Some(0));
        assert!(!refused.text().contains("SSH-"), "{target}: {}", refused.text());
        assert!(refused.stderr.contains("stdio forwarding failed"), "{}", refused.stderr);
    }
    // A port of the host that leads back.
    let back = ["-o", "ExitOnForwardFailure=yes", "-N", "-R", "127.0.0.1:4000:localhost:22", &there];
    assert_eq!(ssh(&back).status, Some(255));
    no_socket_opens(&identity, rig, &there);
}

/// No socket of the host opens, where `sshd` says so: only the host itself can.
fn no_socket_opens(identity: &str, rig: &Rig, there: &str) {
    let socket = rig.dir.join("docker.sock");
    let forward = format!("{}:/run/docker.sock", socket.display());
    let mut command = Command::new("ssh");
    command.args([
        "-F",
        "none",
        "-i",
        identity,
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "BatchMode=yes",
        "-N",
        "-L",
        &forward,
    ]);
    command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", there]);
    command.env_remove("SSH_AUTH_SOCK").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let forwarding = Running { child: command.spawn().unwrap(), output: socket.clone() };
    let mut stream = wait_for("the forwarded socket", PATIENCE, || UnixStream::connect(&socket).ok());
    let _ = stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    drop(forwarding);
}

/// A server with a proxy, and a client that knows the proxy's key.
fn start_with_proxy(test: &str) -> Option<(Rig, PathBuf)> {
    let client = program("DSTACK_TEST_OFFICIAL_CLI", test)?;
    let address = free_address().to_string();
    let variables = vec![("DSTACK_SERVER_SSHPROXY_ADDRESS", address)];
    let rig = Rig::start_with(test, Setup { containers: true, variables })?;
    let said = fs::read_to_string(rig.dir.join("server.out")).unwrap();
    let key =
        said.lines().find_map(|line| line.split_once("The SSH proxy shows the key ")).expect("it says its key").1;
    fs::create_dir_all(rig.dir.join("official-home")).unwrap();
    fs::write(rig.dir.join("official-home/known_hosts"), format!("{key}\n")).unwrap();
    Some((rig, client))
}

#[test]
fn the_official_client_enters_jobs_through_the_proxy() {
    let test = "the_official_client_enters_jobs_through_the_proxy";
    let Some((mut rig, client)) = start_with_proxy(test) else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    {
        let official = Official::of(&rig, client.clone());
        official.walk(&Place::here(&rig));
    }
    // The proxy's key is the same after a restart.
    rig.kill_server();
    rig.start_server();
    let official = Official::of(&rig, client);
    rig.apply(
        "long.dstack.yml",
        "type: task\nname: long\nenv: {SHELL: /bin/sh}\ncommands: [sleep 3600]\nresources: {cpu: 1.., memory: 64MB.., disk: 1GB..}\n",
        &["-R", "-d"],
    );
    rig.wait_for_status("long", "running");
    let attached = official.start(&["attach", "long"]);
    attached.waits_for("use `ssh long`");
    ssh_does_all_it_does_elsewhere(&official);
    strangers_learn_nothing(&official, &rig);
    rig.run(&["stop", "long", "-x", "-y"]).expect_status(0);
    rig.wait_for_status("long", "terminated");
    assert_eq!(official.openssh("ssh", &["long", "true"]).status, Some(255));
}

/// A terminal, much output, input that comes back, signals, ports of both directions, and many channels at once.
fn ssh_does_all_it_does_elsewhere(official: &Official<'_>) {
    let shown = official.openssh("ssh", &["-tt", "long", "tput cols; stty size; exit 5"]).expect_status(5);
    assert!(shown.text().contains("0 0") || shown.text().contains("24 80"), "{}", shown.text());
    let killed = official.openssh("ssh", &["long", "kill -TERM $$"]);
    assert_eq!(killed.status, Some(255));
    let both = official.openssh("ssh", &["long", "echo out; echo err >&2"]).expect_status(0);
    assert_eq!((both.text().trim(), both.stderr.trim()), ("out", "err"));
    // What a program reads and writes in turn goes on, whoever is slower.
    let bytes: Vec<u8> = (0..10_000_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let there = official.rig.dir.join("stream");
    fs::write(&there, &bytes).unwrap();
    let config = official.config();
    let known = official.home().join("known_hosts");
    let back = official.rig.dir.join("stream-back");
    let line = format!(
        "ssh -F {} -o BatchMode=yes -o UserKnownHostsFile={} long cat < {} > {}",
        config.display(),
        known.display(),
        there.display(),
        back.display()
    );
    end(Command::new("sh").args(["-c", &line]).env_remove("SSH_AUTH_SOCK")).expect_status(0);
    assert!(fs::read(&back).unwrap() == bytes, "what came back is not what went there");
    // A port of the job leads back here.
    let [far, near] = [free_address().port(), free_address().port()];
    let answering = std::net::TcpListener::bind(("127.0.0.1", near)).unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = answering.accept().unwrap();
        stream.write_all(b"from here\n").unwrap();
    });
    let reverse = format!("{far}:127.0.0.1:{near}");
    let read = format!("exec 3<>/dev/tcp/127.0.0.1/{far}; cat <&3");
    let args = ["-o", "ExitOnForwardFailure=yes", "-R", &reverse, "long", &format!("bash --norc -c '{read}'")];
    let came = official.openssh("ssh", &args).expect_status(0);
    assert_eq!(came.text().trim(), "from here");
    answer.join().unwrap();
    // Sessions side by side on one connection.
    let socket = official.rig.dir.join("mux");
    let control = format!("ControlPath={}", socket.display());
    let base = ["-o", &control, "-o", "ControlMaster=auto", "-o", "ControlPersist=60"];
    official.openssh("ssh", &[&base[..], &["-fN", "long"]].concat()).expect_status(0);
    std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..8)
            .map(|number| {
                let text = format!("seq 1 20000; echo session {number}");
                let base = &base;
                scope.spawn(move || official.openssh("ssh", &[&base[..], &["long", &text]].concat()))
            })
            .collect();
        for (number, session) in sessions.into_iter().enumerate() {
            let text = session.join().unwrap().expect_status(0).text();
            assert!(text.ends_with(&format!("20000\nsession {number}\n")), "{}", text.len());
        }
    });
    official.openssh("ssh", &[&base[..], &["-O", "exit", "long"]].concat()).expect_status(0);
}

/// Whatever is wrong with a login, the answer is the same.
fn strangers_learn_nothing(official: &Official<'_>, rig: &Rig) {
    let job = rig.submission("long", 0)["id"].as_str().unwrap().replace('-', "");
    let info = &rig.get_run("long")["jobs"][0]["job_connection_info"];
    assert_eq!(info["sshproxy_upstream_id"], job);
    let port = info["sshproxy_port"].to_string();
    assert_eq!(info["proxied_ssh_command"].as_array().unwrap().last().unwrap(), &port);
    let strange = rig.dir.join("strange");
    let keygen = ["-q", "-t", "ed25519", "-N", "", "-f"];
    end(Command::new("ssh-keygen").args(keygen).arg(&strange)).expect_status(0);
    let login = |name: &str, key: &str| {
        let known = format!("UserKnownHostsFile={}", official.home().join("known_hosts").display());
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", &known, "-i", key]);
        let ended =
            end(ssh.args(["-p", &port, &format!("{name}@127.0.0.1"), "echo in"]).env_remove("SSH_AUTH_SOCK"));
        (ended.status, ended.text(), ended.stderr.replace(name, "NAME"))
    };
    let (identity, strange) = (official.identity(), strange.display().to_string());
    for name in [&job, &format!("{job}_root")] {
        assert_eq!(login(name, &identity).1.trim(), "in");
    }
    let wrong_key = login(&job, &strange);
    assert_eq!((wrong_key.0, wrong_key.1.as_str()), (Some(255), ""));
    assert!(wrong_key.2.contains("Permission denied (publickey)"), "{}", wrong_key.2);
    for name in ["00000000000000000000000000000000", "root", &format!("{job}_ada"), &job.to_uppercase()] {
        assert_eq!(login(name, &identity), wrong_key, "{name}");
    }
}

#[test]
fn the_proxy_leads_to_hosts_and_leaves_no_key_there() {
    let test = "the_proxy_leads_to_hosts_and_leaves_no_key_there";
    let Some((rig, client)) = start_with_proxy(test) else { return };
    let Some(lan) = Lan::start(test) else { return };
    // Nobody need be let through the host itself.
    let closed = "AllowTcpForwarding no\nAllowStreamLocalForwarding no";
    let host = lan.host("one", &Options { docker: true, sshd_config: closed, ..Options::default() });
    let before = keys_of(&host, "root");
    rig.apply("fleet.dstack.yml", &fleet(&lan, "root", &[&host], ""), &[]);
    let official = Official::of(&rig, client);
    official.attach_and_enter(&Place::in_tiny_container());
    official.follow_to_the_end(&Place::in_tiny_container());
    assert_eq!(keys_of(&host, "root"), before);
    rig.run(&["fleet", "delete", "own", "-y"]).expect_status(0);
}
