//! One gang of machines in the simulated EC2, from the fleet's row to its end, as a line of JSON: `cargo xtask bench gangs`
//! starts it, once for each sample. The reconcilers and the backend are the server's, and the machines' agents are those
//! of its tests. The cloud is another process, which this one starts the other half in, so that each has its memory.

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
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ec2sim::{MachineEvent, Machines, Options, Settings as Sky, Simulator, serve};
use serde_json::{Value, json};

use crate::park::Park;
use crate::world::{Account, World, documented};

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [nodes] => cloud(nodes).await,
        [nodes, address] => server(nodes.parse().unwrap(), address).await,
        _ => panic!("say how many nodes"),
    }
}

/// The cloud, and whoever is told what becomes of its machines: a line for each event.
async fn cloud(nodes: &str) {
    let pipe = Arc::new(Pipe::default());
    let sim = Simulator::with_machines(Options { settings: Sky::immediate(), ..Options::default() }, pipe.clone());
    let served = serve(sim, (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = served.url().trim_start_matches("http://").to_owned();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.args([nodes, &address]).stdin(Stdio::piped()).spawn().unwrap();
    *pipe.0.lock().unwrap() = child.stdin.take();
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended}");
}

#[derive(Debug, Default)]
struct Pipe(Mutex<Option<ChildStdin>>);

impl Machines for Pipe {
    fn happened(&self, event: &MachineEvent) {
        let line = format!("{}\n", serde_json::to_string(event).unwrap());
        self.0.lock().unwrap().as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// The account of the other process.
struct Elsewhere(String);

impl Account for Elsewhere {
    fn url(&self) -> String {
        format!("http://{}", self.0)
    }

    fn look(&self, what: &str) -> Value {
        let mut stream = TcpStream::connect(&self.0).unwrap();
        let request = format!("GET /_ec2sim/{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).unwrap();
        let body = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        serde_json::from_slice(&answer[body..]).unwrap()
    }
}

async fn server(nodes: u32, address: &str) {
    let park = Arc::new(Park::default());
    let machines = park.clone();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            machines.happened(&serde_json::from_str(&line.unwrap()).unwrap());
        }
    });
    // Nobody asks the simulator of this process.
    let sim = Simulator::new(Options::default());
    let world = World::in_account(Box::new(Elsewhere(address.to_owned())), sim, park, documented()).await;
    let times = gang::live(world, nodes).await;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
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
