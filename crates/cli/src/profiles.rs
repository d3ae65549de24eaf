//! Which profile fills what a configuration leaves out.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::configurations::{Profile, ProfilesFile};

use crate::session::Session;

/// The profile's name when the files have none to offer.
const DEFAULT_NAME: &str = "default";

/// The profile's name when the user wants none.
const NONE_NAME: &str = "no-profile";

/// The profile named, or else the default one: of `.dstack/profiles.yml` here, or else of that in the user's home. What
/// is typed wins over the environment, and wanting none over wanting one.
pub(crate) fn load(session: &Session, named: Option<&str>, none: bool) -> anyhow::Result<Profile> {
    if none || named.is_none() && wants_none(session)? {
        return Ok(Profile { name: NONE_NAME.to_owned(), ..Profile::default() });
    }
    let named = named.or_else(|| session.variable("DSTACK_PROFILE"));
    for folder in [session.resolve(".dstack"), session.dstack_directory()] {
        let file = read(&file_in(&folder))?;
        let found = match named {
            Some(name) => file.get(name),
            None => file.default_profile(),
        };
        if let Some(profile) = found {
            return Ok(profile.clone());
        }
    }
    match named {
        Some(name) if name != DEFAULT_NAME => bail!("No such profile: {name}"),
        _ => Ok(Profile { name: DEFAULT_NAME.to_owned(), ..Profile::default() }),
    }
}

/// What the environment says of wanting none.
fn wants_none(session: &Session) -> anyhow::Result<bool> {
    const NAME: &str = "DSTACK_NO_PROFILE";
    let Some(value) = session.variable(NAME) else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" => Ok(true),
        "0" | "false" | "off" => Ok(false),
        _ => bail!("Invalid bool value: {NAME}={value}"),
    }
}

fn file_in(folder: &Path) -> PathBuf {
    let usual = folder.join("profiles.yml");
    if usual.exists() { usual } else { folder.join("profiles.yaml") }
}

fn read(path: &Path) -> anyhow::Result<ProfilesFile> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(api::yaml::parse(&text, &path.display().to_string())?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(ProfilesFile::default()),
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}
