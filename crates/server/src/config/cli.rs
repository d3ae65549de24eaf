//! Tells the CLI of this user about the project `main`, in `~/.dstack/config.yml`.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use crate::accounts::MAIN_PROJECT;
use crate::{private_files, yaml_text};

/// Whether `main` may take the place of another default project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// It may.
    Yes,
    /// It may not.
    No,
    /// The user is asked.
    Ask,
}

/// Adds or updates the project `main`, and says whether anything was written.
///
/// It becomes the default project if there is none, or if the user wants it.
pub fn update_cli_config(
    path: &Path,
    url: &str,
    token: &str,
    question: Question,
    ask: impl FnOnce() -> bool,
) -> anyhow::Result<bool> {
    // Where the file is a link, what it leads to is written.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut config = read(&path)?;
    let projects = config.entry("projects").or_insert_with(|| json!([]));
    if projects.is_null() {
        *projects = json!([]);
    }
    let Some(projects) = projects.as_array_mut() else { bail!("`projects` of `{}` is no list", path.display()) };
    let is_named = |project: &Value| project.get("name") == Some(&json!(MAIN_PROJECT));
    let is_default = |project: &Value| project.get("default") == Some(&json!(true));
    let other_default = projects.iter().any(|project| is_default(project) && !is_named(project));
    let known = projects.iter().find(|project| is_named(project)).cloned();
    let default = !other_default
        || match question {
            Question::Yes => true,
            Question::No => false,
            Question::Ask => ask(),
        };
    if other_default && !default {
        return Ok(false);
    }
    let ours = json!({ "name": MAIN_PROJECT, "url": url, "token": token, "default": default });
    if known.as_ref() == Some(&ours) {
        return Ok(false);
    }
    for project in projects.iter_mut().filter(|project| is_default(project)) {
        project["default"] = json!(false);
    }
    match projects.iter_mut().find(|project| is_named(project)) {
        Some(project) => *project = ours,
        None => projects.push(ours),
    }
    if let Some(folder) = path.parent() {
        private_files::create_folder(folder).with_context(|| format!("make the folder `{}`", folder.display()))?;
    }
    // The file holds a token, so that nobody else may read it.
    private_files::write(&path, yaml_text::write(&config, &[]).as_bytes())
        .with_context(|| format!("write `{}`", path.display()))?;
    Ok(true)
}

fn read(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
    };
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match api::yaml::parse::<Value>(&text, &path.display().to_string())? {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => bail!("`{}` is no mapping", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const URL: &str = "http://127.0.0.1:3000";
    const OURS: &str = "projects:\n- default: true\n  name: main\n  token: tok-1\n  url: http://127.0.0.1:3000\n";

    #[track_caller]
    fn check(before: Option<&str>, question: Question, answer: Option<bool>, after: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".dstack/config.yml");
        if let Some(before) = before {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, before).unwrap();
        }
        let ask = || answer.expect("nobody is asked");
        let written = update_cli_config(&path, URL, "tok-1", question, ask).unwrap();
        assert_eq!(written, after.is_some());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, after.or(before).unwrap());
        if written {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn without_a_default_main_becomes_it() {
        for question in [Question::Yes, Question::No, Question::Ask] {
            check(None, question, None, Some(OURS));
            check(Some(""), question, None, Some(OURS));
            check(Some("projects: []\n"), question, None, Some(OURS));
        }
        check(
            Some("projects:\n- {name: other, token: t, url: u}\nrepos: []\n"),
            Question::No,
            None,
            Some(&format!("projects:\n- name: other\n  token: t\n  url: u\n{}repos: []\n", &OURS[10..])),
        );
    }

    #[test]
    fn main_is_updated_in_place() {
        let old = "projects:\n- default: true\n  name: main\n  token: tok-0\n  url: http://127.0.0.1:3001\n";
        check(Some(old), Question::No, None, Some(OURS));
        check(Some(OURS), Question::Ask, None, None);
    }

    #[test]
    fn another_default_is_replaced_only_if_wanted() {
        let other = "projects:\n- default: true\n  name: other\n  token: t\n  url: u\n";
        let replaced =
            format!("projects:\n- default: false\n  name: other\n  token: t\n  url: u\n{}", &OURS[10..]);
        check(Some(other), Question::Yes, None, Some(&replaced));
        check(Some(other), Question::Ask, Some(true), Some(&replaced));
        check(Some(other), Question::No, None, None);
        check(Some(other), Question::Ask, Some(false), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_stays_as_it_is() {
        for text in ["projects: 1\n", "[]\n", "a: [\n"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.yml");
            fs::write(&path, text).unwrap();
            update_cli_config(&path, URL, "t", Question::Yes, || true).unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
