//! What an agent tells of GPUs that are joined by switches, with a stand-in for NVIDIA's tool.

#![cfg(test)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use api::agent::*;
use support::events::Events;
use support::*;

/// A tool that writes down what it is asked, and tells of each GPU what `gpus` says, or refuses as an old one does.
const TOOL: &str = r#"#!/bin/sh
here=${0%/*}
echo "$*" >> "$here/asked"
case $* in
'') echo '| NVIDIA-SMI 580.95.05   Driver Version: 580.95.05   CUDA Version: 13.0 |' ;;
*fabric.state*)
    if [ -e "$here/is-old" ]; then
        echo 'Field "fabric.state" is not a valid field to query.'
        exit 2
    fi
    case $* in
    *uuid*) cat "$here/gpus" ;;
    *) sed 's/,.*0.0,/,/' "$here/gpus" ;;
    esac
    ;;
*) sed 's/0\.0,.*/0.0/' "$here/gpus" ;;
esac
"#;

/// A machine of files, with two GPUs whose fabric is as said.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(fabric: &str) -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        machine.write("proc/driver/nvidia/version", "NVRM version: 580.95.05\n");
        machine.write("bin/nvidia-smi", TOOL);
        let tool = machine.0.path().join("bin/nvidia-smi");
        std::fs::set_permissions(tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        machine.join(fabric);
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A tool that runs just now must not read half of it.
        let draft = path.with_extension("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, path).unwrap();
    }

    fn join(&self, fabric: &str) {
        let gpu = |index: u32| {
            let address = format!("00000000:{}:00.0", 53 + index);
            format!("{index}, NVIDIA H100 80GB HBM3, 81559, GPU-{index}, 580.95.05, {address}, {fabric}\n")
        };
        self.write("bin/gpus", &(gpu(0) + &gpu(1)));
    }

    /// What the tool was asked so far, without the wish for a form.
    fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.path().join("bin/asked")).unwrap();
        text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    fn agent(&self) -> Agent {
        let root = |name: &str| self.0.path().join(name).display().to_string();
        let path = format!("{}:{}", root("bin"), std::env::var("PATH").unwrap());
        let (sys, proc, dev) = (root("sys"), root("proc"), root("dev"));
        let places = [
            ("DSTACK_AGENT_SYSFS_ROOT", sys.as_str()),
            ("DSTACK_AGENT_PROCFS_ROOT", proc.as_str()),
            ("DSTACK_AGENT_DEV_ROOT", dev.as_str()),
            ("PATH", path.as_str()),
        ];
        Agent::with_env(&[], &places)
    }
}

fn both(state: &str, status: &str) -> Vec<GpuFabric> {
    let gpu = |index| GpuFabric { index, state: state.to_owned(), status: status.to_owned() };
    (0..2).map(gpu).collect()
}

/// Adds a device that files tell of, so that a look at them can be waited for.
fn add_gdrdrv(root: &Path) {
    std::fs::create_dir_all(root.join("dev")).unwrap();
    std::fs::write(root.join("dev/gdrdrv"), "").unwrap();
}

#[tokio::test]
async fn gpus_that_are_joined_late_are_told_of() {
    let machine = Machine::new("In Progress, N/A");
    for number in 0..4 {
        machine.write(&format!("proc/driver/nvidia-nvswitch/devices/0000:0{number}:00.0"), "");
    }
    let mut agent = machine.agent();
    let host = agent.hello().await.host;
    assert_eq!((host.gpus.len(), host.cuda_version.as_deref()), (2, Some("13.0")));
    assert_eq!((host.fabric.nvswitches, host.fabric.has_fabric_manager), (4, false));
    assert_eq!(host.fabric.gpu_fabrics, both("In Progress", ""));
    let mut events = Events::of(&mut agent).await;
    machine.write("proc/4711/comm", "nv-fabricmanage\n");
    events.news("the manager", |news| news.fabric.has_fabric_manager).await;
    machine.join("Completed, Success");
    let news = events.news("the fabric", |news| news.fabric.gpu_fabrics.iter().all(GpuFabric::is_ready)).await;
    assert_eq!(news.fabric.gpu_fabrics, both("Completed", "Success"));
    // A look at files alone forgets nothing.
    assert_eq!(agent.hello().await.host.fabric.gpu_fabrics, both("Completed", "Success"));
}

#[tokio::test]
async fn the_driver_of_gpus_that_are_not_joined_is_left_alone() {
    let machine = Machine::new("N/A, N/A");
    let mut agent = machine.agent();
    let host = agent.hello().await.host;
    assert_eq!((host.gpus.len(), host.fabric.gpu_fabrics.len()), (2, 0));
    let mut events = Events::of(&mut agent).await;
    add_gdrdrv(machine.0.path());
    events.news("a first look", |news| news.fabric.has_gdrdrv).await;
    std::fs::remove_file(machine.0.path().join("dev/gdrdrv")).unwrap();
    events.news("a second look", |news| !news.fabric.has_gdrdrv).await;
    let asked = machine.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
}

#[tokio::test]
async fn an_old_tool_still_tells_of_the_gpus() {
    let machine = Machine::new("N/A, N/A");
    machine.write("bin/is-old", "");
    let host = machine.agent().hello().await.host;
    let gpus: Vec<&str> = host.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    assert_eq!((gpus, host.fabric.gpu_fabrics), (vec!["GPU-0", "GPU-1"], vec![]));
    assert_eq!(host.gpu_driver.as_deref(), Some("580.95.05"));
    let asked = machine.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
}
