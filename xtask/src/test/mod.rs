//! Every check of the project in one command, and whatever its tests need beside cargo.
//!
//! Tests that need a database, an engine for containers, an SSH server or the official client find them in
//! `DSTACK_TEST_*` variables and leave themselves out where one is unset. This chore sets all of them, says loudly
//! what it could not prepare, and takes that for a failure where `CI` is set.

mod count;
pub(crate) mod docker;
mod ec2_clients;
pub(crate) mod ec2_hosts;
mod hosts;
mod images;
mod official_client;
mod openssh;
mod packages;
mod postgres;

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::sandbox::Sandbox;
use crate::{shell, tidy, workspace};
use count::Count;

/// From what the tests of properties make their cases.
const PROPERTY_SEED: &str = "PROPTEST_RNG_SEED";

/// What to check.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run these steps only.
    #[arg(long, value_enum)]
    only: Vec<Step>,
    /// Prepare nothing; tests that need more than cargo leave themselves out.
    #[arg(long)]
    bare: bool,
    /// Prepare all, and run this shell command with the variables set instead of the tests.
    #[arg(long, conflicts_with_all = ["only", "bare"])]
    run: Option<String>,
    /// Arguments for the test runner, for instance the name of a test.
    #[arg(last = true)]
    args: Vec<String>,
}

/// A step of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// The format of the code.
    Fmt,
    /// The layout of the code.
    Tidy,
    /// The lints, all of them errors.
    Clippy,
    /// Tests inside of crates, which need nothing.
    Unit,
    /// Every test.
    All,
}

/// Variables for the tests, and what could not be prepared.
#[derive(Debug, Default)]
struct Prepared {
    variables: Vec<(&'static str, String)>,
    missing: Vec<String>,
}

impl Prepared {
    /// Keeps what was prepared, or why it was not.
    fn add(&mut self, what: &str, result: Result<Vec<(&'static str, String)>>) {
        match result {
            Ok(variables) => {
                println!("{what}: ready");
                self.variables.extend(variables);
            }
            Err(error) => {
                eprintln!("\nSKIPPED: {what}: {error:#}\n");
                self.missing.push(what.to_owned());
            }
        }
    }
}

/// Runs the checks and ends with one line about all of them.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(command) = &options.run {
        return run_prepared(command);
    }
    let started = Instant::now();
    let steps = match options.only.as_slice() {
        [] => vec![Step::Fmt, Step::Tidy, Step::Clippy, Step::All],
        only => only.to_vec(),
    };
    let mut count = Count::default();
    let mut problems = Vec::new();
    for step in steps {
        println!(
            "\n== {}",
            step.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
        );
        match take(step, options) {
            Ok(outcome) => {
                count += outcome.count;
                problems.extend(outcome.problems);
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    let secs = started.elapsed().as_secs();
    println!("\n{count} in {secs} s");
    for problem in &problems {
        eprintln!("problem: {problem}");
    }
    if !problems.is_empty() {
        bail!("the check FAILED");
    }
    println!("the check PASSED");
    Ok(())
}

/// What a step came to.
#[derive(Debug, Default)]
struct Outcome {
    count: Count,
    problems: Vec<String>,
}

fn take(step: Step, options: &Options) -> Result<Outcome> {
    match step {
        Step::Fmt => shell::run(&mut workspace::cargo(&["fmt", "--all", "--check"]))?,
        Step::Tidy => tidy::run()?,
        Step::Clippy => {
            let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
            shell::run(&mut workspace::cargo(&args))?;
        }
        Step::Unit => return run_tests(&["--workspace", "--lib", "--bins"], &Prepared::default(), options),
        Step::All => return everything(options),
    }
    Ok(Outcome::default())
}

/// Runs one command as the tests would be run.
fn run_prepared(command: &str) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut prepared = Prepared::default();
    prepare(&sandbox, &mut prepared);
    shell::run(sandbox.command("sh").args(["-c", command]).envs(prepared.variables))
}

/// Every test, with all that the tests may need.
fn everything(options: &Options) -> Result<Outcome> {
    let sandbox = Sandbox::new()?;
    let mut prepared = Prepared::default();
    // What tests leave running ends with the sandbox too.
    prepared.variables.push(sandbox.mark());
    if !options.bare {
        prepare(&sandbox, &mut prepared);
    }
    let mut outcome = run_tests(&["--workspace"], &prepared, options)?;
    // Where nobody reads what was skipped, skipping is failing.
    if env::var_os("CI").is_some_and(|ci| ci == "true") {
        outcome.problems.extend(prepared.missing.iter().map(|what| format!("not prepared: {what}")));
    } else {
        for what in &prepared.missing {
            eprintln!("SKIPPED: tests that need {what}");
        }
    }
    Ok(outcome)
}

fn prepare(sandbox: &Sandbox, prepared: &mut Prepared) {
    let path = |path: PathBuf| path.display().to_string();
    prepared.add("PostgreSQL", postgres::prepare(sandbox));
    prepared.add("Docker", docker::prepare(sandbox));
    prepared.add("the hosts", hosts::prepare(sandbox));
    prepared.add("hosts of EC2", ec2_hosts::prepare(sandbox));
    prepared.add("the official client", official_client::prepare());
    prepared.add("OpenSSH", openssh::prepare());
    prepared.add("clients of EC2", ec2_clients::prepare());
    let programs = workspace::build_workspace();
    prepared.add(
        "the programs",
        programs.map(|programs| {
            vec![("DSTACK_TEST_DSTACK", path(programs.dstack)), ("DSTACK_TEST_AGENT", path(programs.agent))]
        }),
    );
    let simulator = workspace::program("dstack-ec2sim", workspace::Profile::Dev);
    prepared.add("the simulated EC2", simulator.map(|program| vec![("DSTACK_TEST_EC2SIM", path(program))]));
    let agent = workspace::build_static_agent(workspace::Profile::Dev);
    prepared.add("the static agent", agent.map(|agent| vec![("DSTACK_TEST_AGENT_STATIC", path(agent))]));
}

/// Runs tests with the better runner if it is there.
fn run_tests(what: &[&str], prepared: &Prepared, options: &Options) -> Result<Outcome> {
    let has_nextest = shell::succeeds(&mut workspace::cargo(&["nextest", "--version"]));
    let mut runs = Vec::new();
    if has_nextest {
        runs.push(workspace::cargo(&["nextest", "run", "--no-fail-fast"]));
        runs.push(workspace::cargo(&["test", "--no-fail-fast", "--doc"]));
        // Only libraries have examples in their documentation.
        runs[0].args(what);
        runs[1].arg("--workspace");
    } else {
        runs.push(workspace::cargo(&["test", "--no-fail-fast"]));
        runs[0].args(what);
    }
    if !options.args.is_empty() {
        runs.truncate(1);
        runs[0].arg("--").args(&options.args);
    }
    let mut outcome = Outcome::default();
    for mut run in runs {
        // The same cases each time: a change is judged by what it changes. Other seeds are tried by setting one.
        if env::var_os(PROPERTY_SEED).is_none() {
            run.env(PROPERTY_SEED, "1");
        }
        run.envs(prepared.variables.iter().map(|(name, value)| (*name, value)));
        outcome.count += count_tests(&mut run, &mut outcome.problems)?;
    }
    Ok(outcome)
}

fn count_tests(run: &mut Command, problems: &mut Vec<String>) -> Result<Count> {
    let line = shell::describe(run);
    let (status, count) = count::run(run)?;
    if !status.success() {
        problems.push(format!("`{line}` failed: {status}"));
    }
    Ok(count)
}
