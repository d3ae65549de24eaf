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

/// Lets Docker give GPUs to containers, and keeps them from losing them: with the systemd driver, a reload of systemd
/// takes the devices of running containers away (NVIDIA container toolkit, issue 48).
const PREPARE_DOCKER: &str = r#"changed=
if command -v nvidia-ctk >/dev/null && ! grep -qs nvidia-container-runtime /etc/docker/daemon.json; then
  nvidia-ctk runtime configure --runtime=docker
  changed=1
fi
if command -v nvidia-container-runtime >/dev/null && command -v python3 >/dev/null \
    && ! grep -qs native.cgroupdriver /etc/docker/daemon.json; then
  python3 - <<'PYTHON'
import json, os
path = "/etc/docker/daemon.json"
config = json.load(open(path)) if os.path.exists(path) else {}
config.setdefault("exec-opts", []).append("native.cgroupdriver=cgroupfs")
os.makedirs("/etc/docker", exist_ok=True)
with open(path + ".new", "w") as file:
    json.dump(config, file, indent=2)
os.replace(path + ".new", path)
PYTHON
  changed=1
fi
if [ -d /run/systemd/system ]; then
  systemctl enable --now docker
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

    #[test]
    fn a_key_cannot_bring_more_than_itself() {
        assert!(text(&["ssh-ed25519 AAAA\nruncmd: [evil]".to_owned()], false).is_err());
        assert!(text(&["ssh-ed25519 AAAA \"".to_owned()], false).is_err());
        let many: Vec<String> =
            (0..300).map(|number| format!("ssh-ed25519 {} {number}", "A".repeat(68))).collect();
        assert!(text(&many, false).is_err());
    }
}
