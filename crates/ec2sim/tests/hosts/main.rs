//! Hosts that are containers: what a launch asks for is what somebody finds who logs in.
//!
//! They need an engine and an image, which `cargo xtask test` prepares; without, the tests leave themselves out.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests are tests")]

mod cloud;

use cloud::{Cloud, docker, set, wait_for};
use serde_json::json;

/// A token of the metadata service, in the shell's variable `token`.
const TOKEN: &str = "token=$(curl -sf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \
                     http://169.254.169.254/latest/api/token)";

/// A question to the metadata service.
fn ask(path: &str) -> String {
    format!("{TOKEN}; curl -sf -m 5 -H \"X-aws-ec2-metadata-token: $token\" http://169.254.169.254/latest/{path}")
}

/// A question to the metadata service for a container that has busybox only, which prints the first line of the answer.
fn raw(request: &str, headers: &str) -> String {
    // A client that closes its side is taken for one that has gone.
    format!(
        "(printf '{request} HTTP/1.0\\r\\n{headers}\\r\\n'; sleep 2) | timeout 5 nc 169.254.169.254 80 | head -n 1"
    )
}

fn cloud_config(public_key: &str) -> String {
    let config = json!({
        "ssh_authorized_keys": [public_key],
        "write_files": [{"path": "/etc/written", "content": "by cloud-init\n", "permissions": "0640"}],
        "bootcmd": ["echo early > /var/early"],
        "runcmd": ["id -un > /var/ran", ["sh", "-c", "echo \"$0\" >> /var/ran", "a list"]],
    });
    format!("#cloud-config\n{config}")
}

/// The layout of p5.48xlarge: one interface with an address, and 32 for EFA only.
fn add_efa(launch: &mut cloud::Fields) {
    let subnet = launch.iter().find(|(name, _)| name.ends_with("SubnetId")).unwrap().1.clone();
    set(launch, "NetworkInterface.1.InterfaceType", "interface");
    for card in 0..32 {
        let prefix = format!("NetworkInterface.{}", card + 2);
        set(launch, format!("{prefix}.NetworkCardIndex"), card.to_string());
        set(launch, format!("{prefix}.DeviceIndex"), if card == 0 { "1" } else { "0" });
        set(launch, format!("{prefix}.InterfaceType"), "efa-only");
        set(launch, format!("{prefix}.SubnetId"), subnet.clone());
    }
}

#[tokio::test]
async fn two_machines_are_what_their_launch_says() {
    let Some(image) = cloud::image("two_machines_are_what_their_launch_says") else { return };
    let cloud = Cloud::start(&image).await;
    let pid = cloud.pid();
    let mut launch = cloud.launch("p5.48xlarge", 2, &cloud_config(&cloud.public_key())).await;
    set(&mut launch, "MetadataOptions.HttpPutResponseHopLimit", "1");
    add_efa(&mut launch);
    let made = cloud.run(&launch).await;
    let [(first, address), (second, other)] = &made[..] else { panic!("{made:?}") };
    for (id, address) in &made {
        cloud.wait_until_booted(id, address).await;
    }
    let sh = async |command: &str| cloud.ssh(address, command).await.text();

    // What it was given to run.
    assert_eq!(
        sh("cat /var/early; sudo cat /etc/written; cat /var/ran").await,
        "early\nby cloud-init\nroot\na list\n"
    );
    assert_eq!(sh("stat -c %a /etc/written; sudo -n id -u").await, "640\n0\n");
    assert!(cloud.console(first).await.contains("Cloud-init v."));

    metadata_is_told_to_those_with_a_token(&cloud, first, address, other).await;
    devices_are_those_of_the_type(&cloud, address).await;
    containers_are_given_gpus_by_the_hook(&cloud, address).await;

    // Each reaches the other, by the address and not by the one that Docker would have given.
    let greeting = sh(&format!("head -c 4 < /dev/tcp/{other}/22")).await;
    assert_eq!(greeting, "SSH-");
    assert_eq!(
        sh("ip -br -4 addr show dev eth0").await.split_whitespace().nth(2),
        Some(&*format!("{address}/16"))
    );

    cloud.ask("TerminateInstances", &vec![("InstanceId.1".to_owned(), first.clone())]).await;
    let gone = || async { (cloud.state(first).await.as_deref() == Some("terminated")).then_some(()) };
    wait_for("the first one's end", gone).await;
    wait_for("its container's end", || async {
        let listed = docker(&["ps", "--all", "--format", "{{.Names}}"]).await.text();
        (!listed.contains(first.as_str()) && listed.contains(second.as_str())).then_some(())
    })
    .await;
    assert!(!cloud.ssh(address, "true").await.success);

    cloud.stop().await;
    assert_eq!(Cloud::leftovers(pid).await, Vec::<String>::new());
}

