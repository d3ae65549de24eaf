//! What users write about their AWS account: the official keys, and ours beside them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::keys::{Keys, near_miss, quoted};
use crate::{Error, Result};

/// The regions of a configuration that names none. In these the official images of CPU machines are published, and
/// users of the original expect them.
const DEFAULT_REGIONS: &[&str] = &[
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
    "ap-southeast-1",
    "ca-central-1",
    "eu-central-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eu-north-1",
];

/// AWS takes 50 tags on a resource, of which some are ours.
const MOST_TAGS: usize = 25;

const KEYS: &[&str] = &[
    "creds",
    "regions",
    "vpc_name",
    "vpc_ids",
    "default_vpcs",
    "public_ips",
    "iam_instance_profile",
    "tags",
    "os_images",
    "experimental_instance_types",
    "subnet_ids",
    "security_group_ids",
    "ssh_cidrs",
    "root_volume",
    "bastion",
    "endpoint_url",
    "machines_per_call",
];

/// The account, and how machines are made in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AwsConfig {
    pub(super) creds: Creds,
    pub(super) regions: Vec<String>,
    pub(super) network: NetworkConfig,
    /// Machines have addresses that the world can reach.
    pub(super) public_ips: bool,
    /// The name of the profile that machines get.
    pub(super) iam_instance_profile: Option<String>,
    /// Put on everything that is made.
    pub(super) tags: BTreeMap<String, String>,
    pub(super) cpu_image: Option<OsImage>,
    pub(super) nvidia_image: Option<OsImage>,
    pub(super) root_volume: RootVolume,
    /// The host through which machines are reached.
    pub(super) bastion: Option<Bastion>,
    /// Where AWS is asked instead of at its own addresses.
    pub(super) endpoint_url: Option<String>,
    /// With more machines than this, a launch is made in several calls.
    pub(super) machines_per_call: u32,
}

/// Which networks machines are put into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NetworkConfig {
    pub(super) vpc_name: Option<String>,
    /// By region.
    pub(super) vpc_ids: BTreeMap<String, String>,
    /// Regions that `vpc_ids` leaves out use their default one.
    pub(super) default_vpcs: bool,
    /// By region: exactly these, whatever their routes say.
    pub(super) subnet_ids: BTreeMap<String, Vec<String>>,
    /// By region: exactly these, never changed by us.
    pub(super) security_group_ids: BTreeMap<String, Vec<String>>,
    /// From where machines may be reached by SSH; none: what the kind of addresses suggests.
    pub(super) ssh_cidrs: Option<Vec<String>>,
}

/// How AWS knows us.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Creds {
    /// A key of a user.
    AccessKey { access_key: String, secret_key: String },
    /// What AWS's programs find in the server's surroundings.
    Default,
    /// A role that is taken with what `source` gives.
    AssumeRole {
        role_arn: String,
        #[serde(default)]
        external_id: Option<String>,
        #[serde(default)]
        source: Option<SourceCreds>,
    },
}

/// With what a role is taken; unless said, with what AWS's programs find.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum SourceCreds {
    AccessKey { access_key: String, secret_key: String },
    Default,
}

// Secrets must not be printed.
impl std::fmt::Debug for Creds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Creds::AccessKey { .. } => "AccessKey(..)",
            Creds::Default => "Default",
            Creds::AssumeRole { .. } => "AssumeRole(..)",
        })
    }
}

impl std::fmt::Debug for SourceCreds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SourceCreds(..)")
    }
}

/// An image that machines start from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OsImage {
    /// Its name, in which `*` stands for anything. The newest one counts.
    pub(super) name: String,
    /// Who published it: the number of an account, or `self`.
    #[serde(default = "own_account", deserialize_with = "account")]
    pub(super) owner: String,
    /// Who logs in.
    pub(super) user: String,
}

fn own_account() -> String {
    "self".to_owned()
}

/// Reads the number of an account also where YAML takes it for a number, which loses zeros at its beginning.
fn account<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Number(u64),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::Text(text) => text,
        Written::Number(number) => format!("{number:012}"),
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OsImages {
    cpu: Option<OsImage>,
    nvidia: Option<OsImage>,
}

