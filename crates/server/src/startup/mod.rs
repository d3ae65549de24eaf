//! Starts the server: folders, database, keys, first user and project, configuration, reconcilers, HTTP.

mod agent_binary;
mod args;
mod lock;
mod open_files;
mod output;
mod prepare;
mod serve;

pub use args::ServerArgs;
pub use serve::Server;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::ids::Ids;

/// Where a server starts, beside what it was told.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The home of the user who starts it, with the CLI's configuration.
    pub home: Option<PathBuf>,
    /// The clock.
    pub clock: Clock,
    /// Identifiers and other chance.
    pub ids: Ids,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Surroundings {
        Surroundings { home: std::env::home_dir(), clock: Clock::System, ids: Ids::Random }
    }
}

/// What `dstack server` takes.
pub fn command() -> clap::Command {
    ServerArgs::command()
}

/// Runs `dstack server` with the arguments that follow these words, until it is told to end.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = ServerArgs::parse_from(std::iter::once(OsString::from("dstack server")).chain(args));
    output::start_log(&args.log_level, args.debug);
    open_files::raise_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(&anyhow::Error::new(error).context("start the runtime")),
    };
    let ended = runtime.block_on(run(&args));
    // What still blocks must not keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::fail(&error),
    }
}

/// Runs a server until SIGINT or SIGTERM. Jobs keep running without it.
pub async fn run(args: &ServerArgs) -> anyhow::Result<()> {
    let server = Server::start(args, Surroundings::of_process()).await?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = server.ended() => Err(anyhow::anyhow!("the server has ended by itself; its log says why")),
    };
    tokio::select! {
        () = server.stop() => {}
        // Whoever asks twice does not want to wait.
        _ = interrupt.recv() => {}
    }
    ended
}
