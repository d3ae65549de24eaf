//! Runs seeds: many at the same time, one again, or until a planted mistake is caught.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lifecycle::planted::{Bug, plant};
use store::{Db, Executor};

use crate::trace::Marks;
use crate::world::{Verdict, World};

/// How many seeds are run unless `SIM_SEEDS` says otherwise.
const SEEDS: u64 = 100;

/// Within how many seeds a planted mistake must be caught.
const SEEDS_TO_CATCH: u64 = 100;

/// How a seed ended.
pub(crate) struct Story {
    pub(crate) verdict: Verdict,
    pub(crate) hash: u64,
    pub(crate) marks: Marks,
    pub(crate) tail: String,
}

/// The seed that is to be had again, if any.
pub(crate) fn replayed() -> Option<u64> {
    number("SIM_SEED")
}

pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// One seed on a database in memory.
pub(crate) fn run_seed(seed: u64) -> Story {
    on_a_thread_of_its_own(|| async {
        let db = Db::open_memory().await.unwrap();
        live(seed, db).await
    })
}

/// A runtime without anything else on it: what is spawned by the database's pool is all that it runs.
fn on_a_thread_of_its_own<F: Future<Output = Story>>(story: impl FnOnce() -> F) -> Story {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(story())
}

/// One seed on Postgres, in a schema of its own that is dropped when all went well.
pub(crate) fn run_seed_on_postgres(url: &str, seed: u64) -> Story {
    on_a_thread_of_its_own(|| async {
        let schema = format!("simulation_{}_{seed}", std::process::id());
        let admin = Db::open_postgres(url).await.unwrap();
        let sql = |sql: String| {
            let admin = &admin;
            async move { (&mut &*admin).rows_of(sql, vec![]).await.unwrap() }
        };
        sql(format!("CREATE SCHEMA {schema}")).await;
        let joint = if url.contains('?') { '&' } else { '?' };
        let db = Db::open_postgres(&format!("{url}{joint}options=-csearch_path%3D{schema}")).await.unwrap();
        let story = live(seed, db.clone()).await;
        db.close().await;
        if story.verdict.is_ok() {
            sql(format!("DROP SCHEMA {schema} CASCADE")).await;
        }
        admin.close().await;
        story
    })
}

async fn live(seed: u64, db: Db) -> Story {
    store::migrate(&db).await.unwrap();
    let mut world = World::new(seed, db).await;
    let mut verdict = world.live().await;
    if verdict.is_ok() {
        verdict = world.end().await;
    }
    let trace = &world.outside.trace;
    Story { verdict, hash: trace.hash(), marks: trace.marks(), tail: trace.tail() }
}

/// Runs all seeds, as many at once as there are cores, and counts what happened in them.
pub(crate) fn many_seeds() -> Marks {
    if let Some(seed) = replayed() {
        let story = run_seed(seed);
        println!("{}", story.tail);
        return judged(seed, story);
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let (next, marks) = (AtomicU64::new(0), Mutex::new(Marks::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::SeqCst)).filter(|seed| *seed < seeds) {
                    for (mark, count) in judged(seed, run_seed(seed)) {
                        *marks.lock().unwrap().entry(mark).or_default() += count;
                    }
                }
            });
        }
    });
    let marks = marks.into_inner().unwrap();
    for (mark, count) in &marks {
        println!("{count:7} {mark}");
    }
    marks
}

pub(crate) fn judged(seed: u64, story: Story) -> Marks {
    if let Err(broken) = &story.verdict {
        panic!("seed {seed}: {broken}\n\n{}\nhave it again with SIM_SEED={seed}", story.tail);
    }
    story.marks
}

/// Plants a mistake, and runs seeds until it is caught.
pub(crate) fn catch(bug: Bug) {
    if replayed().is_some() {
        return;
    }
    plant(Some(bug));
    for seed in 0..SEEDS_TO_CATCH {
        if let Err(broken) = run_seed(seed).verdict {
            println!("{bug:?}: seed {seed}: {broken}");
            plant(None);
            return;
        }
    }
    plant(None);
    panic!("{bug:?} was not caught within {SEEDS_TO_CATCH} seeds");
}
