//! The steps of a start up to the moment when requests can be answered.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::ids::ServerId;
use api::users::GlobalRole;
use backends::OpenContext;
use backends::fake::FakeCloud;
use store::server_lock::{self, ServerLock};
use store::users::UserRow;
use store::{Db, projects, server_state, users};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lock::DataLock;
use super::{ServerArgs, Surroundings, agent_binary, output};
use crate::accounts::{self, ADMIN_USER, MAIN_PROJECT, NewProject, NewUser};
use crate::agents::hosts::AgentProgram;
use crate::agents::{self, AgentPool};
use crate::backend_pool::BackendPool;
use crate::config::{self, ServerConfig};
use crate::deps::Deps;
use crate::logs::{LogLimits, LogStore};
use crate::private_files;
use crate::sealing::{Sealer, key_of, token_hash};
use crate::settings::Settings;
use crate::ssh_proxy::ProxyAddress;
use crate::wake::Wake;

/// How long a server that has just ended may hold the lock of the database: its connection must be noticed gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How often the lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// What the database keeps to know whether the keys fit: the names of all that ever sealed something in it.
const SEALING_KEYS: &str = "sealing_keys";

/// What earlier releases kept in its place: a text that the first key had sealed.
const SEALING_CHECK: &str = "sealing_check";

/// What the database keeps of the host keys of jobs: the secret of which they are made, sealed.
const JOB_SEED: &str = "job_seed";

/// How often the lock of the database is looked after.
const LOCK_LOOK: Duration = Duration::from_secs(5);

/// How long the database may take to answer such a look.
const LOCK_ANSWER: Duration = Duration::from_secs(30);

/// The places of the server's files.
#[derive(Debug)]
pub(super) struct Places {
    /// The configuration.
    pub(super) config: PathBuf,
    /// Everything else.
    pub(super) data: PathBuf,
}

impl Places {
    /// The places, with their folders made.
    pub(super) fn make(args: &ServerArgs, home: Option<&Path>) -> anyhow::Result<Places> {
        let folder = match (&args.server_dir, home) {
            (Some(folder), _) => folder.clone(),
            (None, Some(home)) => home.join(".dstack/server"),
            (None, None) => bail!("there is no home folder; set DSTACK_SERVER_DIR"),
        };
        let data = folder.join("data");
        private_files::create_folder(&data).with_context(|| format!("make the folder `{}`", data.display()))?;
        Ok(Places { config: folder.join("config.yml"), data })
    }
}

/// Opens the database and brings its schema up to this release.
pub(super) async fn open_database(args: &ServerArgs, data: &Path) -> anyhow::Result<(Db, Locks)> {
    // The folder has the logs and the key, whatever the database is.
    let mut files = vec![DataLock::take(data, &data.join("server.lock"))?];
    let url = args.database_url.as_deref().filter(|url| !url.is_empty());
    let db = if let Some(url) = url.filter(|url| url.starts_with("postgres")) {
        // The URL may hold a password, so that it is not told.
        Db::open_postgres(url).await.context("open the database at DSTACK_DATABASE_URL")?
    } else {
        let path = url.map_or_else(|| Ok(data.join("sqlite.db")), sqlite_path)?;
        // A server with another folder may be told the same file.
        let mut lock = path.clone().into_os_string();
        lock.push(".lock");
        files.push(DataLock::take(&path, Path::new(&lock))?);
        open_sqlite(&path).await?
    };
    let database = Arc::new(lock_database(&db).await?);
    if let Err(error) = store::migrate(&db).await {
        let hint = database_hint(&error.to_string());
        return Err(error).with_context(|| format!("bring the database up to this release{hint}"));
    }
    Ok((db, Locks { files, database }))
}

/// The file that a URL names: three slashes are a relative path and four an absolute one, as in the original.
fn sqlite_path(url: &str) -> anyhow::Result<PathBuf> {
    let path = url.split_once("://").filter(|(scheme, _)| scheme.starts_with("sqlite"));
    let (_, path) = path.context("DSTACK_DATABASE_URL begins with neither `postgres` nor `sqlite`")?;
    Ok(PathBuf::from(path.strip_prefix('/').unwrap_or(path)))
}

/// What may help against an engine's error, by its words: the engines have no common codes for these.
fn database_hint(error: &str) -> &'static str {
    if error.contains("previously applied") {
        return " (a newer dstack has written it; start that one)";
    }
    if error.contains("not a database") || error.contains("malformed") {
        return " (the file is damaged; put a copy of it in its place)";
    }
    ""
}

