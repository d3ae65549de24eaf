//! The documented example, as the lab runs it: its files as they are, but for the commands of its task, which need real
//! GPUs and packages.

use std::fs;

use anyhow::{Context as _, Result};

use crate::workspace;

/// The example's fleet.
pub(super) const FLEET: &str = "examples/efa/fleet.dstack.yml";
const TASK: &str = "examples/efa/task.dstack.yml";

/// What the fleet and the task are called.
pub(super) const FLEET_NAME: &str = "my-efa-fleet";
pub(super) const TASK_NAME: &str = "efa-task";

/// Whose commands are run instead of those of the task: they need no GPU, and prove that the nodes reach each other.
const COLLECTIVE: &str = "examples/distributed/task.dstack.yml";

/// What each node shows of itself before.
const LOOK: &str = include_str!("look.sh");

/// The task of the example, with commands that need no GPU.
pub(super) fn task_text() -> Result<String> {
    let collective = read(COLLECTIVE)?;
    let (_, commands) = collective.split_once("commands:\n").context("the collective has no commands")?;
    let (commands, _) = commands.split_once("\nresources:").context("the collective has no resources")?;
    let look = LOOK.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n");
    let task = read(TASK)?;
    let (head, tail) = around_commands(&task)?;
    // Without the newline at its end, behind which no `&&` could follow.
    Ok(format!("{head}  - |-\n{look}\n{commands}{tail}"))
}

/// The variables of the example's task, as they are written.
pub(super) fn variables() -> Result<Vec<(String, String)>> {
    let task = read(TASK)?;
    let (_, entries) = task.split_once("\nenv:\n").context("the task has no variables")?;
    let entries = entries.lines().map_while(|line| line.strip_prefix("  - ")?.split_once('='));
    Ok(entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// What stands before and after the commands of the task.
fn around_commands(task: &str) -> Result<(&str, &str)> {
    let start = task.find("commands:\n").context("the task has no commands")? + "commands:\n".len();
    let end = task.find("env:\n").context("the task has no variables")?;
    Ok((&task[..start], &task[end..]))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(workspace::root().join(path)).with_context(|| format!("read `{path}`"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::shell;

    /// The three files as they were documented. Whoever changes what the lab runs has to say here that it is no longer
    /// that example.
    const CONFIG: &str = include_str!("documented/config.yml");
    const DOCUMENTED_FLEET: &str = include_str!("documented/fleet.dstack.yml");
    const DOCUMENTED_TASK: &str = include_str!("documented/task.dstack.yml");

    #[test]
    fn the_lab_runs_the_documented_example_byte_for_byte_but_for_its_commands() {
        assert_eq!(crate::cloud::CONFIG, CONFIG);
        assert_eq!(read(FLEET).unwrap(), DOCUMENTED_FLEET);
        assert_eq!(read(TASK).unwrap(), DOCUMENTED_TASK);
        let text = task_text().unwrap();
        let (head, tail) = around_commands(DOCUMENTED_TASK).unwrap();
        let commands = text.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)).unwrap();
        // Nothing but commands has taken the place of commands.
        assert!(commands.lines().all(|line| line.is_empty() || line.starts_with("  ")), "{commands}");
        assert!(commands.contains("nvidia-smi -L\n") && commands.contains("all-reduce is right"), "{commands}");
        assert!(!text.contains("accelerate"), "{text}");
    }

    #[test]
    fn the_commands_are_a_script_that_the_shell_can_read() {
        let text = task_text().unwrap();
        let (_, tail) = around_commands(DOCUMENTED_TASK).unwrap();
        let commands = text.strip_suffix(tail).unwrap();
        let read = |block: &str| -> String {
            let (chomping, lines) = block.split_once('\n').unwrap();
            let end = if chomping == "-" { "" } else { "\n" };
            lines.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
                + end
        };
        let blocks: Vec<String> = commands.split("  - |").skip(1).map(read).collect();
        assert_eq!(blocks.len(), 2);
        // As the server joins them.
        shell::run(Command::new("bash").args(["-n", "-c", &blocks.join(" && ")])).unwrap();
    }

    #[test]
    fn variables_are_read_as_they_are_written() {
        let variables = variables().unwrap();
        assert_eq!(variables.len(), 10);
        assert_eq!(variables[3], ("OMPI_MCA_pml".to_owned(), "^cm,ucx".to_owned()));
        assert!(variables[0].1.ends_with("/opt/aws-ofi-nccl/lib:$LD_LIBRARY_PATH"), "{variables:?}");
    }
}
