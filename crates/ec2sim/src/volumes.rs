//! Disks.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, Page, TagSpecification, Tags, tag_set, tags_by_kind};
use crate::instances::{self, State};
use crate::ledger::Kind;
use crate::xml;

/// A disk.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) zone: String,
    pub(crate) size_gib: i64,
    pub(crate) volume_type: String,
    pub(crate) iops: Option<i64>,
    pub(crate) throughput: Option<i64>,
    pub(crate) encrypted: bool,
    pub(crate) kms_key_id: Option<String>,
    pub(crate) snapshot_id: String,
    pub(crate) tags: Tags,
    pub(crate) made_at: Timestamp,
    pub(crate) attachment: Option<VolumeAttachment>,
}

/// To which instance a disk belongs.
#[derive(Debug, Clone)]
pub(crate) struct VolumeAttachment {
    pub(crate) instance_id: String,
    pub(crate) device: String,
    pub(crate) delete_on_termination: bool,
    pub(crate) at: Timestamp,
}

impl VolumeAttachment {
    fn render(&self, volume_id: &str, state: &str) -> Value {
        json!({
            "VolumeId": volume_id,
            "InstanceId": self.instance_id,
            "Device": self.device,
            "DeleteOnTermination": self.delete_on_termination,
            "State": state,
            "AttachTime": xml::time(self.at),
        })
    }
}

impl Volume {
    fn render(&self) -> Value {
        let attachments: Vec<Value> =
            self.attachment.iter().map(|attachment| attachment.render(&self.id, "attached")).collect();
        json!({
            "VolumeId": self.id,
            "AvailabilityZone": self.zone,
            "Size": self.size_gib,
            "VolumeType": self.volume_type,
            "Iops": self.iops,
            "Throughput": self.throughput,
            "Encrypted": self.encrypted,
            "KmsKeyId": self.kms_key_id,
            "SnapshotId": self.snapshot_id,
            "State": if self.attachment.is_some() { "in-use" } else { "available" },
            "CreateTime": xml::time(self.made_at),
            "MultiAttachEnabled": false,
            "Attachments": attachments,
            "Tags": tag_set(&self.tags),
        })
    }
}

