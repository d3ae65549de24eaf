//! Which profile fills what a configuration leaves out.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, bail};
use api::configurations::{Profile, ProfilesFile};

use crate::session::Session;

/// The profile's name when the files have none to offer.
const DEFAULT_NAME: &str = "default";

/// The profile's name when the user wants none.
const NONE_NAME: &str = "no-profile";

/// The profile named, or else the default one: of `.dstack/profiles.yml` here, or else of that in the user's home.
pub(crate) fn load(session: &Session, named: Option<&str>, none: bool) -> anyhow::Result<Profile> {
    let named = named.or_else(|| session.variable("DSTACK_PROFILE").filter(|_| !none));
    let refused = session.variable("DSTACK_NO_PROFILE").is_some() && named.is_none();
    if none || refused {
        return Ok(Profile { name: NONE_NAME.to_owned(), ..Profile::default() });
    }
    for folder in [session.resolve(".dstack"), session.dstack_directory()] {
        let file = read(&folder.join("profiles.yml"))?;
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

fn read(path: &Path) -> anyhow::Result<ProfilesFile> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(api::yaml::parse(&text, &path.display().to_string())?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(ProfilesFile::default()),
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}
