//! Typed identifiers. All are UUID version 4, because the official client refuses any other version.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map($name)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                $name(id)
            }
        }
    )*};
}

id! {
    /// A project: the tenant that owns runs, fleets and secrets.
    ProjectId
    /// A user of the server.
    UserId
    /// A run: what a user submits.
    RunId
    /// One submission of one job. The agent's task carries the same identifier.
    JobId
    /// A fleet: a set of instances and the template for more.
    FleetId
    /// A machine, or its slot in a fleet.
    InstanceId
    /// One purchase of machines: the client token and the tag of one backend call.
    LaunchId
    /// A volume.
    VolumeId
    /// An event.
    EventId
    /// A secret.
    SecretId
    /// An uploaded archive of files.
    FileArchiveId
    /// A repository's row.
    RepoRowId
    /// A backend's row.
    BackendId
    /// The identity of one server installation, kept with its database.
    ServerId
}