/// The disk that a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootVolume {
    /// `gp3`, `gp2`, `io1` or `io2`.
    #[serde(rename = "type", default = "gp3")]
    pub(super) volume_type: String,
    /// Whether it is encrypted; unless said, as the account has it.
    #[serde(default)]
    pub(super) encrypted: Option<bool>,
    #[serde(default)]
    pub(super) kms_key_id: Option<String>,
    #[serde(default)]
    pub(super) iops: Option<i32>,
    /// MiB a second.
    #[serde(default)]
    pub(super) throughput: Option<i32>,
}

fn gp3() -> String {
    "gp3".to_owned()
}

impl Default for RootVolume {
    fn default() -> RootVolume {
        RootVolume { volume_type: gp3(), encrypted: None, kms_key_id: None, iops: None, throughput: None }
    }
}

/// A host through which machines without addresses in the world are reached.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bastion {
    pub(super) host: String,
    #[serde(default = "ssh_port")]
    pub(super) port: u16,
    pub(super) user: String,
    /// The private key, in OpenSSH's form.
    pub(super) key: String,
}

impl std::fmt::Debug for Bastion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bastion").field("host", &self.host).field("user", &self.user).finish_non_exhaustive()
    }
}

fn ssh_port() -> u16 {
    22
}

/// Machines that one call asks for at the most: as many as AWS's bucket for launches holds.
const MACHINES_PER_CALL: u32 = 1000;

/// Whether somebody may configure the backend so. What only seems to be a mistake is refused here and not when a backend
/// is opened that was configured before: its machines would be out of reach.
pub(super) fn check(config: &Value) -> Result<()> {
    let AwsConfig { network, regions, .. } = parse(config)?;
    let keys = Keys::of("aws", config, KEYS)?;
    for (key, by_region) in
        [("subnet_ids", &network.subnet_ids), ("security_group_ids", &network.security_group_ids)]
    {
        if let Some(region) = by_region.keys().find(|region| !regions.contains(region)) {
            return Err(keys.refuse(key, &format!("`{region}` is not in `regions`")));
        }
    }
    // As in 0.22.5, there may be more of them than regions.
    network.vpc_ids.keys().try_for_each(|region| check_region(&keys, "vpc_ids", region))
}

/// Reads the configuration. An error names the key and what to write.
pub(super) fn parse(config: &Value) -> Result<AwsConfig> {
    let keys = Keys::of("aws", config, KEYS)?;
    let creds: Option<Creds> = keys.optional("creds")?;
    let creds = creds.ok_or_else(|| {
        keys.refuse("creds", "missing; write `creds: {type: default}`, or `type: access_key` with both keys")
    })?;
    check_creds(&keys, &creds)?;
    let named_regions: Option<Vec<String>> = keys.optional("regions")?;
    let has_named_regions = named_regions.is_some();
    let regions = named_regions.unwrap_or_else(|| DEFAULT_REGIONS.iter().map(|&region| region.into()).collect());
    check_regions(&keys, &regions)?;
    let network = NetworkConfig {
        vpc_name: keys.optional("vpc_name")?,
        vpc_ids: keys.optional("vpc_ids")?.unwrap_or_default(),
        default_vpcs: true,
        subnet_ids: keys.optional("subnet_ids")?.unwrap_or_default(),
        security_group_ids: keys.optional("security_group_ids")?.unwrap_or_default(),
        ssh_cidrs: keys.optional("ssh_cidrs")?,
    };
    let default_vpcs: Option<bool> = keys.optional("default_vpcs")?;
    let network = NetworkConfig { default_vpcs: default_vpcs.unwrap_or(true), ..network };
    check_network(&keys, &network, &regions, has_named_regions)?;
    let tags: BTreeMap<String, String> = keys.optional("tags")?.unwrap_or_default();
    check_tags(&keys, &tags)?;
    // It was how types outside of a list of families were let through. Here no type is left out.
    let _: Option<Vec<String>> = keys.optional("experimental_instance_types")?;
    let images: Option<OsImages> = keys.optional("os_images")?;
    let images = images.unwrap_or_default();
    for (key, image) in [("cpu", &images.cpu), ("nvidia", &images.nvidia)] {
        check_image(&keys, key, image.as_ref())?;
    }
    let root_volume: RootVolume = keys.optional("root_volume")?.unwrap_or_default();
    check_root_volume(&keys, &root_volume)?;
    let endpoint_url: Option<String> = keys.optional("endpoint_url")?;
    if let Some(url) = &endpoint_url
        && !url.starts_with("http://")
        && !url.starts_with("https://")
    {
        return Err(keys.refuse("endpoint_url", "it begins with neither `https://` nor `http://`"));
    }
    let machines_per_call = keys.optional("machines_per_call")?.unwrap_or(MACHINES_PER_CALL);
    if !(1..=MACHINES_PER_CALL).contains(&machines_per_call) {
        return Err(keys.refuse("machines_per_call", &format!("it is not between 1 and {MACHINES_PER_CALL}")));
    }
    Ok(AwsConfig {
        creds,
        regions,
        network,
        public_ips: keys.optional("public_ips")?.unwrap_or(true),
        iam_instance_profile: keys.optional("iam_instance_profile")?,
        tags,
        cpu_image: images.cpu,
        nvidia_image: images.nvidia,
        root_volume,
        bastion: keys.optional("bastion")?,
        endpoint_url,
        machines_per_call,
    })
}

