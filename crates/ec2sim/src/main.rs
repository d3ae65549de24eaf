//! The program `dstack-ec2sim`: a simulated cloud at an address.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use ec2sim::{ACCESS_KEY, Options, SECRET_KEY, Settings, Simulator, serve};

/// A strict simulator of EC2 for tests and demonstrations.
#[derive(Debug, Parser)]
#[command(name = "dstack-ec2sim", version)]
struct Arguments {
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
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let settings = match &arguments.settings {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("read the settings in `{}`", path.display()))?
        }
        None if arguments.immediate => Settings::immediate(),
        None => Settings::default(),
    };
    let simulator = Simulator::new(Options { settings, seed: arguments.seed, ..Options::default() });
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
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
