//! The configuration file that was named.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::configurations::Configuration;
use api::yaml::{YamlError, error_at, parse_configuration};

use super::configure::clean;
use crate::session::Session;

/// The files that are looked for when none is named.
const DEFAULT_FILES: [&str; 2] = [".dstack.yml", ".dstack.yaml"];

/// What stands for stdin.
pub(super) const STDIN: &str = "-";

/// The text of a configuration, for errors that show the line.
#[derive(Debug)]
pub(in crate::commands) struct Source {
    name: String,
    text: String,
}

impl Source {
    /// An error about what stands at `field`.
    pub(in crate::commands) fn error_at(&self, field: &str, message: String) -> YamlError {
        error_at(&self.text, &self.name, field, message)
    }
}

/// A configuration and where it came from.
#[derive(Debug)]
pub(in crate::commands) struct ConfigurationFile {
    /// What it says.
    pub configuration: Configuration,
    /// The file as seen from the current directory, so that one file has one name.
    pub path: String,
    /// Where relative paths in it start.
    pub folder: PathBuf,
    /// Its text.
    pub source: Source,
}

impl ConfigurationFile {
    /// Reads the file named, or the default one.
    pub(in crate::commands) async fn read(
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
            let text = session.printer.read_input().await.context("read the configuration from stdin")?;
            let name = "<stdin>".to_owned();
            let configuration = parse_configuration(&text, &name)?;
            let source = Source { name, text };
            return Ok(ConfigurationFile { configuration, path, folder: session.directory.clone(), source });
        }
        let full = session.resolve(&path);
        let text = match std::fs::read_to_string(&full) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("Configuration file {path} does not exist"),
            Err(error) => return Err(error).with_context(|| format!("read `{path}`")),
        };
        let configuration = parse_configuration(&text, &path)?;
        let source = Source { name: path.clone(), text };
        let path = seen_from(&session.directory, &path);
        let folder = full.parent().map_or_else(|| session.directory.clone(), PathBuf::from);
        Ok(ConfigurationFile { configuration, path, folder, source })
    }
}

/// A path inside `directory` as it is called there; others stay as they were typed.
fn seen_from(directory: &Path, path: &str) -> String {
    let full = clean(&directory.join(path));
    full.strip_prefix(clean(directory))
        .map_or_else(|_| path.to_owned(), |path| path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_one_name() {
        for path in ["x.yml", "./x.yml", "a/../x.yml", "/here/x.yml", ".//x.yml"] {
            assert_eq!(seen_from(Path::new("/here"), path), "x.yml", "{path}");
        }
        assert_eq!(seen_from(Path::new("/here"), "../x.yml"), "../x.yml");
        assert_eq!(seen_from(Path::new("/here"), "a/x.yml"), "a/x.yml");
    }
}