fn check_creds(keys: &Keys<'_>, creds: &Creds) -> Result<()> {
    let blank = |text: &str| text.trim().is_empty();
    match creds {
        Creds::AccessKey { access_key, secret_key }
        | Creds::AssumeRole { source: Some(SourceCreds::AccessKey { access_key, secret_key }), .. }
            if blank(access_key) || blank(secret_key) =>
        {
            Err(keys.refuse("creds", "`access_key` and `secret_key` may not be empty"))
        }
        Creds::AssumeRole { role_arn, .. } if !role_arn.starts_with("arn:") => {
            Err(keys.refuse("creds", "`role_arn` is no ARN; one looks like `arn:aws:iam::123456789012:role/name`"))
        }
        Creds::AccessKey { .. } | Creds::Default | Creds::AssumeRole { .. } => Ok(()),
    }
}

fn check_regions(keys: &Keys<'_>, regions: &[String]) -> Result<()> {
    if regions.is_empty() {
        return Err(keys.refuse("regions", "at least one is needed; leave the key out for the usual ones"));
    }
    regions.iter().try_for_each(|region| check_region(keys, "regions", region))
}

fn check_region(keys: &Keys<'_>, key: &str, region: &str) -> Result<()> {
    // As `us-west-2`; a zone has a letter at its end.
    let is_region = region.split('-').count() >= 3
        && region.ends_with(|last: char| last.is_ascii_digit())
        && region.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-');
    if is_region {
        return Ok(());
    }
    let advice = match near_miss(region, DEFAULT_REGIONS) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    Err(keys.refuse(key, &format!("`{region}` is no region{advice}")))
}

fn check_network(
    keys: &Keys<'_>,
    network: &NetworkConfig,
    regions: &[String],
    has_named_regions: bool,
) -> Result<()> {
    if network.vpc_name.is_some() && !network.vpc_ids.is_empty() {
        return Err(keys.refuse("vpc_ids", "only one of `vpc_name` and `vpc_ids` can be given"));
    }
    let is_given = network.vpc_name.is_some() || !network.vpc_ids.is_empty() || !network.subnet_ids.is_empty();
    if !network.default_vpcs && !is_given {
        return Err(keys.refuse("default_vpcs", "`false` needs `vpc_name`, `vpc_ids` or `subnet_ids`"));
    }
    if !network.default_vpcs && network.vpc_name.is_none() {
        let missing: Vec<&str> = regions
            .iter()
            .filter(|region| !network.vpc_ids.contains_key(*region) && !network.subnet_ids.contains_key(*region))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            let which = if has_named_regions { "`regions`" } else { "the usual regions" };
            let why = format!("`default_vpcs` is `false`, and these of {which} are missing: {}", quoted(&missing));
            return Err(keys.refuse("vpc_ids", &why));
        }
    }
    for (key, by_region) in
        [("subnet_ids", &network.subnet_ids), ("security_group_ids", &network.security_group_ids)]
    {
        if let Some((region, _)) = by_region.iter().find(|(_, ids)| ids.is_empty()) {
            return Err(keys.refuse(key, &format!("nothing is given for `{region}`")));
        }
    }
    for cidr in network.ssh_cidrs.iter().flatten() {
        check_cidr(keys, cidr)?;
    }
    Ok(())
}

