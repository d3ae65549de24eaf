//! What users write: `{type: local}`, and optionally how much of the machine may be used.

use api::configurations::Memory;
use serde_json::Value;

use crate::Result;
use crate::keys::Keys;

/// How much of this machine jobs may have. Unset: all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LocalConfig {
    /// CPUs, at least 1.
    pub(super) cpus: Option<u32>,
    /// Memory in MiB.
    pub(super) memory_mib: Option<u64>,
}

/// Reads the configuration.
pub(super) fn parse(config: &Value) -> Result<LocalConfig> {
    let keys = Keys::of("local", config, &["cpus", "memory"])?;
    let cpus: Option<u32> = keys.optional("cpus")?;
    if cpus == Some(0) {
        return Err(keys.refuse("cpus", "at least 1 is needed"));
    }
    let memory: Option<Memory> = keys.optional("memory")?;
    let memory_mib = memory.map(Memory::mib);
    if memory_mib == Some(0) {
        return Err(keys.refuse("memory", "some is needed"));
    }
    Ok(LocalConfig { cpus, memory_mib })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_keys_are_optional() {
        assert_eq!(parse(&json!({ "type": "local" })).unwrap(), LocalConfig::default());
        let config = parse(&json!({ "type": "local", "cpus": 2, "memory": "1.5GB" })).unwrap();
        assert_eq!(config, LocalConfig { cpus: Some(2), memory_mib: Some(1536) });
        let config = parse(&json!({ "type": "local", "cpus": null, "memory": 4 })).unwrap();
        assert_eq!(config, LocalConfig { cpus: None, memory_mib: Some(4096) });
    }

    #[test]
    fn a_value_that_does_not_fit_names_its_key() {
        for (config, key) in [
            (json!({ "type": "local", "cpus": 0 }), "`cpus`"),
            (json!({ "type": "local", "cpus": "two" }), "`cpus`"),
            (json!({ "type": "local", "memory": "much" }), "`memory`"),
            (json!({ "type": "local", "memory": 0 }), "`memory`"),
            (json!({ "type": "local", "memory": [1] }), "`memory`"),
        ] {
            let error = parse(&config).unwrap_err();
            assert!(error.message.starts_with(key), "{error}");
        }
    }
}