async fn metadata_is_told_to_those_with_a_token(cloud: &Cloud, id: &str, address: &str, other: &str) {
    let sh = async |command: &str| cloud.ssh(address, command).await.text();
    let status = "curl -s -m 5 -o /dev/null -w %{http_code} http://169.254.169.254/latest/meta-data/instance-id";
    assert_eq!(sh(status).await, "401");
    let values = [
        ("instance-id", id),
        ("instance-type", "p5.48xlarge"),
        ("placement/availability-zone", "us-west-2a"),
        ("placement/region", "us-west-2"),
        ("local-ipv4", address),
        ("instance-life-cycle", "on-demand"),
    ];
    for (path, expected) in values {
        assert_eq!(sh(&ask(&format!("meta-data/{path}"))).await, expected, "{path}");
    }
    assert_eq!(sh(&ask("meta-data/mac")).await, sh("tr -d '\\n' < /sys/class/net/eth0/address").await);
    assert!(sh(&ask("user-data")).await.starts_with("#cloud-config\n"));
    let document: serde_json::Value =
        serde_json::from_str(&sh(&ask("dynamic/instance-identity/document")).await).unwrap();
    assert_eq!((&document["instanceId"], &document["privateIp"]), (&json!(id), &json!(address)));
    for path in ["meta-data/iam/info", "meta-data/spot/instance-action"] {
        assert!(!cloud.ssh(address, &ask(path)).await.success, "{path}");
    }
    assert_ne!(cloud.ssh(other, &ask("meta-data/instance-id")).await.text(), id);
}

async fn devices_are_those_of_the_type(cloud: &Cloud, address: &str) {
    let sh = async |command: &str| cloud.ssh(address, command).await.text();
    let list = sh("nvidia-smi -L").await;
    assert_eq!(list.matches("NVIDIA H100 80GB HBM3 (UUID: GPU-").count(), 8, "{list}");
    let query = "nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader,nounits";
    assert_eq!(sh(query).await.lines().next(), Some("0, NVIDIA H100 80GB HBM3, 81559, 550.127.05"));
    assert!(!cloud.ssh(address, "nvidia-smi --query-gpu=colour --format=csv").await.success);
    let joined = "nvidia-smi --query-gpu=fabric.state,fabric.status --format=csv,noheader | sort | uniq -c";
    assert_eq!(sh(joined).await.trim(), "8 Completed, Success");
    let states = "cat /sys/class/infiniband/*/ports/1/state | sort | uniq -c";
    assert_eq!(sh(states).await.trim(), "34 4: ACTIVE");
    let attached = "grep -l 0x1d0f $(grep -l 0xefa /sys/bus/pci/devices/*/device | sed s/device$/vendor/) | wc -l";
    assert_eq!(sh(attached).await, "32\n");
    assert_eq!(sh("cat /sys/class/dmi/id/product_name").await, "p5.48xlarge\n");
    // Those of the other make are there too, and are not EFA.
    let drivers = "for device in /sys/class/infiniband_verbs/uverbs*; do \
                   basename $(readlink $device/device/driver); done | sort | uniq -c";
    let drivers = sh(drivers).await;
    let drivers: Vec<&str> = drivers.split_whitespace().collect();
    assert_eq!(drivers, ["32", "efa", "2", "mlx5_core"]);
    assert_eq!(sh("ls /dev/infiniband | grep -c uverbs; ls /dev | grep -cE '^nvidia[0-9]'").await, "34\n8\n");
    assert_eq!(
        sh("echo x > /dev/infiniband/uverbs2; echo x > /dev/gdrdrv; cat /sys/module/efa/version").await,
        "2.12.1g\n"
    );
}

async fn containers_are_given_gpus_by_the_hook(cloud: &Cloud, address: &str) {
    let sh = async |command: &str| cloud.ssh(address, command).await.text();
    sh("sudo docker import /usr/share/dstack-test/tiny.tar tiny").await;
    let inside = "ls /dev | grep -cE '^nvidia[0-9]'; nvidia-smi -L | wc -l";
    assert_eq!(sh(&format!("sudo docker run --rm --gpus all tiny sh -c \"{inside}\"")).await, "8\n8\n");
    let some = format!("sudo docker run --rm --gpus '\"device=1,3\"' tiny sh -c \"{inside}\"");
    assert_eq!(sh(&some).await, "2\n2\n");
    assert!(sh("cat /var/log/nvidia-hook.log").await.contains("visible=1,3"));

    // A token may go one hop, which is as far as the host; the rest may go further, but says nothing without one.
    let put = raw("PUT /latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60\\r\\n");
    let get = raw("GET /latest/", "");
    let said = |network: &str, request: &str| {
        format!(
            "cat > /tmp/ask <<'END'\n{request}\nEND\nsudo docker run --rm -i --network {network} tiny sh < /tmp/ask"
        )
    };
    assert_eq!(sh(&said("bridge", &put)).await, "");
    assert_eq!(sh(&said("bridge", &get)).await, "HTTP/1.0 401 Unauthorized\r\n");
    assert_eq!(sh(&said("host", &put)).await, "HTTP/1.0 200 OK\r\n");
}

