//! Gives the jobs of a machine their blocks anew when it is known what is bought for them.
//!
//! Until then each job holds the first block, and nobody else is placed on a machine that is not known. When a purchase
//! came to nothing and another one is made, the machine may have fewer blocks than jobs have been given by then.

use std::collections::HashSet;

use api::jobs::JobTerminationReason;
use lifecycle::instance::Instance;
use lifecycle::job::{EndOrder, Job};
use lifecycle::placement::blocks_for;
use store::leases::Table;
use store::{Tx, Versioned, instances, jobs, runs};

use crate::deps::Deps;

/// Gives each job as many blocks as it needs of what is bought now. Who finds no room any more is turned away.
pub(super) async fn refit(deps: &Deps, tx: &mut Tx, instance: &Instance) -> store::Result<()> {
    let total = instance.state.total_blocks;
    let Some(kind) = instance.state.instance_type.as_ref() else { return Ok(()) };
    let mut rows = jobs::list_active_by_instance(&mut *tx, instance.id).await?;
    rows.sort_by_key(|row| row.value.state.blocks.iter().min().copied());
    let mut wishes = vec![];
    for (place, row) in rows.iter().enumerate() {
        let spec = &row.value.spec;
        let needed = blocks_for(&spec.requirements, spec.jobs_per_replica > 1, &kind.resources, total);
        let needed = if instance.state.admins_only && !is_admins(tx, &row.value).await? {
            Err("The machine is the server's own, which only global admins may use".to_owned())
        } else if place == 0 {
            // The offer was chosen for it and the fleet; what it lacks shows in the job, which has the whole machine.
            Ok(needed.unwrap_or(total))
        } else {
            needed.map_err(|why| format!("Another machine was bought, which does not do: {why}"))
        };
        wishes.push(Wish { held: row.value.state.blocks.clone(), needed });
    }
    let shares = share_out(total, &wishes);
    for (row, share) in rows.iter().zip(&shares) {
        for block in row.value.state.blocks.iter().filter(|block| !share.blocks.contains(block)) {
            instances::unassign_block(&mut *tx, instance.id, *block, row.value.id).await?;
        }
    }
    for (row, share) in rows.into_iter().zip(shares) {
        give(deps, tx, instance, row, share).await?;
    }
    Ok(())
}

async fn give(
    deps: &Deps,
    tx: &mut Tx,
    instance: &Instance,
    mut row: Versioned<Job>,
    share: Share,
) -> store::Result<()> {
    let held = std::mem::take(&mut row.value.state.blocks);
    for block in share.blocks.iter().filter(|block| !held.contains(block)) {
        instances::assign(&mut *tx, instance.id, *block, row.value.id).await?;
    }
    let has_changed = held != share.blocks;
    row.value.state.blocks = share.blocks;
    if has_changed {
        jobs::save(&mut *tx, &row).await?;
        store::leases::touch(&mut *tx, Table::Jobs, row.value.id.0, deps.clock.now()).await?;
    }
    match share.turned_away {
        Some(message) => turn_away(deps, tx, &row.value, message).await,
        None => Ok(()),
    }
}

/// What a job holds of a machine, and how many blocks it needs of it or why it cannot use it.
struct Wish {
    held: Vec<u32>,
    needed: Result<u32, String>,
}

/// What a job gets.
#[derive(Debug, PartialEq)]
struct Share {
    blocks: Vec<u32>,
    turned_away: Option<String>,
}

/// Shares a machine's blocks out, those first who come first. Each keeps what it holds if it can. Who is turned away
/// keeps a number beyond the machine's, so that the machine is not free before the job has let go of it.
fn share_out(total: u32, wishes: &[Wish]) -> Vec<Share> {
    let mut given: HashSet<u32> = HashSet::new();
    let mut beyond = total..;
    let mut shares = vec![];
    for (place, wish) in wishes.iter().enumerate() {
        let later: HashSet<u32> = wishes[place + 1..].iter().flat_map(|wish| wish.held.iter().copied()).collect();
        let is_spare = |block: &u32| !wish.held.contains(block) && !later.contains(block);
        let spare = (0..total).filter(is_spare);
        let of_later = (0..total).filter(|block| !wish.held.contains(block) && later.contains(block));
        let own = wish.held.iter().copied().filter(|block| *block < total);
        let open = own.chain(spare).chain(of_later).filter(|block| !given.contains(block));
        let share = match &wish.needed {
            Ok(needed) => {
                let blocks: Vec<u32> = open.take(*needed as usize).collect();
                let is_enough = blocks.len() == *needed as usize;
                if is_enough {
                    Ok(blocks)
                } else {
                    Err("Another machine was bought, which has no room for it".to_owned())
                }
            }
            Err(why) => Err(why.clone()),
        };
        shares.push(match share {
            Ok(blocks) => {
                given.extend(&blocks);
                Share { blocks, turned_away: None }
            }
            Err(why) => Share { blocks: beyond.by_ref().take(1).collect(), turned_away: Some(why) },
        });
    }
    shares
}

async fn is_admins(tx: &mut Tx, job: &Job) -> store::Result<bool> {
    Ok(runs::get(&mut *tx, job.run_id).await?.is_some_and(|run| run.value.state.user_is_admin))
}

/// Ends a job before it is given to a machine on which it must not run, whatever led to it.
async fn turn_away(deps: &Deps, tx: &mut Tx, job: &Job, message: String) -> store::Result<()> {
    let reason = JobTerminationReason::FailedToStartDueToNoCapacity;
    let end = EndOrder { reason, message: Some(message), grace_secs: 0 };
    jobs::set_end(&mut *tx, job.id, &end, deps.clock.now()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(total: u32, wishes: &[(&[u32], Option<u32>)], expected: &[(&[u32], bool)]) {
        let wishes: Vec<Wish> = wishes
            .iter()
            .map(|(held, needed)| Wish { held: held.to_vec(), needed: needed.ok_or_else(|| "no".to_owned()) })
            .collect();
        let shares = share_out(total, &wishes);
        let told: Vec<(&[u32], bool)> =
            shares.iter().map(|share| (&share.blocks[..], share.turned_away.is_none())).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn jobs_get_the_blocks_that_they_need_of_what_is_bought() {
        check(4, &[(&[0], Some(2))], &[(&[0, 1], true)]);
        check(8, &[(&[0], Some(8))], &[(&[0, 1, 2, 3, 4, 5, 6, 7], true)]);
        // What is bought next has fewer blocks, or larger ones.
        check(2, &[(&[0, 1, 2, 3], Some(2))], &[(&[0, 1], true)]);
        check(4, &[(&[2, 3], Some(1))], &[(&[2], true)]);
        check(2, &[(&[2, 3], Some(1))], &[(&[0], true)]);
    }

    #[test]
    fn who_finds_no_room_any_more_is_turned_away_and_takes_none() {
        check(4, &[(&[0], Some(1)), (&[1], Some(2))], &[(&[0], true), (&[1, 2], true)]);
        // The first takes what it needs.
        check(2, &[(&[0], Some(2)), (&[1], Some(1))], &[(&[0, 1], true), (&[2], false)]);
        check(4, &[(&[0], Some(1)), (&[1], None), (&[2], Some(1))], &[(&[0], true), (&[4], false), (&[2], true)]);
        check(1, &[(&[0], Some(1)), (&[1], Some(1)), (&[2], None)], &[(&[0], true), (&[1], false), (&[2], false)]);
    }
}
