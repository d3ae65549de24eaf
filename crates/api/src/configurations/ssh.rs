//! Machines that a fleet reaches over SSH.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::MapAccess;
use serde::{Deserialize, Serialize, Serializer};

use super::checked::{Check, checked};
use super::fleet::Blocks;
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

checked! {
    /// The machines of a fleet and how to reach them.
    #[derive(Eq)]
    pub struct SshParams {
        /// The user, unless a host has its own.
        #[serde(default)]
        pub user: Option<String>,
        /// The port, unless a host has its own; null is 22.
        #[serde(default)]
        pub port: Option<u16>,
        /// The private key file on the user's machine.
        #[serde(default)]
        pub identity_file: Option<String>,
        /// The key itself. The client reads it from `identity_file`.
        #[serde(default)]
        pub ssh_key: Option<SshKey>,
        /// The host through which all others are reached.
        #[serde(default)]
        pub proxy_jump: Option<SshProxyParams>,
        /// The machines.
        pub hosts: Vec<SshHost>,
        /// The private network of the machines, as in `10.0.0.0/24`.
        #[serde(default)]
        pub network: Option<String>,
    }
}

checked! {
    /// A machine and what is particular about reaching it.
    #[derive(Eq)]
    pub struct SshHostParams {
        /// Its name or address.
        pub hostname: String,
        /// The port.
        #[serde(default)]
        pub port: Option<u16>,
        /// The user.
        #[serde(default)]
        pub user: Option<String>,
        /// The private key file on the user's machine.
        #[serde(default)]
        pub identity_file: Option<String>,
        /// The host through which it is reached.
        #[serde(default)]
        pub proxy_jump: Option<SshProxyParams>,
        /// Its address on the private network.
        #[serde(default)]
        pub internal_ip: Option<String>,
        /// The key itself. The client reads it from `identity_file`.
        #[serde(default)]
        pub ssh_key: Option<SshKey>,
        /// Into how many parts it is split; null is what the fleet says.
        #[serde(default)]
        pub blocks: Option<Blocks>,
    }
}

impl SshHostParams {
    /// A machine with nothing particular about it.
    pub fn new(hostname: &str) -> Self {
        SshHostParams {
            hostname: hostname.to_owned(),
            port: None,
            user: None,
            identity_file: None,
            proxy_jump: None,
            internal_ip: None,
            ssh_key: None,
            blocks: None,
        }
    }
}

checked! {
    /// A host through which others are reached.
    #[derive(Eq)]
    pub struct SshProxyParams {
        /// Its name or address.
        pub hostname: String,
        /// The port; null is 22.
        #[serde(default)]
        pub port: Option<u16>,
        /// The user.
        pub user: String,
        /// The private key file on the user's machine.
        pub identity_file: String,
        /// The key itself. The client reads it from `identity_file`.
        #[serde(default)]
        pub ssh_key: Option<SshKey>,
    }
}

/// A key pair in the text forms of OpenSSH. Shows itself without its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
pub struct SshKey {
    /// The public half.
    pub public: String,
    /// The private half; a secret.
    #[serde(default)]
    pub private: Option<String>,
}

// The private half must not be printed.
impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl Check for SshProxyParams {
    fn check(&mut self) -> Result<(), String> {
        check_filled("hostname", &self.hostname)
    }
}

impl Check for SshHostParams {
    fn check(&mut self) -> Result<(), String> {
        check_filled("hostname", &self.hostname)?;
        let Some(text) = &self.internal_ip else {
            return Ok(());
        };
        match text.parse() {
            Ok(address) if is_private(address) => Ok(()),
            Ok(_) => Err(format!("`internal_ip` must be a private address, found `{text}`")),
            Err(_) => Err(format!("`internal_ip` must be an IP address, found `{text}`")),
        }
    }
}

impl Check for SshParams {
    fn check(&mut self) -> Result<(), String> {
        let Some(text) = &self.network else {
            return Ok(());
        };
        match parse_network(text) {
            Some(address) if is_private(address) => Ok(()),
            Some(_) => Err(format!("`network` must be a private network, found `{text}`")),
            None => Err(format!("`network` is written as `10.0.0.0/24`, found `{text}`")),
        }
    }
}

fn check_filled(key: &str, text: &str) -> Result<(), String> {
    if text.is_empty() { Err(format!("`{key}` must not be empty")) } else { Ok(()) }
}

/// The address of a network without bits beyond its prefix.
fn parse_network(text: &str) -> Option<IpAddr> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u32>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let prefix = prefix.unwrap_or(width);
    if width < prefix {
        return None;
    }
    let host_bits = width - prefix;
    // A shift by the whole width of the type is not defined.
    let host_part = if host_bits == 128 { bits } else { bits & ((1_u128 << host_bits) - 1) };
    (host_part == 0).then_some(address)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            // 100.64.0.0/10 is what carriers and overlay networks such as Tailscale use.
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && (64..128).contains(&second);
            address.is_private() || address.is_loopback() || address.is_link_local() || is_shared
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

/// A machine. Written as its name or address, or as a mapping. Keeps the form in which it was
/// written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SshHost {
    /// Its name or address.
    Hostname(String),
    /// A mapping.
    Params(Box<SshHostParams>),
}

impl SshHost {
    /// Its name or address.
    pub fn hostname(&self) -> &str {
        match self {
            SshHost::Hostname(hostname) => hostname,
            SshHost::Params(params) => &params.hostname,
        }
    }

    /// What is particular about it.
    pub fn params(&self) -> Cow<'_, SshHostParams> {
        match self {
            SshHost::Hostname(hostname) => Cow::Owned(SshHostParams::new(hostname)),
            SshHost::Params(params) => Cow::Borrowed(params),
        }
    }
}

impl Serialize for SshHost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            SshHost::Hostname(hostname) => serializer.serialize_str(hostname),
            SshHost::Params(params) => params.serialize(serializer),
        }
    }
}

impl Shorthand for SshHost {
    const EXPECTING: &'static str = "a host name or address, or a mapping with `hostname`";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        if text.is_empty() {
            return Err("a host name must not be empty".into());
        }
        Ok(SshHost::Hostname(text.to_owned()))
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        shorthand::fields(map).map(SshHost::Params)
    }
}

impl_shorthand!(SshHost);

impl JsonSchema for SshHost {
    fn schema_name() -> Cow<'static, str> {
        "SshHost".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let params = generator.subschema_for::<SshHostParams>();
        json_schema!({"description": Self::EXPECTING, "anyOf": [params, {"type": "string"}]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_shows_itself_without_its_secret() {
        let key = SshKey { public: "ssh-ed25519 AAAA".to_owned(), private: Some("secret".to_owned()) };
        assert_eq!(format!("{key:?}"), "SshKey { public: \"ssh-ed25519 AAAA\", .. }");
        let written = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<SshKey>(&written).unwrap(), key);
        assert!(serde_json::from_str::<SshKey>(r#"{"public": "a", "secret": "b"}"#).is_err());
    }
}
