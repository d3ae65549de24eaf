//! Programs of others against the simulator: boto3 for every action, moto beside it, and the official server.
//!
//! They are Python, in environments that `cargo xtask test` prepares; where none is named, a test leaves itself out.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests are tests")]

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ec2sim::{Kind, Options, Server, Settings, Simulator, serve};
use serde_json::Value;
use tokio::process::Command;

/// How long a program may take: none takes a fourth of it.
const PATIENCE: Duration = Duration::from_mins(4);

/// The program that a variable names, if it names one.
fn program(variable: &str, test: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("{test} is left out: {variable} is unset");
    }
    path
}

async fn start(settings: Settings) -> (Simulator, Server) {
    let simulator = Simulator::new(Options { settings, ..Options::default() });
    let server = serve(simulator.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    (simulator, server)
}

/// Runs one of the programs beside this file, expects it to end well, and answers what it printed.
async fn run(python: &Path, name: &str, args: &[&str]) -> String {
    let mut command = Command::new(python);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(name);
    command.arg(script).args(args).stdin(Stdio::null()).kill_on_drop(true);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("AWS_EC2_METADATA_DISABLED", "true");
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends in time").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{said}\n{complained}", output.status);
    said
}

fn model() -> String {
    format!("{}/data/model.json", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_shape_that_botocore_knows() {
    let test = "every_answer_has_the_shape_that_botocore_knows";
    let Some(python) = program("DSTACK_TEST_EC2_PYTHON", test) else { return };
    let (_simulator, server) = start(Settings::immediate()).await;
    let said = run(&python, "every_action.py", &[&server.url(), &model()]).await;
    assert_eq!(said.trim(), "65 actions answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_hold_what_moto_answers() {
    let test = "answers_hold_what_moto_answers";
    let Some(python) = program("DSTACK_TEST_EC2_PYTHON", test) else { return };
    let (_simulator, server) = start(Settings::immediate()).await;
    let said = run(&python, "beside_moto.py", &[&server.url()]).await;
    assert!(said.ends_with("actions compared\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_server_provisions_its_documented_fleet() {
    let test = "the_official_server_provisions_its_documented_fleet";
    let Some(dstack) = program("DSTACK_TEST_OFFICIAL_SERVER", test) else { return };
    let python = dstack.with_file_name("python");
    let (simulator, server) = start(Settings::immediate()).await;
    let folder = tempfile::tempdir().unwrap();
    let args = [&server.url(), dstack.to_str().unwrap(), folder.path().to_str().unwrap()];
    let said = run(&python, "official_server.py", &args).await;
    let seen: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    println!("{seen:#}");

    // Two machines in two calls, each with 32 interfaces, all in one group and one zone.
    assert_eq!(seen["made"]["instance"], 2);
    assert_eq!(seen["made"]["network-interface"], 64);
    let launches: Vec<_> = simulator.calls().into_iter().filter(|call| call.action == "RunInstances").collect();
    assert_eq!(launches.len(), 2);
    let groups: Vec<&str> =
        launches.iter().filter_map(|call| call.parameters["Placement"]["GroupName"].as_str()).collect();
    assert!(groups.len() == 2 && groups[0] == groups[1], "{groups:?}");
    // It gives all back but its security group.
    for kind in [Kind::Instance, Kind::NetworkInterface, Kind::Volume, Kind::PlacementGroup] {
        assert_eq!(simulator.count_alive(kind), 0, "{kind:?}");
    }
    assert_eq!(simulator.count_alive(Kind::SecurityGroup), 1);
    // It asks for the rule that a new group has already, and takes the refusal.
    let refused: Vec<_> = simulator.calls().into_iter().filter_map(|call| call.error).collect();
    assert!(
        refused.iter().all(|code| code.starts_with("InvalidPermission.") || code.ends_with(".InUse")),
        "{refused:?}"
    );
}
