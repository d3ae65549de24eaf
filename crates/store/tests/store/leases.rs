//! Claims of rows that are due.

use std::collections::BTreeMap;
use std::time::Duration;

use store::leases::{self, LEASE_SECS, NEVER, Table};
use store::{Db, Executor, values};
use uuid::Uuid;

use crate::harness::{at, on_every_engine, random_id};

on_every_engine! {
    eight_claimers_get_every_row_once
    a_claim_holds_until_it_runs_out
    a_renewed_claim_holds_longer_and_forgets_no_touch
    a_released_row_falls_due_when_told
    a_touch_during_a_claim_is_not_lost
    only_the_owner_releases
    the_longest_due_rows_come_first
    a_start_makes_everything_due_that_is_not_finished
    every_table_can_be_claimed
}

const NONE: [Uuid; 0] = [];

const TABLES: [Table; 5] = [Table::Fleets, Table::Launches, Table::Instances, Table::Runs, Table::Jobs];

async fn add_fleet(mut db: &Db, due_at: i64) -> Uuid {
    let id = random_id();
    db.execute(
        "INSERT INTO fleets (id, version, due_at, leased_until, leased_by, project_id, user_id, name, created_at, \
         status, wanted, spec, state) VALUES ($1, 1, $2, 0, '', 'p', 'u', $1, 0, 'active', 1, '{}', '{}')",
        values![id, due_at],
    )
    .await
    .unwrap();
    id
}

async fn due_at(mut db: &Db, id: Uuid) -> i64 {
    db.row("SELECT due_at FROM fleets WHERE id = $1", values![id]).await.unwrap().unwrap().int(0).unwrap()
}

async fn claim(db: &Db, owner: &str, seconds: i64) -> Vec<Uuid> {
    leases::claim(db, Table::Fleets, owner, at(seconds), 100).await.unwrap()
}

async fn a_renewed_claim_holds_longer_and_forgets_no_touch(db: Db) {
    let id = add_fleet(&db, 0).await;
    assert_eq!(claim(&db, "one", 0).await, [id]);
    leases::renew(&db, Table::Fleets, id, "another", at(25)).await.unwrap();
    leases::renew(&db, Table::Fleets, id, "one", at(20)).await.unwrap();
    assert_eq!(claim(&db, "another", LEASE_SECS + 1).await, NONE);
    leases::touch(&db, Table::Fleets, id, at(21)).await.unwrap();
    leases::renew(&db, Table::Fleets, id, "one", at(30)).await.unwrap();
    leases::release(&db, Table::Fleets, id, "one", NEVER).await.unwrap();
    assert_eq!(due_at(&db, id).await, at(21).as_microsecond());
}

async fn eight_claimers_get_every_row_once(db: Db) {
    const ROWS: usize = 200;
    let mut added = Vec::new();
    for _ in 0..ROWS {
        added.push(add_fleet(&db, 0).await);
    }
    let claimers = (0..8).map(|number| {
        let db = db.clone();
        tokio::spawn(async move {
            let owner = format!("claimer {number}");
            let mut claimed = Vec::new();
            // Others may take what a claim selected, so that an empty answer does not yet mean that all is taken.
            for _ in 0..ROWS {
                let ids = leases::claim(&db, Table::Fleets, &owner, at(0), 7).await.unwrap();
                if ids.is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if leases::next_due(&db, Table::Fleets, at(0)).await.unwrap().is_none() {
                        break;
                    }
                }
                claimed.extend(ids);
            }
            claimed
        })
    });
    let mut times = BTreeMap::new();
    for claimer in claimers.collect::<Vec<_>>() {
        for id in claimer.await.unwrap() {
            *times.entry(id).or_insert(0) += 1;
        }
    }
    assert_eq!(times, added.into_iter().map(|id| (id, 1)).collect::<BTreeMap<_, _>>());
}

