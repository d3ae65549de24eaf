//! What a machine is told when it starts for the first time: who may log in, and that Docker shall run. The agent comes
//! over SSH later. Whoever is on the machine can read this, so nothing in it is secret.

/// The most that AWS takes, before it is encoded.
const MOST_BYTES: usize = 16 * 1024;

/// The file that stands there once all is prepared. Its folder is that of `cloud-init` for this very machine, so that a
/// machine made of another one's image prepares itself anew.
pub(super) const DONE: &str = "/var/lib/cloud/instance/dstack-done";

/// The file that says why it is not.
pub(super) const FAILED: &str = "/var/lib/cloud/instance/dstack-failed";

/// Installs Docker from the distribution, where the image has none.
const INSTALL_DOCKER: &str = "command -v dockerd >/dev/null || {
  export DEBIAN_FRONTEND=noninteractive
  tries=0
  until apt-get update -q && apt-get install -qy --no-install-recommends docker.io; do
    tries=$((tries + 1)); [ $tries -lt 10 ] || exit 1; sleep 3
  done
}
";

/// Gets Docker ready: lets it give GPUs to containers and keeps them from losing them, puts what it keeps onto the local
/// disks, and waits for it.
///
/// With the systemd driver, a reload of systemd takes the devices of running containers away (NVIDIA container toolkit,
/// issue 48).
///
/// Deep Learning AMIs join the local disks and mount them at each boot, before this runs. They are used if they have
/// more room than the disk that was bought, and only by an engine that keeps nothing yet, at its usual place. After a
/// reboot the engine may come before the disks: it fails then until they are there, and is tried again, whereas what it
/// would write below them would be lost from sight. Newer engines keep images in a store apart, which does not move:
/// they are told to use the other.
const PREPARE_DOCKER: &str = r#"changed=
configure() {
  python3 - "$1" <<'PYTHON'
import json, os, sys
path = "/etc/docker/daemon.json"
config = json.load(open(path)) if os.path.exists(path) else {}
for key, value in json.loads(sys.argv[1]).items():
    if isinstance(value, list):
        value = config.get(key, []) + value
    if isinstance(value, dict):
        value = {**config.get(key, {}), **value}
    config[key] = value
os.makedirs("/etc/docker", exist_ok=True)
with open(path + ".new", "w") as file:
    json.dump(config, file, indent=2)
os.replace(path + ".new", path)
PYTHON
  changed=1
}
room() { df --output=avail -B1 "$1" | tail -n 1; }
if command -v nvidia-ctk >/dev/null && ! grep -qs nvidia-container-runtime /etc/docker/daemon.json; then
  nvidia-ctk runtime configure --runtime=docker
  changed=1
fi
if command -v nvidia-container-runtime >/dev/null && command -v python3 >/dev/null \
    && ! grep -qs native.cgroupdriver /etc/docker/daemon.json; then
  configure '{"exec-opts": ["native.cgroupdriver=cgroupfs"]}'
fi
if [ -d /run/systemd/system ]; then
  systemctl enable --now docker
  nvme=/opt/dlami/nvme
  if command -v python3 >/dev/null && mountpoint -q $nvme \
      && [ "$(docker info -f '{{.DockerRootDir}} {{.Images}} {{.Containers}}')" = "/var/lib/docker 0 0" ] \
      && [ "$(room /var/lib/docker)" -lt "$(room $nvme)" ]; then
    mkdir -p /etc/systemd/system/docker.service.d
    cat >/etc/systemd/system/docker.service.d/dstack.conf <<'UNIT'
[Service]
ExecStartPre=/usr/bin/timeout 30 /bin/sh -c 'until mountpoint -q /opt/dlami/nvme; do sleep 1; done'
UNIT
    systemctl daemon-reload
    configure '{"data-root": "/opt/dlami/nvme/docker", "features": {"containerd-snapshotter": false}}'
  fi
  [ -z "$changed" ] || systemctl restart docker
fi
tries=0
until docker version >/dev/null 2>&1; do
  tries=$((tries + 1))
  [ $tries -lt 120 ] || { echo "Docker does not answer"; exit 1; }
  sleep 0.5
done
"#;

