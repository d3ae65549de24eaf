//! Which shell a session gets, and how it is called.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What an image without any shell answers to who wants to run a command.
pub(super) const NO_SHELL: &str = "this job's image has no shell, so no command can be run in it; sftp and port \
    forwarding work\r\n";

/// The variable that carries the job's search path through a login.
pub(super) const PATH_VARIABLE: &str = "DSTACK_SSH_PATH";

/// The shells that take no logins, in spite of their place in the user database.
const REFUSALS: [&str; 2] = ["nologin", "false"];

/// What a login shell does after the system's and the user's profiles, which often begin the search path anew: what the
/// job has in front stays in front.
const AFTER_PROFILE: &str = "case \":$PATH:\" in \":$DSTACK_SSH_PATH:\"*) ;; \
    *) PATH=\"$DSTACK_SSH_PATH${PATH:+:$PATH}\" ;; esac; export PATH; unset DSTACK_SSH_PATH; exec \"$0\"";

/// The shell of a session: what the environment says, else the user database, else the usual ones.
pub(super) fn find(
    from_environment: Option<&str>,
    from_database: Option<&str>,
    is_program: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let own = from_environment.into_iter().chain(from_database);
    own.chain(["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/busybox/sh"]).map(PathBuf::from).find(
        |shell| shell.is_absolute() && !REFUSALS.iter().any(|name| shell.ends_with(name)) && is_program(shell),
    )
}

/// Whether a file may be run.
pub(super) fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The arguments of a shell that runs one command.
pub(super) fn command(command: &[u8]) -> Vec<OsString> {
    vec!["-c".into(), OsString::from_vec(command.to_vec())]
}

/// The arguments of a shell that somebody logs into.
pub(super) fn login(shell: &Path) -> Vec<OsString> {
    let name = shell.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let is_posix = [&b"sh"[..], b"bash", b"dash", b"ash", b"zsh", b"ksh", b"mksh"].contains(&name);
    if !is_posix {
        return vec!["-l".into()];
    }
    vec!["-l".into(), "-c".into(), AFTER_PROFILE.into(), shell.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(environment: Option<&str>, database: Option<&str>, there: &[&str], expected: Option<&str>) {
        let found = find(environment, database, |path| there.iter().any(|program| path == Path::new(program)));
        assert_eq!(found.as_deref(), expected.map(Path::new), "{environment:?} {database:?} {there:?}");
    }

    #[test]
    fn the_first_shell_that_is_there_is_taken() {
        let both = ["/bin/bash", "/bin/sh"];
        check(Some("/bin/zsh"), Some("/bin/sh"), &["/bin/zsh", "/bin/sh"], Some("/bin/zsh"));
        check(Some("/bin/zsh"), Some("/bin/sh"), &both, Some("/bin/sh"));
        check(None, None, &both, Some("/bin/bash"));
        check(None, None, &["/bin/sh"], Some("/bin/sh"));
        check(Some("sh"), None, &["sh", "/bin/sh"], Some("/bin/sh"));
        check(None, Some("/usr/sbin/nologin"), &["/usr/sbin/nologin", "/bin/sh"], Some("/bin/sh"));
    }

    #[test]
    fn an_image_without_a_shell_has_none() {
        check(Some("/bin/bash"), Some("/bin/sh"), &[], None);
    }

    #[test]
    fn a_login_keeps_the_jobs_search_path_in_front() {
        let arguments = login(Path::new("/bin/sh"));
        let output = std::process::Command::new("/bin/sh")
            .args(&arguments[..3])
            .arg("env")
            .env_clear()
            .env(PATH_VARIABLE, "/venv/bin")
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let path = text.lines().find_map(|line| line.strip_prefix("PATH="));
        assert!(path.unwrap().starts_with("/venv/bin:"), "{text}");
        assert!(!text.contains(PATH_VARIABLE), "{text}");
    }

    #[test]
    fn other_shells_are_called_as_they_all_understand() {
        assert_eq!(login(Path::new("/usr/bin/fish")), ["-l"]);
    }
}
