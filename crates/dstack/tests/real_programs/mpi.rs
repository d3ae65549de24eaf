//! Open MPI over the nodes of a run, with OpenSSH's client and with ours, and no SSH server in the image.

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::Value;

use crate::hosts::{Lan, Options, TestHost};
use crate::rig::{IMAGE, Rig, Setup, pin_image};
use crate::ssh_fleets::fleet;

/// The image without a client for SSH.
const WITHOUT_CLIENT: &str = "dstack-test:without-client";

/// Adds the squares of 1, 2, … up over all processes, and says where they ran.
const PROGRAM: &str = "from mpi4py import MPI; world = MPI.COMM_WORLD; rank = world.Get_rank(); \
    total = world.allreduce((rank + 1) ** 2); names = world.gather(MPI.Get_processor_name()); \
    rank or print('the sum is', total, 'over', *sorted(names))";

/// A task whose first node runs the program on both nodes while the other one waits for visitors.
fn task(lan: &Lan, name: &str, image: &str, before: &str) -> String {
    let mpirun = format!(
        "mpirun --allow-run-as-root --hostfile $DSTACK_MPI_HOSTFILE -np 2 --map-by node --mca btl_tcp_if_include {subnet} \
         --mca oob_tcp_if_include {subnet} python3 -c \"{PROGRAM}\"",
        subnet = lan.subnet()
    );
    format!(
        "type: task\nname: {name}\nnodes: 2\nimage: {image}\nstop_criteria: master-done\ncommands:\n  - |\n    \
         if [ $DSTACK_NODE_RANK != 0 ]; then sleep infinity; fi\n    {before}\n    {mpirun}\n\
         resources: {{cpu: 1.., memory: 64MB.., disk: 1GB..}}\n"
    )
}

/// Puts the image of all tests on a host, and one without a client for SSH beside it.
fn bring_images(host: &TestHost) {
    host.load_image(IMAGE);
    let strip = format!(
        "docker run --name strip --network none {IMAGE} rm /usr/bin/ssh && docker commit strip {WITHOUT_CLIENT} && \
         docker rm strip"
    );
    host.exec(&strip).expect_status(0);
}

/// Runs a task to its end, and answers what its first node printed.
#[track_caller]
fn run(rig: &Rig, name: &str, text: &str) -> String {
    rig.write("task.dstack.yml", text);
    let applied = rig.run(&["apply", "-f", "task.dstack.yml", "-y", "-R"]);
    let log = String::from_utf8(rig.log(name, 0)).unwrap();
    assert_eq!(rig.run_status(name), "done", "{}\n{log}", applied.text());
    log.replace('\r', "")
}

#[test]
fn mpirun_adds_up_over_two_hosts_with_either_client() {
    const TEST: &str = "mpirun_adds_up_over_two_hosts_with_either_client";
    let Some(rig) = Rig::start_with(TEST, Setup { containers: true, ..Setup::default() }) else { return };
    let Some(lan) = Lan::start(TEST) else { return };
    pin_image();
    let hosts = lan.hosts(&["one", "two"], &Options { docker: true, ..Options::default() });
    thread::scope(|scope| {
        for host in &hosts {
            scope.spawn(|| bring_images(host));
        }
    });
    // What is usual for a job's server is taken on one of them.
    hosts[1].exec("/usr/sbin/sshd -p 10022").expect_status(0);
    rig.apply("fleet.dstack.yml", &fleet(&lan, "root", &[&hosts[0], &hosts[1]], "placement: cluster"), &[]);
    let sum = "the sum is 5 over one two\n";

    let look = "command -v ssh; cat $DSTACK_MPI_HOSTFILE; echo agent: $OMPI_MCA_plm_rsh_agent; \
                for ip in $DSTACK_NODES_IPS; do ssh $ip 'echo $DSTACK_NODE_RANK on $(hostname)' < /dev/null; done";
    let [one, two] = [hosts[0].address(), hosts[1].address()];
    let log = run(&rig, "openssh", &task(&lan, "openssh", IMAGE, look));
    assert!(log.ends_with(&format!("/usr/bin/ssh\n{one}\n{two}\nagent:\n0 on one\n1 on two\n{sum}")), "{log}");
    let gotten = rig.get_run("openssh");
    let jobs = gotten["jobs"].as_array().unwrap();
    assert!(jobs.len() == 2 && jobs.iter().all(|job| job["job_spec"]["ssh_key"] == Value::Null), "{gotten}");
    assert!(!gotten.to_string().contains("PRIVATE KEY"));

    let log = run(&rig, "own", &task(&lan, "own", WITHOUT_CLIENT, look));
    let agent = "/dstack/peers/bin/ssh";
    assert!(log.ends_with(&format!("{agent}\n{one}\n{two}\nagent: {agent}\n0 on one\n1 on two\n{sum}")), "{log}");
    let example =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/mpi/task.dstack.yml"));
    let log = run(&rig, "mpi", &format!("{}image: {WITHOUT_CLIENT}\n", example.unwrap()));
    let mut hosts: Vec<&str> = log.lines().filter(|line| ["one", "two"].contains(line)).collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["one", "two"], "{log}");
    rig.run(&["fleet", "delete", "own", "-y"]).expect_status(0);
}