/// What a disk of a type may be told, checked: how many operations and how many MiB in a second.
pub(crate) fn check_performance(
    volume_type: &str,
    size_gib: i64,
    iops: Option<i64>,
    throughput: Option<i64>,
) -> Result<(Option<i64>, Option<i64>), ApiError> {
    let sizes = match volume_type {
        "gp2" => 1..=16_384,
        "gp3" => 1..=65_536,
        "io1" => 4..=16_384,
        "io2" => 4..=65_536,
        "st1" | "sc1" => 125..=16_384,
        other => return Err(ApiError::not_simulated(format!("volumes of type `{other}`"))),
    };
    if !sizes.contains(&size_gib) {
        let message = format!("Volume size of {size_gib} GiB is not valid for {volume_type}: {sizes:?}");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let refuse = |name: &str| {
        let message = format!("The parameter {name} is not supported for {volume_type} volumes.");
        ApiError::client("InvalidParameterCombination", message)
    };
    if throughput.is_some() && volume_type != "gp3" {
        return Err(refuse("throughput"));
    }
    match volume_type {
        "gp3" => {
            let (iops, throughput) = (iops.unwrap_or(3000), throughput.unwrap_or(125));
            if !(3000..=80_000).contains(&iops) || !(125..=2000).contains(&throughput) {
                let message = format!("Iops {iops} or throughput {throughput} is out of the range of gp3 volumes");
                return Err(ApiError::client("InvalidParameterValue", message));
            }
            Ok((Some(iops), Some(throughput)))
        }
        "io1" | "io2" => {
            let missing = || ApiError::client("MissingParameter", "The request must contain the parameter iops");
            Ok((Some(iops.ok_or_else(missing)?), None))
        }
        "gp2" if iops.is_none() => Ok((Some((size_gib * 3).clamp(100, 16_000)), None)),
        _ if iops.is_none() => Ok((None, None)),
        _ => Err(refuse("iops")),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewVolume {
    availability_zone: Option<String>,
    size: Option<i64>,
    volume_type: Option<String>,
    iops: Option<i64>,
    throughput: Option<i64>,
    encrypted: Option<bool>,
    kms_key_id: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    #[serde(default, rename = "ClientToken")]
    client_token: Option<String>,
}

/// CreateVolume.
pub(crate) fn create_volume(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewVolume = call.read()?;
    let tags = tags_by_kind(&new.tag_specifications, &["volume"])?.remove("volume");
    if tags.is_some() {
        call.permit("ec2:CreateTags")?;
    }
    // A client's token may come back after a lost answer; the volume that it made is then the answer.
    let token = new.client_token.map(|token| format!("volume:{token}"));
    if let Some(token) = &token {
        let region = call.region();
        if let Some(known) = region.tokens.get(token) {
            let made = known.instances.first().and_then(|id| region.volumes.get(id));
            let gone = || ApiError::client("IdempotentParameterMismatch", "The volume of this token is gone.");
            return made.map(Volume::render).ok_or_else(gone);
        }
    }
    let missing = |name: &str| {
        ApiError::client("MissingParameter", format!("The request must contain the parameter {name}"))
    };
    let zone = new.availability_zone.ok_or_else(|| missing("AvailabilityZone"))?;
    let size_gib = new.size.ok_or_else(|| missing("size/snapshot"))?;
    let volume_type = new.volume_type.unwrap_or_else(|| "gp2".to_owned());
    if !crate::types::zone_names(&call.region).contains(&zone) {
        return Err(ApiError::client("InvalidZone.NotFound", format!("The zone '{zone}' does not exist.")));
    }
    let (iops, throughput) = check_performance(&volume_type, size_gib, new.iops, new.throughput)?;
    call.proceed()?;
    let (region, rest) = call.split();
    let volume = Volume {
        id: rest.ids.resource("vol"),
        zone,
        size_gib,
        volume_type,
        iops,
        throughput,
        encrypted: new.encrypted.unwrap_or_default(),
        kms_key_id: new.kms_key_id,
        snapshot_id: String::new(),
        tags: tags.unwrap_or_default(),
        made_at: rest.now,
        attachment: None,
    };
    rest.ledger.made(Kind::Volume, &volume.id, &region.name, rest.action, rest.now, &volume.tags);
    if let Some(token) = token {
        let made = crate::launch::Token { parameters: Value::Null, instances: vec![volume.id.clone()] };
        region.tokens.insert(token, made);
    }
    let mut answer = volume.render();
    answer["State"] = json!("creating");
    region.volumes.insert(volume.id.clone(), volume);
    Ok(answer)
}

fn not_found(id: &str) -> ApiError {
    if id.starts_with("vol-") {
        ApiError::client("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
    } else {
        ApiError::invalid_value(id, "volumeId", "Expected: 'vol-...'.")
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    volume_ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeVolumes.
pub(crate) fn describe_volumes(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let seen_since = call.now() - crate::settings::millis(call.world.settings.resource_unseen_ms);
    let volumes = crate::network::select(&call.region().volumes, &asked.volume_ids, not_found)?;
    if let Some(unseen) = volumes.iter().find(|volume| seen_since < volume.made_at && !asked.volume_ids.is_empty())
    {
        return Err(not_found(&unseen.id));
    }
    let rows = volumes.into_iter().filter(|volume| volume.made_at <= seen_since).map(Volume::render).collect();
    let paths = [
        ("volume-id", "VolumeId"),
        ("status", "State"),
        ("availability-zone", "AvailabilityZone"),
        ("size", "Size"),
        ("volume-type", "VolumeType"),
        ("encrypted", "Encrypted"),
        ("snapshot-id", "SnapshotId"),
        ("attachment.instance-id", "Attachments.InstanceId"),
        ("attachment.device", "Attachments.Device"),
        ("attachment.status", "Attachments.State"),
        ("attachment.delete-on-termination", "Attachments.DeleteOnTermination"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"Volumes": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewAttachment {
    device: String,
    instance_id: String,
    volume_id: String,
}

/// AttachVolume.
pub(crate) fn attach_volume(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewAttachment = call.read()?;
    let region = call.region();
    let volume = region.volumes.get(&new.volume_id).ok_or_else(|| not_found(&new.volume_id))?;
    let instance = region.instances.get(&new.instance_id).ok_or_else(|| instances::not_found(&new.instance_id))?;
    if volume.attachment.is_some() {
        let message = format!("{} is already attached to an instance", volume.id);
        return Err(ApiError::client("VolumeInUse", message));
    }
    if volume.zone != instance.zone {
        let message = format!(
            "The volume '{}' is not in the same availability zone as instance '{}'",
            volume.id, instance.id
        );
        return Err(ApiError::client("InvalidVolume.ZoneMismatch", message));
    }
    if instance.state() != State::Running {
        let message = format!("Instance '{}' is not 'running'.", instance.id);
        return Err(ApiError::client("IncorrectState", message));
    }
    let on_instance = |one: &Volume| {
        one.attachment.as_ref().is_some_and(|at| at.instance_id == new.instance_id && at.device == new.device)
    };
    let is_named_well = new.device.starts_with("/dev/sd") || new.device.starts_with("/dev/xvd");
    if !is_named_well || region.volumes.values().any(on_instance) {
        let why = if is_named_well { "is already in use" } else { "is not a valid device name" };
        let message =
            format!("Invalid value '{}' for unixDevice. Attachment point {} {why}", new.device, new.device);
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    call.proceed()?;
    let now = call.now();
    if let Some(instance) = call.region().instances.get_mut(&new.instance_id) {
        instance.volumes.push(new.volume_id.clone());
    }
    let attachment = VolumeAttachment {
        instance_id: new.instance_id,
        device: new.device,
        delete_on_termination: false,
        at: now,
    };
    let answer = attachment.render(&new.volume_id, "attaching");
    if let Some(volume) = call.region().volumes.get_mut(&new.volume_id) {
        volume.attachment = Some(attachment);
    }
    Ok(answer)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Detachment {
    volume_id: String,
    instance_id: Option<String>,
    device: Option<String>,
    // A machine here always lets go of its disks, with or without force.
    #[serde(default, rename = "Force")]
    _force: bool,
}

/// DetachVolume.
pub(crate) fn detach_volume(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Detachment = call.read()?;
    let volume = call.region().volumes.get(&asked.volume_id).ok_or_else(|| not_found(&asked.volume_id))?;
    let Some(attachment) = volume.attachment.clone() else {
        let message = format!("Volume '{}' is in the 'available' state.", asked.volume_id);
        return Err(ApiError::client("IncorrectState", message));
    };
    let is_this = asked.instance_id.is_none_or(|id| id == attachment.instance_id)
        && asked.device.is_none_or(|device| device == attachment.device);
    if !is_this {
        let message = format!("The volume '{}' is not attached there.", asked.volume_id);
        return Err(ApiError::client("InvalidAttachment.NotFound", message));
    }
    call.proceed()?;
    let region = call.region();
    if let Some(instance) = region.instances.get_mut(&attachment.instance_id) {
        instance.volumes.retain(|id| *id != asked.volume_id);
    }
    if let Some(volume) = region.volumes.get_mut(&asked.volume_id) {
        volume.attachment = None;
    }
    Ok(attachment.render(&asked.volume_id, "detaching"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Deletion {
    volume_id: String,
}

/// DeleteVolume.
pub(crate) fn delete_volume(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let id = call.read::<Deletion>()?.volume_id;
    let volume = call.region().volumes.get(&id).ok_or_else(|| not_found(&id))?;
    if let Some(attachment) = &volume.attachment {
        let message = format!("Volume {id} is currently attached to {}", attachment.instance_id);
        return Err(ApiError::client("VolumeInUse", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    region.volumes.remove(&id);
    rest.ledger.gone(Kind::Volume, &id, rest.now);
    Ok(Value::Null)
}
