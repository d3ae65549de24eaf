//! The program `dstack-ec2sim` with container hosts, asked over HTTP, and its hosts, reached over SSH.

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::process::{self, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long anything may take. Generous, because other tests use the same cores.
const PATIENCE: Duration = Duration::from_mins(2);

/// The time of all requests, which the simulator is told not to look at.
const TIME: &str = "20260301T120000Z";

/// The label by which everything of a simulator is found.
const OWNER: &str = "ai.dstack.ec2sim-owner";

/// The image of the documented example.
const IMAGE: &str = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241115";

/// A simulator that runs. It is killed with this value, if it was not told to end before.
#[derive(Debug)]
pub(crate) struct Cloud {
    program: Child,
    pub(crate) url: String,
    dir: TempDir,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// What it printed, expecting that it ended well.
    #[track_caller]
    pub(crate) fn text(self) -> String {
        assert!(self.success, "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Fields of a form.
pub(crate) type Fields = Vec<(String, String)>;

pub(crate) fn set(fields: &mut Fields, name: impl Into<String>, value: impl Into<String>) {
    fields.push((name.into(), value.into()));
}

/// Runs a program to its end.
pub(crate) async fn end(command: &mut Command) -> Ended {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

pub(crate) async fn docker(args: &[&str]) -> Ended {
    end(Command::new("docker").args(args)).await
}

/// Waits until `look` finds what it looks for.
pub(crate) async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The texts of all elements of a name.
pub(crate) fn texts(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&open).skip(1).filter_map(|rest| Some(rest.split_once(&close)?.0.to_owned())).collect()
}

impl Cloud {
    /// Starts the program and waits until it answers.
    pub(crate) async fn start(image: &str) -> Cloud {
        let dir = tempfile::tempdir().unwrap();
        let settings = json!({
            "boot_ms": 200,
            "instance_unseen_ms": 0,
            "stale_ms": 0,
            "shutdown_ms": 4_000,
            "throttle": false,
            "check_time": false,
            "mlx5_too": ["p5.48xlarge"],
        });
        let (settings_file, url_file) = (dir.path().join("settings.json"), dir.path().join("url"));
        fs::write(&settings_file, settings.to_string()).unwrap();
        // Tests run beside each other, and beside those of other crates, which have their networks elsewhere.
        let number = process::id() % 48;
        let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-ec2sim"));
        command.args(["--listen", "127.0.0.1:0", "--hosts", "containers", "--host-image", image]);
        command.args(["--my-vpc-cidr", &format!("10.{}.0.0/16", 128 + number)]);
        command.args(["--default-vpc-cidr", &format!("10.{}.0.0/16", 176 + number)]);
        command.arg("--settings").arg(settings_file).arg("--url-file").arg(&url_file);
        let program = command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let url = wait_for("the endpoint", || async { fs::read_to_string(&url_file).ok() }).await;
        let keygen = ["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"];
        end(Command::new("ssh-keygen").args(keygen).arg(dir.path().join("key"))).await.text();
        let cloud = Cloud { program, url, dir };
        // These requests are signed in form only.
        let key = json!({
            "access_key": ec2sim::ACCESS_KEY,
            "secret_key": null,
            "session_token": null,
            "arn": "arn:aws:iam::123456789012:user/test",
            "expires_at": null,
            "allowed": null,
        });
        cloud.order("credentials", &json!({"credentials": [key]})).await;
        cloud
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub(crate) fn public_key(&self) -> String {
        fs::read_to_string(self.key().with_extension("pub")).unwrap().trim().to_owned()
    }

    async fn http(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\
             {headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
        body.to_owned()
    }

    /// Asks EC2, and expects an answer.
    pub(crate) async fn ask(&self, action: &str, given: &Fields) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).append_pair("Version", "2016-11-15").extend_pairs(given);
        let scope = format!("{}/{}/us-west-2/ec2/aws4_request", ec2sim::ACCESS_KEY, &TIME[..8]);
        let signature = "0".repeat(64);
        let headers = format!(
            "x-amz-date: {TIME}\r\ncontent-type: application/x-www-form-urlencoded\r\nauthorization: AWS4-HMAC-SHA256 \
             Credential={scope}, SignedHeaders=host;x-amz-date, Signature={signature}\r\n"
        );
        self.http("POST", "/", &headers, &form.finish()).await
    }

    pub(crate) async fn order(&self, name: &str, body: &Value) {
        self.http("POST", &format!("/_ec2sim/{name}"), "", &body.to_string()).await;
    }

    /// Everything that was made and is not gone.
    pub(crate) async fn orphans(&self) -> Value {
        serde_json::from_str(&self.http("GET", "/_ec2sim/orphans", "", "").await).unwrap()
    }

    /// A launch of the image of the example in a private subnet.
    pub(crate) async fn launch(&self, instance_type: &str, count: usize, user_data: &str) -> Fields {
        use base64::Engine as _;
        let filter = |name: &str, value: &str| {
            vec![("Filter.1.Name".to_owned(), name.to_owned()), ("Filter.1.Value.1".to_owned(), value.to_owned())]
        };
        let images = self.ask("DescribeImages", &filter("name", IMAGE)).await;
        let subnets = self.ask("DescribeSubnets", &filter("tag:Name", "private-us-west-2a")).await;
        let mut launch = Fields::new();
        set(&mut launch, "ImageId", texts(&images, "imageId").remove(0));
        set(&mut launch, "InstanceType", instance_type);
        set(&mut launch, "MinCount", count.to_string());
        set(&mut launch, "MaxCount", count.to_string());
        set(&mut launch, "UserData", base64::engine::general_purpose::STANDARD.encode(user_data));
        set(&mut launch, "MetadataOptions.HttpTokens", "required");
        set(&mut launch, "NetworkInterface.1.DeviceIndex", "0");
        set(&mut launch, "NetworkInterface.1.SubnetId", texts(&subnets, "subnetId").remove(0));
        launch
    }

    /// The identifiers and the addresses of what a launch made.
    pub(crate) async fn run(&self, launch: &Fields) -> Vec<(String, String)> {
        let made = self.ask("RunInstances", launch).await;
        let addresses = texts(&made, "instancesSet").remove(0);
        let items = addresses.split("<instanceId>").skip(1);
        items
            .map(|item| {
                let id = item.split_once('<').unwrap().0.to_owned();
                (id, texts(item, "privateIpAddress").remove(0))
            })
            .collect()
    }

    /// The state of an instance, where it is known.
    pub(crate) async fn state(&self, id: &str) -> Option<String> {
        let described = self.ask("DescribeInstances", &Fields::new()).await;
        let of_it = described.split("<instanceId>").find(|part| part.starts_with(id))?;
        let state = texts(of_it, "instanceState").into_iter().next()?;
        texts(&state, "name").into_iter().next()
    }

    /// What stands on an instance's console.
    pub(crate) async fn console(&self, id: &str) -> String {
        use base64::Engine as _;
        let answer = self.ask("GetConsoleOutput", &vec![("InstanceId".to_owned(), id.to_owned())]).await;
        let output = texts(&answer, "output").into_iter().next().unwrap_or_default();
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(output).unwrap()).unwrap()
    }

    /// Runs a command over SSH to its end, as the image's user.
    pub(crate) async fn ssh(&self, address: &str, command: &str) -> Ended {
        let mut ssh = Command::new("ssh");
        // Whatever the person who runs the tests has configured must not matter.
        ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "ConnectTimeout=2", "-i"]).arg(self.key());
        ssh.arg(format!("ubuntu@{address}")).arg(command).env_remove("SSH_AUTH_SOCK");
        end(&mut ssh).await
    }

    /// Waits until the user data has been run, which is the last thing of a boot.
    pub(crate) async fn wait_until_booted(&self, id: &str, address: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.ssh(address, "cloud-init status --wait").await;
            if status.stdout.contains("status: done") {
                return;
            }
            let is_late = deadline < Instant::now();
            assert!(!is_late, "{address} does not boot: {status:?}\n{}", self.console(id).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Containers, networks and folders of this simulator.
    pub(crate) async fn leftovers(pid: u32) -> Vec<String> {
        let format = format!("{{{{.Label \"{OWNER}\"}}}}");
        let filter = format!("label={OWNER}");
        let mut found = Vec::new();
        for list in [&["ps", "--all"][..], &["network", "ls"]] {
            let listed = docker(&[list, &["--filter", &filter, "--format", &format]].concat()).await.text();
            found.extend(listed.lines().map(str::to_owned));
        }
        let folders = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
        found.extend(names.filter_map(|name| name.strip_prefix("dstack-ec2sim-").map(str::to_owned)));
        found.retain(|owner| owner.starts_with(&format!("{pid}.")));
        found
    }

    pub(crate) fn pid(&self) -> u32 {
        self.program.id().expect("it runs")
    }

    /// Kills the program, which has no time to clean up.
    pub(crate) async fn kill(mut self) {
        self.program.kill().await.unwrap();
    }

    /// Asks the program to end, and waits until it has.
    pub(crate) async fn stop(mut self) {
        let kill = ["-c", "kill -TERM \"$0\"", &self.pid().to_string()];
        end(Command::new("sh").args(kill)).await.text();
        let status = tokio::time::timeout(PATIENCE, self.program.wait()).await.expect("it ends in time").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// The image that hosts boot, if the engine has one.
pub(crate) fn image(test: &str) -> Option<String> {
    let image = std::env::var("DSTACK_TEST_EC2_HOSTS").ok();
    if image.is_none() {
        eprintln!("{test} is left out: DSTACK_TEST_EC2_HOSTS is unset");
    }
    image
}