/// The script that a machine runs once.
fn script(lacks_docker: bool) -> String {
    let install = if lacks_docker { INSTALL_DOCKER } else { "" };
    let folder = DONE.rsplit_once('/').map_or("/", |(folder, _)| folder);
    format!(
        "log=/run/dstack-first-start.log\n(\nset -e\n{install}{PREPARE_DOCKER}) >$log 2>&1\nstatus=$?\nmkdir -p \
         {folder}\ncat $log\nif [ $status = 0 ]; then : >{DONE}; else tail -n 5 $log >{FAILED}; fi\n"
    )
}

/// The text, for `cloud-init`.
pub(super) fn text(authorized_keys: &[String], lacks_docker: bool) -> Result<String, String> {
    let mut text = String::from("#cloud-config\nssh_authorized_keys:\n");
    for key in authorized_keys {
        let key = key.trim();
        if key.chars().any(|char| char.is_control() || char == '"' || char == '\\') {
            return Err(format!("the public key `{key}` is not one line of plain text"));
        }
        text.push_str(&format!("- \"{key}\"\n"));
    }
    text.push_str("runcmd:\n- |\n");
    for line in script(lacks_docker).lines() {
        text.push_str(&format!("  {line}\n"));
    }
    if MOST_BYTES < text.len() {
        return Err(format!(
            "{} keys are too many: AWS gives a machine 16 KB to start with",
            authorized_keys.len()
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// What `cloud-init` gives to a shell.
    fn unpacked(lacks_docker: bool) -> String {
        let keys = ["ssh-ed25519 AAAA main@dstack\n".to_owned()];
        let text = text(&keys, lacks_docker).unwrap();
        let (head, body) = text.split_once("runcmd:\n- |\n").unwrap();
        assert_eq!(head, "#cloud-config\nssh_authorized_keys:\n- \"ssh-ed25519 AAAA main@dstack\"\n");
        // What YAML makes of the block: two blanks less on each line.
        let lines: Vec<&str> = body.lines().map(|line| line.strip_prefix("  ").unwrap()).collect();
        lines.join("\n") + "\n"
    }

    #[test]
    fn the_script_is_one_that_a_shell_understands() {
        for lacks_docker in [false, true] {
            let mut shell = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            shell.stdin.take().unwrap().write_all(unpacked(lacks_docker).as_bytes()).unwrap();
            assert!(shell.wait().unwrap().success());
        }
        assert!(unpacked(true).contains("apt-get") && !unpacked(false).contains("apt-get"));
    }

    /// A machine of files and stand-ins for programs, on which the script can run.
    struct Machine(tempfile::TempDir);

    /// What Docker says of itself before anything is done to it.
    const FRESH: &str = "/var/lib/docker 0 0";

    /// What the script makes of a disk of the machine's own.
    const MOVED: &str =
        r#"{"data-root": "/opt/dlami/nvme/docker", "features": {"containerd-snapshotter": false}}"#;

    impl Machine {
        /// A machine whose engine says this of itself, and whose disks have that much room.
        fn new(info: &str, nvme: Option<u64>) -> Machine {
            let machine = Machine(tempfile::tempdir().unwrap());
            std::fs::create_dir_all(machine.path("bin")).unwrap();
            // Only these, so that no other program of this machine is found.
            let usual = std::env::var("PATH").unwrap();
            for tool in ["cat", "grep", "mkdir", "python3", "sleep", "tail"] {
                machine.program(tool, &format!("PATH='{usual}' exec {tool} \"$@\""));
            }
            std::fs::create_dir_all(machine.path("run/systemd/system")).unwrap();
            machine.program("docker", &format!("[ $1 != info ] || echo '{info}'"));
            machine.program("systemctl", &format!("echo \"$*\" >>{}", machine.path("orders").display()));
            machine.program("mountpoint", &format!("exit {}", u8::from(nvme.is_none())));
            let room = nvme.unwrap_or_default();
            machine.program("df", &format!("echo Avail; case $3 in /opt/*) echo {room} ;; *) echo 1000 ;; esac"));
            machine
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.0.path().join(path)
        }

        fn program(&self, name: &str, text: &str) {
            use std::os::unix::fs::PermissionsExt as _;
            let path = self.path("bin").join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }

        /// Runs the script, and answers what it told systemd, and how it left Docker's configuration.
        fn start(&self) -> (Vec<String>, Option<serde_json::Value>) {
            let _ = std::fs::remove_file(self.path("orders"));
            let root = self.0.path().display().to_string();
            let mut text = unpacked(false);
            for place in ["/etc/", "/run/", "/var/lib/cloud/"] {
                text = text.replace(place, &format!("{root}{place}"));
            }
            let mut shell = Command::new("/bin/sh");
            let output = shell.arg("-c").arg(text).env("PATH", self.path("bin")).output().unwrap();
            let is_done = self.path(DONE.trim_start_matches('/')).exists();
            assert!(is_done, "{}", String::from_utf8_lossy(&output.stdout));
            let orders = std::fs::read_to_string(self.path("orders")).unwrap();
            let config = std::fs::read_to_string(self.path("etc/docker/daemon.json")).ok();
            let config = config.map(|text| serde_json::from_str(&text).unwrap());
            (orders.lines().map(str::to_owned).collect(), config)
        }
    }

    #[test]
    fn docker_keeps_what_it_has_on_the_disks_of_the_machine() {
        let machine = Machine::new(FRESH, Some(2000));
        let (orders, config) = machine.start();
        assert_eq!(orders, ["enable --now docker", "daemon-reload", "restart docker"]);
        assert_eq!(config, Some(serde_json::from_str(MOVED).unwrap()));
        let unit =
            std::fs::read_to_string(machine.path("etc/systemd/system/docker.service.d/dstack.conf")).unwrap();
        assert!(unit.contains("mountpoint -q /opt/dlami/nvme"), "{unit}");
        // Once more changes nothing.
        machine.program("docker", "[ $1 != info ] || echo '/opt/dlami/nvme/docker 0 0'");
        let (orders, again) = machine.start();
        assert_eq!((orders, again), (vec!["enable --now docker".to_owned()], config));
    }

    #[test]
    fn docker_stays_where_it_is_unless_there_is_something_better_and_nothing_to_lose() {
        let check = |info: &str, nvme: Option<u64>| {
            let machine = Machine::new(info, nvme);
            assert_eq!(machine.start(), (vec!["enable --now docker".to_owned()], None), "{info} {nvme:?}");
            assert!(!machine.path("etc/systemd").exists());
        };
        check(FRESH, None);
        check(FRESH, Some(1000));
        check("/var/lib/docker 1 0", Some(2000));
        check("/var/lib/docker 0 1", Some(2000));
        check("/data/docker 0 0", Some(2000));
        // An engine that does not answer this answers later, or never.
        check("", Some(2000));
    }

    #[test]
    fn what_docker_is_told_already_stays() {
        let machine = Machine::new(FRESH, Some(2000));
        machine.program("nvidia-ctk", "exit 1");
        machine.program("nvidia-container-runtime", "");
        let told = r#"{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}, "features": {"cdi": true},
            "exec-opts": ["a=b"]}"#;
        std::fs::create_dir_all(machine.path("etc/docker")).unwrap();
        std::fs::write(machine.path("etc/docker/daemon.json"), told).unwrap();
        let (orders, config) = machine.start();
        assert_eq!(orders.last().unwrap(), "restart docker");
        let expected = serde_json::json!({
            "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}},
            "exec-opts": ["a=b", "native.cgroupdriver=cgroupfs"],
            "data-root": "/opt/dlami/nvme/docker",
            "features": {"cdi": true, "containerd-snapshotter": false},
        });
        assert_eq!(config, Some(expected));
    }

    #[test]
    fn there_is_room_for_many_keys() {
        let keys = vec![format!("ssh-rsa {}", "A".repeat(370)); 20];
        assert!(text(&keys, true).unwrap().len() < MOST_BYTES);
    }

    #[test]
    fn a_key_cannot_bring_more_than_itself() {
        assert!(text(&["ssh-ed25519 AAAA\nruncmd: [evil]".to_owned()], false).is_err());
        assert!(text(&["ssh-ed25519 AAAA \"".to_owned()], false).is_err());
        let many: Vec<String> =
            (0..300).map(|number| format!("ssh-ed25519 {} {number}", "A".repeat(68))).collect();
        assert!(text(&many, false).is_err());
    }
}
