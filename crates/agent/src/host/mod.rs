//! The host agent: keeps tasks on the disk and running, and answers the server on a unix socket.

mod authorized_keys;
mod blobs;
mod container;
mod decide;
mod entrance;
mod gpus;
mod heard;
mod http;
mod journal;
mod link;
mod log_reader;
mod metadata;
mod news;
mod process;
mod record;
mod runtime;
mod state;
mod steps;
mod streams;
mod task;
mod task_dir;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use api::agent::{Cloud, HostInfo};
use api::ids::JobId;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::disk::ShortPath;
pub(crate) use crate::host::container::Engine;
use crate::host::journal::Journal;
use crate::host::metadata::Metadata;
use crate::host::record::{Accepted, Record};
use crate::host::state::Host;
pub(crate) use crate::host::state::{DockerMode, HostOptions};
use crate::host::task_dir::TaskDir;
use crate::{discover, disk, failpoint};

/// What a stream and a connection may hold unread.
const WINDOW: u32 = 1 << 20;
/// What a stream may hold unsent, so that an order overtakes a flood.
const SEND_BUFFER: usize = 128 * 1024;
/// How often what nobody needs any more is looked for.
const TIDY_INTERVAL: Duration = Duration::from_hours(1);
/// How soon the removal of a forgotten task's container is tried again.
const FORGET_RETRY: Duration = Duration::from_secs(30);
/// How often a silent peer is asked whether it lives, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Removes the containers of an agent that is gone for good, and those that others like it have left behind: their
/// homes lay below `homes` and are gone. The error says that one of the first agent's may still run; of those that
/// are only left, standard error tells.
#[expect(clippy::print_stderr, reason = "whoever had the agent removed logs what is left")]
pub(crate) fn remove_containers(home: &Path, homes: Option<&Path>) -> anyhow::Result<()> {
    match ask_engine(container::remove_all(home, homes)) {
        // Nothing of it runs, so it holds nothing; it is removed with the next agent below `homes`.
        Err(error) if !container::may_live(home) => {
            eprintln!("dstack-agent: {error:#}");
            Ok(())
        }
        removed => removed,
    }
}

/// Takes away the ways over the host to the jobs of an agent that is gone for good.
pub(crate) fn remove_ways(home: &Path) -> anyhow::Result<()> {
    authorized_keys::remove_all(home).map_err(anyhow::Error::msg)
}

/// Removes a containers' network that nobody uses any more.
pub(crate) fn remove_network(name: &str) -> anyhow::Result<()> {
    ask_engine(container::remove_network(name))
}

fn ask_engine(asked: impl Future<Output = Result<(), String>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(asked).map_err(anyhow::Error::msg)
}

/// Runs the host agent until it is told to exit.
pub(crate) fn run(options: HostOptions) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DSTACK_AGENT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A line that cannot be written, on a full disk, is lost; complaining about it on the same disk would panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.log_internal_errors(false).init();
    let home = &options.home;
    disk::create_private_dir(home).with_context(|| format!("make the home `{}`", home.display()))?;
    let home = home.canonicalize()?;
    restrict(&home)?;
    let options = HostOptions { home: home.clone(), ..options };
    let Some(_lock) = disk::lock(&home.join("agent.lock"))? else {
        bail!("another agent already runs with the home `{}`", home.display());
    };
    failpoint::set_home(home);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(options));
    runtime.shutdown_background();
    result
}

/// Lets only the owner see the home. Jobs of other users may pass through to their own folder.
fn restrict(home: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(home)?.permissions().mode();
    std::fs::set_permissions(home, std::fs::Permissions::from_mode(mode & 0o711 | 0o700))
}

async fn serve(options: HostOptions) -> anyhow::Result<()> {
    // Whoever waits for this agent sees at once that it lives. The first answer comes when the machine is known, for
    // which its drivers may need minutes.
    let listener = listen(&options.socket)?;
    let roots = options.roots.clone();
    let machine = tokio::task::spawn_blocking(move || discover::machine(&roots));
    let mut metadata = options.cloud.map(|Cloud::Ec2| Metadata::from_env()).transpose()?;
    let cloud = match &mut metadata {
        Some(metadata) => metadata::first_look(metadata).await,
        None => None,
    };
    let host = Arc::new(Host::open(options, HostInfo { cloud, ..machine.await? })?);
    restore(&host).await?;
    info!("listening on `{}`", host.options.socket.display());
    let sweeping = host.clone();
    tokio::spawn(async move { container::remove_strangers(&sweeping).await });
    let hashing = host.clone();
    tokio::task::spawn_blocking(move || {
        hashing.binary_sha256();
    });
    tokio::spawn(tidy_up(host.clone()));
    tokio::spawn(news::keep_looking(host.clone()));
    if let Some(metadata) = metadata {
        tokio::spawn(metadata::follow(host.clone(), metadata));
    }
    tokio::spawn(authorized_keys::keep(host.clone()));
    let accepting = tokio::spawn(accept(host.clone(), listener));
    let reason = tokio::select! {
        reason = asked_to_exit(&host) => reason?,
        () = idle(&host) => "nothing to do",
        ended = accepting => bail!("the socket failed: {ended:?}"),
    };
    info!("exiting: {reason}");
    let _ = std::fs::remove_file(&host.options.socket);
    Ok(())
}

