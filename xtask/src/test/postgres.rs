//! A private PostgreSQL cluster that loses everything with the sandbox.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::packages;
use crate::sandbox::Sandbox;
use crate::{dstack, shell};

const START: Duration = Duration::from_mins(1);

/// Starts the cluster and answers where it is.
pub(super) fn prepare(sandbox: &Sandbox) -> Result<Vec<(&'static str, String)>> {
    packages::ensure(&["postgresql"], || programs().is_some())?;
    let programs = programs().context("find PostgreSQL's programs")?;
    let dir = sandbox.subdir("postgres")?;
    // PostgreSQL refuses to run as the superuser.
    let prefix: &[&str] = if shell::is_root() { &["runuser", "-u", "postgres", "--"] } else { &["env"] };
    if shell::is_root() {
        shell::run(Command::new("chown").arg("postgres").arg(&dir))?;
    }
    let command = |program: &str| {
        let mut command = sandbox.command(prefix[0]);
        command.args(&prefix[1..]).arg(programs.join(program)).current_dir(&dir);
        command
    };
    let data = dir.join("data");
    shell::capture(command("initdb").args(["--no-sync", "--auth=trust", "--username=postgres", "-D"]).arg(&data))?;
    let port = dstack::free_address()?.port().to_string();
    let settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        format!("unix_socket_directories={}", dir.display()),
        "max_connections=300".to_owned(),
        "fsync=off".to_owned(),
        "full_page_writes=off".to_owned(),
        "synchronous_commit=off".to_owned(),
    ];
    let log = fs::File::create(dir.join("log")).context("make PostgreSQL's log")?;
    let mut server = command("postgres");
    server.arg("-D").arg(&data).args(settings.iter().flat_map(|setting| ["-c", setting]));
    server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("start PostgreSQL")?;
    let mut asked = command("psql");
    asked.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-c", "SELECT 1"]);
    shell::wait_for("PostgreSQL's first answer", START, || shell::succeeds(&mut asked).then_some(()))?;
    Ok(vec![("DSTACK_TEST_POSTGRES_URL", format!("postgres://postgres@127.0.0.1:{port}/postgres"))])
}

/// The folder of the newest version's programs; Debian keeps them off the search path.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let debian = newest.map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let on_path = || shell::find("initdb").and_then(|initdb| Some(initdb.parent()?.to_owned()));
    debian.filter(|dir| dir.join("initdb").exists()).or_else(on_path)
}
