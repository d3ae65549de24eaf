//! What `config.yml` may say. Unknown keys and values that do not fit stop the start with the line and the field.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, bail};
use api::backends::BackendType;
use api::yaml::YamlError;
use backends::BackendConfig;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::masking::without_secrets;
use crate::accounts::{MAIN_PROJECT, is_project_name};
use crate::sealing::KeyConfig;
use crate::settings::DefaultPermissions;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Projects, made where they are missing. None is there twice.
    #[serde(deserialize_with = "projects")]
    pub projects: Option<Vec<ProjectEntry>>,
    /// Keys that seal what is secret.
    pub encryption: Option<Encryption>,
    /// What users may do.
    default_permissions: Option<Permissions>,
    #[serde(deserialize_with = "no_plugins", rename = "plugins")]
    _plugins: (),
}

/// One project.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectEntry {
    /// Its name.
    #[serde(deserialize_with = "project_name")]
    pub name: String,
    /// Its backends; those that it has beside them are let go.
    #[serde(default)]
    pub backends: Option<Vec<BackendEntry>>,
}

/// One backend of a project.
#[derive(Debug)]
pub enum BackendEntry {
    /// One that this server has.
    Known(BackendConfig),
    /// One that the official server has.
    Unsupported(BackendType),
}

/// The keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encryption {
    keys: Vec<KeyEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "RawKey")]
struct KeyEntry(KeyConfig);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    r#type: String,
    name: Option<String>,
    secret: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Permissions {
    allow_non_admins_create_projects: Option<bool>,
    allow_non_admins_manage_ssh_fleets: Option<bool>,
    allow_managers_manage_secrets: Option<bool>,
}

impl ServerConfig {
    /// The keys that seal what is secret, the first one sealing.
    pub fn encryption_keys(&self) -> Vec<KeyConfig> {
        self.encryption.iter().flat_map(|encryption| &encryption.keys).map(|key| key.0.clone()).collect()
    }

    /// Refuses backends that exist for tests: nothing that runs on one is real.
    pub fn refuse_test_backends(&self) -> anyhow::Result<()> {
        for project in self.projects.iter().flatten() {
            for backend in project.backends.iter().flatten() {
                if let BackendEntry::Known(config) = backend
                    && config.is_for_tests()
                {
                    bail!(
                        "config.yml: project `{}` has a backend of type `{}`, which exists for tests only \
                         (DSTACK_TEST_BACKENDS)",
                        project.name,
                        config.kind
                    );
                }
            }
        }
        Ok(())
    }

    /// What users may do.
    pub fn permissions(&self) -> DefaultPermissions {
        let default = DefaultPermissions::default();
        let Some(given) = &self.default_permissions else { return default };
        DefaultPermissions {
            allow_non_admins_create_projects: given
                .allow_non_admins_create_projects
                .unwrap_or(default.allow_non_admins_create_projects),
            allow_non_admins_manage_ssh_fleets: given
                .allow_non_admins_manage_ssh_fleets
                .unwrap_or(default.allow_non_admins_manage_ssh_fleets),
            allow_managers_manage_secrets: given
                .allow_managers_manage_secrets
                .unwrap_or(default.allow_managers_manage_secrets),
        }
    }
}

impl TryFrom<RawKey> for KeyEntry {
    type Error = String;

    fn try_from(raw: RawKey) -> Result<Self, String> {
        match (raw.r#type.as_str(), raw.name, raw.secret) {
            ("identity", _, None) => Ok(KeyEntry(KeyConfig::Identity)),
            ("identity", _, Some(_)) => Err("a key of type `identity` has no `secret`".to_owned()),
            ("aes", Some(name), Some(secret)) => {
                let key = KeyConfig::Aes { name, secret };
                key.check().map_err(|error| error.to_string())?;
                Ok(KeyEntry(key))
            }
            ("aes", None, _) => Err("a key of type `aes` needs a `name`".to_owned()),
            ("aes", _, None) => Err("a key of type `aes` needs a `secret`: 32 random bytes in base64".to_owned()),
            (other, _, _) => Err(format!("no key of type `{other}`; it is `identity` or `aes`")),
        }
    }
}

impl<'de> Deserialize<'de> for BackendEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Value::deserialize(deserializer)?;
        match backends::parse_config(&config) {
            Ok(config) => Ok(BackendEntry::Known(config)),
            Err(error) => {
                let kind = config.get("type").cloned().unwrap_or_default();
                let is_ours = backends::kinds().iter().any(|ours| kind == **ours);
                match serde_json::from_value(kind) {
                    Ok(official) if !is_ours => Ok(BackendEntry::Unsupported(official)),
                    _ => Err(D::Error::custom(error)),
                }
            }
        }
    }
}

