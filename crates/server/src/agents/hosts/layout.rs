//! Where things lie on a host, with which rights, and what stands in the files that are written there.

use std::collections::BTreeMap;

use api::ids::ServerId;
use tunnel::{Facts, Privilege, SudoProblem};

use super::shell::{is_name, quote, variables};
use super::{HostAccess, JoinError, JoinStep};

/// The only architecture that there is an agent for.
const ARCH: [&str; 2] = ["x86_64", "amd64"];

/// How much of a program's hash its name has.
const NAME_LENGTH: usize = 16;

/// Where things lie on hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Programs, with the rights of root.
    pub programs: String,
    /// A folder for each server, with the rights of root.
    pub state: String,
    /// The units of systemd.
    pub units: String,
    /// Everything, without the rights of root; below the user's home.
    pub user: String,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots {
            programs: "/usr/local/lib/dstack".to_owned(),
            state: "/var/lib/dstack".to_owned(),
            units: "/etc/systemd/system".to_owned(),
            user: ".dstack/agent".to_owned(),
        }
    }
}

/// How a host will have its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) privilege: Privilege,
    pub(super) systemd: bool,
    /// Words of `sh` for the folders of programs and of servers. A user's home is known to the host only.
    pub(super) programs: String,
    pub(super) root: String,
}

impl Place {
    /// The best that the host allows, or why it is of no use.
    pub(super) fn choose(facts: &Facts, access: &HostAccess) -> Result<Place, JoinError> {
        let address = access.target.address();
        if facts.system != "Linux" || !ARCH.contains(&facts.arch.as_str()) {
            let message = format!(
                "`{address}` runs {} on {}, and the agent is there for Linux on x86_64 only",
                facts.system, facts.arch
            );
            return Err(JoinError::last(JoinStep::Check, message));
        }
        if facts.can_be_root() {
            let privilege = if facts.is_root() { Privilege::User } else { Privilege::Sudo };
            let programs = usable_programs_of_root(facts, access);
            let root = quote(&access.roots.state);
            return Ok(Place { privilege, systemd: facts.systemd, programs: quote(&programs), root });
        }
        if facts.docker_usable || facts.in_docker_group() {
            let word = format!("\"$HOME\"/{}", quote(&access.roots.user));
            let privilege = Privilege::User;
            return Ok(Place { privilege, systemd: false, programs: word.clone(), root: word });
        }
        Err(JoinError::last(JoinStep::Check, no_rights(facts, access)))
    }
}

/// Where programs may lie, with the rights of root, the best first. Some systems have nothing below `/usr` that can be
/// written to.
pub(super) fn programs_of_root(access: &HostAccess) -> [String; 2] {
    [access.roots.programs.clone(), format!("{}/programs", access.roots.state)]
}

fn usable_programs_of_root(facts: &Facts, access: &HostAccess) -> String {
    let [usual, beside] = programs_of_root(access);
    let can_run = |folder: &&String| {
        let below = |home: &String| folder.strip_prefix(home.as_str()).is_some_and(|rest| rest.starts_with('/'));
        facts.homes.iter().any(below)
    };
    // Where nothing is known to work, the first one says why it does not.
    [&usual, &beside].into_iter().find(can_run).unwrap_or(&usual).clone()
}

fn no_rights(facts: &Facts, access: &HostAccess) -> String {
    let (address, user) = (access.target.address(), &access.target.user);
    let group = format!("put the user into the group that may use Docker (`usermod -aG docker {user}`)");
    let line = format!("a line `{user} ALL=(ALL) NOPASSWD: ALL` in a file in `/etc/sudoers.d`");
    let (problem, fix) = match &facts.sudo_problem {
        Some(SudoProblem::NeedsPassword) => ("asks for a password".to_owned(), format!("add {line}")),
        Some(SudoProblem::NotAllowed) => ("is not allowed".to_owned(), format!("add {line}")),
        Some(SudoProblem::NeedsTerminal) => {
            ("needs a terminal".to_owned(), "remove `requiretty` from its settings".to_owned())
        }
        Some(SudoProblem::Missing) | None => {
            ("is not installed".to_owned(), format!("log in as root, or install it with {line}"))
        }
        Some(SudoProblem::Other(words)) => (format!("fails ({words})"), "repair it".to_owned()),
    };
    format!("`sudo` of `{user}` on `{address}` {problem}, and the user may not use Docker: {fix}, or {group}")
}

/// Where things lie on a certain host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) programs: String,
    pub(super) root: String,
    pub(super) units: String,
    pub(super) server: ServerId,
    pub(super) systemd: bool,
}

impl Layout {
    /// The folder of this server.
    pub(super) fn state(&self) -> String {
        format!("{}/{}", self.root, self.server)
    }

    pub(super) fn home(&self) -> String {
        format!("{}/home", self.state())
    }

    pub(super) fn socket(&self) -> String {
        format!("{}/agent.sock", self.home())
    }

