//! `dstack-agent`: the program on every host that runs jobs.
//!
//! `host` keeps tasks and answers the server, `connect` joins stdio to the host agent's socket, `job`
//! supervises one job (as PID 1 of a container, or detached on the host), `discover` prints what a host has. Called
//! `ssh`, it is a client for the nodes of a gang.

mod beneath;
mod clock;
mod connect;
mod discover;
mod disk;
mod failpoint;
mod git;
mod host;
mod job;
mod log_files;
mod names;
mod own_process;
mod procs;
mod shell;
mod ssh_client;
mod sys;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::host::{DockerMode, HostOptions};

/// Runs jobs on a host for a dstack server.
#[derive(Debug, Parser)]
#[command(name = "dstack-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the tasks of this host and answer the server on a unix socket.
    Host(HostArgs),
    /// Join standard input and output to the host agent's socket.
    Connect {
        /// The host agent's socket.
        #[arg(long)]
        socket: PathBuf,
    },
    /// Supervise one job.
    Job {
        /// The task's run folder.
        #[arg(long)]
        dir: PathBuf,
        /// Return once the supervisor runs in a session of its own.
        #[arg(long)]
        detach: bool,
    },
    /// Answer SSH for one job; only its supervisor starts this.
    #[command(hide = true)]
    Ssh,
    /// Serve files to an SSH client; only a job's SSH server starts this.
    #[command(hide = true)]
    Sftp,
    /// Keep a job that people work in; only its supervisor starts this.
    #[command(hide = true)]
    Stay {
        /// What to print once the command has ended well.
        #[arg(long)]
        greeting: String,
        /// The command and its arguments, if there is one.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Clone a repository for one job; only its supervisor starts this.
    #[command(hide = true)]
    Clone,
    /// Write what a job enters its gang's nodes with; only its supervisor starts this.
    #[command(hide = true)]
    Peers,
    /// Remove the containers of a host agent that is gone for good, and the ways over the host to them.
    RemoveContainers {
        /// The agent's home.
        #[arg(long)]
        home: PathBuf,
        /// Also those of agents whose homes lay below this folder and are gone.
        #[arg(long)]
        homes_below: Option<PathBuf>,
    },
    /// Remove a network of containers, unless it is used.
    RemoveNetwork {
        /// The network's name.
        #[arg(long)]
        name: String,
    },
    /// Print what this machine has, as JSON.
    Discover,
    /// Print the names of all fail points, one a line.
    Failpoints,
}

#[derive(Debug, clap::Args)]
struct HostArgs {
    /// Where the agent keeps its state.
    #[arg(long)]
    home: PathBuf,
    /// The socket to listen on; by default `agent.sock` in the home.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The instance that the server knows this host as.
    #[arg(long)]
    instance_id: Option<api::ids::InstanceId>,
    /// The address that peers use for this host.
    #[arg(long)]
    address: Option<String>,
    /// The cloud whose machine this host is: `ec2`. Its metadata service is asked which machine that is, and whether it
    /// is taken back.
    #[arg(long, env = "DSTACK_AGENT_CLOUD")]
    cloud: Option<api::agent::Cloud>,
    /// How many of the machine's CPUs are this agent's.
    #[arg(long)]
    cpus: Option<u32>,
    /// How much of the machine's memory is this agent's, in bytes.
    #[arg(long)]
    memory_bytes: Option<u64>,
    /// Which of the machine's GPUs are this agent's: UUIDs, or `none`; by default all.
    #[arg(long)]
    gpus: Option<String>,
    /// Whether to use the machine's container engine.
    #[arg(long, value_enum, default_value = "auto")]
    docker: DockerMode,
    /// Exit after this many seconds without a task and without a connection.
    #[arg(long)]
    idle_exit_secs: Option<u64>,
    /// How many unacknowledged log bytes of one task may lie on the disk.
    #[arg(long, default_value_t = 1 << 30)]
    log_cap_bytes: u64,
}

/// Runs the program with the arguments of this process and answers its exit status.
pub fn main_from_args() -> ExitCode {
    // By the names of a client for SSH it is one.
    if let Some(arguments) = ssh_client::arguments(std::env::args_os()) {
        return ssh_client::run(&arguments);
    }
    match Cli::parse().command {
        Command::Host(args) => finish(host::run(host_options(args))),
        Command::Connect { socket } => finish(connect::run(&socket)),
        Command::Job { dir, detach } => job::run(&dir, detach),
        Command::Ssh => finish(job::run_ssh()),
        Command::Sftp => finish(job::run_sftp()),
        Command::Stay { greeting, command } => job::run_stay(&greeting, &command),
        Command::Clone => finish(git::run()),
        Command::Peers => finish(job::run_peers()),
        Command::RemoveContainers { home, homes_below } => {
            let removed = host::remove_containers(&home, homes_below.as_deref());
            finish(removed.and_then(|()| host::remove_ways(&home)))
        }
        Command::RemoveNetwork { name } => finish(host::remove_network(&name)),
        Command::Discover => finish(discover::run().map(|info| print(&info))),
        Command::Failpoints => {
            print(&failpoint::ALL.join("\n"));
            ExitCode::SUCCESS
        }
    }
}

fn host_options(args: HostArgs) -> HostOptions {
    let gpus = args.gpus.map(|list| match list.trim() {
        "" | "none" => Vec::new(),
        uuids => uuids.split(',').map(|uuid| uuid.trim().to_owned()).collect(),
    });
    HostOptions {
        socket: args.socket.unwrap_or_else(|| args.home.join("agent.sock")),
        home: args.home,
        instance_id: args.instance_id,
        address: args.address,
        cloud: args.cloud,
        roots: discover::Roots::from_env(),
        cpus: args.cpus,
        memory_bytes: args.memory_bytes,
        gpus,
        docker: args.docker,
        idle_exit: args.idle_exit_secs.map(std::time::Duration::from_secs),
        log_cap_bytes: args.log_cap_bytes,
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer goes to standard output")]
fn print(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "the program's last word goes to standard error")]
fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dstack-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
