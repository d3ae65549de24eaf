//! What the server was told when it started, resolved once from flags, environment and defaults.

use std::path::PathBuf;

use crate::ssh_proxy::ProxyAddress;

/// The settings that handlers and reconcilers read.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The URL that clients use, as printed at the start.
    pub server_url: String,
    /// Largest code or file upload in bytes; 0: no limit.
    pub code_upload_limit_bytes: u64,
    /// The image of runs that name none, where backends run containers.
    pub default_image: String,
    /// The image of such runs on machines with EFA; unset: the flavour of the default image that is made for it.
    pub default_efa_image: Option<String>,
    /// How long an agent may be silent before its jobs are given up, in seconds.
    pub unreachable_after_secs: u64,
    /// How long after an agent's silence began an instance is shown as unreachable, in seconds.
    pub unreachable_shown_after_secs: u64,
    /// How long events are kept, in seconds.
    pub event_retention_secs: u64,
    /// How long the logs of finished jobs are kept, in seconds; unset: until their run is deleted.
    pub log_retention_secs: Option<u64>,
    /// The agent's executable.
    pub agent_binary: PathBuf,
    /// Where users reach this server's SSH proxy; unset: there is none.
    pub ssh_proxy: Option<ProxyAddress>,
    /// Numbers for Prometheus are given at `/metrics`.
    pub prometheus_metrics: bool,
    /// The SHA-256 of the token that Prometheus must send, in hex; unset: anyone may ask.
    pub prometheus_token_hash: Option<String>,
    /// How many offers are tried for the same machines before they are given up.
    pub most_offers_tried: u32,
    /// No backend may use what is found in the server's own surroundings, such as the role of its machine.
    pub default_creds_disabled: bool,
    /// Backends that exist for tests may be configured.
    pub test_backends: bool,
    /// What users may do unless `config.yml` says otherwise.
    pub default_permissions: DefaultPermissions,
}

impl Settings {
    /// The image of runs that name none, on machines with EFA. One image for all, where somebody has put another one in
    /// the place of the default image and said nothing of EFA.
    pub fn efa_image(&self) -> String {
        let flavour = || self.default_image.replacen("-base-", "-devel-efa-", 1);
        self.default_efa_image.clone().unwrap_or_else(flavour)
    }
}

/// The `default_permissions` of `config.yml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultPermissions {
    /// Users who are not admins may make projects.
    pub allow_non_admins_create_projects: bool,
    /// Members who are not admins may make SSH fleets.
    pub allow_non_admins_manage_ssh_fleets: bool,
    /// Managers may read and write secrets.
    pub allow_managers_manage_secrets: bool,
}

impl Default for DefaultPermissions {
    fn default() -> Self {
        DefaultPermissions {
            allow_non_admins_create_projects: true,
            allow_non_admins_manage_ssh_fleets: true,
            allow_managers_manage_secrets: false,
        }
    }
}

/// How long an agent may be silent before its jobs are given up, in seconds. The original gives up after two
/// minutes, so that every short outage of the server's own network fails every job.
pub const UNREACHABLE_AFTER_SECS: u64 = 300;

/// How many offers are tried for the same machines before they are given up: as many as the original tries.
pub const MOST_OFFERS_TRIED: u32 = 25;

impl Default for Settings {
    fn default() -> Self {
        Settings {
            server_url: "http://127.0.0.1:3000".to_owned(),
            code_upload_limit_bytes: 2 * 1024 * 1024,
            default_image: "dstackai/base:0.16-base-ubuntu24.04".to_owned(),
            default_efa_image: None,
            unreachable_after_secs: UNREACHABLE_AFTER_SECS,
            unreachable_shown_after_secs: 15,
            event_retention_secs: 30 * 24 * 3600,
            log_retention_secs: None,
            agent_binary: PathBuf::from("dstack-agent"),
            ssh_proxy: None,
            prometheus_metrics: false,
            prometheus_token_hash: None,
            most_offers_tried: MOST_OFFERS_TRIED,
            default_creds_disabled: false,
            test_backends: false,
            default_permissions: DefaultPermissions::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_for_efa_follows_the_default_one() {
        let check = |image: Option<&str>, efa: Option<&str>, expected: &str| {
            let default = Settings::default();
            let default_image = image.map_or(default.default_image.clone(), str::to_owned);
            let settings = Settings { default_image, default_efa_image: efa.map(str::to_owned), ..default };
            assert_eq!(settings.efa_image(), expected);
        };
        check(None, None, "dstackai/base:0.16-devel-efa-ubuntu24.04");
        let mirrored = "images.example.com/dstackai/base:0.16-base-ubuntu24.04";
        check(Some(mirrored), None, "images.example.com/dstackai/base:0.16-devel-efa-ubuntu24.04");
        check(Some("images.example.com/ours:1"), None, "images.example.com/ours:1");
        check(Some("images.example.com/ours:1"), Some("images.example.com/efa:1"), "images.example.com/efa:1");
    }
}
