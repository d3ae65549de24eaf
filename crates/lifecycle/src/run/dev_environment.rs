//! What a dev environment does: its `init`, a greeting that tells how to enter it, and then nothing until it is stopped.
//!
//! On the wire that is one shell command, as clients know it. The agent gets the parts, and waits without a program of
//! the image. No IDE is downloaded: each brings its own server over SSH, which needs no internet here.

use api::configurations::{DevEnvironmentConfiguration, Ide};

use super::job_specs::{grouped, shell_argv};

/// What stands for the job's directory, for shells and for the agent.
const WORKING_DIR: &str = "$DSTACK_WORKING_DIR";

/// The command of `init`; empty where there is none.
pub fn init_argv(environment: &DevEnvironmentConfiguration) -> Vec<String> {
    if environment.init.is_empty() {
        return vec![];
    }
    let script = environment.init.iter().map(|command| grouped(command)).collect::<Vec<_>>().join(" && ");
    shell_argv(environment.common(), script)
}

/// What the log says once the environment can be worked in.
pub fn greeting(environment: &DevEnvironmentConfiguration, run_name: &str) -> String {
    let mut text = greeting_lines(environment, run_name).join("\n");
    text.push('\n');
    text
}

fn greeting_lines(environment: &DevEnvironmentConfiguration, run_name: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    if let Some(ide) = environment.ide {
        lines.push(format!("To open in {}, use link below:", ide_name(ide)));
        lines.push(String::new());
        lines.push(format!("  {}", ide_url(ide, run_name, WORKING_DIR)));
        lines.push(String::new());
    }
    lines.push(format!("To connect via SSH, use: `ssh {run_name}`"));
    lines.push(String::new());
    lines.push("To exit, press Ctrl+C.".to_owned());
    lines
}

/// The whole as one command, as clients know it.
pub(super) fn commands(environment: &DevEnvironmentConfiguration, run_name: &str) -> Vec<String> {
    let say = |line: &String| match line.as_str() {
        "" => "echo".to_owned(),
        line if line.contains(WORKING_DIR) => format!("echo \"{line}\""),
        line => format!("echo '{line}'"),
    };
    let init = environment.init.iter().map(|command| grouped(command));
    let greeting = greeting_lines(environment, run_name);
    let parts = init.chain(greeting.iter().map(say)).chain(["tail -f /dev/null".to_owned()]);
    shell_argv(environment.common(), parts.collect::<Vec<_>>().join(" && "))
}

/// An IDE's name, for people.
pub fn ide_name(ide: Ide) -> &'static str {
    match ide {
        Ide::Vscode => "VS Code",
        Ide::Cursor => "Cursor",
        Ide::Windsurf => "Windsurf",
        Ide::Zed => "Zed",
    }
}

/// The link with which an IDE opens a directory of a host that SSH knows by this name.
pub fn ide_url(ide: Ide, host: &str, dir: &str) -> String {
    let scheme = match ide {
        Ide::Vscode => "vscode",
        Ide::Cursor => "cursor",
        Ide::Windsurf => "windsurf",
        Ide::Zed => return format!("zed://ssh/{host}{dir}"),
    };
    format!("{scheme}://vscode-remote/ssh-remote+{host}{dir}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn environment(keys: &Value) -> DevEnvironmentConfiguration {
        let mut full = json!({ "type": "dev-environment" });
        full.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        serde_json::from_value(full).unwrap()
    }

    #[test]
    fn only_init_needs_a_shell() {
        let check = |keys: &Value, expected: &[&str]| assert_eq!(init_argv(&environment(keys)), expected);
        check(&json!({ "ide": "vscode" }), &[]);
        check(&json!({ "init": ["a &", "b"] }), &["/bin/bash", "-i", "-c", "{ a & } && b"]);
        check(&json!({ "init": ["a"], "image": "x" }), &["/bin/sh", "-i", "-c", "a"]);
        check(&json!({ "init": ["a"], "shell": "/bin/zsh", "runtime": "process" }), &["/bin/zsh", "-c", "a"]);
    }

    #[test]
    fn the_greeting_tells_the_link_of_the_ide_and_the_way_by_ssh() {
        let check = |keys: &Value, expected: &str| assert_eq!(greeting(&environment(keys), "dev"), expected);
        check(&json!({}), "\nTo connect via SSH, use: `ssh dev`\n\nTo exit, press Ctrl+C.\n");
        check(
            &json!({ "ide": "cursor" }),
            "\nTo open in Cursor, use link below:\n\n  cursor://vscode-remote/ssh-remote+dev$DSTACK_WORKING_DIR\n\n\
             To connect via SSH, use: `ssh dev`\n\nTo exit, press Ctrl+C.\n",
        );
        check(
            &json!({ "ide": "zed" }),
            "\nTo open in Zed, use link below:\n\n  zed://ssh/dev$DSTACK_WORKING_DIR\n\n\
             To connect via SSH, use: `ssh dev`\n\nTo exit, press Ctrl+C.\n",
        );
    }

    #[test]
    fn the_command_on_the_wire_says_the_same_in_a_shell() {
        let environment = environment(&json!({ "ide": "windsurf", "init": ["echo first"], "image": "x" }));
        let mut argv = commands(&environment, "dev");
        let script = argv.pop().unwrap();
        assert_eq!(argv, ["/bin/sh", "-i", "-c"]);
        let (script, wait) = script.rsplit_once(" && ").unwrap();
        assert_eq!(wait, "tail -f /dev/null");
        let mut shell = std::process::Command::new("/bin/sh");
        let output = shell.args(["-c", script]).env("DSTACK_WORKING_DIR", "/w").output().unwrap();
        let expected = format!("first\n{}", greeting(&environment, "dev").replace("$DSTACK_WORKING_DIR", "/w"));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}
