//! The program `dstack`: the command line, and the server behind `dstack server`.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The server has a runtime, a log and flags of its own; nothing of the command line is made for it.
    let is_server = args.get(1).is_some_and(|command| command == "server");
    if is_server {
        server::startup::main(args.into_iter().skip(2))
    } else {
        cli::run(args, server::startup::command)
    }
}