fn check_cidr(keys: &Keys<'_>, cidr: &str) -> Result<()> {
    let parsed = cidr.split_once('/').and_then(|(address, prefix)| {
        let address: std::net::Ipv4Addr = address.parse().ok()?;
        let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        Some((address, prefix))
    });
    let Some((address, prefix)) = parsed else {
        return Err(keys.refuse("ssh_cidrs", &format!("`{cidr}` is no network of IPv4, as `10.0.0.0/8`")));
    };
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    if address.to_bits() & !mask != 0 {
        let network = std::net::Ipv4Addr::from_bits(address.to_bits() & mask);
        let why = format!("`{cidr}` has bits beyond its prefix; write `{network}/{prefix}`");
        return Err(keys.refuse("ssh_cidrs", &why));
    }
    Ok(())
}

/// AWS's restrictions on tags: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html>.
fn check_tags(keys: &Keys<'_>, tags: &BTreeMap<String, String>) -> Result<()> {
    if MOST_TAGS < tags.len() {
        return Err(
            keys.refuse("tags", &format!("there may be {MOST_TAGS} at the most, and here are {}", tags.len()))
        );
    }
    for (key, value) in tags {
        if let Err(why) = check_tag(key, value) {
            return Err(keys.refuse("tags", &why));
        }
    }
    Ok(())
}

/// Whether AWS takes a tag, or why not.
pub(super) fn check_tag(key: &str, value: &str) -> std::result::Result<(), String> {
    let is_allowed = |char: char| char.is_alphanumeric() || "_ .:/=-+@".contains(char);
    if key.is_empty() || 128 < key.chars().count() || !key.chars().all(is_allowed) {
        return Err(format!(
            "the key `{key}` is not 1 to 128 letters, digits, spaces and `. : / = - + @ _`, which AWS asks for"
        ));
    }
    if key.to_ascii_lowercase().starts_with("aws:") {
        return Err(format!("the key `{key}` begins with `aws:`, which AWS keeps for itself"));
    }
    if 256 < value.chars().count() || !value.chars().all(is_allowed) {
        return Err(format!(
            "the value of `{key}` is not up to 256 letters, digits, spaces and `. : / = - + @ _`, which AWS asks for"
        ));
    }
    Ok(())
}

fn check_image(keys: &Keys<'_>, which: &str, image: Option<&OsImage>) -> Result<()> {
    let Some(image) = image else { return Ok(()) };
    let is_account = image.owner.len() == 12 && image.owner.chars().all(|char| char.is_ascii_digit());
    if image.owner != "self" && !is_account {
        let why = format!("`{which}.owner` is neither `self` nor the 12 digits of an account");
        return Err(keys.refuse("os_images", &why));
    }
    if image.user.is_empty() || image.name.is_empty() {
        return Err(keys.refuse("os_images", &format!("`{which}` needs `name` and `user`")));
    }
    Ok(())
}