async fn lock_database(db: &Db) -> anyhow::Result<ServerLock> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let taken = server_lock::take(db).await.context("take the lock of the database")?;
        if let Some(lock) = taken {
            return Ok(lock);
        }
        if deadline <= Instant::now() {
            bail!("another dstack server uses the database at DSTACK_DATABASE_URL. Stop it first");
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

/// What keeps other servers away.
#[derive(Debug)]
pub(super) struct Locks {
    files: Vec<DataLock>,
    database: Arc<ServerLock>,
}

impl Locks {
    /// Ends the server when the database let go of its lock: another server may work on it from then on.
    pub(super) fn watch(&self, shutdown: &CancellationToken) {
        let (lock, shutdown) = (self.database.clone(), shutdown.clone());
        tokio::spawn(async move {
            while shutdown.run_until_cancelled(tokio::time::sleep(LOCK_LOOK)).await.is_some() {
                let lost = match tokio::time::timeout(LOCK_ANSWER, lock.look()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "it does not answer".to_owned(),
                };
                tracing::error!(
                    "the lock of the database is lost, so that another server may use it; this one ends: {lost}"
                );
                shutdown.cancel();
            }
        });
    }

    /// Lets the next server start at once.
    pub(super) async fn release(self) {
        if let Err(error) = self.database.release().await {
            tracing::debug!("the lock of the database ends with its connection: {error}");
        }
        drop(self.files);
    }
}

async fn open_sqlite(path: &Path) -> anyhow::Result<Db> {
    // Nobody else may read it; SQLite gives its other files the same mode.
    let made = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    made.with_context(|| format!("open the database `{}`", path.display()))?;
    Db::open_sqlite(path).await.with_context(|| format!("open the database `{}`", path.display()))
}

/// Opens the keys, and checks that they open what the database keeps.
pub(super) async fn open_sealer(
    db: &Db,
    config: &ServerConfig,
    data: &Path,
    ids: &crate::ids::Ids,
) -> anyhow::Result<Sealer> {
    let key_file = data.join("encryption.key");
    let mut sealer = Sealer::open(&config.encryption_keys(), &key_file, ids)?;
    check_keys(db, &sealer, &key_file).await?;
    let seed = job_seed(db, &sealer, ids).await?;
    sealer.set_job_seed(&seed);
    if sealer.is_plain() {
        tracing::warn!("secrets are kept unencrypted, because the first of `encryption.keys` is `identity`");
    }
    Ok(sealer)
}

/// The secret of which the host keys of jobs are made, made at the first start.
async fn job_seed(db: &Db, sealer: &Sealer, ids: &crate::ids::Ids) -> anyhow::Result<String> {
    if let Some(sealed) = server_state::get(db, JOB_SEED).await? {
        return sealer.unseal(&sealed).context("open the secret of the jobs' host keys");
    }
    let seed = hex::encode(ids.bytes::<32>());
    server_state::set(db, JOB_SEED, &sealer.seal(&seed)).await?;
    Ok(seed)
}

/// Checks that every key that ever sealed something is there, and remembers the one that seals from now on: which of
/// them sealed what is seen only when it is read, and then it is too late to say what is missing.
async fn check_keys(db: &Db, sealer: &Sealer, key_file: &Path) -> anyhow::Result<()> {
    let mut kept = server_state::get(db, SEALING_KEYS).await?.unwrap_or_default();
    if kept.is_empty() {
        let check = server_state::get(db, SEALING_CHECK).await?.unwrap_or_default();
        key_of(&check).unwrap_or_default().clone_into(&mut kept);
    }
    let mut used: Vec<&str> = kept.split_whitespace().collect();
    if let Some(missing) = used.iter().find(|id| !sealer.has_key(id)) {
        bail!(
            "the encryption keys do not open this database: it holds what the key {missing} has sealed. Put that key \
             back into `{}`, or into `encryption.keys` of config.yml; a key that seals nothing new may stand behind \
             the others",
            key_file.display()
        );
    }
    if !used.contains(&sealer.sealing_key()) {
        used.push(sealer.sealing_key());
        server_state::set(db, SEALING_KEYS, &used.join(" ")).await?;
    }
    Ok(())
}

/// What becomes the server's dependencies.
#[derive(Debug)]
pub(super) struct Ingredients<'a> {
    pub(super) args: &'a ServerArgs,
    pub(super) surroundings: Surroundings,
    pub(super) places: &'a Places,
    pub(super) config: &'a ServerConfig,
    pub(super) db: Db,
    pub(super) sealer: Sealer,
    pub(super) server_url: String,
    pub(super) ssh_proxy: Option<ProxyAddress>,
}

