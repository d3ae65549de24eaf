//! The short way to a host that was joined before: one command that connects to the agent if the record there is what
//! would be written anyway. A server that starts finds hundreds of hosts so, and each of them is hardly disturbed.

use tunnel::{Command, Privilege, Session, Stream};

use super::HostAccess;
use super::install::{PATIENCE, listens};
use super::layout::{Layout, programs_of_root};
use super::plan::Wanted;
use super::shell::variables;

/// Says nothing unless all is as it should be. Starts no other program before the agent's.
const SCRIPT: &str = r#"
found=
while read -r line; do
  case $line in
    "program $wanted"|"instance $instance") found=$found.;;
    "start $first") program=$first_program;;
    "start $second") program=$second_program;;
  esac
done 2>/dev/null <"$state/installed"
[ "$found" = .. ] && [ -x "$program" ] && exec "$program" connect --socket "$socket"
exit 0
"#;

/// Connects to the agent of a host that was joined with the rights of root. None: look what is wrong, or whether
/// things lie elsewhere.
pub(super) async fn greet(access: &HostAccess, session: &Session, sha256: &str) -> Option<Stream> {
    // Whoever is not root was joined by `sudo`, or lies in a folder that only the host knows.
    let privilege = if access.target.user == "root" { Privilege::User } else { Privilege::Sudo };
    let command = Command::new(script(access, sha256)).named("greet the agent").privilege(privilege);
    let mut stream = session.stream(command.within(PATIENCE)).await.ok()?;
    listens(&mut stream).await.then_some(stream)
}

fn script(access: &HostAccess, sha256: &str) -> String {
    let layouts = programs_of_root(access).map(|programs| Layout {
        programs,
        root: access.roots.state.clone(),
        units: access.roots.units.clone(),
        server: access.server,
        systemd: false,
    });
    let [first, second] = layouts.each_ref().map(|layout| Wanted::new(access, layout, sha256).start);
    let [first_program, second_program] = layouts.each_ref().map(|layout| layout.program(sha256));
    let values = variables([
        ("state", layouts[0].state().as_str()),
        ("socket", &layouts[0].socket()),
        ("wanted", sha256),
        ("instance", &access.instance.to_string()),
        ("first", &first),
        ("first_program", &first_program),
        ("second", &second),
        ("second_program", &second_program),
    ]);
    format!("program=\n{values}{SCRIPT}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::super::layout::program_name;
    use super::super::layout::tests::access;
    use super::super::plan::Seen;
    use super::super::{HostAccess, Roots};
    use super::*;

    /// What the script says on a host whose record is changed so, for each shell.
    fn check(change: &dyn Fn(String) -> String, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        let roots = Roots { programs: format!("{root}/lib"), state: root.clone(), ..Roots::default() };
        let access = HostAccess { roots, ..access() };
        let sha256 = "b".repeat(64);
        // Where programs beside the server's folder are the only ones that can run.
        let programs = programs_of_root(&access)[1].clone();
        let layout = Layout {
            programs: programs.clone(),
            root,
            units: String::new(),
            server: access.server,
            systemd: true,
        };
        let record = Wanted::new(&access, &layout, &sha256).record(&Seen::default()).text();
        fs::create_dir_all(layout.state()).unwrap();
        fs::write(format!("{}/installed", layout.state()), format!("{}\n", change(record))).unwrap();
        fs::create_dir_all(&programs).unwrap();
        let program = format!("{programs}/agent-{}", program_name(&sha256));
        fs::write(&program, "#!/bin/sh\necho \"$1 $2\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        for shell in ["sh", "bash", "dash"] {
            // Not every machine has every shell.
            let Ok(output) = Command::new(shell).arg("-c").arg(script(&access, &sha256)).output() else {
                continue;
            };
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{shell}: {output:?}");
            assert!(output.status.success());
        }
    }

    #[test]
    fn only_what_is_recorded_as_wanted_is_greeted() {
        check(&|record| record, "connect --socket\n");
        check(&|record| record.replace("instance", "previous 0\ninstance"), "connect --socket\n");
        check(&|record| record.replace("program b", "program c"), "");
        check(&|record| record.replace("start ", "start 0"), "");
        check(&|record| record.replace("instance 0", "instance 1"), "");
        check(&|_| String::new(), "");
    }
}
