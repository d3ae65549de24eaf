//! A server that runs.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::prepare::{self, Ingredients, Locks, Places};
use super::{ServerArgs, Surroundings, output};
use crate::config::{self, ServerConfig};
use crate::deps::Deps;
use crate::http::{SERVER_VERSION, router};
use crate::reconcile;
use crate::ssh_proxy::{self, ProxyAddress};

/// How long requests that are being answered may take once the server is told to end.
const LAST_ANSWERS: Duration = Duration::from_secs(3);

/// How long everything else may take then.
const LAST_STEPS: Duration = Duration::from_secs(2);

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// What its handlers and reconcilers work with.
    pub deps: Deps,
    /// Where it listens.
    pub address: SocketAddr,
    /// The token of the user `admin`.
    admin_token: String,
    shutdown: CancellationToken,
    http: JoinHandle<()>,
    reconcilers: Vec<JoinHandle<()>>,
    locks: Locks,
}

impl Server {
    /// Starts a server. When this returns, it answers.
    pub async fn start(args: &ServerArgs, surroundings: Surroundings) -> anyhow::Result<Server> {
        let home = surroundings.home.clone();
        let home = home.as_deref();
        let places = Places::make(args, home)?;
        let read = if args.config_disabled { None } else { config::read(&places.config)? };
        let no_config = ServerConfig::default();
        let config = read.as_ref().unwrap_or(&no_config);
        if !args.test_backends {
            config.refuse_test_backends()?;
        }
        let listener = listen(args).await?;
        let address = listener.local_addr()?;
        let server_url = args.url(address.port());
        let (ssh_proxy, proxy_listener) = listen_for_ssh(args).await?.unzip();
        let (db, locks) = prepare::open_database(args, &places.data).await?;
        let sealer = prepare::open_sealer(&db, config, &places.data, &surroundings.ids).await?;
        let ingredients = Ingredients {
            args,
            surroundings,
            places: &places,
            config,
            db,
            sealer,
            server_url: server_url.clone(),
            ssh_proxy: ssh_proxy.clone(),
        };
        let shutdown = CancellationToken::new();
        let deps = prepare::build_deps(ingredients, &shutdown).await?;
        let admin = prepare::admin_user(&deps, args.token.as_deref()).await?;
        let wanted = match read {
            None if !args.config_disabled => prepare::first_config(&deps, &places.config, home).await?,
            read => read,
        };
        prepare::main_project(&deps, &admin).await?;
        if let Some(wanted) = wanted {
            prepare::apply_config(&deps, &wanted, &places.config, home, &admin).await?;
        }
        let admin_token = deps.sealer.unseal(&admin.sealed_token)?;
        update_cli_config(args, home, &server_url, &admin_token).await;
        reconcile::touch_all(&deps).await?;
        let reconcilers = reconcile::start(&deps, &shutdown);
        locks.watch(&shutdown);
        if let (Some(address), Some(listener)) = (ssh_proxy, proxy_listener) {
            let line = ssh_proxy::known_hosts_line(&deps.sealer, &address);
            tokio::spawn(ssh_proxy::serve(deps.clone(), listener, shutdown.clone()));
            output::say(&format!("The SSH proxy shows the key {line}"));
        }
        tokio::spawn(crate::accounts::check_backends(deps.clone()));
        let http = tokio::spawn(serve(listener, deps.clone(), shutdown.clone()));
        output::say(&format!("The admin token is {admin_token}"));
        output::say(&format!("The dstack server {SERVER_VERSION} is running at {server_url}"));
        Ok(Server { deps, address, admin_token, shutdown, http, reconcilers, locks })
    }

    /// The token of the user `admin`, as it is when the server starts.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// Waits until the server takes no more requests. Some may still be answered: [`Server::stop`] gives them their
    /// last moment.
    pub async fn ended(&self) {
        self.shutdown.cancelled().await;
    }

    /// Ends the server. What it started elsewhere goes on.
    pub async fn stop(self) {
        self.shutdown.cancel();
        // Streams are told to end, but a client that does not read could keep them.
        if tokio::time::timeout(LAST_ANSWERS, self.http).await.is_err() {
            tracing::warn!("some requests were cut off");
        }
        let rest = async {
            for reconciler in self.reconcilers {
                _ = reconciler.await;
            }
            self.deps.db.close().await;
            self.locks.release().await;
        };
        if tokio::time::timeout(LAST_STEPS, rest).await.is_err() {
            tracing::warn!("some reconcilers were cut off; the next start takes up where they were");
        }
    }
}

async fn listen(args: &ServerArgs) -> anyhow::Result<TcpListener> {
    let (host, port) = (args.host.as_str(), args.port);
    match TcpListener::bind((host, port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "port {port} of {host} is in use. Stop the program that uses it, or choose another one with `--port`"
        ),
        Err(error) => Err(error).with_context(|| format!("listen on {host}:{port}")),
    }
}

/// Where users reach the SSH proxy, and what it listens with; none if there is to be none.
async fn listen_for_ssh(args: &ServerArgs) -> anyhow::Result<Option<(ProxyAddress, TcpListener)>> {
    let Some((address, listen)) = args.ssh_proxy()? else {
        if args.ssh_proxy_enforced {
            tracing::warn!(
                "DSTACK_SERVER_SSHPROXY_ENFORCED changes nothing without DSTACK_SERVER_SSHPROXY_ADDRESS"
            );
        }
        return Ok(None);
    };
    let listener = TcpListener::bind(&listen).await.with_context(|| {
        format!("let the SSH proxy listen on {listen}; DSTACK_SERVER_SSHPROXY_LISTEN=HOST:PORT chooses where")
    })?;
    Ok(Some((address, listener)))
}

async fn serve(listener: TcpListener, deps: Deps, shutdown: CancellationToken) {
    let listener = listener.tap_io(|stream| {
        // Answers are small; waiting for more of them would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("cannot set TCP_NODELAY: {error}");
        }
    });
    let told_to_end = shutdown.clone().cancelled_owned();
    let served = axum::serve(listener, router(deps)).with_graceful_shutdown(told_to_end).await;
    if let Err(error) = served {
        tracing::error!("the server stopped serving: {error}");
    }
    // A server that answers nobody does not go on behind closed doors.
    shutdown.cancel();
}

async fn update_cli_config(args: &ServerArgs, home: Option<&Path>, url: &str, token: &str) {
    let Some(home) = home else { return };
    let path = home.join(".dstack/config.yml");
    let shown = output::with_tilde(&path, Some(home));
    let question = args.question();
    let (url, token) = (url.to_owned(), token.to_owned());
    let asked = format!("Update the main project in {shown}?");
    // The question waits for somebody to type.
    let updated = tokio::task::spawn_blocking(move || {
        config::update_cli_config(&path, &url, &token, question, || output::ask(&asked))
    });
    match updated.await {
        Ok(Ok(true)) => output::say(&format!("Configured the main project in {shown}")),
        Ok(Ok(false)) => {}
        Ok(Err(error)) => tracing::warn!("{shown} stays as it is: {error:#}"),
        Err(error) => tracing::warn!("{shown} stays as it is: {error}"),
    }
}
