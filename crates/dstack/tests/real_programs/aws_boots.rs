//! Machines of the simulated EC2 that really boot, behind a bastion, under a server that is killed again and again.
//!
//! The hosts are containers with cloud-init, sshd and Docker, in a network that only the bastion is in, too.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{self, Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::hosts::{Lan, Options, TINY_IMAGE, User};
use crate::rig::{Rig, Setup, end, program, wait_for};

/// How long machines may take to boot and to be joined, with other tests on the same cores.
const BOOT: Duration = Duration::from_mins(4);

const FLEET: &str = "type: fleet\nname: efa\nnodes: 2\nplacement: cluster\nresources: {gpu: H100:8}\n";

/// The program `dstack-ec2sim`, whose machines are containers.
struct Cloud {
    program: Child,
    address: String,
    /// The beginning of all addresses of its machines.
    prefix: String,
    dir: tempfile::TempDir,
}

impl Cloud {
    fn start(test: &str) -> Option<Cloud> {
        let simulator = program("DSTACK_TEST_EC2SIM", test)?;
        let image = program("DSTACK_TEST_EC2_HOSTS", test)?;
        let dir = tempfile::tempdir().unwrap();
        let settings = json!({
            "instance_unseen_ms": 0, "stale_ms": 0, "boot_ms": 200, "shutdown_ms": 10_000, "throttle": false,
        });
        std::fs::write(dir.path().join("settings.json"), settings.to_string()).unwrap();
        // Others that run beside this have theirs elsewhere, the lab from 10.124 on.
        let number = process::id() % 44;
        let mut command = Command::new(simulator);
        command.args(["--listen", "127.0.0.1:0", "--hosts", "containers", "--host-image"]).arg(image);
        let prefix = format!("10.{}", 80 + number);
        command.args(["--my-vpc-cidr", &format!("{prefix}.0.0/16")]);
        command.args(["--default-vpc-cidr", &format!("10.{}.0.0/16", 32 + number)]);
        command
            .arg("--settings")
            .arg(dir.path().join("settings.json"))
            .arg("--url-file")
            .arg(dir.path().join("url"));
        let program = command.stdin(Stdio::null()).spawn().expect("start the simulator");
        let mut cloud = Cloud { program, address: String::new(), prefix, dir };
        let url = wait_for("the simulator's first answer", BOOT, || {
            assert!(cloud.program.try_wait().unwrap().is_none(), "the simulator ended at once");
            std::fs::read_to_string(cloud.dir.path().join("url")).ok()
        });
        url.trim_start_matches("http://").clone_into(&mut cloud.address);
        Some(cloud)
    }

    /// What the simulator shows.
    fn look(&self, what: &str) -> Vec<Value> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!("GET /_ec2sim/{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer has a body");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// How many instances were ever made.
    fn made(&self) -> usize {
        self.look("ledger").iter().filter(|entry| entry["kind"] == "instance").count()
    }

    /// An address in its network that no machine is given. The first ones are AWS's own.
    fn bastion_address(&self) -> String {
        format!("{}.255.250", self.prefix)
    }

    /// What stands in the account, but for the security group of the project.
    fn left(&self) -> Vec<String> {
        let kinds = self.look("orphans").into_iter().map(|entry| entry["kind"].as_str().unwrap().to_owned());
        kinds.filter(|kind| !kind.starts_with("security-group")).collect()
    }

    fn names(&self, list: &[&str], format: &str) -> Vec<String> {
        let filter = format!("name=^ec2sim-{}-", self.program.id());
        let listed = docker(&[list, &["--filter", &filter, "--format", format]].concat());
        listed.lines().map(str::to_owned).collect()
    }

    /// The containers that run.
    fn hosts(&self) -> Vec<String> {
        self.names(&["ps"], "{{.Names}}")
    }

    fn networks(&self) -> Vec<String> {
        self.names(&["network", "ls"], "{{.Name}}")
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // It takes its machines along.
        let _gone_already = Command::new("kill").arg(self.program.id().to_string()).status();
        let _status = self.program.wait();
    }
}

fn docker(args: &[&str]) -> String {
    end(Command::new("docker").args(args)).expect_status(0).text()
}

/// The machines of the fleet, by status.
fn statuses(rig: &Rig) -> Vec<String> {
    let got = rig.run(&["fleet", "get", "efa", "--json"]);
    let fleet: Value = serde_json::from_slice(&got.stdout).unwrap_or_default();
    let instances = fleet["instances"].as_array().cloned().unwrap_or_default();
    instances.iter().filter_map(|one| Some(one["status"].as_str()?.to_owned())).collect()
}

