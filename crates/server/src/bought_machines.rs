//! Machines that backends sell and that are reached over SSH: the way to their agents.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use api::ids::{InstanceId, ProjectId};
use lifecycle::instance::Instance;
use uuid::Uuid;

use crate::agents::hosts::{HostAccess, Roots};
use crate::deps::Deps;

/// The way to the agent of a machine that a backend sold and that is reached over SSH, but for its address, which the
/// backend tells each time. None: it is reached in another way. An error says that the project's key cannot be read.
pub async fn access(
    deps: &Deps,
    instance: &Instance,
    machine: &backends::Machine,
) -> anyhow::Result<Option<HostAccess>> {
    if machine.login.is_none() {
        return Ok(None);
    }
    let mut access = fresh(deps, instance.project_id, instance.id).await?;
    for (address, key) in &instance.state.known_keys {
        access.known_keys.insert(address.clone(), key.parse().context("read a host's recorded key")?);
    }
    access.address.clone_from(&machine.internal_ip);
    access.was_joined = instance.state.joined_at.is_some();
    Ok(Some(access))
}

/// The way to a machine that a backend lists and that is none of our instances, with the key of the project that
/// the backend is of. An error says that the key cannot be read.
pub async fn access_to_unclaimed(deps: &Deps, project: ProjectId) -> anyhow::Result<HostAccess> {
    fresh(deps, project, InstanceId(Uuid::nil())).await
}

/// The way to a machine of which nothing is known yet.
async fn fresh(deps: &Deps, project: ProjectId, instance: InstanceId) -> anyhow::Result<HostAccess> {
    let project = store::projects::get(&deps.db, project).await?.context("its project is gone")?;
    let private = deps.sealer.unseal(&project.sealed_ssh_private_key)?;
    let key = tunnel::Key::parse(format!("the key of project {}", project.name), &private)?;
    Ok(HostAccess {
        target: tunnel::Target::new("", "", vec![key]),
        known_keys: BTreeMap::new(),
        instance,
        server: deps.server_id,
        address: None,
        first_start: None,
        cloud: None,
        env: BTreeMap::new(),
        others: BTreeSet::from([instance]),
        was_joined: false,
        limits: tunnel::Limits::default(),
        roots: Roots::default(),
    })
}
