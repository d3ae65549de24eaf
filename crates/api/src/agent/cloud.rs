//! What a cloud tells a host about itself.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A cloud whose machines learn about themselves from a service at a fixed address. An agent asks it only where its
/// server has said that the host is such a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cloud {
    /// Amazon EC2.
    Ec2,
}

impl Cloud {
    /// The word for it in the agent's arguments.
    pub fn as_str(self) -> &'static str {
        match self {
            Cloud::Ec2 => "ec2",
        }
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Cloud::Ec2 => "AWS",
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Cloud {
    type Err = String;

    fn from_str(text: &str) -> Result<Cloud, String> {
        match text {
            "ec2" => Ok(Cloud::Ec2),
            _ => Err(format!("`{text}` is no cloud that is known here; `ec2` is")),
        }
    }
}

/// What the cloud says that a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudMachine {
    /// Which cloud says so.
    pub cloud: Cloud,
    /// The machine's identifier there, for instance `i-0123456789abcdef0`.
    pub instance_id: String,
    /// The kind of machine.
    #[serde(default)]
    pub instance_type: Option<String>,
    /// Where it is.
    #[serde(default)]
    pub zone: Option<String>,
}

/// The cloud takes the machine back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruption {
    /// Which cloud does.
    pub cloud: Cloud,
    /// What it does, in its own word: `terminate`, `stop` or `hibernate`.
    pub action: String,
    /// When, if it says.
    #[serde(default)]
    pub at: Option<Timestamp>,
}
