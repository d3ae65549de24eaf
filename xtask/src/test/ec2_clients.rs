//! Programs of others that speak with AWS, to try our own simulator of it with: boto3, moto, and the official server.
//!
//! Each is in a Python environment of its own that is made once.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::packages;
use crate::{shell, workspace};

/// The SDK, and the double whose answers are compared. botocore's models are those that the simulator was made from.
const DOUBLE: Environment = Environment {
    folder: "ec2-double",
    packages: &["boto3==1.44.5", "botocore==1.44.8", "moto[ec2,server,ssm,iam,sts]==5.2.5"],
};

/// The server whose place we take, with its backend for AWS.
const OFFICIAL: Environment = Environment { folder: "official-aws", packages: &["dstack[server,aws]==0.22.5"] };

/// A Python environment.
struct Environment {
    folder: &'static str,
    packages: &'static [&'static str],
}

/// Makes sure that all of them are installed, and answers where they are.
pub(super) fn prepare() -> Result<Vec<(&'static str, String)>> {
    packages::ensure(&["python3", "python3-venv"], || {
        shell::succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]))
    })?;
    let program = |path: PathBuf| path.display().to_string();
    Ok(vec![
        ("DSTACK_TEST_EC2_PYTHON", program(DOUBLE.ensure()?.join("bin/python"))),
        ("DSTACK_TEST_OFFICIAL_SERVER", program(OFFICIAL.ensure()?.join("bin/dstack"))),
    ])
}

impl Environment {
    /// Installs what is not there yet; a file that is written last says that all of it is.
    fn ensure(&self) -> Result<PathBuf> {
        let dir = workspace::cache_dir().join(self.folder);
        let (mark, wanted) = (dir.join("installed"), self.packages.join("\n"));
        if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
            return Ok(dir);
        }
        println!("installing {}; this takes a minute, once", self.packages.join(", "));
        if dir.exists() {
            fs::remove_dir_all(&dir).context("remove an unfinished environment")?;
        }
        shell::capture(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
        shell::insist(|| {
            let mut pip = Command::new(dir.join("bin/pip"));
            pip.args(["install", "--quiet"]).args(self.packages);
            Ok(pip)
        })?;
        fs::write(&mark, wanted).context("note what is installed")?;
        Ok(dir)
    }
}