/// Counts this start, and builds everything that handlers and reconcilers are given.
pub(super) async fn build_deps(
    ingredients: Ingredients<'_>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Deps> {
    let Ingredients {
        args,
        surroundings: Surroundings { clock, ids, .. },
        places,
        config,
        db,
        sealer,
        server_url,
        ssh_proxy,
    } = ingredients;
    let server_id: ServerId = server_state::server_id(&db, ids.id()).await?;
    let epoch = server_state::next_epoch(&db).await?;
    tracing::debug!("start {epoch} of server {server_id}");
    let settings = settings(args, config, server_url, ssh_proxy);
    let sealer = Arc::new(sealer);
    let wake = Wake::default();
    let context = OpenContext {
        server_id,
        state_dir: places.data.join("backends"),
        agent_binary: settings.agent_binary.clone(),
        fake: args.test_backends.then(FakeCloud::default),
    };
    let job_bytes = if args.log_limit == 0 { u64::MAX } else { args.log_limit };
    let limits = LogLimits { job_bytes, ..LogLimits::default() };
    let logs = LogStore::open_within(places.data.join("logs"), limits).context("open the folder of logs")?;
    let logs = Arc::new(logs);
    let around = agents::Surroundings {
        db: db.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
        wake: wake.clone(),
        logs: logs.clone(),
        server_id,
        epoch,
        superseded: Arc::default(),
        agent_program: Arc::new(AgentProgram::new(settings.agent_binary.clone())),
    };
    let agents = Arc::new(AgentPool::new(around, shutdown.clone()));
    Ok(Deps {
        gangs: Arc::default(),
        server_id,
        backends: Arc::new(BackendPool::new(context, sealer.clone(), clock.clone())),
        db,
        clock,
        ids,
        wake,
        sealer,
        agents,
        logs,
        settings: Arc::new(settings),
        data_dir: places.data.clone(),
    })
}

fn settings(
    args: &ServerArgs,
    config: &ServerConfig,
    server_url: String,
    ssh_proxy: Option<ProxyAddress>,
) -> Settings {
    let default = Settings::default();
    let agent_binary = agent_binary::find(args.agent_binary.as_deref());
    if agent_binary.is_none() {
        tracing::warn!(
            "the program `dstack-agent` is neither beside `dstack` nor on the path, so that this machine runs no \
             jobs. Put it there, or set DSTACK_AGENT_BINARY"
        );
    }
    let told = args.agent_binary.clone();
    Settings {
        server_url,
        code_upload_limit_bytes: args.code_upload_limit,
        default_image: args.default_image.clone().unwrap_or(default.default_image),
        default_efa_image: args.default_efa_image.clone(),
        agent_binary: agent_binary.or(told).unwrap_or(default.agent_binary),
        log_retention_secs: Some(args.log_ttl_seconds).filter(|seconds| *seconds > 0),
        ssh_proxy,
        prometheus_metrics: args.prometheus_metrics,
        prometheus_token_hash: args.prometheus_token.as_deref().filter(|token| !token.is_empty()).map(token_hash),
        most_offers_tried: args.max_offers_tried,
        default_creds_disabled: args.default_creds_disabled,
        test_backends: args.test_backends,
        default_permissions: config.permissions(),
        ..Settings::default()
    }
}

/// The first user, made on the first start; a token that is told later changes nothing.
pub(super) async fn admin_user(deps: &Deps, token: Option<&str>) -> anyhow::Result<UserRow> {
    if let Some(admin) = users::find_by_name(&deps.db, ADMIN_USER).await? {
        return Ok(admin);
    }
    let new = NewUser {
        name: ADMIN_USER.to_owned(),
        role: GlobalRole::Admin,
        email: None,
        active: true,
        token: token.filter(|token| !token.is_empty()).map(str::to_owned),
    };
    Ok(accounts::create_user(deps, None, new).await?)
}

/// Writes the default `config.yml` of a server that has no `main` yet, and gives what it says.
///
/// It stands before the project does: a start that ends between leaves it to the next one to apply.
pub(super) async fn first_config(
    deps: &Deps,
    path: &Path,
    home: Option<&Path>,
) -> anyhow::Result<Option<ServerConfig>> {
    let shown = output::with_tilde(path, home);
    if projects::find_by_name(&deps.db, MAIN_PROJECT).await?.is_some() {
        // The default would take every backend but one from a project that may be at work.
        tracing::warn!("there is no {shown}: projects and their backends stay as the database has them");
        return Ok(None);
    }
    private_files::write(path, config::first_config().as_bytes()).with_context(|| format!("write `{shown}`"))?;
    output::say(&format!("Initialized the default configuration at {shown}"));
    config::read(path)
}

/// The first project, made where it is missing.
pub(super) async fn main_project(deps: &Deps, admin: &UserRow) -> anyhow::Result<()> {
    if projects::find_by_name(&deps.db, MAIN_PROJECT).await?.is_none() {
        accounts::create_project(deps, admin.id, NewProject::named(MAIN_PROJECT)).await?;
    }
    Ok(())
}

/// Applies `config.yml`.
pub(super) async fn apply_config(
    deps: &Deps,
    config: &ServerConfig,
    path: &Path,
    home: Option<&Path>,
    admin: &UserRow,
) -> anyhow::Result<()> {
    let shown = output::with_tilde(path, home);
    output::say(&format!("Applying {shown}..."));
    config::apply(deps, config, admin.id).await.with_context(|| format!("apply `{shown}`"))
}
