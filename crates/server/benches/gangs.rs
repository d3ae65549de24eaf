//! One gang of machines in the simulated EC2, from the fleet's row to its end, as a line of JSON: `cargo xtask bench gangs`
//! starts it, once for each sample. The reconcilers and the backend are the server's; the cloud and the machines' agents
//! are those of its tests, in the same process.

#![expect(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    reason = "helpers of tests, and the simulated cloud has the time of this machine"
)]
#![allow(dead_code, reason = "tests need more of these helpers")]

#[path = "../tests/cloud/gang.rs"]
mod gang;
#[path = "../tests/cloud/park.rs"]
mod park;
#[path = "../tests/cloud/world.rs"]
mod world;

use std::fs;

use serde_json::json;

#[tokio::main]
async fn main() {
    let nodes = std::env::args().skip(1).find_map(|word| word.parse().ok()).expect("a number of nodes");
    let times = gang::live(nodes).await;
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
    let line = json!({
        "run_instances": times.run_instances,
        "asked_ms": milliseconds(times.asked),
        "idle_ms": milliseconds(times.idle),
        "running_ms": milliseconds(times.running),
        "over_ms": milliseconds(times.over),
        "gone_ms": milliseconds(times.gone),
        "terminate_instances": times.terminate_instances,
        "peak_mib": peak_mib(),
    });
    println!("{line}");
}

/// The most memory that this process has had.
fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