fn config(bastion: &str, key: &str) -> String {
    format!(
        "projects:\n- name: main\n  backends:\n    - type: aws\n      creds: {{type: default}}\n      \
         regions: [us-west-2]\n      public_ips: false\n      vpc_name: my-vpc\n      \
         bastion: {{host: {bastion}, user: jump, key: {}}}\n",
        // What JSON says is YAML as well.
        json!(key)
    )
}

#[test]
fn machines_behind_a_bastion_are_joined_used_and_given_back_however_often_the_server_dies() {
    let test = "machines_behind_a_bastion_are_joined_used_and_given_back_however_often_the_server_dies";
    // First of all: what a test that was killed has left in the cloud's network is removed by this.
    let Some(lan) = Lan::start(test) else { return };
    let Some(cloud) = Cloud::start(test) else { return };
    let bastion = lan.host("bastion", &Options { user: User::named("jump"), ..Options::default() });
    let variables = vec![
        ("AWS_ENDPOINT_URL", format!("http://{}", cloud.address)),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ];
    let Some(mut rig) = Rig::new(test, Setup { containers: true, variables }) else { return };
    std::fs::create_dir_all(rig.dir.join("s")).unwrap();
    let key = std::fs::read_to_string(lan.key()).unwrap();
    rig.write("s/config.yml", &config(&bastion.address().to_string(), &key));
    rig.start_server();
    rig.apply("fleet.dstack.yml", FLEET, &["-d"]);

    // It dies when machines were asked for, when they boot, and when the first agent is on its way.
    let die = |rig: &mut Rig| {
        rig.kill_server();
        rig.start_server();
    };
    wait_for("the purchase", BOOT, || (cloud.made() > 0).then_some(()));
    die(&mut rig);
    let hosts = wait_for("both machines", BOOT, || Some(cloud.hosts()).filter(|hosts| hosts.len() == 2));
    die(&mut rig);
    for network in cloud.networks() {
        bastion.join_network(&network, &cloud.bastion_address());
    }
    let inside = |host: &str, text: &str| end(Command::new("docker").args(["exec", host, "sh", "-c", text]));
    let is_there = |host: &String| inside(host, "ls /usr/local/lib/dstack/agent-*").status == Some(0);
    wait_for("an agent on its way", BOOT, || hosts.iter().any(is_there).then_some(()));
    die(&mut rig);
    wait_for("idle machines", BOOT, || (statuses(&rig) == ["idle", "idle"]).then_some(()));
    assert_eq!(cloud.made(), 2, "none was made twice");
    // Whoever talks to their SSH servers is the bastion.
    for host in &hosts {
        let peers = inside(host, "ss -Htn state established '( sport = :22 )' | awk '{print $4}'").text();
        let is_bastion = |peer: &str| peer.starts_with(&format!("{}:", cloud.bastion_address()));
        assert!(!peers.trim().is_empty() && peers.lines().all(is_bastion), "not only the bastion: {peers}");
        inside(host, &format!("docker import /usr/share/dstack-test/tiny.tar {TINY_IMAGE}")).expect_status(0);
    }

    let task = format!(
        "type: task\nname: look\nnodes: 2\nimage: {TINY_IMAGE}\ncommands:\n  \
         - echo node $DSTACK_NODE_RANK of $DSTACK_NODES_NUM, ids $(ls /dev/infiniband | wc -l)\nresources: {{gpu: H100:8}}\n"
    );
    rig.apply("task.dstack.yml", &task, &["-R"]);
    for node in 0..2 {
        let log = String::from_utf8_lossy(&rig.log("look", node)).into_owned();
        // One for each adapter.
        assert!(log.contains(&format!("node {node} of 2, ids 32")), "{log}");
    }

    let mut delete = rig.cli(&["fleet", "delete", "efa", "-y"]).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the beginning of the end", BOOT, || {
        statuses(&rig).contains(&"terminating".to_owned()).then_some(())
    });
    die(&mut rig);
    // Whether it waited for its server to come back is its own business.
    let _ended_already = delete.kill();
    let _status = delete.wait();
    wait_for("the end of all machines", BOOT, || cloud.left().is_empty().then_some(()));
    assert_eq!(cloud.made(), 2);
}
