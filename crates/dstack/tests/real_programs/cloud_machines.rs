//! Agents that are told that they run on machines of a cloud: notices from its metadata service, and EFA devices.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::rig::{FLEET, IMAGE, Rig, Setup, wait_for};

/// A metadata service whose answers are files in a folder.
struct Metadata {
    url: String,
    folder: tempfile::TempDir,
}

impl Metadata {
    fn start() -> Metadata {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().to_owned();
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let files = files.clone();
                thread::spawn(move || answer(&stream, &files));
            }
        });
        Metadata { url, folder }
    }

    /// The file behind a path below `latest/meta-data`.
    fn file(&self, path: &str) -> PathBuf {
        let file = self.folder.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        file
    }
}

/// Answers one question. An error only says that nobody waits for the answer any more.
fn answer(stream: &TcpStream, files: &Path) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let request = lines.next()?;
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let has = |header: &str| headers.iter().any(|line| line.starts_with(header));
    let found = match request.split(' ').collect::<Vec<_>>()[..] {
        ["PUT", "/latest/api/token", _] if has("x-aws-ec2-metadata-token-ttl-seconds:") => {
            Some("token".to_owned())
        }
        ["GET", path, _] if has("x-aws-ec2-metadata-token: token") => {
            fs::read_to_string(files.join(path.strip_prefix("/latest/meta-data/")?)).ok()
        }
        _ => None,
    };
    let (status, body) = found.map_or(("404 Not Found", String::new()), |text| ("200 OK", text));
    let length = body.len();
    let mut writer = stream;
    write!(writer, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").ok()
}

/// Each node writes its rank when it begins and when it is told to end. The second try ends well.
fn noting(ledger: &Path) -> String {
    let ledger = ledger.display();
    format!(
        "type: task\nname: gang\nnodes: 2\nretry: {{on_events: [interruption], duration: 1h}}\ncommands:\n  - |\n    \
         if [ -e {ledger}/again ]; then exit 0; fi\n    \
         trap 'echo told > {ledger}/told-'$DSTACK_NODE_RANK'; exit 0' TERM INT\n    \
         echo up > {ledger}/up-$DSTACK_NODE_RANK\n    \
         while true; do sleep 0.1; done\n\
         resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
    )
}

#[test]
fn a_notice_becomes_a_signal_for_the_whole_gang_and_the_run_is_tried_again() {
    let service = Metadata::start();
    let variables =
        vec![("DSTACK_AGENT_CLOUD", "ec2".to_owned()), ("DSTACK_AGENT_METADATA_URL", service.url.clone())];
    let setup = Setup { variables, ..Setup::default() };
    let test = "a_notice_becomes_a_signal_for_the_whole_gang_and_the_run_is_tried_again";
    let Some(rig) = Rig::start_with(test, setup) else { return };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let ledger = tempfile::tempdir().unwrap();
    rig.apply("task.dstack.yml", &noting(ledger.path()), &["-d"]);
    let both = |what: &str| {
        wait_for(what, Duration::from_mins(2), || {
            let has = |rank: u32| ledger.path().join(format!("{what}-{rank}")).exists();
            (has(0) && has(1)).then_some(())
        });
    };
    both("up");
    // The new machines are none that are taken back.
    let notice = service.file("spot/instance-action");
    fs::write(&notice, r#"{"action": "terminate"}"#).unwrap();
    both("told");
    fs::remove_file(&notice).unwrap();
    fs::write(ledger.path().join("again"), "").unwrap();
    rig.wait_for_status("gang", "done");
    assert_eq!(rig.submissions("gang"), [2, 2]);
    let run = rig.get_run("gang");
    let reasons: Vec<&str> = (0..2)
        .map(|node| run["jobs"][node]["job_submissions"][0]["termination_reason"].as_str().expect("it ended"))
        .collect();
    // One of them was first; the other was told by its own machine, or because of its peer.
    assert!(reasons.contains(&"interrupted_by_no_capacity"), "{reasons:?}");
    let is_right = |reason: &&str| ["interrupted_by_no_capacity", "terminated_by_server"].contains(reason);
    assert!(reasons.iter().all(is_right), "{reasons:?}");
    let events = rig.run(&["event", "--within-fleet", "pair"]).expect_status(0).text();
    assert!(events.contains("AWS takes "), "{events}");
}

/// The files of a machine with an RDMA device of its own and two adapters.
fn machine() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let dev = root.path().join("dev");
    fs::create_dir_all(dev.join("infiniband")).unwrap();
    for (number, driver) in ["mlx5_core", "efa", "efa"].into_iter().enumerate() {
        let verbs = root.path().join(format!("sys/class/infiniband_verbs/uverbs{number}"));
        fs::create_dir_all(verbs.join("device")).unwrap();
        symlink(format!("../../bus/pci/drivers/{driver}"), verbs.join("device/driver")).unwrap();
        // The engine looks where the link leads to.
        symlink("/dev/null", dev.join(format!("infiniband/uverbs{number}"))).unwrap();
    }
    symlink("/dev/null", dev.join("infiniband/rdma_cm")).unwrap();
    symlink("/dev/zero", dev.join("gdrdrv")).unwrap();
    root
}

#[test]
fn a_container_gets_the_adapters_and_no_other_rdma_devices() {
    let machine = machine();
    let root = |name: &str| machine.path().join(name).display().to_string();
    let variables = vec![("DSTACK_AGENT_SYSFS_ROOT", root("sys")), ("DSTACK_AGENT_DEV_ROOT", root("dev"))];
    let setup = Setup { containers: true, variables };
    let Some(rig) = Rig::start_with("a_container_gets_the_adapters_and_no_other_rdma_devices", setup) else {
        return;
    };
    rig.apply("fleet.dstack.yml", FLEET, &[]);
    let look =
        "ls -1 /dev/infiniband; head -c 3 /dev/gdrdrv | wc -c; echo x > /dev/infiniband/uverbs2 && echo written";
    let task = format!(
        "type: task\nname: look\nimage: {IMAGE}\ncommands:\n  - {look}\n\
         resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
    );
    rig.apply("task.dstack.yml", &task, &["-R"]);
    assert_eq!(String::from_utf8_lossy(&rig.log("look", 0)), "uverbs1\r\nuverbs2\r\n3\r\nwritten\r\n");
    let fleet = rig.run(&["fleet", "get", "pair", "--json"]).expect_status(0).text();
    assert!(fleet.contains("efa 2"), "{fleet}");
}
