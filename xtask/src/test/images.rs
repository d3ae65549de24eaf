//! Images for tests, made from packages of the system: no registry is asked for them.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::packages;
use crate::sandbox::Sandbox;
use crate::{shell, workspace};

/// What is only weight in an image: packages as downloaded, lists of them, and what people would read.
const WEIGHT: [&str; 5] =
    ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"];

/// A small Debian with certain packages.
#[derive(Debug)]
pub(super) struct Recipe {
    /// The name that tests use, without a tag.
    pub(super) name: &'static str,
    pub(super) packages: &'static str,
    /// Shell text for the last touch, run in the folder of the image's files.
    pub(super) finish: &'static str,
}

impl Recipe {
    /// A tag that changes with the recipe. Another version of the hash costs one more making, and nothing else.
    fn version(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.name, self.packages, self.finish, WEIGHT).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

/// Makes sure that the engine has the image as its recipe says, by the tag `latest`.
pub(super) fn ensure(sandbox: &Sandbox, recipe: &Recipe) -> Result<()> {
    let name = recipe.name;
    let image = format!("{name}:{}", recipe.version());
    if !shell::succeeds(Command::new("docker").args(["image", "inspect", &image])) {
        let archive = archive(sandbox, recipe)?;
        shell::capture(Command::new("docker").arg("import").arg(archive).arg(&image))?;
    }
    shell::capture(Command::new("docker").args(["tag", &image, &format!("{name}:latest")]))?;
    Ok(())
}

/// The image's files, made once for each recipe from the mirror that this machine's own packages come from.
fn archive(sandbox: &Sandbox, recipe: &Recipe) -> Result<PathBuf> {
    let cache = workspace::cache_dir();
    let archive = cache.join(format!("{}-{}.tar", recipe.name, recipe.version()));
    if archive.exists() {
        return Ok(archive);
    }
    packages::ensure(&["debootstrap"], || shell::find("debootstrap").is_some())?;
    println!("making the image `{}`; this takes a minute, once", recipe.name);
    let root = sandbox.subdir(recipe.name)?;
    let (release, mirror) = mirror()?;
    shell::insist(|| {
        // What a failed try has left would confuse the next one.
        fs::remove_dir_all(&root).context("empty the image's folder")?;
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", &format!("--include={}", recipe.packages), &release]);
        debootstrap.arg(&root).arg(&mirror);
        Ok(debootstrap)
    })?;
    for weight in WEIGHT {
        fs::remove_dir_all(root.join(weight)).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    shell::run(Command::new("sh").args(["-ec", recipe.finish]).current_dir(&root))?;
    fs::create_dir_all(&cache).context("make the cache")?;
    remove_outdated(&cache, recipe)?;
    let unfinished = archive.with_extension("part");
    shell::run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&unfinished).arg("."))?;
    fs::rename(&unfinished, &archive).context("keep the image")?;
    fs::remove_dir_all(&root).context("remove the image's files")?;
    Ok(archive)
}

/// Removes what was made by earlier recipes of this image.
fn remove_outdated(cache: &Path, recipe: &Recipe) -> Result<()> {
    for entry in fs::read_dir(cache).context("read the cache")? {
        let entry = entry.context("read the cache")?;
        if entry.file_name().to_str().is_some_and(|file| is_made_from(file, recipe.name)) {
            fs::remove_file(entry.path()).context("remove an outdated image")?;
        }
    }
    Ok(())
}

/// Whether a file of the cache is this image's, by whichever recipe.
fn is_made_from(file: &str, name: &str) -> bool {
    let version = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    let version = version.and_then(|rest| rest.strip_suffix(".tar"));
    version.is_some_and(|version| version.len() == 16 && version.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The release of this machine's packages and where they come from.
fn mirror() -> Result<(String, String)> {
    let format = "$(CODENAME) $(COMPONENT) $(REPO_URI)";
    let text = shell::capture(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let os = fs::read_to_string("/etc/os-release").context("read `/etc/os-release`")?;
    let release = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = release.context("`/etc/os-release` names no release")?.trim_matches('"').to_owned();
    let prefix = format!("{release} main ");
    let mirror = text.lines().find_map(|line| line.strip_prefix(&prefix)).context("apt knows no mirror")?;
    Ok((release.clone(), mirror.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_changes_its_version_with_its_recipe() {
        let recipe = Recipe { name: "a", packages: "b", finish: "c" };
        assert_eq!(recipe.version(), Recipe { name: "a", packages: "b", finish: "c" }.version());
        assert_ne!(recipe.version(), Recipe { name: "a", packages: "b", finish: "d" }.version());
        assert_ne!(recipe.version(), Recipe { name: "a", packages: "bc", finish: "" }.version());
    }

    #[test]
    fn an_image_is_not_taken_for_another_of_a_longer_name() {
        assert!(is_made_from("dstack-test-0123456789abcdef.tar", "dstack-test"));
        assert!(!is_made_from("dstack-test-host-0123456789abcdef.tar", "dstack-test"));
        assert!(!is_made_from("dstack-test-image.tar", "dstack-test"));
    }
}
