//! The list of backends: the only place that names them all. Each folder gives one [`Entry`].

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use api::backends::BackendType;
use api::ids::{BackendId, ServerId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fake::FakeCloud;
use crate::keys::{invalid, near_miss, quoted};
use crate::{Backend, Result};

/// Every backend of this build. To add one: its folder, `mod` in `lib.rs`, and a line here.
static ENTRIES: &[&Entry] = &[
    #[cfg(feature = "aws")]
    &crate::aws::ENTRY,
    &crate::local::ENTRY,
    &crate::fake::ENTRY,
];

/// What a backend's folder tells about itself before it is opened.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its name in the configuration.
    pub(crate) kind: &'static str,
    /// Checks a configuration and answers it as it is kept, with `type` in it.
    pub(crate) check: fn(&Value) -> Result<Value>,
    /// Its name on the wire.
    pub(crate) wire_type: fn(&Value) -> BackendType,
    /// Clients are not told that it is configured.
    pub(crate) is_hidden: bool,
    /// It exists for tests; users are not told of it.
    pub(crate) is_for_tests: bool,
    /// Makes the backend.
    pub(crate) open: fn(&Value, &OpenContext, BackendId) -> Result<Arc<dyn Backend>>,
}

/// A backend as somebody configured it. Only its folder understands `config`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendConfig {
    /// Which backend, one of [`kinds`].
    pub kind: String,
    /// What was written, `type` and credentials included.
    pub config: Value,
}

// Credentials must not be printed.
impl fmt::Debug for BackendConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendConfig").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl BackendConfig {
    /// What may be shown to members of the project.
    pub fn without_creds(&self) -> Value {
        let mut config = self.config.clone();
        if let Value::Object(map) = &mut config {
            map.remove("creds");
            // Whoever has the key of the host on the way can enter it.
            if let Some(Value::Object(bastion)) = map.get_mut("bastion") {
                bastion.remove("key");
            }
        }
        config
    }

    /// Whether it is used with what is found in the server's own surroundings, such as the role of its machine.
    pub fn has_default_creds(&self) -> bool {
        let Some(creds) = self.config.get("creds") else { return false };
        let type_of = |creds: &Value| creds.get("type").and_then(Value::as_str).map(str::to_owned);
        match type_of(creds).as_deref() {
            Some("default") => true,
            // A role is taken with the default ones unless it says with which.
            Some("assume_role") => creds.get("source").and_then(type_of).is_none_or(|source| source == "default"),
            _ => false,
        }
    }

    /// Whether it says itself where it is reached, so that the server connects to whatever that is.
    pub fn has_own_endpoint(&self) -> bool {
        self.config.get("endpoint_url").is_some_and(|url| !url.is_null())
    }

    /// The name that clients know it by.
    pub fn wire_type(&self) -> Result<BackendType> {
        Ok((entry(&self.kind)?.wire_type)(&self.config))
    }

    /// Whether it exists for tests, and nobody else may configure it.
    pub fn is_for_tests(&self) -> bool {
        entry(&self.kind).is_ok_and(|entry| entry.is_for_tests)
    }

    /// Whether clients are not told that it is configured, because the official ones would not know what to do
    /// with it.
    pub fn is_hidden(&self) -> bool {
        entry(&self.kind).is_ok_and(|entry| entry.is_hidden)
    }
}

/// What a backend is given when it is opened.
#[derive(Debug, Clone)]
pub struct OpenContext {
    /// The mark of everything that this server makes.
    pub server_id: ServerId,
    /// A folder in which backends may keep files, each in one of its own.
    pub state_dir: PathBuf,
    /// The agent's program for this machine.
    pub agent_binary: PathBuf,
    /// The pretended cloud, in tests only. Without it the backend `fake` cannot be opened.
    pub fake: Option<FakeCloud>,
}

/// The names of all backends of this build, as configurations say them.
pub fn kinds() -> &'static [&'static str] {
    static KINDS: LazyLock<Vec<&'static str>> = LazyLock::new(|| ENTRIES.iter().map(|entry| entry.kind).collect());
    &KINDS
}

/// The names on the wire of the backends that clients may be told of.
pub fn wire_types() -> Vec<BackendType> {
    let shown = ENTRIES.iter().filter(|entry| !entry.is_hidden && !entry.is_for_tests);
    shown.map(|entry| (entry.wire_type)(&Value::Null)).collect()
}

/// The name on the wire of a kind of backend, where only the kind is known. A kind that this build lacks is shown as
/// machines of nobody's.
pub fn wire_type_of(kind: &str) -> BackendType {
    entry(kind).map_or(BackendType::Remote, |entry| (entry.wire_type)(&Value::Null))
}

