//! Docker's command line, with a limit on how long it may take.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

/// How long an order may take. The engine of a machine that does much else may be slow.
const PATIENCE: Duration = Duration::from_mins(1);

/// Gives Docker an order, and answers what it printed.
pub(super) async fn docker<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Result<String> {
    let name = args.first().map(|arg| arg.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
    let mut command = Command::new("docker");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    // Ctrl-C in a terminal must not keep it from cleaning up.
    command.process_group(0);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .with_context(|| format!("`docker {name}` took longer than {} s", PATIENCE.as_secs()))?
        .context("start `docker`")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("`docker {name}`: {}", words.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
