//! Machines of the users' own, which fleets name: who is meant, how they are logged in to, and the way to their agents.

use std::collections::{BTreeMap, HashSet};

use anyhow::Context as _;
use api::configurations::{Blocks, FleetConfiguration, SshHost, SshKey, SshParams, SshProxyParams};
use lifecycle::instance::{Host, Instance, Proxy};
use serde::{Deserialize, Serialize};
use store::{Executor, fleets, instances};

use crate::agents::hosts::{HostAccess, Roots};
use crate::deps::Deps;

/// The port of an SSH server unless somebody says otherwise.
const SSH_PORT: u16 = 22;

/// The most hosts of a fleet.
const MOST_HOSTS: usize = 10_000;

/// A machine that a fleet names.
#[derive(Debug, Clone)]
pub struct WantedHost {
    /// How it is reached.
    pub host: Host,
    /// What logs in.
    pub keys: HostKeys,
}

/// What logs in to a machine and to the host on the way to it. Kept sealed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKeys {
    /// The private key for the machine.
    pub key: String,
    /// The private key for the host on the way.
    pub proxy_key: Option<String>,
}

impl std::fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKeys(..)")
    }
}

/// The machines that a fleet names, in its order, or what is wrong with one of them, for people.
pub fn wanted(configuration: &FleetConfiguration) -> Result<Vec<WantedHost>, String> {
    let Some(ssh) = &configuration.ssh_config else { return Ok(vec![]) };
    if MOST_HOSTS < ssh.hosts.len() {
        return Err(format!("`hosts` cannot be more than {MOST_HOSTS}"));
    }
    let mut seen = HashSet::new();
    let mut hosts = Vec::with_capacity(ssh.hosts.len());
    for host in &ssh.hosts {
        let wanted = wanted_host(configuration.blocks, ssh, host)?;
        if !seen.insert(wanted.host.key()) {
            return Err(format!("`hosts` names {} twice", wanted.host.key()));
        }
        hosts.push(wanted);
    }
    Ok(hosts)
}

fn wanted_host(blocks: Blocks, ssh: &SshParams, host: &SshHost) -> Result<WantedHost, String> {
    let params = host.params();
    let name = host.hostname();
    let user = params.user.as_ref().or(ssh.user.as_ref());
    let user = user.ok_or_else(|| format!("`user` is needed for the host {name}"))?;
    let key = private_key(params.ssh_key.as_ref().or(ssh.ssh_key.as_ref()), name)?;
    let proxy = params.proxy_jump.as_ref().or(ssh.proxy_jump.as_ref());
    let proxy_key = proxy.map(|proxy| private_key(proxy.ssh_key.as_ref(), &proxy.hostname)).transpose()?;
    let blocks = match params.blocks.unwrap_or(blocks) {
        Blocks::Auto => None,
        Blocks::Count(count) => Some(count),
    };
    let host = Host {
        hostname: name.to_owned(),
        port: params.port.or(ssh.port).unwrap_or(SSH_PORT),
        user: user.clone(),
        internal_ip: params.internal_ip.clone(),
        network: ssh.network.clone(),
        blocks,
        proxy: proxy.map(proxy_of),
        ..Host::default()
    };
    Ok(WantedHost { host, keys: HostKeys { key, proxy_key } })
}

fn proxy_of(params: &SshProxyParams) -> Proxy {
    let port = params.port.unwrap_or(SSH_PORT);
    Proxy { hostname: params.hostname.clone(), port, user: params.user.clone() }
}

fn private_key(key: Option<&SshKey>, name: &str) -> Result<String, String> {
    let private = key.and_then(|key| key.private.as_ref());
    let private = private.ok_or_else(|| format!("no private key for {name}: `identity_file` is needed"))?;
    tunnel::Key::parse(format!("the key for {name}"), private).map_err(|error| error.to_string())?;
    Ok(private.clone())
}

/// What is different between two ways of reaching a machine, apart from its keys, which people may change.
pub fn differs(left: &Host, right: &Host) -> bool {
    let bare = |host: &Host| Host { known_keys: BTreeMap::new(), ..host.clone() };
    bare(left) != bare(right)
}

/// Seals what logs in to a machine.
pub fn seal(deps: &Deps, keys: &HostKeys) -> store::Result<String> {
    Ok(deps.sealer.seal(&serde_json::to_string(keys)?))
}

/// Opens what logs in to a machine.
pub async fn unseal(deps: &Deps, db: impl Executor, instance: &Instance) -> anyhow::Result<Option<HostKeys>> {
    let Some(sealed) = instances::host_access(db, instance.id).await? else { return Ok(None) };
    Ok(Some(serde_json::from_str(&deps.sealer.unseal(&sealed)?)?))
}

/// The way to a machine's agent. An error says that its keys cannot be read.
pub async fn access(deps: &Deps, instance: &Instance) -> anyhow::Result<HostAccess> {
    let host = instance.state.host.as_ref().context("the instance is no machine of a user's own")?;
    let keys = unseal(deps, &deps.db, instance).await?.context("nobody knows its keys")?;
    let fleet = fleets::get(&deps.db, instance.fleet_id).await?;
    let env = fleet.map(|fleet| fleet.value.spec.configuration.env).unwrap_or_default();
    let known = |target: &tunnel::Target| {
        let key = host.known_keys.get(&target.address()).map(|key| key.parse());
        key.transpose().context("read a host's recorded key")
    };
    let mut target = tunnel::Target::new(
        host.hostname.clone(),
        host.user.clone(),
        vec![tunnel::Key::parse(format!("the key for {}", host.hostname), &keys.key)?],
    );
    target.port = host.port;
    if let (Some(proxy), Some(key)) = (&host.proxy, &keys.proxy_key) {
        let key = tunnel::Key::parse(format!("the key for {}", proxy.hostname), key)?;
        let mut jump = tunnel::Target::new(proxy.hostname.clone(), proxy.user.clone(), vec![key]);
        jump.port = proxy.port;
        jump.known_host = known(&jump)?;
        target.jumps.push(jump);
    }
    target.known_host = known(&target)?;
    Ok(HostAccess {
        target,
        known_keys: BTreeMap::new(),
        instance: instance.id,
        server: deps.server_id,
        // What is learned later is not told, because an agent that is told something new is started again.
        address: host.internal_ip.clone(),
        first_start: None,
        cloud: None,
        env: env.known().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        others: instances::list_hosts(&deps.db).await?.into_iter().collect(),
        was_joined: instance.state.joined_at.is_some(),
        limits: tunnel::Limits::default(),
        roots: Roots::default(),
    })
}
