//! Everything that a command takes from the world around it: environment, directories, time, terminal,
//! Ctrl-C.
//!
//! Commands never ask the process for these, so that tests run many sessions side by side.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use api::client::Client;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha1::{Digest, Sha1};
use tokio::io::DuplexStream;

use crate::config::{self, ConfigFile};
use crate::interrupts::Interrupts;
use crate::printer::Printer;

/// The length of the names of key files.
const KEY_NAME_LENGTH: usize = 8;

/// The world around one command.
#[derive(Debug)]
pub struct Session {
    /// The only way to print and to ask.
    pub printer: Printer,
    /// The environment's variables.
    pub variables: BTreeMap<String, String>,
    /// The directory in which the command was typed.
    pub directory: PathBuf,
    /// The user's home.
    pub home: PathBuf,
    /// The user's time zone.
    pub zone: TimeZone,
    /// The time, where it stands still.
    pub stopped_at: Option<Timestamp>,
    /// Ctrl-C.
    pub interrupts: Interrupts,
    /// This program, for whatever is to call it again.
    pub program: PathBuf,
    /// What bytes are carried from and to. None: stdin and stdout.
    pub pipe: Option<DuplexStream>,
}

/// A project of a server, ready to be called.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    /// The server.
    pub(crate) client: Client,
    /// The project's name.
    pub(crate) name: String,
    /// The name of the file with the user's SSH key: a part of the token's hash, as in the official client.
    pub(crate) key_name: String,
}

impl Session {
    /// The world of this process.
    pub fn of_process() -> anyhow::Result<Session> {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = std::env::home_dir().context("the home directory is unknown; set HOME")?;
        Ok(Session {
            printer: Printer::of_process(&variables),
            directory: std::env::current_dir().context("find the current directory")?,
            home,
            zone: TimeZone::system(),
            stopped_at: None,
            interrupts: Interrupts::of_process(),
            program: std::env::current_exe().context("find this program")?,
            pipe: None,
            variables,
        })
    }

    /// The value of a variable, unless it is unset or empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        self.stopped_at.unwrap_or_else(now)
    }

    /// The folder of our files in the user's home.
    pub(crate) fn dstack_directory(&self) -> PathBuf {
        self.home.join(".dstack")
    }

    /// The folder with what is ours of the user's SSH.
    pub(crate) fn ssh_directory(&self) -> PathBuf {
        self.dstack_directory().join("ssh")
    }

    /// The file with the servers' addresses and tokens.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.dstack_directory().join("config.yml")
    }

    /// `path` as seen from the current directory.
    pub(crate) fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// The project to talk to: the one named, that of the environment, or the default one.
    pub(crate) fn project(&self, named: Option<&str>) -> anyhow::Result<Project> {
        let named = named.or_else(|| self.variable("DSTACK_PROJECT"));
        let token = self.variable("DSTACK_TOKEN");
        if let (Some(url), Some(token)) = (self.variable("DSTACK_SERVER_URL"), token) {
            let name = named.context("No default project, specify project name")?;
            return self.connect(url, token, name);
        }
        let file = ConfigFile::read(&self.config_path())?;
        let project = config::choose(&file, named)?;
        self.connect(&project.url, token.unwrap_or(&project.token), &project.name)
    }

    fn connect(&self, url: &str, token: &str, name: &str) -> anyhow::Result<Project> {
        let mut key_name = hex::encode(Sha1::digest(token));
        key_name.truncate(KEY_NAME_LENGTH);
        Ok(Project { client: self.client(url, token)?, name: name.to_owned(), key_name })
    }

    /// A client of the server at `url`.
    pub(crate) fn client(&self, url: &str, token: &str) -> anyhow::Result<Client> {
        let version = self.variable("DSTACK_CLIENT_API_VERSION").unwrap_or(api::client::CLIENT_VERSION);
        Ok(Client::with_version(url, token, version)?)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock that is injected")]
fn now() -> Timestamp {
    Timestamp::now()
}