fn check_root_volume(keys: &Keys<'_>, volume: &RootVolume) -> Result<()> {
    const TYPES: &[&str] = &["gp3", "gp2", "io1", "io2"];
    let refuse = |why: &str| Err::<(), Error>(keys.refuse("root_volume", why));
    if !TYPES.contains(&volume.volume_type.as_str()) {
        return refuse(&format!("`type` is one of {}", quoted(TYPES)));
    }
    if volume.kms_key_id.is_some() && volume.encrypted == Some(false) {
        return refuse("`kms_key_id` needs `encrypted: true`");
    }
    if volume.volume_type.starts_with("io") && volume.iops.is_none() {
        return refuse(&format!("`type: {}` needs `iops`", volume.volume_type));
    }
    if volume.throughput.is_some() && volume.volume_type != "gp3" {
        return refuse("`throughput` is for `type: gp3` only");
    }
    if volume.iops.is_some() && volume.volume_type == "gp2" {
        return refuse("`iops` is not for `type: gp2`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(mut more: Value) -> Value {
        let map = more.as_object_mut().unwrap();
        map.insert("type".to_owned(), json!("aws"));
        map.entry("creds").or_insert_with(|| json!({ "type": "default" }));
        more
    }

    #[test]
    fn the_documented_example_is_read() {
        let config = parse(&with(json!({
            "regions": ["us-west-2"],
            "public_ips": false,
            "vpc_name": "my-vpc",
            "os_images": { "nvidia": {
                "name": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241115",
                "owner": 898_082_745_236_u64,
                "user": "ubuntu",
            } },
        })))
        .unwrap();
        assert_eq!(config.regions, ["us-west-2"]);
        assert!(!config.public_ips && config.cpu_image.is_none());
        assert_eq!(config.network.vpc_name.as_deref(), Some("my-vpc"));
        let image = config.nvidia_image.unwrap();
        assert_eq!((image.owner.as_str(), image.user.as_str()), ("898082745236", "ubuntu"));
        assert_eq!((config.root_volume.volume_type.as_str(), config.machines_per_call), ("gp3", 1000));
    }

    #[test]
    fn what_is_left_out_has_the_official_defaults() {
        let config = parse(&with(json!({}))).unwrap();
        assert_eq!(config.regions.len(), 11);
        assert!(config.public_ips && config.network.default_vpcs);
    }

    #[track_caller]
    fn check_refused(config: Value, message: &str) {
        let error = check(&with(config)).unwrap_err();
        assert_eq!(error.message, message);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_write() {
        check_refused(json!({ "region": "x" }), "backend `aws` has no key `region`; did you mean `regions`?");
        check_refused(
            json!({ "regions": ["us-west2"] }),
            "`regions` of backend `aws`: `us-west2` is no region; did you mean `us-west-2`?",
        );
        check_refused(
            json!({ "vpc_ids": { "us-west-2a": "vpc-1" } }),
            "`vpc_ids` of backend `aws`: `us-west-2a` is no region; did you mean `us-west-2`?",
        );
        check_refused(
            json!({ "regions": ["us-east-1"], "subnet_ids": { "us-west-2": ["subnet-1"] } }),
            "`subnet_ids` of backend `aws`: `us-west-2` is not in `regions`",
        );
        // One that was taken before stays within reach.
        assert!(
            parse(&with(json!({ "regions": ["us-east-1"], "subnet_ids": { "us-west-2": ["subnet-1"] } }))).is_ok()
        );
        check_refused(
            json!({ "vpc_name": "a", "vpc_ids": { "us-east-1": "vpc-1" } }),
            "`vpc_ids` of backend `aws`: only one of `vpc_name` and `vpc_ids` can be given",
        );
        check_refused(
            json!({ "default_vpcs": false }),
            "`default_vpcs` of backend `aws`: `false` needs `vpc_name`, `vpc_ids` or `subnet_ids`",
        );
        check_refused(
            json!({ "default_vpcs": false, "regions": ["us-east-1", "us-west-2"],
                "vpc_ids": { "us-east-1": "vpc-1" } }),
            "`vpc_ids` of backend `aws`: `default_vpcs` is `false`, and these of `regions` are missing: `us-west-2`",
        );
        check_refused(
            json!({ "ssh_cidrs": ["10.1.2.3/8"] }),
            "`ssh_cidrs` of backend `aws`: `10.1.2.3/8` has bits beyond its prefix; write `10.0.0.0/8`",
        );
        check_refused(
            json!({ "tags": { "aws:x": "1" } }),
            "`tags` of backend `aws`: the key `aws:x` begins with `aws:`, which AWS keeps for itself",
        );
        check_refused(
            json!({ "os_images": { "cpu": { "name": "x", "owner": "amazon", "user": "u" } } }),
            "`os_images` of backend `aws`: `cpu.owner` is neither `self` nor the 12 digits of an account",
        );
        check_refused(
            json!({ "root_volume": { "type": "io2" } }),
            "`root_volume` of backend `aws`: `type: io2` needs `iops`",
        );
        check_refused(
            json!({ "creds": { "type": "access_key", "access_key": "", "secret_key": "x" } }),
            "`creds` of backend `aws`: `access_key` and `secret_key` may not be empty",
        );
        check_refused(
            json!({ "creds": { "type": "assume_role", "role_arn": "role" } }),
            "`creds` of backend `aws`: `role_arn` is no ARN; one looks like `arn:aws:iam::123456789012:role/name`",
        );
        let error = parse(&json!({ "type": "aws" })).unwrap_err();
        assert!(error.message.starts_with("`creds` of backend `aws`: missing"), "{error}");
    }

    #[test]
    fn a_role_may_be_taken_and_nothing_secret_is_printed() {
        let config = parse(&with(json!({ "creds": {
            "type": "assume_role", "role_arn": "arn:aws:iam::123456789012:role/dstack", "external_id": "hush-1",
            "source": { "type": "access_key", "access_key": "hush-2", "secret_key": "hush-3" },
        }, "bastion": { "host": "bastion", "user": "ops", "key": "hush-4" } })))
        .unwrap();
        assert!(matches!(config.creds, Creds::AssumeRole { source: Some(SourceCreds::AccessKey { .. }), .. }));
        assert!(!format!("{config:?}").contains("hush"));
    }
}
