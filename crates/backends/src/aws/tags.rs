//! The marks on everything that is made, by which it is found again whatever else is forgotten.

use std::collections::BTreeMap;

use api::ids::{BackendId, FleetId, LaunchId, ServerId};
use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};

use crate::MachineKey;

/// The server.
pub(super) const SERVER: &str = "dstack_server_id";
/// The backend of a project.
pub(super) const BACKEND: &str = "dstack_backend_id";
/// The fleet.
pub(super) const FLEET: &str = "dstack_fleet_id";
/// The launch.
pub(super) const LAUNCH: &str = "dstack_launch_id";
/// The index in the launch of the first machine of the call.
pub(super) const FIRST_INDEX: &str = "dstack_first_index";
/// The index in the launch, of what belongs to one machine.
pub(super) const INDEX: &str = "dstack_index";
/// Who logs in.
pub(super) const LOGIN: &str = "dstack_login";

/// Whose everything is that a backend makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) server: ServerId,
    pub(super) backend: BackendId,
}

impl Owner {
    /// What everything carries.
    pub(super) fn tags(self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("owner".to_owned(), "dstack".to_owned()),
            (SERVER.to_owned(), self.server.to_string()),
            (BACKEND.to_owned(), self.backend.to_string()),
        ])
    }

    /// Only what carries our marks.
    pub(super) fn filters(self) -> Vec<Filter> {
        vec![
            filter(&format!("tag:{SERVER}"), [self.server.to_string()]),
            filter(&format!("tag:{BACKEND}"), [self.backend.to_string()]),
        ]
    }
}

/// A condition on what is asked for.
pub(super) fn filter(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    let values = values.into_iter().map(Into::into).collect();
    Filter::builder().name(name).set_values(Some(values)).build()
}

/// Tags as AWS takes them with a call that makes something.
pub(super) fn specification(kind: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).set_tags(Some(list(tags))).build()
}

/// Tags as AWS takes them.
pub(super) fn list(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// The value of a tag.
pub(super) fn value<'a>(tags: &'a [Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|tag| tag.key() == Some(key))?.value()
}

/// Which machine of ours it is, by its tags and the index that its launch gave it.
pub(super) fn machine_key(tags: &[Tag], ami_launch_index: Option<i32>) -> Option<MachineKey> {
    let launch_id: LaunchId = value(tags, LAUNCH)?.parse().ok()?;
    let first: u32 = value(tags, FIRST_INDEX)?.parse().ok()?;
    let index = first.checked_add(u32::try_from(ami_launch_index.unwrap_or(0)).ok()?)?;
    Some(MachineKey { launch_id, index })
}

/// The launch that something was made for.
pub(super) fn launch_of(tags: &[Tag]) -> Option<LaunchId> {
    value(tags, LAUNCH)?.parse().ok()
}

/// The fleet that something was made for.
pub(super) fn fleet_of(tags: &[Tag]) -> Option<FleetId> {
    value(tags, FLEET)?.parse().ok()
}
