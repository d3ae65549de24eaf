//! What is right: of the fleet's table, of its machines' health, and of what each node of the task has shown. All of it
//! answers what differs, in words; nothing is fine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::node::Node;

/// Nodes of the example.
pub(super) const NODES: usize = 2;

/// The type that the example's `gpu: H100:8` is.
const INSTANCE_TYPE: &str = "p5.48xlarge";

/// How tables tell of the GPUs of one machine, in the words of 0.22.5.
const GPUS_IN_TABLES: &str = "gpu=H100:80GB:8";

/// The GPUs of a machine, and what its driver calls each of them.
const GPUS: (usize, &str) = (8, "NVIDIA H100 80GB HBM3");

/// Adapters that the type has.
const ADAPTERS: usize = 32;

/// Devices of InfiniBand's other make that the machines show, which come before the adapters.
const OTHER_MAKE: usize = 2;

/// The example's `shm_size: 24GB`.
const SHARED_MEMORY_BYTES: u64 = 24 << 30;

/// What a job is warned of whose container engine forbids it to lock memory without limit, as `docs/efa.md` has it.
const MEMLOCK_WARNING: &str = "Warning of the host: the host forbids unlimited locked memory; RDMA may fail";

/// What a plan says of the variable whose value names another one: values are passed as they are written.
const LITERAL_WARNING: &str = "`env`: the value of `LD_LIBRARY_PATH` is passed literally, `$LD_LIBRARY_PATH`";

/// What differs.
#[derive(Debug, Default)]
pub(super) struct Differences(Vec<String>);

impl Differences {
    fn check<T: PartialEq + Debug>(&mut self, what: &str, found: &T, expected: &T) {
        if found != expected {
            self.0.push(format!("{what}: {found:?} instead of {expected:?}"));
        }
    }

    fn ensure(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(otherwise());
        }
    }

    /// An error that names all of them, if there are any.
    pub(super) fn into_result(self) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(anyhow::anyhow!("this is not right:\n  {}", self.0.join("\n  ")))
        }
    }
}

/// What the lab knows of the machines and the run from others than the nodes.
#[derive(Debug)]
pub(super) struct Expected {
    /// Whether the engines of the machines may give containers unlimited locked memory.
    pub(super) may_lock: bool,
    /// Whether huge pages are missing, of which the machines have those of this machine.
    pub(super) lacks_huge_pages: bool,
    /// The variables of the task's file.
    pub(super) variables: Vec<(String, String)>,
    pub(super) run: Run,
}

/// What the server says of the run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    id: String,
    name: String,
    repo_id: String,
    /// The job of each rank, and the address of its machine.
    jobs: Vec<(String, String)>,
}

impl Run {
    /// Reads the answer of `runs/get`.
    pub(super) fn of(answer: &Value) -> Result<Run> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let jobs = answer["jobs"].as_array().context("the run has no jobs")?;
        let mut by_rank = BTreeMap::new();
        for job in jobs {
            let submission = job["job_submissions"].as_array().and_then(|all| all.last());
            let submission = submission.context("a job was never submitted")?;
            let address = text(&submission["job_provisioning_data"]["internal_ip"]);
            let address = address.context("a job's machine has no address")?;
            let id = text(&submission["id"]).context("a job has no identifier")?;
            by_rank.insert(job["job_spec"]["job_num"].as_u64(), (id, address));
        }
        Ok(Run {
            id: text(&answer["id"]).context("the run has no identifier")?,
            name: text(&answer["run_spec"]["run_name"]).context("the run has no name")?,
            repo_id: text(&answer["run_spec"]["repo_id"]).unwrap_or_default(),
            jobs: by_rank.into_values().collect(),
        })
    }
}

