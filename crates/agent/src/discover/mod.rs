//! What a machine has, read from text files and from what `nvidia-smi` prints: no libraries are loaded.

mod amd;
mod machine;
mod nvidia;
mod rdma;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use api::agent::HostInfo;

use crate::clock;
use crate::host::Engine;

/// How long a vendor's tool may take before the machine is taken to have none of its GPUs.
const TOOL_TIMEOUT: Duration = Duration::from_mins(1);

/// Where the machine's own files begin; tests put captured ones elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// `/sys`.
    pub(crate) sys: PathBuf,
    /// `/proc`.
    pub(crate) proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { sys: PathBuf::from("/sys"), proc: PathBuf::from("/proc") }
    }
}

/// The whole machine, without its container engine.
pub(crate) fn machine(roots: &Roots) -> HostInfo {
    let mut info = machine::basics(roots);
    match nvidia::find(roots) {
        Ok(found) => {
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
    info.rdma_devices = rdma::find(roots);
    info
}

/// The whole machine as JSON, with its container engine if it has one.
pub(crate) fn run() -> anyhow::Result<String> {
    let mut info = machine(&Roots::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(Engine::new(true).info()) {
        Ok(docker) => info.docker = Some(docker),
        Err(error) => info.docker_error = Some(error),
    }
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
