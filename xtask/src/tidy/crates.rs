//! Which crate may use which: the table of `docs/ARCHITECTURE.md`, and nothing beside it.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Finding;

/// Each crate of ours and the crates of ours that it may use.
const OURS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("lifecycle", &["api"]),
    ("store", &["api", "lifecycle"]),
    ("backends", &["api"]),
    ("tunnel", &[]),
    ("agent", &["api"]),
    ("server", &["api", "lifecycle", "store", "backends", "tunnel"]),
    ("cli", &["api", "tunnel"]),
    ("dstack", &["cli", "server"]),
    ("ec2sim", &[]),
    ("xtask", &[]),
];

/// All that the pure crate may use. It cannot wait, ask, roll dice or print.
const LIFECYCLE: [&str; 5] = ["api", "jiff", "serde", "serde_json", "uuid"];

/// Crates of others that have one home.
const HOMES: &[(&str, &str)] = &[("sqlx", "store"), ("bollard", "agent")];

/// What the contract may use only behind its client feature.
const CLIENT_ONLY: [&str; 4] = ["tokio", "reqwest", "tokio-tungstenite", "hyper"];

pub(super) fn check(metadata: &Value) -> Result<Vec<Finding>> {
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
        // What only tests use never reaches a program.
        for dependency in dependencies.iter().filter(|dependency| dependency["kind"] != "dev") {
            let other = dependency["name"].as_str().unwrap_or_default();
            let optional = dependency["optional"].as_bool().unwrap_or_default();
            findings.extend(forbidden(name, other, optional).map(|what| Finding {
                path: if name == "xtask" {
                    "xtask/Cargo.toml".to_owned()
                } else {
                    format!("crates/{name}/Cargo.toml")
                },
                line: 1,
                rule: "crates",
                what,
            }));
        }
    }
    Ok(findings)
}

/// Why a crate must not use another.
fn forbidden(name: &str, other: &str, optional: bool) -> Option<String> {
    let Some((_, allowed)) = OURS.iter().find(|(ours, _)| *ours == name) else {
        return Some(format!("give `{name}` a row in the table of crates"));
    };
    let is_ours = OURS.iter().any(|(ours, _)| *ours == other);
    if is_ours && !allowed.contains(&other) {
        return Some(format!("`{name}` must not use `{other}`"));
    }
    if name == "lifecycle" && !LIFECYCLE.contains(&other) {
        return Some(format!("`lifecycle` is pure and must not use `{other}`"));
    }
    if name == "api" && CLIENT_ONLY.contains(&other) && !optional {
        return Some(format!("`api` may use `{other}` only behind its client feature"));
    }
    let home = HOMES.iter().find(|(guest, home)| *guest == other && *home != name);
    if let Some((_, home)) = home {
        return Some(format!("`{other}` lives in `{home}` only"));
    }
    let is_cloud_sdk = other.starts_with("aws-") && name != "backends";
    is_cloud_sdk.then(|| format!("`{other}` lives in `backends` only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(name: &str, other: &str, expected: Option<&str>) {
        assert_eq!(forbidden(name, other, false).as_deref(), expected, "{name} -> {other}");
    }

    #[test]
    fn dependencies_point_one_way() {
        check_one("store", "api", None);
        check_one("store", "serde", None);
        check_one("backends", "store", Some("`backends` must not use `store`"));
        check_one("cli", "server", Some("`cli` must not use `server`"));
        check_one("lifecycle", "tokio", Some("`lifecycle` is pure and must not use `tokio`"));
        check_one("server", "sqlx", Some("`sqlx` lives in `store` only"));
        check_one("server", "aws-sdk-ec2", Some("`aws-sdk-ec2` lives in `backends` only"));
        check_one("api", "reqwest", Some("`api` may use `reqwest` only behind its client feature"));
        check_one("tunnel", "russh", None);
        check_one("tunnel", "api", Some("`tunnel` must not use `api`"));
        check_one("gateway", "api", Some("give `gateway` a row in the table of crates"));
    }
}
