//! Whom a launch buys machines for, which their tags tell.

use std::collections::BTreeMap;

use lifecycle::fleet::Fleet;
use lifecycle::launch::Launch;
use lifecycle::placement::profile_of;
use store::{instances, jobs, runs, users};

use crate::deps::Deps;

/// Whom machines are bought for.
#[derive(Debug, Default)]
pub(super) struct Buyer {
    /// The name of the one machine, or the fleet's if there are several.
    pub(super) name: String,
    /// Whose fleet or run it is.
    pub(super) user_name: String,
    /// The tags that they want.
    pub(super) tags: BTreeMap<String, String>,
}

/// Whom a launch is for: the run whose jobs wait for its machines, or else its fleet. A run's machines are the fleet's as
/// well, so that they carry the tags of both, and those of the run are nearer.
pub(super) async fn of_launch(deps: &Deps, launch: &Launch, fleet: Option<&Fleet>) -> store::Result<Buyer> {
    let Some(fleet) = fleet else { return Ok(Buyer::default()) };
    let mut tags = fleet.spec.configuration.merged_profile(Some(&fleet.spec.profile)).tags.unwrap_or_default();
    let (mut name, mut user_id) = (fleet.name.clone(), fleet.user_id);
    // All machines of a launch are for the same.
    if let Some(first) = launch.state.instances.first() {
        if launch.state.count == 1
            && let Some(instance) = instances::get(&deps.db, *first).await?
        {
            name = instance.value.state.name;
        }
        if let Some(job) = jobs::list_active_by_instance(&deps.db, *first).await?.into_iter().next()
            && let Some(run) = runs::get(&deps.db, job.value.run_id).await?
        {
            user_id = run.value.user_id;
            tags.extend(profile_of(&run.value.spec).tags.unwrap_or_default());
        }
    }
    let user = users::get(&deps.db, user_id).await?;
    Ok(Buyer { name, user_name: user.map(|user| user.name).unwrap_or_default(), tags })
}