/// What `apply` printed for the fleet: offers with their price, and a table of two idle machines in the end.
pub(super) fn fleet(lines: &[String]) -> Differences {
    let mut differences = Differences::default();
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
    };
    let is_priced = |cells: Vec<String>| {
        cells.iter().any(|cell| cell == INSTANCE_TYPE) && cells.iter().any(|cell| cell.starts_with('$'))
    };
    differences.ensure(lines.iter().any(|line| is_priced(cells(line))), || {
        format!("the plan has no offer of `{INSTANCE_TYPE}` with its price")
    });
    let instances: Vec<Vec<String>> =
        lines.iter().map(|line| cells(line)).filter(|cells| is_instance(cells)).collect();
    let names: Vec<&str> = instances.iter().map(|cells| cells[0].as_str()).collect();
    differences.check("the fleet's instances", &names, &vec!["instance=0", "instance=1"]);
    for instance in &instances {
        // Which warnings there may be is a matter of this machine's kernel, and of `health`.
        let is_idle = instance.iter().any(|cell| cell == "idle" || cell == "idle (warning)");
        let has_gpus = instance.iter().any(|cell| cell == GPUS_IN_TABLES);
        differences.ensure(is_idle && has_gpus, || {
            format!("the fleet's table shows `{}` instead of `{GPUS_IN_TABLES}` and `idle`", instance.join("  "))
        });
    }
    differences
}

fn is_instance(cells: &[String]) -> bool {
    cells.first().is_some_and(|cell| cell.starts_with("instance="))
}

