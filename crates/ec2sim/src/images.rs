//! Images that machines boot from: those that others publish, and those that a test adds.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, Page, Tags, tag_set};
use crate::ids::Ids;
use crate::network::select;

/// Who publishes the images for deep learning.
const DEEP_LEARNING: &str = "898082745236";
/// Who publishes Ubuntu.
const CANONICAL: &str = "099720109477";
/// Amazon itself.
const AMAZON: &str = "137112412989";

/// An image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) snapshot_id: String,
    pub(crate) new: NewImage,
    tags: Tags,
}

/// An image as a test wants it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    /// Its name.
    pub name: String,
    /// The number of the account that owns it.
    pub owner: String,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// Where its root disk is attached.
    pub root_device: String,
    /// The least size of the root disk.
    pub root_gib: i64,
    /// When it was made, as `2026-01-31T00:00:00.000Z`.
    pub created_at: String,
    /// `available`, or another state.
    pub state: String,
}

/// The images that are there from the start: name, owner, architecture, root device, size, and when it was made.
const PUBLISHED: [(&str, &str, &str, &str, i64, &str); 10] = [
    (
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241101",
        DEEP_LEARNING,
        "x86_64",
        "/dev/sda1",
        65,
        "2024-11-01T09:00:00.000Z",
    ),
    (
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241115",
        DEEP_LEARNING,
        "x86_64",
        "/dev/sda1",
        65,
        "2024-11-15T09:00:00.000Z",
    ),
    (
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20260801",
        DEEP_LEARNING,
        "x86_64",
        "/dev/sda1",
        75,
        "2026-08-01T09:00:00.000Z",
    ),
    (
        "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20260801",
        DEEP_LEARNING,
        "arm64",
        "/dev/sda1",
        75,
        "2026-08-01T10:00:00.000Z",
    ),
    (
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Amazon Linux 2023) 20260801",
        DEEP_LEARNING,
        "x86_64",
        "/dev/xvda",
        75,
        "2026-08-01T11:00:00.000Z",
    ),
    (
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260715",
        CANONICAL,
        "x86_64",
        "/dev/sda1",
        8,
        "2026-07-15T08:00:00.000Z",
    ),
    (
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-20260715",
        CANONICAL,
        "arm64",
        "/dev/sda1",
        8,
        "2026-07-15T08:30:00.000Z",
    ),
    (
        "ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-amd64-server-20260701",
        CANONICAL,
        "x86_64",
        "/dev/sda1",
        8,
        "2026-07-01T08:00:00.000Z",
    ),
    (
        "al2023-ami-2023.8.20260701.0-kernel-6.1-x86_64",
        AMAZON,
        "x86_64",
        "/dev/xvda",
        8,
        "2026-07-01T07:00:00.000Z",
    ),
    // The original's own image for machines without a GPU, which its releases name.
    ("dstack-0.16", "142421590066", "x86_64", "/dev/sda1", 30, "2026-06-01T07:00:00.000Z"),
];

/// The images that anybody finds in a region.
pub(crate) fn published(_region: &str, ids: &mut Ids) -> BTreeMap<String, Image> {
    let images = PUBLISHED.map(|(name, owner, architecture, root_device, root_gib, created_at)| NewImage {
        name: name.to_owned(),
        owner: owner.to_owned(),
        architecture: architecture.to_owned(),
        root_device: root_device.to_owned(),
        root_gib,
        created_at: created_at.to_owned(),
        state: "available".to_owned(),
    });
    images.into_iter().map(|new| Image::new(new, ids)).map(|image| (image.id.clone(), image)).collect()
}

impl Image {
    pub(crate) fn new(new: NewImage, ids: &mut Ids) -> Image {
        Image { id: ids.resource("ami"), snapshot_id: ids.resource("snap"), new, tags: Tags::new() }
    }

    /// The name by which an owner is known.
    fn owner_alias(&self) -> Option<&'static str> {
        [DEEP_LEARNING, AMAZON, CANONICAL].contains(&self.new.owner.as_str()).then_some("amazon")
    }

    fn render(&self) -> Value {
        let NewImage { name, owner, architecture, root_device, root_gib, created_at, state } = &self.new;
        json!({
            "ImageId": self.id,
            "ImageLocation": format!("{}/{name}", self.owner_alias().unwrap_or(owner)),
            "ImageOwnerAlias": self.owner_alias(),
            "Name": name,
            "Description": name,
            "OwnerId": owner,
            "Public": true,
            "State": state,
            "Architecture": architecture,
            "CreationDate": created_at,
            "ImageType": "machine",
            "RootDeviceName": root_device,
            "RootDeviceType": "ebs",
            "VirtualizationType": "hvm",
            "Hypervisor": "xen",
            "EnaSupport": true,
            "SriovNetSupport": "simple",
            "BootMode": "uefi-preferred",
            "PlatformDetails": "Linux/UNIX",
            "UsageOperation": "RunInstances",
            "ProductCodes": [],
            "BlockDeviceMappings": [{
                "DeviceName": root_device,
                "Ebs": {
                    "SnapshotId": self.snapshot_id,
                    "VolumeSize": root_gib,
                    "VolumeType": "gp3",
                    "DeleteOnTermination": true,
                    "Encrypted": false,
                },
            }],
            "Tags": tag_set(&self.tags),
        })
    }
}

/// How an image that is not there is refused.
pub(crate) fn not_found(id: &str) -> ApiError {
    if id.starts_with("ami-") {
        ApiError::client("InvalidAMIID.NotFound", format!("The image id '[{id}]' does not exist"))
    } else {
        ApiError::client("InvalidAMIID.Malformed", format!("Invalid id: \"{id}\" (expecting \"ami-...\")"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    image_ids: Vec<String>,
    #[serde(default)]
    owners: Vec<String>,
    #[serde(default)]
    executable_users: Vec<String>,
    // Images are deprecated by their owners' plans, which no image here has.
    #[serde(default, rename = "IncludeDeprecated")]
    _include_deprecated: bool,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeImages.
pub(crate) fn describe_images(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    if !asked.executable_users.is_empty() && asked.executable_users != ["all"] {
        return Err(ApiError::not_simulated("images that are shared with some accounts only"));
    }
    let account = call.account();
    let images = select(&call.region().images, &asked.image_ids, not_found)?;
    let is_owned = |image: &&Image| {
        asked.owners.is_empty()
            || asked.owners.iter().any(|owner| match owner.as_str() {
                "self" => image.new.owner == account,
                "amazon" => image.owner_alias() == Some("amazon"),
                "aws-marketplace" => false,
                owner => image.new.owner == owner,
            })
    };
    let rows = images.into_iter().filter(is_owned).map(Image::render).collect();
    let paths = [
        ("name", "Name"),
        ("image-id", "ImageId"),
        ("architecture", "Architecture"),
        ("state", "State"),
        ("owner-id", "OwnerId"),
        ("owner-alias", "ImageOwnerAlias"),
        ("root-device-type", "RootDeviceType"),
        ("root-device-name", "RootDeviceName"),
        ("virtualization-type", "VirtualizationType"),
        ("hypervisor", "Hypervisor"),
        ("is-public", "Public"),
        ("image-type", "ImageType"),
        ("ena-support", "EnaSupport"),
        ("creation-date", "CreationDate"),
        ("description", "Description"),
        ("block-device-mapping.volume-type", "BlockDeviceMappings.Ebs.VolumeType"),
        ("block-device-mapping.device-name", "BlockDeviceMappings.DeviceName"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"Images": rows, "NextToken": next}))
}
