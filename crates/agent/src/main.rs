//! The program `dstack-agent`; everything is in the library, so that tests can reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent::main_from_args()
}