/// What the server says of the machines' health, in the answer of `fleets/get`.
pub(super) fn health(fleet: &Value, expected: &Expected) -> Differences {
    let mut differences = Differences::default();
    let instances = fleet["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    differences.check("the count of instances", &instances.len(), &NODES);
    for instance in instances {
        let name = format!("instance {}", instance["instance_num"]);
        let events = instance["health"]["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        let all: Vec<(&str, &str)> = events
            .iter()
            .map(|event| {
                let text = |key: &str| event[key].as_str().unwrap_or_default();
                (text("message"), text("status"))
            })
            .collect();
        let adapters = format!("efa {ADAPTERS}/{ADAPTERS}");
        let gpus = format!("gpus {0}/{0}", GPUS.0);
        for wanted in [adapters.as_str(), gpus.as_str(), "gdrdrv is there"] {
            differences
                .ensure(all.contains(&(wanted, "healthy")), || format!("{name}: `{wanted}` is not in {all:?}"));
        }
        let mut warned: BTreeSet<&str> = BTreeSet::new();
        for (message, status) in all {
            differences.ensure(status != "failure", || format!("{name}: `{message}` is a failure"));
            if status != "healthy" {
                warned.insert(message.split(' ').next().unwrap_or_default());
            }
        }
        let forbidden = (!expected.may_lock).then_some("memlock");
        let missing = expected.lacks_huge_pages.then_some("hugepages");
        let right: BTreeSet<&str> = forbidden.into_iter().chain(missing).collect();
        differences.check(&format!("the warnings of {name}"), &warned, &right);
    }
    differences
}

/// What `apply` printed for the task, on all nodes; `diagnosis` is what `logs --diagnose` did.
pub(super) fn task(lines: &[String], diagnosis: &[String], expected: &Expected) -> Differences {
    let mut differences = Differences::default();
    differences.ensure(lines.iter().any(|line| line.contains(LITERAL_WARNING)), || {
        "the plan does not say that `LD_LIBRARY_PATH` is passed literally".to_owned()
    });
    differences.check("the count of jobs", &expected.run.jobs.len(), &NODES);
    let nodes: Vec<Node> = (0..expected.run.jobs.len()).map(|rank| Node::of(lines, rank)).collect();
    for (rank, node) in nodes.iter().enumerate() {
        devices(&mut differences, node, rank);
        limits(&mut differences, node, rank, diagnosis, expected);
        addresses(&mut differences, node, rank, &expected.run);
        variables(&mut differences, node, rank, expected);
        let sum = node.text("sum");
        let right = format!("rank {rank} of {NODES}: all-reduce is right, the last of 100000 numbers is 299997");
        differences.ensure(sum.lines().any(|line| line == right), || {
            format!("node {rank}: `{right}` is not in its output:\n{sum}")
        });
    }
    let uuids: BTreeSet<&str> = nodes.iter().flat_map(Node::gpus).map(|(_, uuid)| uuid).collect();
    differences.check("the count of different GPUs", &uuids.len(), &(NODES * GPUS.0));
    differences
}

fn devices(differences: &mut Differences, node: &Node, rank: usize) {
    let adapters = (OTHER_MAKE..OTHER_MAKE + ADAPTERS).map(|number| format!("/dev/infiniband/uverbs{number}"));
    let gpus = (0..GPUS.0).map(|number| format!("/dev/nvidia{number}"));
    let expected: BTreeSet<String> = adapters.chain(gpus).chain(["/dev/gdrdrv".to_owned()]).collect();
    // Beside these, the driver of the GPUs has some for all of them together.
    let is_shared = |device: &str| {
        let name = device.strip_prefix("/dev/nvidia");
        name.is_some_and(|rest| rest.starts_with(|first: char| !first.is_ascii_digit()))
    };
    let found: BTreeSet<String> =
        node.devices().into_iter().filter(|device| !is_shared(device)).map(str::to_owned).collect();
    let missing: Vec<&String> = expected.difference(&found).collect();
    let needless: Vec<&String> = found.difference(&expected).collect();
    differences.ensure(missing.is_empty(), || format!("node {rank}: has not these devices: {missing:?}"));
    differences.ensure(needless.is_empty(), || format!("node {rank}: has these devices, too: {needless:?}"));
    let names: Vec<&str> = node.gpus().into_iter().map(|(name, _)| name).collect();
    let right: Vec<String> = (0..GPUS.0).map(|index| format!("GPU {index}: {}", GPUS.1)).collect();
    let right: Vec<&str> = right.iter().map(String::as_str).collect();
    differences.check(&format!("node {rank}: its GPUs"), &names, &right);
}

/// Locked memory is unlimited; where the host forbids it, the job runs all the same and its diagnosis has a warning.
fn limits(differences: &mut Differences, node: &Node, rank: usize, diagnosis: &[String], expected: &Expected) {
    let locked = node.text("locked memory");
    let is_right = if expected.may_lock { locked == "unlimited" } else { locked.parse::<u64>().is_ok() };
    differences.ensure(is_right, || {
        let allowed = if expected.may_lock { "allow" } else { "forbid" };
        format!("node {rank}: may lock `{locked}` (KiB), where its engine does {allowed} to lock without limit")
    });
    // Between the number of the node and the text is the time.
    let prefix = format!("[{rank}] ");
    let mut of_node = diagnosis.iter().filter(|line| line.starts_with(&prefix));
    let is_warned = of_node.any(|line| line.trim_end().ends_with(MEMLOCK_WARNING));
    differences.check(&format!("node {rank}: is warned of locked memory"), &is_warned, &!expected.may_lock);
    let shared = node.text("shared memory");
    differences.check(&format!("node {rank}: bytes of /dev/shm"), &shared, &SHARED_MEMORY_BYTES.to_string());
}

fn addresses(differences: &mut Differences, node: &Node, rank: usize, run: &Run) {
    let (_, address) = &run.jobs[rank];
    differences.check(&format!("node {rank}: its primary address"), &node.text("primary address"), address);
    let all = node.addresses();
    differences.ensure(all.contains(&address.as_str()), || format!("node {rank}: has {all:?} and not {address}"));
    let hosts: Vec<String> = run.jobs.iter().map(|(_, address)| format!("{address} slots={}", GPUS.0)).collect();
    differences.check(&format!("node {rank}: the hostfile"), &node.text("hostfile"), &hosts.join("\n"));
}

fn variables(differences: &mut Differences, node: &Node, rank: usize, expected: &Expected) {
    let found = node.variables();
    let right = of_dstack(&expected.run, rank);
    for (name, value) in &found {
        let is_known = !name.starts_with("DSTACK_") || right.contains_key(name);
        differences.ensure(is_known, || format!("node {rank}: nobody expects {name}={value:?}"));
    }
    let of_file = expected.variables.iter().map(|(name, value)| (name.as_str(), value.clone()));
    for (name, value) in right.into_iter().chain(of_file) {
        differences.check(&format!("node {rank}: {name}"), &found.get(name), &Some(&value));
    }
    let path = found.get("PATH").map(String::as_str).unwrap_or_default();
    differences.ensure(path.starts_with("/dstack/venv/bin:"), || {
        format!("node {rank}: PATH={path:?} does not begin with the environment of `python`")
    });
}

/// The variables that every job of a run is told.
fn of_dstack(run: &Run, rank: usize) -> BTreeMap<&'static str, String> {
    let addresses: Vec<&str> = run.jobs.iter().map(|(_, address)| address.as_str()).collect();
    BTreeMap::from([
        ("DSTACK_GPUS_NUM", (NODES * GPUS.0).to_string()),
        ("DSTACK_GPUS_PER_NODE", GPUS.0.to_string()),
        ("DSTACK_JOB_ID", run.jobs[rank].0.clone()),
        ("DSTACK_MASTER_NODE_IP", addresses[0].to_owned()),
        ("DSTACK_MPI_HOSTFILE", "/dstack/mpi/hostfile".to_owned()),
        ("DSTACK_NODES_IPS", addresses.join("\n")),
        ("DSTACK_NODES_NUM", NODES.to_string()),
        ("DSTACK_NODE_RANK", rank.to_string()),
        // The run brings no code, and its image names no place to begin.
        ("DSTACK_REPO_DIR", "/".to_owned()),
        ("DSTACK_REPO_ID", run.repo_id.clone()),
        ("DSTACK_RUN_ID", run.id.clone()),
        ("DSTACK_RUN_NAME", run.name.clone()),
        ("DSTACK_SSH_NODES", "/dstack/peers/nodes".to_owned()),
        ("DSTACK_VENV_DIR", "/dstack/venv".to_owned()),
        ("DSTACK_WORKING_DIR", "/".to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;
    use crate::lab::example;

    const ADDRESSES: [&str; 2] = ["10.124.64.5", "10.124.64.4"];

    fn expected(may_lock: bool) -> Expected {
        let job = |rank: usize| {
            json!({
                "job_spec": { "job_num": rank },
                "job_submissions": [{ "id": "of an earlier try" }, {
                    "id": format!("job {rank}"),
                    "job_provisioning_data": { "internal_ip": ADDRESSES[rank] },
                }],
            })
        };
        let run = json!({
            "id": "run 1", "run_spec": { "run_name": "efa-task", "repo_id": "none" }, "jobs": [job(1), job(0)],
        });
        let variables = example::variables().unwrap();
        Expected { may_lock, lacks_huge_pages: true, variables, run: Run::of(&run).unwrap() }
    }

    /// What a node prints on which all is right.
    fn output(rank: usize, expected: &Expected) -> String {
        let mut text = "= devices\n/dev/gdrdrv\n".to_owned();
        for number in 2..34 {
            writeln!(text, "/dev/infiniband/uverbs{number}").unwrap();
        }
        for name in ["0", "1", "2", "3", "4", "5", "6", "7", "ctl", "-uvm", "-uvm-tools"] {
            writeln!(text, "/dev/nvidia{name}").unwrap();
        }
        text.push_str("= gpus\n");
        for index in 0..8 {
            writeln!(text, "GPU {index}: NVIDIA H100 80GB HBM3 (UUID: GPU-{rank}-{index})").unwrap();
        }
        let locked = if expected.may_lock { "unlimited" } else { "8192" };
        let address = ADDRESSES[rank];
        write!(
            text,
            "= locked memory\n{locked}\n= shared memory\n 25769803776\n= addresses\n{address} 172.17.0.1 \n\
             = primary address\n{address}\n= hostfile\n{} slots=8\n{} slots=8\n= variables\n",
            ADDRESSES[0], ADDRESSES[1]
        )
        .unwrap();
        let own = [("HOME", "/root"), ("PATH", "/dstack/venv/bin:/usr/bin:/bin:/dstack/peers/bin")];
        let own = own.map(|(name, value)| (name, value.to_owned()));
        let of_file = expected.variables.iter().map(|(name, value)| (name.as_str(), value.clone()));
        for (name, value) in own.into_iter().chain(of_dstack(&expected.run, rank)).chain(of_file) {
            writeln!(text, "{name}={}", json!(value)).unwrap();
        }
        writeln!(text, "= sum\nrank {rank} of 2: gives 100000 numbers, the last is 99999").unwrap();
        writeln!(text, "rank {rank} of 2: all-reduce is right, the last of 100000 numbers is 299997").unwrap();
        text
    }

    /// What `apply` prints if each node's text is changed so, and what `logs --diagnose` does.
    fn differences(expected: &Expected, change: impl Fn(usize, String) -> String) -> Vec<String> {
        let warning = format!("Warning: {LITERAL_WARNING} in it is not replaced");
        let mut lines = vec![warning, String::new()];
        let mut diagnosis = vec!["[0] 2026-01-01T00:00:00.000Z Job started".to_owned()];
        for rank in 0..NODES {
            let text = change(rank, output(rank, expected));
            lines.extend(text.lines().map(|line| format!("[{rank}] {line}")));
            let warned =
                (!expected.may_lock).then(|| format!("[{rank}] 2026-01-01T00:00:00.000Z {MEMLOCK_WARNING}"));
            diagnosis.extend(warned);
        }
        task(&lines, &diagnosis, expected).0
    }

    #[test]
    fn a_task_on_which_all_is_right_has_no_differences() {
        for may_lock in [true, false] {
            assert_eq!(differences(&expected(may_lock), |_, text| text), Vec::<String>::new());
        }
    }

    /// What the second node prints is replaced, and the differences that are found have these words.
    #[track_caller]
    fn check_replaced(what: &str, by: &str, found: &[&str]) {
        let replace = |rank, text: String| {
            assert!(rank == 0 || text.contains(what), "{what}");
            if rank == 0 { text } else { text.replacen(what, by, 1) }
        };
        let differences = differences(&expected(true), replace);
        assert_eq!(differences.len(), found.len(), "{differences:#?}");
        for (difference, words) in differences.iter().zip(found) {
            assert!(difference.contains(words), "{differences:#?}");
        }
    }

    #[test]
    fn whatever_differs_is_named() {
        check_replaced(
            "/dev/infiniband/uverbs33\n",
            "",
            &["node 1: has not these devices: [\"/dev/infiniband/uverbs33\"]"],
        );
        check_replaced("/dev/gdrdrv\n", "", &["node 1: has not these devices: [\"/dev/gdrdrv\"]"]);
        let of_another_make = "/dev/infiniband/uverbs0\n/dev/infiniband/uverbs2\n";
        check_replaced(
            "/dev/infiniband/uverbs2\n",
            of_another_make,
            &["has these devices, too: [\"/dev/infiniband/uverbs0\"]"],
        );
        check_replaced("/dev/nvidia7\n", "", &["has not these devices: [\"/dev/nvidia7\"]"]);
        check_replaced("(UUID: GPU-1-7)", "(UUID: GPU-0-7)", &["the count of different GPUs: 15 instead of 16"]);
        check_replaced("NVIDIA H100 80GB HBM3", "NVIDIA A100", &["node 1: its GPUs"]);
        check_replaced("unlimited", "8192", &["node 1: may lock `8192` (KiB), where its engine does allow"]);
        check_replaced("25769803776", "67108864", &["node 1: bytes of /dev/shm: \"67108864\""]);
        check_replaced(
            "= primary address\n10.124.64.4",
            "= primary address\n172.17.0.1",
            &["its primary address"],
        );
        check_replaced("= addresses\n10.124.64.4", "= addresses\n10.124.64.9", &["and not 10.124.64.4"]);
        check_replaced(" slots=8", "", &["node 1: the hostfile"]);
        check_replaced("lib:$LD_LIBRARY_PATH", "lib:", &["node 1: LD_LIBRARY_PATH"]);
        check_replaced("NCCL_DEBUG=\"INFO\"\n", "", &["node 1: NCCL_DEBUG: None"]);
        check_replaced("DSTACK_NODE_RANK=\"1\"", "DSTACK_NODE_RANK=\"0\"", &["node 1: DSTACK_NODE_RANK"]);
        check_replaced("5\\n10.124.64.4\"", "5 10.124.64.4\"", &["node 1: DSTACK_NODES_IPS"]);
        check_replaced("HOME=", "DSTACK_X=", &["node 1: nobody expects DSTACK_X=\"/root\""]);
        check_replaced("/dstack/venv/bin:", "", &["node 1: PATH"]);
        check_replaced("is right, the last", "is wrong, the last", &["all-reduce is right"]);
    }

    #[test]
    fn a_limit_without_its_warning_is_a_difference() {
        let expected = expected(false);
        let lines: Vec<String> = output(0, &expected).lines().map(|line| format!("[0] {line}")).collect();
        let mut differences = Differences::default();
        limits(&mut differences, &Node::of(&lines, 0), 0, &[], &expected);
        assert_eq!(differences.0, ["node 0: is warned of locked memory: false instead of true"]);
    }

    #[test]
    fn a_fleet_is_two_idle_machines_of_the_right_type() {
        let table = " #  BACKEND  REGION     INSTANCE     RESOURCES                    SPOT  PRICE\n \
                     1  aws      us-west-2  p5.48xlarge  cpu=x86:192 gpu=H100:80GB:8  no    $55.04\n\n \
                     NAME           NODES  GPU              SPOT       BACKEND          PRICE   STATUS  CREATED\n \
                     my-efa-fleet   2      H100:8           on-demand  *                        active  09:58\n    \
                     instance=0         gpu=H100:80GB:8  on-demand  aws (us-west-2)  $55.04  idle  09:58\n    \
                     instance=1         gpu=H100:80GB:8  on-demand  aws (us-west-2)  $55.04  idle (warning)  09:58";
        let check = |what: &str, by: &str, found: &str| {
            let lines: Vec<String> = table.replace(what, by).lines().map(str::to_owned).collect();
            let differences = fleet(&lines).0;
            assert!(
                differences.join("\n").contains(found) && differences.is_empty() == found.is_empty(),
                "{differences:?}"
            );
        };
        check("idle", "idle", "");
        check("idle (warning)", "idle (failure)", "the fleet's table shows `instance=1");
        check("idle  ", "provisioning  ", "the fleet's table shows `instance=0");
        check("1         gpu=H100:80GB:8", "1         gpu=H100:80GB:4", "the fleet's table shows `instance=1");
        check("instance=1", "instance=2", "the fleet's instances");
        check("p5.48xlarge", "p5.4xlarge", "the plan has no offer");
    }

    #[test]
    fn only_what_this_machine_lacks_may_be_warned_of() {
        let event = |message: &str, status: &str| json!({ "message": message, "status": status });
        let check = |may_lock, adapters: &str, memlock: &str, found: &str| {
            let events = json!([
                event(adapters, if adapters == "efa 32/32" { "healthy" } else { "failure" }),
                event("gpus 8/8", "healthy"),
                event("memlock", memlock),
                event("hugepages 0 of 2048 KiB", "warning"),
                event("gdrdrv is there", "healthy"),
            ]);
            let instance = |number| json!({ "instance_num": number, "health": { "events": events } });
            let fleet = json!({ "instances": [instance(0), instance(1)] });
            let differences = health(&fleet, &expected(may_lock)).0;
            assert!(
                differences.join("\n").contains(found) && differences.is_empty() == found.is_empty(),
                "{differences:?}"
            );
        };
        check(true, "efa 32/32", "healthy", "");
        check(false, "efa 32/32", "warning", "");
        check(true, "efa 32/32", "warning", "the warnings of instance 0: {\"hugepages\", \"memlock\"}");
        check(false, "efa 32/32", "healthy", "the warnings of instance 1: {\"hugepages\"}");
        check(true, "efa 31/32", "healthy", "instance 1: `efa 31/32` is a failure");
    }
}
