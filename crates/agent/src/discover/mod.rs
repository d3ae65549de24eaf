//! What a machine has, read from text files and from what `nvidia-smi` prints: no libraries are loaded.

mod amd;
mod fabric;
mod machine;
mod nvidia;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use api::agent::{DockerInfo, Fabric, GpuFabric, HostInfo};

use crate::clock;
use crate::host::Engine;

/// How long a vendor's tool may take before the machine is taken to have none of its GPUs.
const TOOL_TIMEOUT: Duration = Duration::from_mins(1);

/// Where device nodes are.
const DEV: &str = "/dev";

/// Where the machine's own files begin; tests put captured ones elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// `/sys`.
    pub(crate) sys: PathBuf,
    /// `/proc`.
    pub(crate) proc: PathBuf,
    /// `/dev`.
    pub(crate) dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { sys: PathBuf::from("/sys"), proc: PathBuf::from("/proc"), dev: PathBuf::from(DEV) }
    }
}

impl Roots {
    /// Where this process is told to look. A machine that pretends to be another one has the other's files there.
    pub(crate) fn from_env() -> Roots {
        let told = |name: &str, usual: PathBuf| std::env::var_os(name).map_or(usual, PathBuf::from);
        let usual = Roots::default();
        Roots {
            sys: told("DSTACK_AGENT_SYSFS_ROOT", usual.sys),
            proc: told("DSTACK_AGENT_PROCFS_ROOT", usual.proc),
            dev: told("DSTACK_AGENT_DEV_ROOT", usual.dev),
        }
    }

    /// Where a device node lies that has this path on every machine.
    pub(crate) fn node(&self, path: &str) -> PathBuf {
        match Path::new(path).strip_prefix(DEV) {
            Ok(below) => self.dev.join(below),
            Err(_) => PathBuf::from(path),
        }
    }
}

/// The whole machine, without its container engine.
pub(crate) fn machine(roots: &Roots) -> HostInfo {
    let mut info = machine::basics(roots);
    info.fabric = fabric::find(roots);
    match nvidia::find(roots) {
        Ok(found) => {
            info.fabric.gpu_fabrics = found.fabrics;
            info.gpu_driver = found.driver;
            info.cuda_version = found.cuda_version;
            info.gpus = found.gpus;
        }
        Err(warning) => info.warnings.push(warning),
    }
    let amd = amd::find(roots);
    if !amd.is_empty() {
        info.gpu_driver = info.gpu_driver.or_else(|| amd::driver(roots));
        info.gpus.extend(amd);
    }
    info.product_name = read(&roots.sys.join("class/dmi/id/product_name"));
    info
}

/// What the machine has for RDMA, and between its GPUs: a few small files, so that it may be looked at often.
pub(crate) fn fabric(roots: &Roots) -> Fabric {
    fabric::find(roots)
}

/// How the GPUs are joined, which only their driver tells; none if it does not answer.
pub(crate) fn gpu_fabrics() -> Option<Vec<GpuFabric>> {
    nvidia::fabrics()
}

/// Adds the container engine, or why there is none. Jobs have the disk on which it keeps containers, which need not be
/// that of the rest of the machine.
pub(crate) fn add_engine(info: &mut HostInfo, engine: Result<DockerInfo, String>) {
    match engine {
        Ok(docker) => {
            let available = docker.root_dir.as_deref().and_then(machine::disk_available_bytes);
            info.disk_available_bytes = available.unwrap_or(info.disk_available_bytes);
            info.docker = Some(docker);
        }
        Err(error) => info.docker_error = Some(error),
    }
}

/// The text of a file without the space around it; none if there is none.
fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The whole machine as JSON, with its container engine if it has one.
pub(crate) fn run() -> anyhow::Result<String> {
    let mut info = machine(&Roots::from_env());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    add_engine(&mut info, runtime.block_on(Engine::new(true).info()));
    Ok(serde_json::to_string_pretty(&info)?)
}

/// What a tool prints, if it is there and ends well in time.
fn output_of(program: &str, arguments: &[&str]) -> Result<String, String> {
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = spawned.map_err(|error| format!("cannot run `{program}`: {error}"))?;
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What was read before an error is all there is.
        let _ = stdout.map(|mut stdout| stdout.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = clock::monotonic() + TOOL_TIMEOUT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if clock::monotonic() < deadline => clock::pause(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                // One that hangs in its driver dies late, and somebody must wait for it.
                std::thread::spawn(move || child.wait());
                return Err(format!("`{program}` did not end within {TOOL_TIMEOUT:?}"));
            }
        }
    };
    let text = reader.join().unwrap_or_default();
    if status.success() { Ok(text) } else { Err(format!("`{program}` failed: {status}: {}", text.trim())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_job_is_that_of_the_engine() {
        let available = |root_dir: Option<&str>| {
            let mut info = HostInfo { disk_available_bytes: 7, ..HostInfo::default() };
            let root_dir = root_dir.map(str::to_owned);
            add_engine(&mut info, Ok(DockerInfo { root_dir, ..DockerInfo::default() }));
            assert!(info.docker.is_some());
            info.disk_available_bytes
        };
        // A file system without blocks.
        assert_eq!(available(Some("/proc")), 0);
        assert_eq!(available(Some("/no/such/folder")), 7);
        assert_eq!(available(None), 7);
        let mut info = HostInfo::default();
        add_engine(&mut info, Err("no socket".to_owned()));
        assert_eq!((info.docker, info.docker_error.as_deref()), (None, Some("no socket")));
    }
}