async fn a_claim_holds_until_it_runs_out(db: Db) {
    let id = add_fleet(&db, 0).await;
    assert_eq!(claim(&db, "a", 0).await, [id]);
    assert_eq!(claim(&db, "b", 1).await, NONE);
    assert_eq!(claim(&db, "b", LEASE_SECS - 1).await, NONE);
    assert_eq!(leases::next_due(&db, Table::Fleets, at(1)).await.unwrap(), None);
    let later = at(LEASE_SECS + 1);
    assert_eq!(leases::next_due(&db, Table::Fleets, later).await.unwrap(), Some(at(LEASE_SECS)));
    assert_eq!(claim(&db, "b", LEASE_SECS + 1).await, [id]);
}

async fn a_released_row_falls_due_when_told(db: Db) {
    let id = add_fleet(&db, 0).await;
    assert_eq!(claim(&db, "a", 0).await, [id]);
    leases::release(&db, Table::Fleets, id, "a", at(5).as_microsecond()).await.unwrap();
    assert_eq!(claim(&db, "b", 4).await, NONE);
    assert_eq!(claim(&db, "b", 5).await, [id]);
    leases::release(&db, Table::Fleets, id, "b", NEVER).await.unwrap();
    assert_eq!(leases::next_due(&db, Table::Fleets, at(5)).await.unwrap(), None);
    assert_eq!(claim(&db, "b", 1_000_000).await, NONE);
    leases::touch(&db, Table::Fleets, id, at(9)).await.unwrap();
    assert_eq!(claim(&db, "b", 9).await, [id]);
}

async fn a_touch_during_a_claim_is_not_lost(db: Db) {
    let id = add_fleet(&db, 0).await;
    assert_eq!(claim(&db, "a", 0).await, [id]);
    leases::touch(&db, Table::Fleets, id, at(1)).await.unwrap();
    // The row is due again, and still held.
    assert_eq!(claim(&db, "b", 1).await, NONE);
    leases::release(&db, Table::Fleets, id, "a", NEVER).await.unwrap();
    assert_eq!(claim(&db, "b", 1).await, [id]);
}

async fn only_the_owner_releases(db: Db) {
    let id = add_fleet(&db, 0).await;
    assert_eq!(claim(&db, "a", 0).await, [id]);
    leases::release(&db, Table::Fleets, id, "b", 0).await.unwrap();
    assert_eq!(claim(&db, "c", 1).await, NONE);
}

async fn the_longest_due_rows_come_first(db: Db) {
    let (late, early) = (add_fleet(&db, 20).await, add_fleet(&db, 10).await);
    let first = leases::claim(&db, Table::Fleets, "a", at(0), 1).await.unwrap();
    assert_eq!(first, [early]);
    assert_eq!(claim(&db, "a", 0).await, [late]);
}

async fn a_start_makes_everything_due_that_is_not_finished(db: Db) {
    let (held, waiting, finished) =
        (add_fleet(&db, 0).await, add_fleet(&db, NEVER - 1).await, add_fleet(&db, NEVER).await);
    assert_eq!(claim(&db, "a crashed server", 0).await, [held]);
    assert_eq!(leases::touch_all(&db, Table::Fleets, at(3)).await.unwrap(), 2);
    let mut expected = [held, waiting];
    expected.sort_unstable();
    assert_eq!(claim(&db, "a new server", 3).await, expected);
    assert_eq!(due_at(&db, finished).await, NEVER);
}

async fn every_table_can_be_claimed(db: Db) {
    for table in TABLES {
        assert_eq!(leases::claim(&db, table, "a", at(0), 1).await.unwrap(), NONE);
        assert_eq!(leases::next_due(&db, table, at(0)).await.unwrap(), None);
        assert_eq!(leases::touch_all(&db, table, at(0)).await.unwrap(), 0);
        leases::touch(&db, table, random_id(), at(0)).await.unwrap();
        leases::release(&db, table, random_id(), "a", NEVER).await.unwrap();
    }
}
