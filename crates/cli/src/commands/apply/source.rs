//! The configuration file that was named.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, bail};
use api::configurations::Configuration;

use crate::session::Session;

/// The files that are looked for when none is named.
const DEFAULT_FILES: [&str; 2] = [".dstack.yml", ".dstack.yaml"];

/// What stands for stdin.
const STDIN: &str = "-";

/// A configuration and where it came from.
#[derive(Debug)]
pub(in crate::commands) struct ConfigurationFile {
    /// What it says.
    pub configuration: Configuration,
    /// The file as the user named it.
    pub path: String,
    /// Where relative paths in it start.
    pub folder: PathBuf,
}

impl ConfigurationFile {
    /// Reads the file named, or the default one.
    pub(in crate::commands) fn read(
        session: &mut Session,
        named: Option<&str>,
    ) -> anyhow::Result<ConfigurationFile> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => match DEFAULT_FILES.into_iter().find(|name| session.resolve(name).is_file()) {
                Some(name) => name.to_owned(),
                None => bail!(
                    "No configuration file specified via `-f` and no default .dstack.yml configuration found"
                ),
            },
        };
        if path == STDIN {
            let text = session.printer.read_input().context("read the configuration from stdin")?;
            let configuration = api::yaml::parse_configuration(&text, "<stdin>")?;
            return Ok(ConfigurationFile { configuration, path, folder: session.directory.clone() });
        }
        let full = session.resolve(&path);
        let text = match std::fs::read_to_string(&full) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("Configuration file {path} does not exist"),
            Err(error) => return Err(error).with_context(|| format!("read `{path}`")),
        };
        let configuration = api::yaml::parse_configuration(&text, &path)?;
        let folder = full.parent().map_or_else(|| session.directory.clone(), PathBuf::from);
        Ok(ConfigurationFile { configuration, path, folder })
    }
}