fn project_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if is_project_name(&name) {
        return Ok(name);
    }
    Err(D::Error::custom("a project's name is 1 to 50 letters, digits, `-` and `_`"))
}

fn projects<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ProjectEntry>>, D::Error> {
    Ok(Option::<Projects>::deserialize(deserializer)?.map(|projects| projects.0))
}

/// Projects with different names.
struct Projects(Vec<ProjectEntry>);

impl<'de> Deserialize<'de> for Projects {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ProjectsVisitor).map(Projects)
    }
}

struct ProjectsVisitor;

impl<'de> Visitor<'de> for ProjectsVisitor {
    type Value = Vec<ProjectEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of projects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut projects = vec![];
        while let Some(project) = items.next_element_seed(NextProject(&projects))? {
            projects.push(project);
        }
        Ok(projects)
    }
}

/// A project that is not among those before it: each entry says all that the project has, so that of two the first
/// one's backends would be let go.
struct NextProject<'a>(&'a [ProjectEntry]);

impl<'de> DeserializeSeed<'de> for NextProject<'_> {
    type Value = ProjectEntry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ProjectEntry, D::Error> {
        let project = ProjectEntry::deserialize(deserializer)?;
        if self.0.iter().any(|other| other.name.eq_ignore_ascii_case(&project.name)) {
            let message = format!("project `{}` is listed twice; put its backends into one entry", project.name);
            return Err(D::Error::custom(message));
        }
        Ok(project)
    }
}

fn no_plugins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let plugins = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
    if plugins.is_empty() {
        return Ok(());
    }
    Err(D::Error::custom("plugins are Python packages, which this server cannot load; leave the list empty"))
}

/// Reads the file; none if there is none.
pub fn read(path: &Path) -> anyhow::Result<Option<ServerConfig>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read the config file `{}`", path.display())),
    };
    Ok(Some(parse(&text, &path.display().to_string())?))
}

fn parse(text: &str, file_name: &str) -> Result<ServerConfig, YamlError> {
    // A file of nothing but comments says nothing.
    let says_something = text.lines().any(|line| !matches!(line.trim_start().chars().next(), None | Some('#')));
    if !says_something {
        return Ok(ServerConfig::default());
    }
    api::yaml::parse(text, file_name).map_err(|error| without_secrets(error, text))
}

