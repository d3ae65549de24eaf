//! The configuration file that was named.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::configurations::Configuration;
use api::yaml::YamlError;

use super::configure::clean;
use crate::session::Session;

/// The files that are looked for when none is named.
const DEFAULT_FILES: [&str; 2] = [".dstack.yml", ".dstack.yaml"];

/// What stands for stdin.
pub(super) const STDIN: &str = "-";

/// The key of a run's folder.
const WORKING_DIR: &str = "working_dir";

/// A configuration and where it came from.
#[derive(Debug)]
pub(in crate::commands) struct ConfigurationFile {
    /// What it says.
    pub configuration: Configuration,
    /// The file as seen from the current directory, so that one file has one name.
    pub path: String,
    /// Where relative paths in it start.
    pub folder: PathBuf,
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
            let configuration = read(&text, "<stdin>")?;
            return Ok(ConfigurationFile { configuration, path, folder: session.directory.clone() });
        }
        let full = session.resolve(&path);
        let text = match std::fs::read_to_string(&full) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("Configuration file {path} does not exist"),
            Err(error) => return Err(error).with_context(|| format!("read `{path}`")),
        };
        let configuration = read(&text, &path)?;
        let path = seen_from(&session.directory, &path);
        let folder = full.parent().map_or_else(|| session.directory.clone(), PathBuf::from);
        Ok(ConfigurationFile { configuration, path, folder })
    }
}

/// Reads a configuration and checks what the official client checks by itself.
fn read(text: &str, file: &str) -> anyhow::Result<Configuration> {
    let configuration = api::yaml::parse_configuration(text, file)?;
    let run = match &configuration {
        Configuration::Task(task) => task.working_dir.as_deref(),
        Configuration::DevEnvironment(environment) => environment.working_dir.as_deref(),
        Configuration::Service(service) => service.working_dir.as_deref(),
        Configuration::Fleet(_) | Configuration::Volume(_) | Configuration::Gateway(_) => None,
    };
    match run {
        Some(folder) if !folder.starts_with(['/', '~']) => Err(at_key(text, file, WORKING_DIR).into()),
        _ => Ok(configuration),
    }
}

/// The error of a folder that is not absolute, where the file has it.
fn at_key(text: &str, file: &str, key: &str) -> YamlError {
    let mut lines = text.lines().enumerate();
    let found = lines.find(|(_, line)| line.split_once(':').is_some_and(|(name, _)| name.trim() == key));
    let (index, line) = found.unwrap_or((0, ""));
    let value = line.split_once(':').map_or("", |(_, value)| value.trim());
    let before = line.rfind(value).unwrap_or(0);
    YamlError {
        message: format!("{key} must be absolute"),
        file: file.to_owned(),
        line: index as u64 + 1,
        column: line[..before].chars().count() as u64 + 1,
        width: (value.chars().count() as u64).max(1),
        source_line: line.to_owned(),
        suggestion: None,
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

    #[test]
    fn a_relative_folder_is_shown_where_it_stands() {
        let text = "type: task\ncommands: [x]\nworking_dir: sub/dir\n";
        let error = read(text, "t.yml").unwrap_err().to_string();
        assert!(error.contains("working_dir must be absolute"), "{error}");
        assert!(error.contains("t.yml:3:14") && error.contains("^^^^^^^"), "{error}");
        for folder in ["/sub", "~/x"] {
            assert!(read(&text.replace("sub/dir", folder), "t.yml").is_ok(), "{folder}");
        }
    }
}
