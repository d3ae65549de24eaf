//! Tasks: commands on one or many nodes.

use serde::Deserializer;

use super::base::run_configuration;
use super::checked::{Check, checked, constant};
use super::names::settle_group_names;
use super::ports::PortMapping;
use super::resources::ResourcesSpec;
use super::shorthand;

constant! {
    /// The `type` of a [`TaskConfiguration`].
    pub struct TaskType = "task";
}

run_configuration! {
    /// Runs commands on one or many nodes until they end.
    pub struct TaskConfiguration {
        /// Says that this is a task.
        #[serde(rename = "type", default)]
        pub kind: TaskType,
        /// How many nodes run the commands; null is one, or those of `groups`.
        #[serde(default, deserialize_with = "optional_nodes")]
        pub nodes: Option<u32>,
        /// Nodes that differ from each other, in place of `nodes`.
        #[serde(default)]
        pub groups: Option<Vec<NodeGroup>>,
        /// Ports to reach from the user's machine.
        #[serde(default)]
        pub ports: Vec<PortMapping>,
        /// Shell commands.
        #[serde(default)]
        pub commands: Vec<String>,
    }
}

checked! {
    /// Nodes of a task that run the same commands.
    pub struct NodeGroup {
        /// The name; the index of the group when left out.
        #[serde(default, deserialize_with = "shorthand::text_or_null")]
        pub name: String,
        /// How many nodes.
        #[serde(default = "one", deserialize_with = "nodes")]
        pub nodes: u32,
        /// What each node needs; not inherited from the task.
        #[serde(default)]
        pub resources: ResourcesSpec,
        /// Shell commands.
        #[serde(default)]
        pub commands: Vec<String>,
        /// Ports to reach from the user's machine.
        #[serde(default)]
        pub ports: Vec<PortMapping>,
    }
}

impl Check for NodeGroup {}

fn one() -> u32 {
    1
}

fn nodes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    shorthand::integer::<D, u32, 1, { u32::MAX as i64 }>(deserializer)
}

fn optional_nodes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    shorthand::optional_integer::<D, u32, 1, { u32::MAX as i64 }>(deserializer)
}

impl Check for TaskConfiguration {
    fn check(&mut self) -> Result<(), String> {
        self.common().check()?;
        if let Some(groups) = &mut self.groups {
            settle_group_names("groups", groups.iter_mut().map(|group| &mut group.name))?;
        }
        let has_commands = !self.commands.is_empty();
        let Some(groups) = &self.groups else {
            if has_commands || self.image.is_some() {
                return Ok(());
            }
            return Err("a task needs `commands` or `image`".to_owned());
        };
        let excluded = [
            ("nodes", self.nodes.is_some()),
            ("commands", has_commands),
            ("ports", !self.ports.is_empty()),
            ("entrypoint", self.entrypoint.is_some()),
        ];
        for (key, is_set) in excluded {
            if is_set {
                return Err(format!("`{key}` and `groups` are mutually exclusive"));
            }
        }
        if groups.is_empty() {
            return Err("`groups` must not be an empty list".to_owned());
        }
        for (index, group) in groups.iter().enumerate() {
            if group.commands.is_empty() && self.image.is_none() {
                return Err(format!("`groups[{index}]` needs `commands`, or the task needs `image`"));
            }
        }
        Ok(())
    }
}

/// One group of a task's nodes, whether the task has `groups` or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeGroupView<'a> {
    /// The name; `0` where the task has no groups.
    pub name: &'a str,
    /// How many nodes.
    pub nodes: u32,
    /// What each node needs.
    pub resources: &'a ResourcesSpec,
    /// Shell commands.
    pub commands: &'a [String],
    /// Ports to reach from the user's machine.
    pub ports: &'a [PortMapping],
}

impl TaskConfiguration {
    /// The groups of nodes, in the order of their job numbers; one where the task has no `groups`.
    pub fn node_groups(&self) -> Vec<NodeGroupView<'_>> {
        let Some(groups) = &self.groups else {
            return vec![NodeGroupView {
                name: "0",
                nodes: self.nodes.unwrap_or(1),
                resources: &self.resources,
                commands: &self.commands,
                ports: &self.ports,
            }];
        };
        groups
            .iter()
            .map(|group| NodeGroupView {
                name: &group.name,
                nodes: group.nodes,
                resources: &group.resources,
                commands: &group.commands,
                ports: &group.ports,
            })
            .collect()
    }

    /// How many jobs a replica has.
    pub fn total_nodes(&self) -> u64 {
        self.node_groups().iter().map(|group| u64::from(group.nodes)).sum()
    }
}
