//! Machines that backends sell and that are reached over SSH: the way to their agents.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use lifecycle::instance::Instance;

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
    let project = store::projects::get(&deps.db, instance.project_id).await?.context("its project is gone")?;
    let private = deps.sealer.unseal(&project.sealed_ssh_private_key)?;
    let key = tunnel::Key::parse(format!("the key of project {}", project.name), &private)?;
    let mut known_keys = BTreeMap::new();
    for (address, key) in &instance.state.known_keys {
        known_keys.insert(address.clone(), key.parse().context("read a host's recorded key")?);
    }
    Ok(Some(HostAccess {
        target: tunnel::Target::new("", "", vec![key]),
        known_keys,
        instance: instance.id,
        server: deps.server_id,
        address: machine.internal_ip.clone(),
        first_start: None,
        cloud: None,
        env: BTreeMap::new(),
        others: BTreeSet::from([instance.id]),
        was_joined: instance.state.joined_at.is_some(),
        limits: tunnel::Limits::default(),
        roots: Roots::default(),
    }))
}
