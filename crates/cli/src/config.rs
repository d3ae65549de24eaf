//! `~/.dstack/config.yml`: the servers that the user knows, with their tokens.

use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::files::{self, PRIVATE};

/// The file. Keys of other versions are dropped when it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    /// One entry per project.
    #[serde(default)]
    pub(crate) projects: Vec<ProjectConfig>,
}

/// A project of a server. The keys are sorted, as in the official file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProjectConfig {
    /// It is used when the user names none.
    #[serde(default)]
    pub(crate) default: bool,
    /// Its name.
    pub(crate) name: String,
    /// The user's token.
    pub(crate) token: String,
    /// The server.
    pub(crate) url: String,
}

impl std::fmt::Debug for ProjectConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProjectConfig").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

impl ConfigFile {
    /// Reads the file; a missing one is empty.
    pub(crate) fn read(path: &Path) -> anyhow::Result<ConfigFile> {
        let text = files::read(path)?;
        if text.trim().is_empty() {
            return Ok(ConfigFile::default());
        }
        serde_saphyr::from_str(&text).with_context(|| format!("read `{}`", path.display()))
    }

    /// Replaces the file in one step, so that nobody reads half of it.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_saphyr::to_string(self).context("write the configuration as YAML")?;
        // It holds tokens.
        files::replace(path, text.as_bytes(), PRIVATE)
    }

    /// The project of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&ProjectConfig> {
        self.projects.iter().find(|project| project.name == name)
    }

    /// The project that is used when the user names none.
    pub(crate) fn default_project(&self) -> Option<&ProjectConfig> {
        self.projects.iter().find(|project| project.default)
    }

    /// Adds a project or replaces the one of its name. A default one is the only one.
    pub(crate) fn set(&mut self, project: ProjectConfig) {
        if project.default {
            for other in &mut self.projects {
                other.default = false;
            }
        }
        match self.projects.iter_mut().find(|other| other.name == project.name) {
            Some(old) => *old = project,
            None => self.projects.push(project),
        }
    }
}

/// The project named, or the default one.
pub(crate) fn choose<'a>(file: &'a ConfigFile, named: Option<&str>) -> anyhow::Result<&'a ProjectConfig> {
    match named {
        Some(name) => file
            .get(name)
            .with_context(|| format!("Project {name} is not configured; see `dstack project add --help`")),
        None => match file.default_project() {
            Some(project) => Ok(project),
            None => bail!("No default project, specify project name"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(name: &str, default: bool) -> ProjectConfig {
        ProjectConfig { default, name: name.to_owned(), token: "t: #1".to_owned(), url: "http://s".to_owned() }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("config.yml");
        let mut file = ConfigFile::default();
        file.set(project("main", true));
        file.set(project("other", false));
        file.write(&path).unwrap();
        assert_eq!(ConfigFile::read(&path).unwrap(), file);
    }

    #[test]
    fn a_new_default_ends_the_old_one() {
        let mut file = ConfigFile::default();
        file.set(project("main", true));
        file.set(project("other", true));
        assert_eq!(file.default_project().unwrap().name, "other");
        assert_eq!(file.projects.iter().filter(|project| project.default).count(), 1);
    }

    #[test]
    fn keys_of_old_versions_are_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        std::fs::write(&path, "projects:\n- default: true\n  name: a\n  token: t\n  url: http://s\nrepos: []\n")
            .unwrap();
        assert_eq!(ConfigFile::read(&path).unwrap().projects.len(), 1);
    }
}
