//! Jobs that are entered with OpenSSH's own clients, through the server.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::rig::{Ended, FLEET, Rig, Setup, end, wait_for};

const PATIENCE: Duration = Duration::from_mins(1);

/// A user who is attached to a run.
pub(crate) struct Attached {
    child: Child,
    home: PathBuf,
    config: PathBuf,
}

impl Attached {
    pub(crate) fn to(rig: &Rig, run: &str) -> Attached {
        let mut command = rig.cli(&["attach", run]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let home = rig.dir.join("home");
        let config = home.join(".dstack/ssh/config");
        let entry = format!("Host {run}");
        wait_for("the entry for OpenSSH", PATIENCE, || {
            fs::read_to_string(&config).is_ok_and(|text| text.contains(&entry)).then_some(())
        });
        Attached { child, home, config }
    }

    /// One of OpenSSH's programs, with what attaching has configured.
    fn program(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(name);
        command.arg("-F").arg(&self.config).args(["-o", "BatchMode=yes"]).args(args);
        command.env("HOME", &self.home).env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
        command
    }

    pub(crate) fn ssh(&self, run: &str, command: &str) -> Ended {
        end(&mut self.program("ssh", &[run, command]))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn a_job_is_entered_through_the_server() {
    let Some(rig) = Rig::start("a_job_is_entered_through_the_server") else { return };
    if std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let nodes = "type: task\nname: long\nnodes: 2\ncommands: [sleep 3600]\nresources: {cpu: 1.., memory: 64MB.., disk: 1GB..}\n";
    rig.apply("task.dstack.yml", nodes, &["-R", "-d"]);
    rig.wait_for_status("long", "running");
    let attached = Attached::to(&rig, "long");
    let entered = attached.ssh("long", "echo $DSTACK_RUN_NAME rank $DSTACK_NODE_RANK; exit 7").expect_status(7);
    assert_eq!(entered.text().trim(), "long rank 0");
    // A file goes there and comes back as it was.
    let bytes: Vec<u8> = (0..10_000_000_u32)
        .flat_map(|number| (number.wrapping_mul(2_654_435_761)).to_be_bytes())
        .take(10_000_000)
        .collect();
    rig.write("there", "");
    fs::write(rig.dir.join("there"), &bytes).unwrap();
    let there = rig.dir.join("there").display().to_string();
    let far = rig.dir.join("far").display().to_string();
    let back = rig.dir.join("back").display().to_string();
    end(&mut attached.program("scp", &[&there, &format!("long:{far}")])).expect_status(0);
    end(&mut attached.program("scp", &[&format!("long:{far}"), &back])).expect_status(0);
    assert!(fs::read(&back).unwrap() == bytes);
    rig.run(&["stop", "long", "-y"]).expect_status(0);
    rig.wait_for_status("long", "terminated");
    // Who is not attached any more finds no way.
    assert_ne!(attached.ssh("long", "true").status, Some(0));
}

#[test]
fn a_port_of_a_job_on_this_machine_stays_the_jobs() {
    let Some(rig) = Rig::start("a_port_of_a_job_on_this_machine_stays_the_jobs") else { return };
    if std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    // It begins to listen only after the user is attached.
    let task = format!(
        "type: task\nname: web\nports: [{port}]\ncommands:\n  - until [ -e {go} ]; do sleep 0.05; done\n  \
         - echo At http://0.0.0.0:{port}/\n  - exec python3 -m http.server --directory {dir} {port}\n\
         resources: {{cpu: 1.., memory: 64MB.., disk: 1GB..}}\n",
        go = rig.dir.join("go").display(),
        dir = rig.dir.join("served").display(),
    );
    fs::create_dir(rig.dir.join("served")).unwrap();
    rig.write("served/page", "it is the job's");
    rig.apply("task.dstack.yml", &task, &["-R", "-d"]);
    rig.wait_for_status("web", "running");
    let mut attached = rig.cli(&["attach", "web", "--logs"]);
    let mut attached = attached.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(attached.stdout.take().unwrap()).lines();
    let mut line_with = |part: &str| {
        let found = lines.find(|line| line.as_ref().unwrap().contains(part));
        found.unwrap_or_else(|| panic!("no line has `{part}`")).unwrap()
    };
    assert!(line_with("  - ").contains(&format!("localhost:{port} -> {port}")));
    line_with("Ctrl+C");
    rig.write("go", "");
    assert_eq!(line_with("At http").trim_end(), format!("At http://localhost:{port}/"));
    let answer = wait_for("the job's page", PATIENCE, || {
        let mut stream = TcpStream::connect(("localhost", port)).ok()?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    });
    assert!(answer.ends_with("it is the job's"), "{answer}");
    rig.run(&["stop", "web", "-x", "-y"]).expect_status(0);
    attached.wait().unwrap();
}

#[test]
fn a_container_is_entered_through_the_server() {
    let setup = Setup { containers: true, ..Setup::default() };
    let Some(rig) = Rig::start_with("a_container_is_entered_through_the_server", setup) else { return };
    if std::env::var_os("DSTACK_TEST_SSH").is_none() {
        return;
    }
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let task = format!(
        "type: task\nname: boxed\nimage: {}\ncommands: [sleep 3600]\nresources: {{cpu: 1.., memory: 64MB.., disk: 1GB..}}\n",
        crate::rig::IMAGE
    );
    rig.apply("task.dstack.yml", &task, &["-R", "-d"]);
    rig.wait_for_status("boxed", "running");
    let attached = Attached::to(&rig, "boxed");
    let entered = attached.ssh("boxed", "cat /proc/1/comm; echo $DSTACK_RUN_NAME").expect_status(0);
    assert_eq!(entered.text().lines().collect::<Vec<_>>(), ["dstack-agent", "boxed"]);
    rig.run(&["stop", "boxed", "-x", "-y"]).expect_status(0);
}