/// The file that the first start writes.
pub fn first_config() -> String {
    format!("projects:\n- name: {MAIN_PROJECT}\n  backends:\n  - type: local\nencryption:\n  keys: []\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[track_caller]
    fn check_refused(text: &str, line: u64, part: &str) {
        let error = parse(text, "config.yml").expect_err("the file is wrong");
        assert_eq!(error.line, line, "{error}");
        assert!(error.message.contains(part), "{error}");
    }

    #[test]
    fn the_first_file_is_read_back() {
        let config = parse(&first_config(), "config.yml").unwrap();
        let [project] = &config.projects.as_deref().unwrap() else { panic!("one project") };
        assert_eq!(project.name, "main");
        let [BackendEntry::Known(backend)] = &project.backends.as_deref().unwrap() else { panic!("one backend") };
        assert_eq!(backend.kind, "local");
        assert_eq!(config.encryption_keys(), []);
        assert_eq!(config.permissions(), DefaultPermissions::default());
    }

    #[test]
    fn everything_may_be_left_out() {
        for text in
            ["", "# nothing\n", "projects:\n", "projects: []\nencryption: {}\nplugins: []\n", "encryption:\n"]
        {
            assert_eq!(parse(text, "config.yml").unwrap().encryption_keys(), [], "{text}");
        }
    }

    #[test]
    fn keys_and_permissions_are_read() {
        let text = format!(
            "projects:\n- name: team_1\nencryption:\n  keys:\n  - type: aes\n    name: k1\n    secret: {SECRET}\n  \
                    - type: identity\ndefault_permissions:\n  allow_non_admins_create_projects: false\n"
        );
        let config = parse(&text, "config.yml").unwrap();
        let aes = KeyConfig::Aes { name: "k1".to_owned(), secret: SECRET.to_owned() };
        assert_eq!(config.encryption_keys(), [aes, KeyConfig::Identity]);
        let permissions = config.permissions();
        assert!(!permissions.allow_non_admins_create_projects && permissions.allow_non_admins_manage_ssh_fleets);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        check_refused("projects:\n- name: main\n  backend: []\n", 3, "backend");
        check_refused("projets: []\n", 1, "projets");
        check_refused("projects:\n- name: a b\n", 2, "letters, digits");
        check_refused("projects:\n- name: main\n  backends:\n  - type: locla\n", 4, "did you mean `local`?");
        check_refused("projects:\n- name: main\n  backends:\n  - type: local\n    x: 1\n", 5, "no key `x`");
        check_refused("encryption:\n  keys:\n  - type: rot13\n", 3, "rot13");
        check_refused("encryption:\n  keys:\n  - type: aes\n    name: k\n", 3, "needs a `secret`");
        let short = "encryption:\n  keys:\n  - type: identity\n  - type: aes\n    name: k1\n    secret: AAAA\n";
        check_refused(short, 4, "`k1`: the secret is not 32 bytes in base64");
        let twice = "projects:\n- name: main\n- name: team\n- name: Main\n  backends:\n  - type: local\n";
        check_refused(twice, 4, "project `Main` is listed twice");
        check_refused("default_permissions:\n  allow_all: true\n", 2, "allow_all");
        check_refused("projects: []\nplugins: [my_plugin]\n", 2, "cannot load");
        check_refused("projects: [\n", 1, "");
    }

    #[test]
    fn secrets_are_not_told_with_what_is_wrong() {
        for text in [
            "encryption:\n  keys:\n  - type: aes\n    name: k\n    secrett: HUSH\n",
            "encryption:\n  keys:\n  - type: aes\n    name: k\n    secret: [HUSH]\n",
            "encryption:\n  keys:\n  - HUSH\n",
            "encryption:\n  keys: HUSH\n",
            "encryption: {keys: [{type: aes, name: k, secret: HUSH, x: 1}]}\n",
            "encryption: {\nkeys: [HUSH]}\n",
            "projects:\n- name: main\n  backends:\n  - type: local\n    creds:\n      secret_key: HUSH\n    - x\n",
            "projects:\n- name: main\n  backends:\n  - {type: local, creds: {secret_key: HUSH}}\n",
            "encryption:\n  keys:\n  - type: aes\n    secret: \"HUSH\n",
        ] {
            let error = parse(text, "config.yml").expect_err(text);
            assert!(!error.to_string().contains("HUSH"), "{text}{error}");
        }
        let plain = parse("projects:\n- name: SHOWN !\n", "config.yml").unwrap_err();
        assert!(plain.to_string().contains("SHOWN !"), "{plain}");
    }

    #[test]
    fn secrets_of_several_words_and_with_marks_are_not_told_either() {
        let words = ["correct", "horse", "battery", "ab12", "cd34", "hunter2", "staple1", "x1", "y2"];
        for secret in ["correct horse battery", "ab12,cd34", "hunter2:", "\"it's \\\"staple1\\\"\"", "x1`y2"] {
            for (before, after) in [
                ("encryption:\n  keys: ", "\n"),
                ("encryption:\n  keys:\n  - type: aes\n    name: k\n    secrett: ", "\n"),
                ("encryption:\n  keys: {secrett: ", "}\n"),
                ("projects:\n- name: main\n  backends:\n  - type: local\n    creds: ", "\n"),
            ] {
                let text = format!("{before}{secret}{after}");
                let error = parse(&text, "config.yml").expect_err(&text).to_string();
                for word in words.iter().filter(|word| secret.contains(**word)) {
                    assert!(!error.contains(word), "{text}{error}");
                }
            }
        }
        // On lines of their own.
        for text in [
            "encryption:\n  keys:\n    correct\n    horse\n",
            "encryption:\n  keys: correct\n    horse\n",
            "encryption:\n  keys: |\n    correct horse\n",
        ] {
            let error = parse(text, "config.yml").expect_err(text).to_string();
            assert!(!error.contains("correct") && !error.contains("horse"), "{text}{error}");
        }
    }

    #[test]
    fn official_backends_that_this_server_lacks_do_not_stop_the_start() {
        let text = "projects:\n- name: main\n  backends:\n  - type: vastai\n    creds:\n      api_key: x\n";
        let config = parse(text, "config.yml").unwrap();
        let backends = config.projects.unwrap().remove(0).backends.unwrap();
        assert!(matches!(backends.as_slice(), [BackendEntry::Unsupported(BackendType::Vastai)]));
    }
}
