//! The project's chores: `cargo xtask demo`, `lab`, `test`, `bench`, `tidy` and `dist`.
//!
//! Few dependencies, so that it builds in seconds: everything heavy is another program that it starts.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a chore talks to the person who runs it")]
#![expect(clippy::disallowed_methods, reason = "chores drive real programs in real time")]

mod bench;
mod cloud;
mod demo;
mod dist;
mod dstack;
mod http;
mod lab;
mod sandbox;
mod shell;
mod test;
mod tidy;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Show a distributed task on this machine: server, fleet, two nodes, one result.
    Demo,
    /// Show a task on two machines with EFA of a simulated EC2: cloud, server, fleet, two nodes, nothing left.
    Lab,
    /// Check everything: format, lints, layout and every test.
    Test(test::Options),
    /// Check the layout of the code and what its documents promise.
    Tidy,
    /// Measure the release build and print tables.
    Bench(bench::Options),
    /// Make the programs to hand out, in `dist/`.
    Dist,
    /// Wait until standard input closes, then end what a chore left behind.
    #[command(hide = true)]
    CleanUp {
        /// The chore's private directory.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Demo => demo::run(),
        Chore::Lab => lab::run(),
        Chore::Test(options) => test::run(&options),
        Chore::Tidy => tidy::run(),
        Chore::Bench(options) => bench::run(&options),
        Chore::Dist => dist::run(),
        Chore::CleanUp { dir } => sandbox::clean_up_when_told(&dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