#[tokio::test]
async fn a_spot_machine_hears_of_its_end_restarts_and_switches_itself_off() {
    let test = "a_spot_machine_hears_of_its_end_restarts_and_switches_itself_off";
    let Some(image) = cloud::image(test) else { return };
    let cloud = Cloud::start(&image).await;
    let key = vec![
        ("KeyName".to_owned(), "test".to_owned()),
        ("PublicKeyMaterial".to_owned(), {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(cloud.public_key())
        }),
    ];
    cloud.ask("ImportKeyPair", &key).await;
    // This time the key comes with the launch, and what is to be run is a script.
    let mut launch = cloud.launch("g5.xlarge", 1, "#!/bin/sh\necho boot >> /var/boots\n").await;
    set(&mut launch, "KeyName", "test");
    set(&mut launch, "MetadataOptions.HttpPutResponseHopLimit", "2");
    set(&mut launch, "IamInstanceProfile.Name", "dstack-instance");
    set(&mut launch, "InstanceMarketOptions.MarketType", "spot");
    set(&mut launch, "InstanceInitiatedShutdownBehavior", "terminate");
    let (id, address) = cloud.run(&launch).await.remove(0);
    cloud.wait_until_booted(&id, &address).await;
    let sh = async |command: &str| cloud.ssh(&address, command).await.text();
    assert_eq!(
        sh("cat /var/boots; nvidia-smi --query-gpu=name --format=csv,noheader").await,
        "boot\nNVIDIA A10G\n"
    );
    assert_eq!(sh(&ask("meta-data/iam/security-credentials/")).await, "dstack-instance-role");
    assert!(!cloud.ssh(&address, "ls /dev/infiniband").await.success);

    // Two hops are as far as a container on the host's bridge.
    sh("sudo docker import /usr/share/dstack-test/tiny.tar tiny").await;
    let put = raw("PUT /latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60\\r\\n");
    let asked = format!("cat > /tmp/ask <<'END'\n{put}\nEND\nsudo docker run --rm -i tiny sh < /tmp/ask");
    assert_eq!(sh(&asked).await, "HTTP/1.0 200 OK\r\n");

    let notice = json!({"region": "us-west-2", "instance_id": id, "notice_ms": 600_000});
    cloud.order("instances/interrupt", &notice).await;
    let action = ask("meta-data/spot/instance-action");
    let action = wait_for("the notice", || async {
        let said = cloud.ssh(&address, &action).await;
        said.success.then_some(said.stdout)
    })
    .await;
    assert!(action.contains("\"action\":\"terminate\""), "{action}");

    // A reboot is no end: the disk stays, and what runs once has run.
    let boot_id = "systemctl show --value --property=UserspaceTimestampMonotonic";
    let before = sh(boot_id).await;
    cloud.ssh(&address, "sudo touch /var/kept; sudo systemctl reboot").await;
    wait_for("the second boot", || async {
        let now = cloud.ssh(&address, boot_id).await;
        (now.success && now.stdout != before).then_some(())
    })
    .await;
    cloud.wait_until_booted(&id, &address).await;
    assert_eq!(sh("cat /var/boots; ls /var/kept").await, "boot\n/var/kept\n");
    assert_eq!(cloud.state(&id).await.as_deref(), Some("running"));

    cloud.ssh(&address, "sudo shutdown now").await;
    wait_for("its end", || async { (cloud.state(&id).await.as_deref() == Some("terminated")).then_some(()) })
        .await;
    cloud.stop().await;
}

#[tokio::test]
async fn what_a_killed_simulator_left_is_removed_by_the_next() {
    let Some(image) = cloud::image("what_a_killed_simulator_left_is_removed_by_the_next") else { return };
    let cloud = Cloud::start(&image).await;
    let pid = cloud.pid();
    // Nobody ever gets into this one, which EC2 calls running all the same.
    cloud.order("host-faults", &json!({"times": 1, "what": "without_ssh"})).await;
    let config = cloud_config(&cloud.public_key());
    let (id, address) = cloud.run(&cloud.launch("g5.xlarge", 1, &config).await).await.remove(0);
    wait_for("the end of its boot", || async {
        cloud.console(&id).await.contains("Cloud-init v. ").then_some(())
    })
    .await;
    wait_for("what it was given to run", || async {
        docker(&["exec", &format!("ec2sim-{pid}-{id}"), "cat", "/var/ran"]).await.success.then_some(())
    })
    .await;
    assert_eq!(cloud.state(&id).await.as_deref(), Some("running"));
    assert!(cloud.ssh(&address, "true").await.stderr.contains("Connection refused"));
    assert!(cloud.orphans().await.as_array().is_some_and(|orphans| !orphans.is_empty()));

    assert_eq!(Cloud::leftovers(pid).await.len(), 3, "a container, a network and a folder");
    cloud.kill().await;
    let next = Cloud::start(&image).await;
    assert_eq!(Cloud::leftovers(pid).await, Vec::<String>::new());
    next.stop().await;
}
