//! What is particular to this machine as a backend: its processes, its folders, and what a crash leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use api::ids::{BackendId, FleetId};
use backends::{AgentAccess, ErrorKind, Machine, MachineState, OffersWanted, open, parse_config};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Rig, access, context, eventually, gpus_of, is_alive, kill_agent, kind_of, processes_with, write_stub,
};

fn starts(rig: &Rig, machine: &Machine) -> Vec<Value> {
    let path = rig.folder(&machine.key).join("agent/starts");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn socket(rig: &Rig, machine: &Machine) -> PathBuf {
    match rig.access(machine).await {
        AgentAccess::UnixSocket(socket) => socket,
        other => panic!("this machine is reached in another way: {other:?}"),
    }
}

/// A process that says that it belongs to a job. It ends with the test at the latest.
struct Job(Child);

impl Job {
    fn start(command: &mut Command) -> Job {
        let command = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
        Job(command.spawn().unwrap())
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn was_killed(&mut self) -> bool {
        self.0.wait().unwrap().signal() == Some(9)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_told_its_share_and_not_the_servers_settings() {
    let mut rig = Rig::local();
    let machines = rig.launch(2).await;
    for (machine, gpus) in machines.iter().zip(["GPU-0,GPU-1", "GPU-2,GPU-3"]) {
        socket(&rig, machine).await;
        let starts = starts(&rig, machine);
        assert_eq!(starts.len(), 1, "an agent that starts is not started again");
        let args: Vec<&str> =
            starts[0]["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
        let memory = (16_u64 << 30).to_string();
        let address = machine.internal_ip.clone().unwrap();
        for option in [
            ["--cpus", "4"],
            ["--memory-bytes", &memory],
            ["--gpus", gpus],
            ["--address", &address],
            ["--idle-exit-secs", "60"],
        ] {
            assert!(args.windows(2).any(|pair| pair == option), "{option:?} is not in {args:?}");
        }
        let env = starts[0]["env"].as_object().unwrap();
        assert!(!env.keys().any(|name| name.starts_with("DSTACK_") && !name.starts_with("DSTACK_AGENT_")));
        let mode = |name: &str| {
            let path = rig.folder(&machine.key).join(name);
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode(""), mode("agent.log"), mode("machine.json")), (0o700, 0o600, 0o600));
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_not_offered_again() {
    let mut rig = Rig::local();
    let mut half = rig.order(2).await;
    (half.count, half.least) = (1, 1);
    rig.backend.launch(&half).await.unwrap();
    let wanted = OffersWanted { least: 1, most: 1, ..OffersWanted::default() };
    let offers = rig.backend.offers(&wanted).await.unwrap().found;
    let left = &offers[0].instance_type.resources;
    assert_eq!((left.cpus, left.memory_mib, left.gpus.len()), (4, 16 << 10, 2));
    let reason = offers[1].unavailable_because.as_deref().unwrap();
    assert!(reason.contains("hold 4 of 8 CPUs"), "{reason}");
    let rest = rig.launch(1).await;
    assert_eq!(gpus_of(&rig.folder(&rest[0].key)), ["GPU-2", "GPU-3"]);
    assert!(rig.offers(1, false).await.is_empty());
    // An offer that was good when it was made.
    half.launch_id = api::ids::LaunchId(Uuid::from_u128(99));
    assert_eq!(kind_of(rig.backend.launch(&half).await), Some(ErrorKind::NoCapacity));
    rig.end().await;
    assert_eq!(rig.offers(1, false).await[0].instance_type.resources.cpus, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projects_share_one_machine() {
    let mut rig = Rig::local();
    let config = parse_config(&json!({ "type": "local" })).unwrap();
    let other = open(&config, &rig.context, BackendId(Uuid::from_u128(2))).unwrap();
    let mut order = rig.order(4).await;
    (order.count, order.least) = (1, 1);
    let mut launches = Vec::new();
    for number in 0..12 {
        order.launch_id = rig.new_launch_id();
        let backend = Arc::clone(if number % 2 == 0 { &rig.backend } else { &other });
        let order = order.clone();
        launches.push(tokio::spawn(async move { kind_of(backend.launch(&order).await) }));
    }
    let mut made = 0;
    for launch in launches {
        match launch.await.unwrap() {
            None => made += 1,
            Some(kind) => assert_eq!(kind, ErrorKind::NoCapacity),
        }
    }
    assert_eq!(made, 4);
    let machines = other.list().await.unwrap().found;
    let mut gpus: Vec<String> = machines.iter().flat_map(|machine| gpus_of(&rig.folder(&machine.key))).collect();
    gpus.sort();
    assert_eq!(gpus, ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_started_once_however_many_ask() {
    let mut rig = Rig::local();
    let machine = rig.launch(1).await.remove(0);
    socket(&rig, &machine).await;
    kill_agent(&rig, &machine).await;
    let asks = (0..8).map(|_| {
        let (backend, machine) = (Arc::clone(&rig.backend), machine.clone());
        tokio::spawn(async move { access(&*backend, &machine).await })
    });
    for ask in asks.collect::<Vec<_>>() {
        ask.await.unwrap();
    }
    assert_eq!(starts(&rig, &machine).len(), 2);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_start_says_why() {
    let mut rig = Rig::local();
    let machine = rig.launch(1).await.remove(0);
    socket(&rig, &machine).await;
    let trouble = rig.folder(&machine.key).join("trouble");
    fs::write(&trouble, "the disk is on fire").unwrap();
    kill_agent(&rig, &machine).await;
    // On a busy machine it may not have come to its last words when we lose patience.
    let says_why = async || {
        let error = rig.backend.agent_access(&machine).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        error.message.contains("the disk is on fire")
    };
    eventually("the agent's last words", says_why).await;
    fs::remove_file(trouble).unwrap();
    socket(&rig, &machine).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn termination_ends_the_machines_jobs_and_no_others() {
    let mut rig = Rig::local();
    let machines = rig.launch(2).await;
    let ids = [1, 2].map(|n| Uuid::from_u128(n).to_string());
    let mut jobs = Vec::new();
    for (machine, id) in machines.iter().zip(&ids) {
        socket(&rig, machine).await;
        fs::create_dir_all(rig.folder(&machine.key).join("agent/tasks").join(id).join("run")).unwrap();
        jobs.push(Job::start(Command::new("sleep").arg("1000").env("DSTACK_JOB_ID", id)));
    }
    // A supervisor, found by its folder; and its child, which cleans its environment.
    let run = rig.folder(&machines[0].key).join("agent/tasks").join(&ids[0]).join("run");
    let script = format!("env -i sh -c 'echo $$ > {0}/pid; exec sleep 1000' & wait", run.display());
    let mut supervisor = Job::start(Command::new("sh").args(["-c", &script, "job", "--dir"]).arg(&run));
    let pid = || fs::read_to_string(run.join("pid")).unwrap_or_default().trim().parse::<i32>().ok();
    eventually("the child", async || pid().is_some()).await;
    let child = pid().unwrap();

    rig.backend.terminate(&machines[0].key).await.unwrap();
    assert!(jobs[0].was_killed() && supervisor.was_killed());
    // It is dead as soon as the kernel has seen to it, and its parent does not wait for it any more.
    eventually("the end of a child that hides", async || !is_alive(child)).await;
    assert!(jobs[1].lives(), "the other machine's job was killed");
    assert!(processes_with(&rig.folder(&machines[0].key)).is_empty());
    assert!(!rig.folder(&machines[0].key).exists());
    assert_eq!(processes_with(&rig.folder(&machines[1].key)).len(), 1);
    rig.end().await;
    assert!(jobs[1].was_killed());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_go_with_their_machine_and_the_network_with_the_last_one() {
    let mut rig = Rig::local();
    let machines = rig.launch(2).await;
    let cleaned = || -> Vec<Vec<String>> {
        let path = rig.context.agent_binary.with_file_name("cleaned");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let machines_folder = rig.context.state_dir.canonicalize().unwrap().join("local/machines");
    let all_containers = |machine: &Machine| -> Vec<String> {
        let home = rig.folder(&machine.key).canonicalize().unwrap().join("agent");
        let [home, homes] = [&home, &machines_folder].map(|path| path.display().to_string());
        ["remove-containers", "--home", &home, "--homes-below", &homes].map(str::to_owned).to_vec()
    };
    let expected = [all_containers(&machines[0]), all_containers(&machines[1])];
    rig.backend.terminate(&machines[0].key).await.unwrap();
    assert_eq!(cleaned(), expected[..1]);
    // The other machine's containers are on the network.
    rig.backend.terminate(&machines[1].key).await.unwrap();
    let network = machines[1].container_network.clone().unwrap().name;
    assert_eq!(cleaned()[..2], expected);
    assert_eq!(cleaned()[2..], [["remove-network", "--name", &network].map(str::to_owned)]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_containers_may_still_run_keeps_its_gpus() {
    let mut rig = Rig::local();
    let machine = rig.launch(1).await.remove(0);
    let refusal = rig.context.agent_binary.with_file_name("refusal");
    fs::write(&refusal, "the container engine is away").unwrap();
    let error = rig.backend.terminate(&machine.key).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("the container engine is away"), "{error}");
    assert_eq!(rig.backend.list().await.unwrap().found[0].state, MachineState::Stopping);
    assert!(rig.offers(1, false).await.is_empty());
    fs::remove_file(refusal).unwrap();
    rig.backend.terminate(&machine.key).await.unwrap();
    assert_eq!(rig.offers(1, false).await[0].instance_type.resources.gpus.len(), 4);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_a_launch_is_whole_leaves_nothing_of_it() {
    let mut rig = Rig::local();
    let order = rig.order(2).await;
    let local = rig.context.state_dir.join("local");
    let staged = local.join("staging").join(order.launch_id.to_string());
    fs::create_dir_all(staged.join("0")).unwrap();
    fs::write(staged.join("0/machine.json"), "{\"half").unwrap();
    rig.reopen();
    assert_eq!(rig.backend.list().await.unwrap().found, []);
    rig.backend.launch(&order).await.unwrap();
    rig.running(order.launch_id, 2).await;
    assert_eq!(fs::read_dir(local.join("staging")).unwrap().count(), 0);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_a_termination_is_finished_by_the_next() {
    let mut rig = Rig::local();
    let machines = rig.launch(2).await;
    // Before its processes ended.
    fs::write(rig.folder(&machines[0].key).join("ending"), "").unwrap();
    // After it was taken out of the books.
    let trash = rig.context.state_dir.join("local/trash/rest");
    fs::create_dir_all(trash.join("deep")).unwrap();
    rig.reopen();
    let listed = rig.backend.list().await.unwrap().found;
    let states: Vec<MachineState> = listed.iter().map(|machine| machine.state).collect();
    assert_eq!(states, [MachineState::Stopping, MachineState::Running]);
    // Nobody starts again what is about to end.
    let access = rig.backend.agent_access(&machines[0]).await;
    assert_eq!(kind_of(access), Some(ErrorKind::InvalidRequest));
    assert_eq!(kind_of(rig.backend.launch(&rig_order(&rig, &machines[0]).await).await), None);
    rig.backend.terminate(&machines[0].key).await.unwrap();
    assert!(!trash.exists() && !rig.folder(&machines[0].key).exists());
    rig.end().await;
}

/// The order that made a machine, as a server would repeat it.
async fn rig_order(rig: &Rig, machine: &Machine) -> backends::LaunchOrder {
    let wanted = OffersWanted { least: 2, most: 2, ..OffersWanted::default() };
    let offers = rig.backend.offers(&wanted).await.unwrap().found;
    backends::LaunchOrder {
        launch_id: machine.key.launch_id,
        fleet_id: FleetId(Uuid::from_u128(3)),
        fleet_name: String::new(),
        project_name: String::new(),
        name: String::new(),
        user_name: String::new(),
        tags: BTreeMap::new(),
        offer: offers[0].clone(),
        zone: None,
        count: 2,
        least: 2,
        cluster: false,
        authorized_keys: vec![],
        prepared: serde_json::Value::Null,
        fleet_prepared: vec![],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_folder_does_not_keep_agents_from_listening() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(100));
    let context = context(&deep, write_stub(dir.path()));
    let backend =
        open(&parse_config(&json!({ "type": "local" })).unwrap(), &context, BackendId(Uuid::from_u128(2)))
            .unwrap();
    let mut rig = Rig::local();
    (rig.backend, rig.context) = (backend, context);
    let machine = rig.launch(1).await.remove(0);
    let path = socket(&rig, &machine).await;
    assert!(path.as_os_str().len() < 108 && path.exists());
    rig.end().await;
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_of_another_server_are_not_listed_and_keep_what_they_hold() {
    let mut rig = Rig::local();
    let machines = rig.launch(1).await;
    let ours = rig.context.clone();
    rig.context.server_id = api::ids::ServerId(Uuid::from_u128(7));
    rig.reopen();
    assert_eq!(rig.backend.list().await.unwrap().found, []);
    assert!(rig.offers(1, false).await.is_empty());
    rig.context = ours;
    rig.reopen();
    assert_eq!(rig.backend.list().await.unwrap().found, machines);
    rig.end().await;
}

#[tokio::test]
async fn a_missing_agent_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), PathBuf::from("/nowhere/agent"));
    let backend =
        open(&parse_config(&json!({ "type": "local" })).unwrap(), &context, BackendId(Uuid::from_u128(2)))
            .unwrap();
    let error = backend.offers(&OffersWanted::default()).await.unwrap_err();
    assert!(error.message.contains("/nowhere/agent"), "{error}");
}