    pub(super) fn program(&self, sha256: &str) -> String {
        format!("{}/agent-{}", self.programs, program_name(sha256))
    }

    pub(super) fn unit(&self) -> String {
        let server = self.server.to_string();
        format!("dstack-agent-{}.service", server.split('-').next().unwrap_or(&server))
    }

    /// The variables that all scripts share.
    pub(super) fn variables(&self) -> String {
        variables([
            ("programs", self.programs.as_str()),
            ("root", &self.root),
            ("state", &self.state()),
            ("units", &self.units),
            ("unit", &self.unit()),
            ("systemd", if self.systemd { "yes" } else { "" }),
        ])
    }

    /// Starts the agent, whoever runs it. Has secrets.
    pub(super) fn start_text(&self, access: &HostAccess, sha256: &str) -> String {
        let mut words = vec![self.program(sha256), "host".to_owned(), "--home".to_owned(), self.home()];
        words.extend(["--instance-id".to_owned(), access.instance.to_string()]);
        if let Some(address) = &access.address {
            words.extend(["--address".to_owned(), address.clone()]);
        }
        if let Some(cloud) = access.cloud {
            words.extend(["--cloud".to_owned(), cloud.to_string()]);
        }
        let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
        let env: Vec<String> =
            access.env.iter().map(|(name, value)| format!("export {name}={}\n", quote(value))).collect();
        let env = env.concat();
        format!(
            "# Starts the agent of a dstack server. The server writes this anew.\n\
             PATH=${{PATH:-/bin}}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
             [ \"$(id -u)\" = 0 ] && HOME=/root\nexport PATH HOME\n{env}cd /\nexec {}",
            words.join(" ")
        )
    }

    /// Keeps the agent running where systemd does not.
    pub(super) fn loop_text(&self) -> String {
        let state = quote(&self.state());
        format!(
            "# Keeps the agent of a dstack server running until there is a file `stop`.\n\
             state={state}\n\
             ulimit -n \"$(ulimit -H -n)\"; ulimit -l unlimited 2>/dev/null\n\
             while [ ! -e \"$state/stop\" ]; do\n  \
               [ \"$(wc -c <\"$state/agent.log\")\" -gt 1048576 ] && mv -f \"$state/agent.log\" \"$state/agent.log.1\"\n  \
               sh \"$state/start\" </dev/null >>\"$state/agent.log\" 2>&1\n  \
               [ -e \"$state/stop\" ] || sleep 3\n\
             done 2>/dev/null"
        )
    }

    /// Keeps the agent running where systemd does.
    pub(super) fn unit_text(&self) -> String {
        let server = self.server;
        format!(
            "[Unit]\n\
             Description=Agent of the dstack server {server}\n\
             Wants=network-online.target\n\
             After=network-online.target docker.service\n\
             StartLimitIntervalSec=0\n\
             \n\
             [Service]\n\
             ExecStart=/bin/sh \"{}/start\"\n\
             Restart=always\n\
             RestartSec=3\n\
             # Jobs outlive the agent.\n\
             KillMode=process\n\
             Delegate=yes\n\
             TasksMax=infinity\n\
             LimitMEMLOCK=infinity\n\
             # With more, programs that close every possible file take minutes.\n\
             LimitNOFILE=1048576\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target",
            unit_escape(&self.state())
        )
    }
}

/// The part of a program's hash that its name has.
pub(super) fn program_name(sha256: &str) -> &str {
    sha256.get(..NAME_LENGTH).unwrap_or(sha256)
}

/// For a path in double quotes in a unit.
fn unit_escape(path: &str) -> String {
    path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$")
}

/// Whether the agent can be started with this environment.
pub(super) fn check_env(env: &BTreeMap<String, String>) -> Result<(), JoinError> {
    let wrong = env.iter().find(|(name, value)| !is_name(name) || value.contains('\0'));
    let Some((name, _)) = wrong else { return Ok(()) };
    let message = format!(
        "the variable `{name}` of the fleet's `env` cannot be set on a host: take a name of letters, digits and `_`, \
         and a value without zero bytes"
    );
    Err(JoinError::last(JoinStep::Check, message))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;

    use tunnel::{Limits, Target};
    use uuid::Uuid;

    use super::*;

    pub(in super::super) fn access() -> HostAccess {
        HostAccess {
            target: Target::new("gpu-1", "ada", Vec::new()),
            limits: Limits::default(),
            instance: Uuid::from_u128(7).into(),
            server: Uuid::from_u128(1).into(),
            address: Some("10.0.0.7".to_owned()),
            cloud: None,
            first_start: None,
            known_keys: BTreeMap::new(),
            env: BTreeMap::new(),
            others: BTreeSet::new(),
            was_joined: false,
            roots: Roots::default(),
        }
    }

    pub(in super::super) fn layout() -> Layout {
        Layout {
            programs: "/usr/local/lib/dstack".to_owned(),
            root: "/var/lib/dstack".to_owned(),
            units: "/etc/systemd/system".to_owned(),
            server: Uuid::from_u128(1).into(),
            systemd: true,
        }
    }

    fn facts() -> Facts {
        Facts {
            arch: "x86_64".to_owned(),
            system: "Linux".to_owned(),
            kernel: "6.8".to_owned(),
            distribution: String::new(),
            host_name: "gpu-1".to_owned(),
            boot_id: String::new(),
            uid: 1000,
            groups: vec!["ada".to_owned()],
            sudo_problem: None,
            systemd: true,
            docker_socket: true,
            docker_usable: false,
            homes: vec!["/var/lib".to_owned(), "/usr/local".to_owned()],
            clock_skew_seconds: 0,
        }
    }

    #[test]
    fn a_host_with_another_processor_is_refused_in_one_sentence() {
        let error = Place::choose(&Facts { arch: "aarch64".to_owned(), ..facts() }, &access()).unwrap_err();
        assert!(error.is_final);
        assert_eq!(
            error.message,
            "`gpu-1:22` runs Linux on aarch64, and the agent is there for Linux on x86_64 only"
        );
    }

    #[test]
    fn rights_are_taken_from_sudo_or_from_the_group_or_asked_for() {
        let place = Place::choose(&facts(), &access()).unwrap();
        assert_eq!((place.privilege, place.systemd), (Privilege::Sudo, true));
        let asks = Facts { sudo_problem: Some(SudoProblem::NeedsPassword), ..facts() };
        let error = Place::choose(&asks, &access()).unwrap_err();
        assert!(error.is_final);
        assert_eq!(
            error.message,
            "`sudo` of `ada` on `gpu-1:22` asks for a password, and the user may not use Docker: add a line `ada \
             ALL=(ALL) NOPASSWD: ALL` in a file in `/etc/sudoers.d`, or put the user into the group that may use \
             Docker (`usermod -aG docker ada`)"
        );
        let grouped = Facts { groups: vec!["docker".to_owned()], ..asks };
        let place = Place::choose(&grouped, &access()).unwrap();
        assert_eq!((place.privilege, place.systemd), (Privilege::User, false));
        assert_eq!(place.root, "\"$HOME\"/'.dstack/agent'");
    }

    #[test]
    fn programs_go_where_they_can_run() {
        let check = |homes: &[&str], expected: &str| {
            let facts = Facts { homes: homes.iter().map(|&home| home.to_owned()).collect(), ..facts() };
            assert_eq!(usable_programs_of_root(&facts, &access()), expected, "{homes:?}");
        };
        check(&["/opt", "/var/lib", "/usr/local"], "/usr/local/lib/dstack");
        check(&["/opt", "/var/lib"], "/var/lib/dstack/programs");
        check(&["/usr/loc"], "/usr/local/lib/dstack");
    }

    #[test]
    fn the_start_has_the_environment_as_it_is_and_says_who_the_host_is() {
        let mut access = access();
        access.env.insert("TOKEN".to_owned(), "it's $HOME\nand more".to_owned());
        let text = layout().start_text(&access, &"ab".repeat(32));
        let (before, exec) = text.rsplit_once("\nexec ").unwrap();
        assert_eq!(
            exec,
            "'/usr/local/lib/dstack/agent-abababababababab' 'host' '--home' \
             '/var/lib/dstack/00000000-0000-0000-0000-000000000001/home' '--instance-id' \
             '00000000-0000-0000-0000-000000000007' '--address' '10.0.0.7'"
        );
        let of_cloud = HostAccess { cloud: Some(api::agent::Cloud::Ec2), ..access.clone() };
        let start = layout().start_text(&of_cloud, &"ab".repeat(32));
        assert_eq!(start.rsplit_once("\nexec ").unwrap().1, format!("{exec} '--cloud' 'ec2'"));
        let printed =
            Command::new("sh").arg("-c").arg(format!("{before}\nprintf %s \"$TOKEN\"")).output().unwrap();
        assert_eq!(String::from_utf8(printed.stdout).unwrap(), "it's $HOME\nand more");
    }

    #[test]
    fn a_unit_lets_jobs_outlive_the_agent_and_starts_with_the_host() {
        let text = layout().unit_text();
        for line in [
            "ExecStart=/bin/sh \"/var/lib/dstack/00000000-0000-0000-0000-000000000001/start\"",
            "Restart=always",
            "KillMode=process",
            "WantedBy=multi-user.target",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        assert_eq!(layout().unit(), "dstack-agent-00000000.service");
        assert_eq!(unit_escape("/a\"%$\\"), "/a\\\"%%$$\\\\");
    }

    #[test]
    fn names_that_are_none_are_not_set() {
        let check = |name: &str, value: &str| check_env(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert!(check("NCCL_DEBUG", "a b").is_ok());
        assert!(check("a;reboot", "").unwrap_err().message.contains("`a;reboot`"));
        assert!(check("A", "\0").is_err());
    }
}