/// Removes what nobody needs any more, now and then.
async fn tidy_up(host: Arc<Host>) {
    loop {
        let tidied = host.clone();
        let tidying = tokio::task::spawn_blocking(move || {
            tidied.prune_tombstones();
            task_dir::remove_set_aside(&tidied.aside_dir());
            blobs::prune(&tidied, crate::clock::now().into());
        });
        // What fails now is tried again in an hour.
        let _ = tidying.await;
        tokio::time::sleep(TIDY_INTERVAL).await;
    }
}

/// Brings the tasks back that the journals tell of.
async fn restore(host: &Arc<Host>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(host.tasks_dir())? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok()) else {
            continue;
        };
        let dir = TaskDir::new(&host.tasks_dir(), id);
        // One broken folder must not keep the others from coming back.
        if let Err(error) = restore_task(host, &dir, id).await {
            error!(task.id = %id, "cannot restore the task: {error:#}");
            // The server is about to give it up, so it must not run on unseen. A container goes as a stranger.
            tokio::task::spawn_blocking(move || process::destroy(&dir, id, false)).await?;
        }
    }
    Ok(())
}

async fn restore_task(host: &Arc<Host>, dir: &TaskDir, id: JobId) -> anyhow::Result<()> {
    let (journal, lines) = Journal::open(&dir.journal())?;
    let Some(record) = Record::replay(&lines) else {
        // The server was never told that the task was accepted.
        drop(journal);
        return Ok(dir.remove()?);
    };
    if record.forgotten {
        drop(journal);
        return forget_again(host, dir, record.accepted).await;
    }
    info!(task.id = %id, "restored in phase {:?}", record.state.phase);
    if record.state.exit.is_none() {
        host.gpus.restore(id, &record.state.resolved.gpu_uuids);
    }
    host.task_or(id, || task::spawn_known(host, journal, record));
    Ok(())
}

/// Finishes what an agent before us had begun. An engine may take long to remove a container, and nobody waits for that.
async fn forget_again(host: &Arc<Host>, dir: &TaskDir, accepted: Accepted) -> anyhow::Result<()> {
    if !accepted.container {
        return Ok(task::finish_forgetting(host, dir, &accepted).await?);
    }
    host.bury(accepted.id, accepted.generation)?;
    let (host, dir) = (host.clone(), dir.clone());
    tokio::spawn(async move {
        while let Err(error) = task::finish_forgetting(&host, &dir, &accepted).await {
            warn!(task.id = %accepted.id, "cannot remove the task yet: {error}");
            tokio::time::sleep(FORGET_RETRY).await;
        }
    });
    Ok(())
}

/// Listens on a socket that only the owner may use.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    disk::create_private_dir(parent)?;
    let name = socket.file_name().and_then(|name| name.to_str()).context("a socket has a name")?;
    let short = ShortPath::new(parent, name)?;
    // The lock on the home says that nobody listens there any more.
    let _ = std::fs::remove_file(short.path());
    let listener =
        UnixListener::bind(short.path()).with_context(|| format!("listen on `{}`", socket.display()))?;
    std::fs::set_permissions(short.path(), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept(host: Arc<Host>, listener: UnixListener) {
    let router = http::router(host.clone());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (host, router) = (host.clone(), router.clone());
                host.connections.send_modify(|count| *count += 1);
                tokio::spawn(async move {
                    converse(stream, router).await;
                    host.connections.send_modify(|count| *count -= 1);
                });
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, router: axum::Router) {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(1024)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let service = TowerToHyperService::new(router);
    // A peer that goes away is no failure of ours.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn asked_to_exit(host: &Host) -> anyhow::Result<&'static str> {
    let mut shutdown = host.shutdown.subscribe();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok("SIGTERM"),
            _ = interrupt.recv() => return Ok("SIGINT"),
            // The agent outlives the session that started it.
            _ = hangup.recv() => {}
            _ = shutdown.wait_for(|asked| *asked) => {
                // The answer is still to leave.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Ok("the server asked for it");
            }
        }
    }
}

/// Comes back when nothing was to do for as long as the options say.
async fn idle(host: &Host) {
    let Some(limit) = host.options.idle_exit else {
        return std::future::pending().await;
    };
    let mut connections = host.connections.subscribe();
    let mut changes = host.changes.subscribe();
    loop {
        let is_idle = *connections.borrow_and_update() == 0 && !host.is_busy();
        changes.borrow_and_update();
        let is_over = tokio::select! {
            _ = connections.changed() => false,
            _ = changes.changed() => false,
            () = tokio::time::sleep(limit), if is_idle => true,
        };
        if is_over {
            return;
        }
    }
}
