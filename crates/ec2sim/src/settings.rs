//! What a simulation is told about how its cloud behaves.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::auth::Credential;
use crate::clock::Clock;
use crate::network;

/// The account that everything belongs to, unless told otherwise.
pub const ACCOUNT: &str = "123456789012";

/// The key that is taken, unless others are given: the one of AWS's own documentation.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";

/// What signs with [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// Delays, limits and strictness. All of them may be changed while the simulation runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The number of the account.
    pub account: String,
    /// From the launch until the state is `running`.
    pub boot_ms: u64,
    /// From the order to terminate until the state is `terminated`.
    pub shutdown_ms: u64,
    /// How long a new instance is unknown to all actions but the one that launched it.
    pub instance_unseen_ms: u64,
    /// How old the states are that describing actions tell.
    pub stale_ms: u64,
    /// How long a new group, address, interface or volume is unknown to the actions that use it.
    pub resource_unseen_ms: u64,
    /// How long a deleted placement group is still in use by its name.
    pub group_deletion_ms: u64,
    /// How long a terminated instance is still described.
    pub terminated_seen_ms: u64,
    /// From the notice to a spot instance until it is ended.
    pub spot_notice_ms: u64,
    /// What every answer takes.
    pub answer_ms: u64,
    /// Whether a request's own time must be near ours. A clock that is moved by hand is near nobody's.
    pub check_time: bool,
    /// Whether requests are throttled as AWS does.
    pub throttle: bool,
    /// The most instances of an account in a region, where there is such a limit.
    pub max_instances: Option<u32>,
    /// Regions that the account has asked for, beside those that all accounts have.
    pub opted_in: Vec<String>,
    /// The addresses of the default VPC of a region that nobody has looked at yet: a block of /16.
    pub default_vpc_cidr: String,
    /// The addresses of `my-vpc` of such a region.
    pub my_vpc_cidr: String,
    /// Types whose machines show two devices of InfiniBand's other make beside those of EFA.
    pub mlx5_too: Vec<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            account: ACCOUNT.to_owned(),
            boot_ms: 3_000,
            shutdown_ms: 2_000,
            instance_unseen_ms: 200,
            stale_ms: 100,
            resource_unseen_ms: 0,
            group_deletion_ms: 0,
            terminated_seen_ms: 3_600_000,
            spot_notice_ms: 120_000,
            answer_ms: 0,
            check_time: true,
            throttle: true,
            max_instances: None,
            opted_in: vec![],
            default_vpc_cidr: "172.31.0.0/16".to_owned(),
            my_vpc_cidr: "10.0.0.0/16".to_owned(),
            mlx5_too: vec![],
        }
    }
}

impl Settings {
    /// A cloud in which everything happens at once and is seen at once.
    pub fn immediate() -> Settings {
        Settings { boot_ms: 0, shutdown_ms: 0, instance_unseen_ms: 0, stale_ms: 0, ..Settings::default() }
    }

    /// Says what is wrong with settings that no cloud can be made of.
    pub fn check(&self) -> Result<(), String> {
        for (name, cidr) in [("default_vpc_cidr", &self.default_vpc_cidr), ("my_vpc_cidr", &self.my_vpc_cidr)] {
            network::read_large_block(cidr).map_err(|error| format!("`{name}`: {error}"))?;
        }
        Ok(())
    }
}

/// How a simulation begins.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the cloud behaves.
    pub settings: Settings,
    /// What tells the time.
    pub clock: Clock,
    /// From what all chance comes.
    pub seed: u64,
    /// The keys that are taken.
    pub credentials: Vec<Credential>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            settings: Settings::default(),
            clock: Clock::System,
            seed: 1,
            credentials: vec![default_credential()],
        }
    }
}

impl Options {
    /// A simulation whose clock is moved by hand, and which does not look at the time of requests.
    pub fn manual(start: Timestamp, settings: Settings) -> Options {
        let settings = Settings { check_time: false, ..settings };
        Options { settings, clock: Clock::manual(start), ..Options::default() }
    }
}

/// The key that is taken unless others are given.
pub fn default_credential() -> Credential {
    Credential {
        access_key: ACCESS_KEY.to_owned(),
        secret_key: Some(SECRET_KEY.to_owned()),
        session_token: None,
        arn: format!("arn:aws:iam::{ACCOUNT}:user/dstack"),
        expires_at: None,
        allowed: None,
    }
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
