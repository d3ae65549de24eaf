//! The backends of projects, opened from their rows and kept until their configuration changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::ids::{BackendId, ProjectId};
use backends::{Backend, BackendConfig, BackendOffer, Machine, OffersWanted, OpenContext, Survey};
use jiff::SignedDuration;
use store::Db;
use store::backends::BackendRow;

use crate::backend_answers::{Answers, Fresh};
use crate::backend_troubles::{Trouble, Troubles};
use crate::clock::Clock;
use crate::sealing::Sealer;

/// How long a listing may be used again for machines that come and go: many of one backend are looked at together.
pub const MOVING: SignedDuration = SignedDuration::from_millis(500);

/// How long a listing may be used again for machines whose agents answer: ten thousand of them must not be listed all the
/// time.
pub const STEADY: SignedDuration = SignedDuration::from_secs(10);

/// How long offers may be used again: a fleet is often decided about again before it can buy.
const OFFERS_MAX_AGE: SignedDuration = SignedDuration::from_secs(5);

/// How long a backend may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// A backend and the sealed configuration that it was opened with.
type Opened = (String, Arc<dyn Backend>);

/// Opened backends by row.
pub struct BackendPool {
    context: OpenContext,
    sealer: Arc<Sealer>,
    opened: Mutex<HashMap<BackendId, Opened>>,
    listings: Answers<BackendId, Arc<Survey<Machine>>>,
    /// By backend, and what was wanted.
    offers: Answers<(BackendId, OffersWanted), Arc<Survey<BackendOffer>>>,
    troubles: Troubles,
}

impl std::fmt::Debug for BackendPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendPool").finish_non_exhaustive()
    }
}

/// A backend of a project, ready to be asked.
#[derive(Debug, Clone)]
pub struct OpenBackend {
    /// Its row.
    pub id: BackendId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its kind.
    pub kind: String,
    /// It is leaving: nothing new is bought from it.
    pub draining: bool,
    /// The backend.
    pub backend: Arc<dyn Backend>,
}

impl BackendPool {
    /// A pool that opens backends with `context`.
    pub fn new(context: OpenContext, sealer: Arc<Sealer>, clock: Clock) -> BackendPool {
        let listings = Answers::new(clock.clone(), STEADY);
        let offers = Answers::new(clock.clone(), OFFERS_MAX_AGE);
        let troubles = Troubles::new(clock);
        BackendPool { context, sealer, opened: Mutex::default(), listings, offers, troubles }
    }

    /// The pretended cloud, where there is one.
    pub fn fake(&self) -> Option<&backends::fake::FakeCloud> {
        self.context.fake.as_ref()
    }

    /// A project's backends, opened; those that cannot be opened are named in the log and left out.
    pub async fn of_project(&self, db: &Db, project: ProjectId) -> store::Result<Vec<OpenBackend>> {
        let rows = store::backends::list(db, project).await?;
        Ok(rows.iter().filter_map(|row| self.open(row)).collect())
    }

    /// One backend by its row, also while it is leaving.
    pub async fn get(&self, db: &Db, id: BackendId) -> store::Result<Option<OpenBackend>> {
        let row = store::backends::get(db, id).await?;
        Ok(row.as_ref().and_then(|row| self.open(row)))
    }

    fn open(&self, row: &BackendRow) -> Option<OpenBackend> {
        let backend = match self.open_backend(row) {
            Ok(backend) => backend,
            Err(error) => {
                tracing::warn!(backend.id = %row.id, "cannot open the backend `{}`: {error}", row.kind);
                return None;
            }
        };
        let (kind, draining) = (row.kind.clone(), row.draining);
        Some(OpenBackend { id: row.id, project_id: row.project_id, kind, draining, backend })
    }

    fn open_backend(&self, row: &BackendRow) -> anyhow::Result<Arc<dyn Backend>> {
        let mut opened = self.opened.lock().expect("nobody panics while opening a backend");
        if let Some((sealed_config, backend)) = opened.get(&row.id)
            && *sealed_config == row.sealed_config
        {
            return Ok(backend.clone());
        }
        let config = serde_json::from_str(&self.sealer.unseal(&row.sealed_config)?)?;
        // It was checked when it was taken, by the rules of that time.
        let config = BackendConfig { kind: row.kind.clone(), config };
        let backend = backends::open(&config, &self.context, row.id)?;
        opened.insert(row.id, (row.sealed_config.clone(), backend.clone()));
        Ok(backend)
    }

    /// Whether a backend can be used as it is configured, or what is missing.
    pub async fn check(&self, config: &BackendConfig, id: BackendId) -> backends::Result<()> {
        let backend = backends::open(config, &self.context, id)?;
        answer(backend.check()).await
    }

    /// What a backend lists, as fresh as is wanted; none if it does not answer.
    pub async fn machines(&self, open: &OpenBackend, fresh: Fresh) -> Option<Arc<Survey<Machine>>> {
        let ask = async {
            let survey = open.backend.list().await?;
            self.troubles.answered(open.id, &open.kind, &survey.silent);
            Ok(Arc::new(survey))
        };
        let tell = |error: &backends::Error| {
            self.troubles.failed(open.id, &open.kind, error);
            tracing::warn!(backend.id = %open.id, "cannot list the machines of `{}`: {error}", open.kind);
        };
        self.listings.get_telling(&open.id, fresh, ANSWER_TIMEOUT, ask, tell).await.ok()
    }

    /// Why a backend, or a region of it, cannot be asked, if so.
    pub fn troubles(&self, id: BackendId) -> Vec<Trouble> {
        self.troubles.of(id)
    }

    /// What a backend would sell, not older than some seconds, or why it does not say so within `patience`.
    pub async fn offers(
        &self,
        open: &OpenBackend,
        wanted: &OffersWanted,
        patience: Duration,
    ) -> backends::Result<Arc<Survey<BackendOffer>>> {
        let ask = async { open.backend.offers(wanted).await.map(Arc::new) };
        self.offers.get(&(open.id, wanted.clone()), patience, ask).await
    }

    /// Forgets what a backend answered, because something was just changed.
    pub fn changed(&self, id: BackendId) {
        self.listings.forget(|backend| *backend == id);
        self.freed(id);
    }

    /// Forgets what a backend would sell, because a machine is gone and what it held may be sold again.
    pub fn freed(&self, id: BackendId) {
        self.offers.forget(|(backend, ..)| *backend == id);
    }
}

/// Waits for a backend's answer, but not for ever.
pub async fn answer<T>(verb: impl Future<Output = backends::Result<T>>) -> backends::Result<T> {
    tokio::time::timeout(ANSWER_TIMEOUT, verb).await.unwrap_or_else(|_| {
        let message = format!("the backend has not answered for {} s", ANSWER_TIMEOUT.as_secs());
        Err(backends::Error::new(backends::ErrorKind::Unavailable, message))
    })
}