/// Reads one item of `backends` in `config.yml`, or the body of a request. The error says what to write instead.
pub fn parse_config(config: &Value) -> Result<BackendConfig> {
    let Some(kind) = config.get("type") else {
        return Err(invalid(format!("the backend has no `type`; it is one of {}", quoted(&offered_kinds()))));
    };
    let Value::String(kind) = kind else {
        return Err(invalid(format!("the backend's `type` is not text but `{kind}`")));
    };
    let config = (entry(kind)?.check)(config)?;
    Ok(BackendConfig { kind: kind.clone(), config })
}

/// Makes the backend with that row, without asking anything of it yet.
pub fn open(config: &BackendConfig, context: &OpenContext, id: BackendId) -> Result<Arc<dyn Backend>> {
    (entry(&config.kind)?.open)(&config.config, context, id)
}

fn entry(kind: &str) -> Result<&'static Entry> {
    if let Some(entry) = ENTRIES.iter().find(|entry| entry.kind == kind) {
        return Ok(entry);
    }
    let offered = offered_kinds();
    let advice = match near_miss(kind, &offered) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("this server has {}", quoted(&offered)),
    };
    Err(invalid(format!("no backend of type `{kind}`; {advice}")))
}

fn offered_kinds() -> Vec<&'static str> {
    ENTRIES.iter().filter(|entry| !entry.is_for_tests).map(|entry| entry.kind).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_refused(config: &Value, message: &str) {
        let error = parse_config(config).expect_err("the configuration is wrong");
        assert_eq!(error.message, message);
        assert!(!error.kind.is_transient());
    }

    #[test]
    fn kinds_are_unique_and_parse() {
        for kind in kinds() {
            let parsed = parse_config(&json!({ "type": kind }));
            match parsed {
                Ok(config) => assert_eq!(config.kind, *kind),
                // A cloud may need more than its name.
                Err(error) => assert!(error.message.contains(kind), "{error}"),
            }
            assert_eq!(kinds().iter().filter(|other| *other == kind).count(), 1);
        }
    }

    #[test]
    fn this_machine_is_remote_on_the_wire_and_hidden() {
        let config = parse_config(&json!({ "type": "local" })).unwrap();
        assert_eq!(config.wire_type().unwrap(), BackendType::Remote);
        assert!(config.is_hidden());
        assert_eq!(config.config, json!({ "type": "local" }));
        assert!(!wire_types().contains(&BackendType::Remote));
    }

    #[cfg(feature = "aws")]
    #[test]
    fn what_uses_the_servers_own_credentials_or_endpoints_of_its_own_is_known() {
        let check = |creds: Value, has_default_creds: bool| {
            let config = parse_config(&json!({ "type": "aws", "creds": creds })).unwrap();
            assert_eq!(
                (config.has_default_creds(), config.has_own_endpoint()),
                (has_default_creds, false),
                "{creds}"
            );
        };
        let key = json!({ "type": "access_key", "access_key": "a", "secret_key": "b" });
        let role = "arn:aws:iam::123456789012:role/dstack";
        check(json!({ "type": "default" }), true);
        check(key.clone(), false);
        check(json!({ "type": "assume_role", "role_arn": role }), true);
        check(json!({ "type": "assume_role", "role_arn": role, "source": { "type": "default" } }), true);
        check(json!({ "type": "assume_role", "role_arn": role, "source": key }), false);
        let elsewhere = json!({ "type": "aws", "creds": key, "endpoint_url": "http://127.0.0.1:1" });
        assert!(parse_config(&elsewhere).unwrap().has_own_endpoint());
        assert!(!parse_config(&json!({ "type": "local" })).unwrap().has_default_creds());
    }

    #[test]
    fn refusals_name_the_key_and_the_near_miss() {
        check_refused(
            &json!({}),
            &format!("the backend has no `type`; it is one of {}", quoted(&offered_kinds())),
        );
        check_refused(&json!({ "type": 7 }), "the backend's `type` is not text but `7`");
        check_refused(&json!({ "type": "locla" }), "no backend of type `locla`; did you mean `local`?");
        check_refused(
            &json!({ "type": "gcp" }),
            &format!("no backend of type `gcp`; this server has {}", quoted(&offered_kinds())),
        );
        check_refused(
            &json!({ "type": "local", "cpu": 2 }),
            "backend `local` has no key `cpu`; did you mean `cpus`?",
        );
        check_refused(
            &json!({ "type": "local", "regions": ["a"] }),
            "backend `local` has no key `regions`; its keys are `cpus`, `memory`",
        );
    }

    #[test]
    fn credentials_are_neither_shown_nor_printed() {
        let config = json!({
            "type": "x", "creds": { "secret_key": "hush" }, "regions": ["a"],
            "bastion": { "host": "b", "key": "hush" },
        });
        let config = BackendConfig { kind: "x".to_owned(), config };
        let shown = json!({ "type": "x", "regions": ["a"], "bastion": { "host": "b" } });
        assert_eq!(config.without_creds(), shown);
        assert!(!format!("{config:?}").contains("hush"));
    }
}
