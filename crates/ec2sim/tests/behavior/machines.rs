//! What whoever plays the machines is told, and tells.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ec2sim::{Kind, Machine, MachineEvent, Machines, Report, Settings};
use serde_json::json;

use crate::account::{Account, set, slow, texts};

/// Writes down what it is told.
#[derive(Debug, Default)]
struct Notes {
    events: Mutex<Vec<String>>,
    machines: Mutex<Vec<Machine>>,
}

impl Machines for Notes {
    fn happened(&self, event: &MachineEvent) {
        let name = match event {
            MachineEvent::Launched(machine) => {
                self.machines.lock().unwrap().push((**machine).clone());
                "launched"
            }
            MachineEvent::Running { .. } => "running",
            MachineEvent::SpotNotice { .. } => "notice",
            MachineEvent::Ending { .. } => "ending",
            MachineEvent::Ended { .. } => "ended",
            MachineEvent::Addressed { .. } => "addressed",
        };
        self.events.lock().unwrap().push(name.to_owned());
    }
}

fn played(settings: Settings) -> (Account, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    (Account::open(settings, Some(notes.clone())), notes)
}

#[test]
fn a_player_is_told_all_that_a_machine_needs() {
    let (account, notes) = played(slow());
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (2, 2));
    set(&mut launch, "UserData", &STANDARD.encode("#cloud-config\n"));
    set(&mut launch, "MetadataOptions.HttpPutResponseHopLimit", "2");
    let made = account.run(&launch);
    let machines = notes.machines.lock().unwrap().clone();
    let ids: Vec<&String> = machines.iter().map(|machine| &machine.instance_id).collect();
    assert_eq!(ids, made.iter().collect::<Vec<_>>());
    let first = &machines[0];
    assert_eq!((first.user_data.as_slice(), first.metadata_hop_limit), (b"#cloud-config\n".as_slice(), 2));
    assert_eq!(first.interfaces[0].private_ip.as_deref(), Some(first.private_ip.as_str()));
    assert_eq!(first.root_volume_gib, 65);
    account.pass(3_000);
    account.terminate(&made);
    account.pass(2_000);
    let expected =
        ["launched", "launched", "running", "running", "ending", "ending", "ended", "ended"].map(str::to_owned);
    assert_eq!(*notes.events.lock().unwrap(), expected);
}

#[test]
fn a_spot_machine_has_its_notice_and_is_taken_away() {
    let (account, notes) = played(slow());
    let mut launch = account.launch("g5.xlarge", "us-west-2a", (1, 1));
    set(&mut launch, "InstanceMarketOptions.MarketType", "spot");
    let id = account.run(&launch).remove(0);
    account.pass(4_000);
    account.order("instances/interrupt", &json!({"region": "us-west-2", "instance_id": id}));
    let requests = |account: &Account| account.ask("DescribeSpotInstanceRequests", &[]).unwrap();
    assert!(requests(&account).contains("marked-for-termination"));
    account.pass(119_000);
    assert_eq!(account.state(&id).unwrap(), "running");
    account.pass(4_000);
    assert_eq!(account.state(&id).unwrap(), "terminated");
    let described = account.ask("DescribeInstances", &[("InstanceId.1", &id)]).unwrap();
    assert!(described.contains("Server.SpotInstanceTermination"));
    assert_eq!(account.alive(Kind::SpotInstancesRequest), 0);
    let expected = ["launched", "running", "notice", "ending", "ended"].map(str::to_owned);
    assert_eq!(*notes.events.lock().unwrap(), expected);
}

#[test]
fn a_machine_tells_of_its_health_its_console_and_its_end() {
    let account = Account::new(slow());
    let mut launch = account.launch("g5.xlarge", "us-west-2a", (2, 2));
    set(&mut launch, "InstanceInitiatedShutdownBehavior", "terminate");
    let made = account.run(&launch);
    account.pass(4_000);
    let status = || account.ask("DescribeInstanceStatus", &[("InstanceId.1", &made[0])]).unwrap();
    assert!(status().contains("initializing"));
    let report = |healthy, console: Option<&str>, powered_off| {
        let console = console.map(str::to_owned);
        let report = Report { instance_id: made[0].clone(), healthy, console, powered_off };
        account.simulator.report(&report).unwrap();
    };
    report(Some(true), Some("booted\n"), false);
    assert!(status().contains("passed"));
    let console = account.ask("GetConsoleOutput", &[("InstanceId", &made[0])]).unwrap();
    assert_eq!(texts(&console, "output"), [STANDARD.encode("booted\n")]);
    report(None, None, true);
    account.pass(3_000);
    assert_eq!(account.state(&made[0]).unwrap(), "terminated");
    assert_eq!(account.alive(Kind::Instance), 1);
}

#[test]
fn somebody_ends_a_machine_from_the_console() {
    let account = Account::new(slow());
    let made = account.run(&account.launch("g5.xlarge", "us-west-2a", (2, 2)));
    account.pass(4_000);
    for (id, by) in made.iter().zip(["console", "aws"]) {
        account.order("instances/terminate", &json!({"region": "us-west-2", "instance_id": id, "by": by}));
    }
    account.pass(3_000);
    let described = account.ask("DescribeInstances", &[]).unwrap();
    let mut reasons: Vec<String> =
        described.split("<stateReason>").skip(1).map(|part| texts(part, "code").remove(0)).collect();
    reasons.sort();
    assert_eq!(reasons, ["Client.UserInitiatedShutdown", "Server.InternalError"]);
}

#[test]
fn switches_are_told_of_large_machines_that_run() {
    let account = Account::new(Settings { instance_unseen_ms: 0, ..slow() });
    let types = ["p5.48xlarge", "p6-b200.48xlarge", "p5.4xlarge", "g5.xlarge", "m7i.large"];
    let made: Vec<String> =
        types.iter().map(|name| account.run(&account.launch(name, "us-west-2a", (1, 1))).remove(0)).collect();
    // The instances that are told of, and how many switches are above each.
    let told = |asked: &[(&str, &str)]| -> Vec<(String, usize)> {
        let answer = account.ask("DescribeInstanceTopology", asked).unwrap();
        let mut told: Vec<(String, usize)> = answer
            .split("<instanceId>")
            .skip(1)
            .map(|item| (item.split_once('<').unwrap().0.to_owned(), item.matches("nn-").count()))
            .collect();
        told.sort_by_key(|(_, levels)| *levels);
        told
    };
    assert_eq!(told(&[]), []);
    account.pass(4_000);
    assert_eq!(told(&[]), [(made[0].clone(), 3), (made[1].clone(), 4)]);
    // Who asks for a machine of another type is told nothing, and is not refused.
    assert_eq!(told(&[("InstanceId.1", &made[1]), ("InstanceId.2", &made[3])]), [(made[1].clone(), 4)]);
    account.terminate(&made);
    assert_eq!(told(&[]), []);
}
