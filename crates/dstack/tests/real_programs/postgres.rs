//! The server on Postgres: the same as on its own file.

use std::path::Path;
use std::process::Command;

use crate::local::task;
use crate::rig::{FLEET, Rig, Setup, end, program, seq};

/// A server on a database of its own, which bears the test's name, and the database's URL.
pub(crate) fn start(test: &str, containers: bool) -> Option<(Rig, String)> {
    let url = program("DSTACK_TEST_POSTGRES_URL", test)?;
    let url = url.to_str().expect("a URL is text");
    // Postgres cuts longer names.
    let name = &test[..test.len().min(60)];
    for statement in [format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), format!("CREATE DATABASE {name}")] {
        end(Command::new("psql").args([url, "-q", "-v", "ON_ERROR_STOP=1", "-c", &statement])).expect_status(0);
    }
    let (server, _) = url.rsplit_once('/').expect("the URL names a database");
    let url = format!("{server}/{name}");
    let rig = Rig::start_with(test, Setup { containers, variables: vec![("DSTACK_DATABASE_URL", url.clone())] })?;
    Some((rig, url))
}

#[test]
fn a_run_on_postgres_lives_through_a_crash_of_the_server() {
    let test = "a_run_on_postgres_lives_through_a_crash_of_the_server";
    let Some((mut rig, _)) = start(test, false) else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let go = rig.dir.join("go");
    let command = format!("echo first; until [ -e {} ]; do sleep 0.05; done; seq 1 5000", go.display());
    rig.apply("task.dstack.yml", &task("pg", 2, &command), &["-R", "-d"]);
    rig.wait_for_status("pg", "running");
    rig.kill_server();
    rig.write("go", "");
    rig.start_server();
    rig.wait_for_status("pg", "done");
    for node in [0, 1] {
        assert_eq!(String::from_utf8_lossy(&rig.log("pg", node)), format!("first\r\n{}", seq(5000)));
    }
    assert_eq!(rig.submissions("pg"), [1, 1]);

    rig.apply("long.dstack.yml", &task("long", 2, "sleep 3600"), &["-R", "-d"]);
    rig.wait_for_status("long", "running");
    rig.run(&["stop", "long", "-y"]).expect_status(0);
    rig.wait_for_status("long", "terminated");

    rig.run(&["delete", "-f", "task.dstack.yml", "-y"]).expect_status(0);
    rig.run(&["delete", "-f", "fleet.dstack.yml", "-y"]).expect_status(0);
    assert_eq!(rig.agents(), [], "no agent outlives its fleet");
    let sqlite = rig.dir.join("s/data/sqlite.db");
    assert!(!Path::new(&sqlite).exists(), "everything is in Postgres");
}
