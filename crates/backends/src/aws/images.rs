//! Which image a machine starts from.

use aws_sdk_ec2::types::{DeviceType, Image, ImageState};
use serde::{Deserialize, Serialize};

use super::config::{AwsConfig, OsImage};
use super::errors::failure;
use super::tags::filter;
use super::types::TypeFacts;
use crate::Result;
use crate::keys::invalid;

/// Canonical, who publishes Ubuntu.
const CANONICAL: &str = "099720109477";

/// AWS's publisher of deep learning images.
const DEEP_LEARNING: &str = "898082745236";

/// The image that a machine starts from, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FoundImage {
    pub(super) id: String,
    pub(super) name: String,
    /// Who logs in.
    pub(super) user: String,
    /// The name of the root disk, which differs between distributions.
    pub(super) root_device: String,
    /// The least size of the root disk.
    pub(super) least_disk_gib: i32,
    /// It has no Docker yet.
    pub(super) lacks_docker: bool,
    /// What was looked for; a fleet keeps its image for as long as this stays the same.
    pub(super) asked: AskedImage,
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct AskedImage {
    pub(super) region: String,
    pub(super) owner: String,
    pub(super) name: String,
    pub(super) user: String,
    pub(super) architecture: String,
    pub(super) lacks_docker: bool,
}

/// What a type of machine starts from.
pub(super) fn wanted(config: &AwsConfig, region: &str, facts: &TypeFacts) -> AskedImage {
    let given = if facts.gpus.is_some() { &config.nvidia_image } else { &config.cpu_image };
    let is_arm = facts.architecture == "arm64";
    let (image, lacks_docker) = match given {
        Some(image) => (image.clone(), false),
        None if facts.gpus.is_some() => {
            let processor = if is_arm { "ARM64 " } else { "" };
            let name = format!("Deep Learning {processor}Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *");
            (OsImage { name, owner: DEEP_LEARNING.to_owned(), user: "ubuntu".to_owned() }, false)
        }
        None => {
            let processor = if is_arm { "arm64" } else { "amd64" };
            let name = format!("ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{processor}-server-*");
            (OsImage { name, owner: CANONICAL.to_owned(), user: "ubuntu".to_owned() }, true)
        }
    };
    AskedImage {
        region: region.to_owned(),
        owner: image.owner,
        name: image.name,
        user: image.user,
        architecture: facts.architecture.clone(),
        lacks_docker,
    }
}

/// Finds the newest image.
pub(super) async fn find(ec2: &aws_sdk_ec2::Client, asked: &AskedImage) -> Result<FoundImage> {
    let request = ec2
        .describe_images()
        .owners(&asked.owner)
        .filters(filter("name", [asked.name.as_str()]))
        .filters(filter("architecture", [asked.architecture.as_str()]))
        .filters(filter("state", ["available"]))
        .filters(filter("root-device-type", ["ebs"]));
    let answer = request.send().await.map_err(|error| failure("describe images", &error))?;
    let usable = answer.images().iter().filter(|image| is_usable(image));
    let newest = usable.max_by(|one, other| one.creation_date().cmp(&other.creation_date()));
    let found = newest.and_then(|image| {
        let root_device = image.root_device_name()?;
        Some(FoundImage {
            id: image.image_id()?.to_owned(),
            name: image.name().unwrap_or_default().to_owned(),
            user: asked.user.clone(),
            root_device: root_device.to_owned(),
            least_disk_gib: snapshot_gib(image, root_device),
            lacks_docker: asked.lacks_docker,
            asked: asked.clone(),
        })
    });
    found.ok_or_else(|| {
        invalid(format!(
            "no image for {} is named `{}` and published by {} in region {} (`os_images`)",
            asked.architecture, asked.name, asked.owner, asked.region
        ))
    })
}

fn is_usable(image: &Image) -> bool {
    image.state() == Some(&ImageState::Available) && image.root_device_type() == Some(&DeviceType::Ebs)
}

fn snapshot_gib(image: &Image, root_device: &str) -> i32 {
    let root = image.block_device_mappings().iter().find(|mapping| mapping.device_name() == Some(root_device));
    root.and_then(|mapping| mapping.ebs()?.volume_size()).unwrap_or(0)
}
