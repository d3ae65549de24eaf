//! What the metadata service of a host tells: a value for each path, made from the machine that was launched.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::machines::{Machine, MachineInterface};

/// All that the service of one host knows. It is a file that the service reads at each request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Metadata {
    /// Whether the service answers at all.
    pub(crate) enabled: bool,
    /// Whether it answers only those who show a token.
    pub(crate) tokens_required: bool,
    /// How many hops a token may go.
    pub(crate) hop_limit: u32,
    /// What the host was given to run, in base64; nothing if it was given nothing.
    user_data: Option<String>,
    /// By path, without the version and without a slash in front.
    pub(crate) values: BTreeMap<String, String>,
}

impl Metadata {
    /// What is known of a machine when it boots.
    pub(crate) fn new(machine: &Machine) -> Metadata {
        let mut values = BTreeMap::new();
        let mut tell = |path: &str, value: String| {
            values.insert(format!("meta-data/{path}"), value);
        };
        let hostname = hostname(&machine.private_ip, &machine.region);
        tell("ami-id", machine.image_id.clone());
        tell("ami-launch-index", machine.launch_index.to_string());
        tell("ami-manifest-path", "(unknown)".to_owned());
        tell("block-device-mapping/ami", "/dev/sda1".to_owned());
        tell("block-device-mapping/root", "/dev/sda1".to_owned());
        tell("events/maintenance/history", "[]".to_owned());
        tell("events/maintenance/scheduled", "[]".to_owned());
        tell("hostname", hostname.clone());
        tell("instance-action", "none".to_owned());
        tell("instance-id", machine.instance_id.clone());
        tell("instance-life-cycle", if machine.is_spot { "spot" } else { "on-demand" }.to_owned());
        tell("instance-type", machine.instance_type.clone());
        tell("local-hostname", hostname);
        tell("local-ipv4", machine.private_ip.clone());
        tell("mac", primary(machine).map(|interface| interface.mac.clone()).unwrap_or_default());
        tell("placement/availability-zone", machine.zone.clone());
        tell("placement/availability-zone-id", machine.network.zone_id.clone());
        tell("placement/region", machine.region.clone());
        if let Some(group) = &machine.placement_group {
            tell("placement/group-name", group.clone());
        }
        tell("profile", "default-hvm".to_owned());
        if let Some(key) = &machine.public_key {
            tell("public-keys/0/openssh-key", key.clone());
        }
        tell("reservation-id", machine.reservation_id.clone());
        tell("security-groups", machine.security_groups.join("\n"));
        tell("services/domain", "amazonaws.com".to_owned());
        tell("services/partition", "aws".to_owned());
        tell("system", "nitro".to_owned());
        if let (Some(profile), Some(role)) = (&machine.iam_instance_profile, &machine.iam_role) {
            let info = json!({
                "Code": "Success",
                "LastUpdated": machine.launched_at,
                "InstanceProfileArn":
                    format!("arn:aws:iam::{}:instance-profile/{profile}", machine.account),
                "InstanceProfileId": "AIPAIOSFODNN7EXAMPLE",
            });
            tell("iam/info", info.to_string());
            // The keys themselves are not given out: whoever asks for them is told that there is a role.
            tell(&format!("iam/security-credentials/{role}"), String::new());
        }
        if machine.metadata_tags {
            for (key, value) in &machine.tags {
                tell(&format!("tags/instance/{key}"), value.clone());
            }
        }
        for interface in &machine.interfaces {
            for (name, value) in interface_values(machine, interface) {
                tell(&format!("network/interfaces/macs/{}/{name}", interface.mac), value);
            }
        }
        values.insert("dynamic/instance-identity/document".to_owned(), identity(machine));
        let mut metadata = Metadata {
            enabled: machine.metadata_enabled,
            tokens_required: machine.metadata_tokens_required,
            hop_limit: u32::try_from(machine.metadata_hop_limit).unwrap_or(1),
            user_data: (!machine.user_data.is_empty()).then(|| STANDARD.encode(&machine.user_data)),
            values,
        };
        metadata.set_public_ip(machine, machine.public_ip.as_deref());
        metadata
    }

    /// What the host was given to run.
    pub(crate) fn user_data(&self) -> Option<Vec<u8>> {
        STANDARD.decode(self.user_data.as_ref()?).ok()
    }

    /// Tells that the host will be taken away.
    pub(crate) fn set_spot_notice(&mut self, ends_at: Timestamp) {
        let time = ends_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let action = json!({"action": "terminate", "time": time}).to_string();
        self.values.insert("meta-data/spot/instance-action".to_owned(), action);
        self.values.insert("meta-data/spot/termination-time".to_owned(), time);
    }

    /// Tells the address that the world sees, or that there is none.
    pub(crate) fn set_public_ip(&mut self, machine: &Machine, public_ip: Option<&str>) {
        let mac = primary(machine).map(|interface| interface.mac.as_str()).unwrap_or_default();
        let paths =
            ["meta-data/public-ipv4".to_owned(), format!("meta-data/network/interfaces/macs/{mac}/public-ipv4s")];
        for path in paths {
            match public_ip {
                Some(address) => self.values.insert(path, address.to_owned()),
                None => self.values.remove(&path),
            };
        }
    }
}

/// The interface that a machine is known by.
pub(crate) fn primary(machine: &Machine) -> Option<&MachineInterface> {
    let has_it = |interface: &&MachineInterface| interface.private_ip.as_deref() == Some(&machine.private_ip);
    machine.interfaces.iter().find(has_it)
}

/// The name that EC2 gives to an address.
fn hostname(address: &str, region: &str) -> String {
    let domain =
        if region == "us-east-1" { "ec2.internal".to_owned() } else { format!("{region}.compute.internal") };
    format!("ip-{}.{domain}", address.replace('.', "-"))
}

fn interface_values(machine: &Machine, interface: &MachineInterface) -> Vec<(&'static str, String)> {
    let mut values = vec![
        ("device-number", interface.device.to_string()),
        ("interface-id", interface.id.clone()),
        ("mac", interface.mac.clone()),
        ("network-card", interface.card.to_string()),
        ("owner-id", machine.account.clone()),
        ("security-groups", machine.security_groups.join("\n")),
        ("subnet-id", machine.network.subnet_id.clone()),
        ("subnet-ipv4-cidr-block", machine.network.subnet_cidr.clone()),
        ("vpc-id", machine.network.vpc_id.clone()),
        ("vpc-ipv4-cidr-block", machine.network.vpc_cidr.clone()),
        ("vpc-ipv4-cidr-blocks", machine.network.vpc_cidr.clone()),
    ];
    if let Some(address) = &interface.private_ip {
        values.push(("local-hostname", hostname(address, &machine.region)));
        values.push(("local-ipv4s", address.clone()));
    }
    values
}

fn identity(machine: &Machine) -> String {
    let document = json!({
        "accountId": machine.account,
        "architecture": machine.architecture,
        "availabilityZone": machine.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": machine.image_id,
        "instanceId": machine.instance_id,
        "instanceType": machine.instance_type,
        "kernelId": null,
        "pendingTime": machine.launched_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "privateIp": machine.private_ip,
        "ramdiskId": null,
        "region": machine.region,
        "version": "2017-09-30",
    });
    format!("{document:#}")
}
