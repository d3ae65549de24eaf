//! What a host is, asked in one round trip.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::exec::sudo_problem;
use crate::{Command, Error, Result, Session, SudoProblem};

/// How long a host may take to look at itself.
const TIME: Duration = Duration::from_secs(30);

/// What a host says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As `uname -m` says it: `x86_64`, `aarch64`, …
    pub arch: String,
    /// As `uname -s` says it: `Linux`.
    pub system: String,
    pub kernel: String,
    /// The system's name for people, as `/etc/os-release` has it; empty if it has none.
    pub distribution: String,
    pub host_name: String,
    /// Changes with every boot; empty where the system has none.
    pub boot_id: String,
    pub uid: u32,
    pub groups: Vec<String>,
    /// Why `sudo` does not work without a password; nothing if it does, or if the user is root already.
    pub sudo_problem: Option<SudoProblem>,
    /// Whether systemd runs as PID 1.
    pub systemd: bool,
    /// Whether there is a Docker socket.
    pub docker_socket: bool,
    /// Whether the user may use that socket without `sudo`.
    pub docker_usable: bool,
    /// Folders where a program can be written and run, the best first; tried with the most rights that we have.
    pub homes: Vec<String>,
    /// How far the host's clock is ahead of ours, zero where it cannot be told apart from the time of asking.
    pub clock_skew_seconds: i64,
}

impl Facts {
    /// Whether the user is root.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether we can have the rights of root.
    pub fn can_be_root(&self) -> bool {
        self.is_root() || self.sudo_problem.is_none()
    }

    /// Whether the user is in the group that may use Docker.
    pub fn in_docker_group(&self) -> bool {
        self.groups.iter().any(|group| group == "docker")
    }
}

/// Asks a host what it is. `now` is our clock.
pub async fn probe(session: &Session, now: impl Fn() -> SystemTime) -> Result<Facts> {
    let asked = now();
    let output = session.exec(Command::new(SCRIPT).named("look at the host").within(TIME)).await?;
    let answered = now();
    let said = String::from_utf8_lossy(&output.success()?).into_owned();
    read(&said, asked, answered).map_err(|reason| Error::Answer { address: session.address().to_owned(), reason })
}

fn read(said: &str, asked: SystemTime, answered: SystemTime) -> std::result::Result<Facts, String> {
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in said.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        values.entry(key).or_default().push(value.trim());
    }
    let text = |key: &str| values.get(key).map_or("", |values| values[0]).to_owned();
    let number = |key: &str| -> std::result::Result<i64, String> {
        text(key).parse().map_err(|_| format!("`{key}` is `{}` there", text(key)))
    };
    let says_yes = |key: &str| text(key) == "yes";
    let uid = u32::try_from(number("uid")?).map_err(|error| error.to_string())?;
    let can_sudo = uid == 0 || says_yes("sudo");
    let complaint = values.get("sudo").map(|lines| lines.join("\n")).unwrap_or_default();
    let unknown = || SudoProblem::Other(complaint.trim().to_owned());
    Ok(Facts {
        arch: text("arch"),
        system: text("system"),
        kernel: text("kernel"),
        distribution: text("distribution"),
        host_name: text("host"),
        boot_id: text("boot"),
        uid,
        groups: text("groups").split(' ').map(str::to_owned).collect(),
        sudo_problem: (!can_sudo).then(|| sudo_problem(&complaint).unwrap_or_else(unknown)),
        systemd: says_yes("systemd"),
        docker_socket: says_yes("docker_socket"),
        docker_usable: says_yes("docker_usable"),
        homes: values.get("home").into_iter().flatten().map(|home| (*home).to_owned()).collect(),
        clock_skew_seconds: skew(number("time")?, asked, answered),
    })
}

/// The host said a full second some time between two moments of ours.
fn skew(theirs: i64, asked: SystemTime, answered: SystemTime) -> i64 {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let (asked, answered) = (seconds(asked), seconds(answered));
    if theirs < asked {
        theirs - asked
    } else if answered < theirs {
        theirs - answered
    } else {
        0
    }
}

const SCRIPT: &str = r##"
LC_ALL=C; export LC_ALL
say() { key=$1; shift; printf '%s\n' "$*" | while read -r line; do printf '%s %s\n' "$key" "$line"; done; }
say time "$(date +%s)"
say arch "$(uname -m)"
say system "$(uname -s)"
say kernel "$(uname -r)"
say host "$(uname -n)"
say distribution "$(. /etc/os-release 2>/dev/null; printf %s "$PRETTY_NAME")"
say boot "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
say uid "$(id -u)"
say groups "$(id -Gn 2>/dev/null)"
run=
if [ "$(id -u)" != 0 ]; then
  if said=$(sudo -n sh -c : 2>&1 </dev/null); then run='sudo -n'; say sudo yes; else say sudo "$said"; fi
fi
[ -d /run/systemd/system ] && say systemd yes
if [ -S /var/run/docker.sock ]; then
  say docker_socket yes
  [ -r /var/run/docker.sock ] && [ -w /var/run/docker.sock ] && say docker_usable yes
fi
$run sh -c '
  for dir; do
    [ -d "$dir" ] || continue
    file=$dir/.dstack-probe.$$
    { printf "#!/bin/sh\nexit 0\n" >"$file" && chmod 700 "$file" && "$file" && printf "home %s\n" "$dir"; } 2>/dev/null
    rm -f "$file" 2>/dev/null
  done
  exit 0' sh /opt /var/lib /usr/local "$HOME" /var/tmp </dev/null
"##;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_is_wrong_only_if_asking_cannot_explain_it() {
        let check = |theirs, expected| assert_eq!(skew(theirs, at(100), at(103)), expected, "{theirs}");
        check(99, -1);
        check(100, 0);
        check(103, 0);
        check(160, 57);
    }

    #[test]
    fn facts_are_read_from_what_a_host_says() {
        let said =
            "time 100\narch x86_64\nuid 1000\ngroups ada docker\nsudo sudo: a password is required\nhome /opt\n";
        let facts = read(said, at(100), at(100)).unwrap();
        assert_eq!(facts.sudo_problem, Some(SudoProblem::NeedsPassword));
        assert!(facts.in_docker_group() && !facts.can_be_root() && !facts.systemd);
        assert_eq!(facts.homes, ["/opt"]);
        assert_eq!(read("uid x", at(0), at(0)), Err("`uid` is `x` there".to_owned()));
    }
}
