//! The program `dstack-ec2sim`: a simulated cloud at an address.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, Subcommand, ValueEnum};
use ec2sim::{ACCESS_KEY, ContainerHosts, HostOptions, Options, SECRET_KEY, Settings, Simulator, serve};
use tokio::signal::unix::{SignalKind, signal};

/// A strict simulator of EC2 for tests and demonstrations.
#[derive(Debug, Parser)]
#[command(name = "dstack-ec2sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Inside>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:5100")]
    listen: SocketAddr,
    /// From what all chance comes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A JSON file with settings, as `GET /_ec2sim/settings` shows them; what it does not name stays as it is.
    #[arg(long)]
    settings: Option<PathBuf>,
    /// Lets everything happen at once: no boot, no shutdown, nothing seen late.
    #[arg(long, conflicts_with = "settings")]
    immediate: bool,
    /// Where to write the endpoint once it answers.
    #[arg(long)]
    url_file: Option<PathBuf>,
    /// The addresses of each region's default VPC, a block of /16.
    #[arg(long)]
    default_vpc_cidr: Option<String>,
    /// The addresses of each region's `my-vpc`, a block of /16.
    #[arg(long)]
    my_vpc_cidr: Option<String>,
    /// Who plays the machines.
    #[arg(long, value_enum, default_value_t = Hosts::None)]
    hosts: Hosts,
    /// The image that hosts boot.
    #[arg(long, default_value = "dstack-ec2-host:latest")]
    host_image: String,
    /// The most hosts at once.
    #[arg(long, default_value_t = 16)]
    max_hosts: usize,
}

/// Who plays the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hosts {
    /// Nobody: they boot and end by the clock.
    None,
    /// Each is a container of Docker.
    Containers,
}

/// What the program does where it is not the cloud.
#[derive(Debug, Subcommand)]
enum Inside {
    /// Serve a host's metadata.
    #[command(hide = true)]
    HostMetadata {
        /// What to tell.
        #[arg(long)]
        file: PathBuf,
        /// Where to listen.
        #[arg(long, default_value = "169.254.169.254:80")]
        listen: SocketAddr,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    if let Some(Inside::HostMetadata { file, listen }) = arguments.command {
        return ec2sim::metadata_service(file, listen).await;
    }
    let settings = read_settings(&arguments)?;
    let mut interrupted = signal(SignalKind::interrupt()).context("listen to signals")?;
    let mut told_to_end = signal(SignalKind::terminate()).context("listen to signals")?;
    let options = Options { settings, seed: arguments.seed, ..Options::default() };
    let hosts = match arguments.hosts {
        Hosts::None => None,
        Hosts::Containers => Some(start_hosts(&arguments).await?),
    };
    let simulator = match &hosts {
        None => Simulator::new(options),
        Some(hosts) => {
            let simulator = Simulator::with_machines(options, hosts.clone());
            hosts.report_to(simulator.clone());
            simulator
        }
    };
    let server = serve(simulator, arguments.listen).await?;
    tracing::info!("endpoint {}, access key {ACCESS_KEY}, secret key {SECRET_KEY}", server.url());
    if let Some(path) = &arguments.url_file {
        // Whoever waits for the file must not find half of it.
        let draft = path.with_extension("draft");
        fs::write(&draft, server.url()).with_context(|| format!("write `{}`", draft.display()))?;
        fs::rename(&draft, path).with_context(|| format!("write `{}`", path.display()))?;
    }
    tokio::select! {
        () = server.wait() => {}
        _ = interrupted.recv() => {}
        _ = told_to_end.recv() => {}
    }
    match hosts {
        Some(hosts) => hosts.close().await,
        None => Ok(()),
    }
}

fn read_settings(arguments: &Arguments) -> Result<Settings> {
    let mut settings = match &arguments.settings {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("read the settings in `{}`", path.display()))?
        }
        None if arguments.immediate => Settings::immediate(),
        None => Settings::default(),
    };
    if let Some(cidr) = &arguments.default_vpc_cidr {
        settings.default_vpc_cidr.clone_from(cidr);
    }
    if let Some(cidr) = &arguments.my_vpc_cidr {
        settings.my_vpc_cidr.clone_from(cidr);
    }
    settings.check().map_err(|error| anyhow!("the settings: {error}"))?;
    Ok(settings)
}

async fn start_hosts(arguments: &Arguments) -> Result<Arc<ContainerHosts>> {
    let program = env::current_exe().context("ask where this program is")?;
    let image = arguments.host_image.clone();
    ContainerHosts::start(HostOptions { image, program, max_hosts: arguments.max_hosts }).await
}
