//! Configurations: what users write in YAML, and the same in the official wire form.
//!
//! One file per noun. Every type reads its shorthands as well as its wire form and prints the wire
//! form, in which each key is present. What a configuration breaks the rules in, it says while it
//! is read.

mod base;
mod checked;
mod dev_environment;
mod durations;
mod env;
mod files;
mod fleet;
mod gateway;
mod gpu;
mod models;
mod mounts;
mod names;
mod ports;
mod probes;
mod profile;
mod ranges;
mod references;
mod repos;
mod resources;
mod retry;
mod scaling;
mod schedule;
mod service;
mod shorthand;
mod ssh;
mod task;
mod volume;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use base::{Common, CommonMut, PythonVersion, RegistryAuth, Runtime};
pub use dev_environment::{DevEnvironmentConfiguration, DevEnvironmentType, Ide};
pub use durations::{OffDuration, Seconds};
pub use env::{Env, EnvValue};
pub use files::FilePathMapping;
pub use fleet::{Blocks, FleetConfiguration, FleetNodes, FleetType, InstanceGroupPlacement};
pub use gateway::{GatewayCertificate, GatewayConfiguration, GatewayLoadBalancer, GatewayType, LoadBalancerType};
pub use gpu::{AcceleratorVendor, ComputeCapability, GpuSpec};
pub use models::{ModelType, ServiceModel};
pub use mounts::{InstanceMount, Mount, VolumeMount, VolumeNames};
pub use names::check_resource_name;
pub use ports::PortMapping;
pub use probes::{HttpHeaderSpec, ProbeConfig, ProbeMethod, ProbeType};
pub use profile::{
    BackendOptions, CreationPolicy, Profile, ProfileParams, ProfilesFile, SpotPolicy, StartupOrder, StopCriteria,
    UtilizationPolicy, VastAiOfferOrder, VastAiType, merged_params,
};
pub use ranges::Range;
pub use references::{EntityReference, InstanceSelector};
pub use repos::{RepoExistsAction, RepoSpec};
pub use resources::{CpuArchitecture, CpuSpec, DiskSpec, Memory, ResourcesSpec};
pub use retry::{ProfileRetry, RetryEvent, RetryPolicy};
pub use scaling::{PartitioningKey, RateLimit, ScalingMetric, ScalingSpec};
pub use schedule::Schedule;
pub use service::{
    Https, ReplicaGroup, ReplicaGroupRouter, ReplicaGroupView, Replicas, RouterType, ServiceConfiguration,
    ServiceGateway, ServiceType,
};
pub(crate) use shorthand::AS_WRITTEN;
pub use ssh::{SshHost, SshHostParams, SshKey, SshParams, SshProxyParams};
pub use task::{NodeGroup, NodeGroupView, TaskConfiguration, TaskType};
pub use volume::{VolumeConfiguration, VolumeType};

use crate::yaml::{Node, read};

/// The `type` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the variants are the types")]
pub enum ConfigurationType {
    Task,
    DevEnvironment,
    Service,
    Fleet,
    Volume,
    Gateway,
}

impl ConfigurationType {
    /// The name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            ConfigurationType::Task => "task",
            ConfigurationType::DevEnvironment => "dev-environment",
            ConfigurationType::Service => "service",
            ConfigurationType::Fleet => "fleet",
            ConfigurationType::Volume => "volume",
            ConfigurationType::Gateway => "gateway",
        }
    }
}

impl fmt::Display for ConfigurationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A configuration of any type.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types")]
pub enum Configuration {
    Task(Box<TaskConfiguration>),
    DevEnvironment(Box<DevEnvironmentConfiguration>),
    Service(Box<ServiceConfiguration>),
    Fleet(Box<FleetConfiguration>),
    Volume(Box<VolumeConfiguration>),
    Gateway(Box<GatewayConfiguration>),
}

impl Configuration {
    /// Its type.
    pub fn kind(&self) -> ConfigurationType {
        match self {
            Configuration::Task(_) => ConfigurationType::Task,
            Configuration::DevEnvironment(_) => ConfigurationType::DevEnvironment,
            Configuration::Service(_) => ConfigurationType::Service,
            Configuration::Fleet(_) => ConfigurationType::Fleet,
            Configuration::Volume(_) => ConfigurationType::Volume,
            Configuration::Gateway(_) => ConfigurationType::Gateway,
        }
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Configuration::Task(task) => task.name.as_deref(),
            Configuration::DevEnvironment(environment) => environment.name.as_deref(),
            Configuration::Service(service) => service.name.as_deref(),
            Configuration::Fleet(fleet) => fleet.name.as_deref(),
            Configuration::Volume(volume) => volume.name.as_deref(),
            Configuration::Gateway(gateway) => gateway.name.as_deref(),
        }
    }

    /// The run configuration that it is, or itself.
    pub fn into_run(self) -> Result<RunConfiguration, Self> {
        match self {
            Configuration::Task(task) => Ok(RunConfiguration::Task(task)),
            Configuration::DevEnvironment(environment) => Ok(RunConfiguration::DevEnvironment(environment)),
            Configuration::Service(service) => Ok(RunConfiguration::Service(service)),
            other => Err(other),
        }
    }

    /// Checks what the official server checks only on submission; the errors are the official
    /// ones.
    pub fn check_submission(&self) -> Result<(), String> {
        match self {
            Configuration::Fleet(fleet) => fleet.check_submission(),
            Configuration::Volume(volume) => volume.check_submission(),
            Configuration::Gateway(gateway) => gateway.check_submission(),
            Configuration::Task(_) | Configuration::DevEnvironment(_) | Configuration::Service(_) => {
                self.name().map_or(Ok(()), check_resource_name)
            }
        }
    }
}

impl From<RunConfiguration> for Configuration {
    fn from(run: RunConfiguration) -> Self {
        match run {
            RunConfiguration::Task(task) => Configuration::Task(task),
            RunConfiguration::DevEnvironment(environment) => Configuration::DevEnvironment(environment),
            RunConfiguration::Service(service) => Configuration::Service(service),
        }
    }
}

/// A configuration of something that runs.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types")]
pub enum RunConfiguration {
    Task(Box<TaskConfiguration>),
    DevEnvironment(Box<DevEnvironmentConfiguration>),
    Service(Box<ServiceConfiguration>),
}

/// Does the same with a run configuration of each type.
macro_rules! each_run {
    ($self:expr, $run:ident => $value:expr) => {
        match $self {
            RunConfiguration::Task($run) => $value,
            RunConfiguration::DevEnvironment($run) => $value,
            RunConfiguration::Service($run) => $value,
        }
    };
}

impl RunConfiguration {
    /// Its type.
    pub fn kind(&self) -> ConfigurationType {
        match self {
            RunConfiguration::Task(_) => ConfigurationType::Task,
            RunConfiguration::DevEnvironment(_) => ConfigurationType::DevEnvironment,
            RunConfiguration::Service(_) => ConfigurationType::Service,
        }
    }

    /// The keys that all run configurations have.
    pub fn common(&self) -> Common<'_> {
        each_run!(self, run => run.common())
    }

    /// The keys that all run configurations have, to change them.
    pub fn common_mut(&mut self) -> CommonMut<'_> {
        each_run!(self, run => run.common_mut())
    }

    /// A copy of the keys that profiles have.
    pub fn profile_params(&self) -> ProfileParams {
        each_run!(self, run => run.profile_params())
    }

    /// Replaces the keys that profiles have.
    pub fn set_profile_params(&mut self, params: ProfileParams) {
        each_run!(self, run => run.set_profile_params(params));
    }

    /// What holds for the run: its own keys, or those of `profile` where they are null.
    pub fn merged_profile(&self, profile: Option<&Profile>) -> ProfileParams {
        merged_params(self.profile_params(), profile)
    }

    /// The ports to reach from the user's machine, those of node groups included.
    pub fn ports(&self) -> Vec<PortMapping> {
        match self {
            RunConfiguration::Task(task) => {
                task.node_groups().iter().flat_map(|group| group.ports.iter().copied()).collect()
            }
            RunConfiguration::DevEnvironment(environment) => environment.ports.clone(),
            RunConfiguration::Service(_) => Vec::new(),
        }
    }
}

/// A union that the key `type` decides.
trait ByType: Sized {
    /// Reads the configuration of this type, or nothing where the union has no such type.
    fn read<'de, D: Deserializer<'de>>(kind: ConfigurationType, deserializer: D)
    -> Option<Result<Self, D::Error>>;
    /// The types of the union, for errors.
    const TYPES: &'static [&'static str];
}

impl ByType for Configuration {
    const TYPES: &'static [&'static str] = &["task", "dev-environment", "service", "fleet", "volume", "gateway"];

    fn read<'de, D: Deserializer<'de>>(
        kind: ConfigurationType,
        deserializer: D,
    ) -> Option<Result<Self, D::Error>> {
        Some(match kind {
            ConfigurationType::Task => Box::deserialize(deserializer).map(Configuration::Task),
            ConfigurationType::DevEnvironment => Box::deserialize(deserializer).map(Configuration::DevEnvironment),
            ConfigurationType::Service => Box::deserialize(deserializer).map(Configuration::Service),
            ConfigurationType::Fleet => Box::deserialize(deserializer).map(Configuration::Fleet),
            ConfigurationType::Volume => Box::deserialize(deserializer).map(Configuration::Volume),
            ConfigurationType::Gateway => Box::deserialize(deserializer).map(Configuration::Gateway),
        })
    }
}

impl ByType for RunConfiguration {
    const TYPES: &'static [&'static str] = &["task", "dev-environment", "service"];

    fn read<'de, D: Deserializer<'de>>(
        kind: ConfigurationType,
        deserializer: D,
    ) -> Option<Result<Self, D::Error>> {
        match kind {
            ConfigurationType::Task => Some(Box::deserialize(deserializer).map(RunConfiguration::Task)),
            ConfigurationType::DevEnvironment => {
                Some(Box::deserialize(deserializer).map(RunConfiguration::DevEnvironment))
            }
            ConfigurationType::Service => Some(Box::deserialize(deserializer).map(RunConfiguration::Service)),
            ConfigurationType::Fleet | ConfigurationType::Volume | ConfigurationType::Gateway => None,
        }
    }
}

/// Reads `type` and then the struct that it stands for.
struct ByTypeVisitor<T>(PhantomData<T>);

impl<'de, T: ByType> Visitor<'de> for ByTypeVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping with the key `type`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let Some(first) = map.next_key::<String>()? else {
            return Err(A::Error::missing_field("type"));
        };
        // Our reader of files hands out `type` first, so nothing is buffered and lines are known.
        if first == "type" {
            let kind = map.next_value::<TypeOf<T>>()?.kind;
            return T::read(kind, MapAccessDeserializer::new(map))
                .unwrap_or_else(|| Err(A::Error::unknown_variant(kind.as_str(), T::TYPES)));
        }
        let mut object = serde_json::Map::new();
        object.insert(first, map.next_value()?);
        while let Some((key, value)) = map.next_entry()? {
            object.insert(key, value);
        }
        if !object.contains_key("type") {
            return Err(A::Error::missing_field("type"));
        }
        let node = Node::from_json(serde_json::Value::Object(object));
        read::<Typed<T>>(&node).map(|typed| typed.0).map_err(A::Error::custom)
    }
}

/// A union where `type` comes first.
struct Typed<T>(T);

impl<'de, T: ByType> Deserialize<'de> for Typed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ByTypeVisitor(PhantomData)).map(Typed)
    }
}

/// A `type` that the union `T` has.
struct TypeOf<T> {
    kind: ConfigurationType,
    union: PhantomData<T>,
}

impl<'de, T: ByType> Deserialize<'de> for TypeOf<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let unknown = || D::Error::unknown_variant(&text, T::TYPES);
        if !T::TYPES.contains(&text.as_str()) {
            return Err(unknown());
        }
        let all = [
            ConfigurationType::Task,
            ConfigurationType::DevEnvironment,
            ConfigurationType::Service,
            ConfigurationType::Fleet,
            ConfigurationType::Volume,
            ConfigurationType::Gateway,
        ];
        let kind = all.into_iter().find(|kind| kind.as_str() == text).ok_or_else(unknown)?;
        Ok(TypeOf { kind, union: PhantomData })
    }
}

impl<'de> Deserialize<'de> for Configuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ByTypeVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for RunConfiguration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ByTypeVisitor(PhantomData))
    }
}

impl Serialize for Configuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Configuration::Task(task) => task.serialize(serializer),
            Configuration::DevEnvironment(environment) => environment.serialize(serializer),
            Configuration::Service(service) => service.serialize(serializer),
            Configuration::Fleet(fleet) => fleet.serialize(serializer),
            Configuration::Volume(volume) => volume.serialize(serializer),
            Configuration::Gateway(gateway) => gateway.serialize(serializer),
        }
    }
}

impl Serialize for RunConfiguration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        each_run!(self, run => run.serialize(serializer))
    }
}

impl JsonSchema for Configuration {
    fn schema_name() -> Cow<'static, str> {
        "Configuration".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let types = [
            generator.subschema_for::<TaskConfiguration>(),
            generator.subschema_for::<DevEnvironmentConfiguration>(),
            generator.subschema_for::<ServiceConfiguration>(),
            generator.subschema_for::<FleetConfiguration>(),
            generator.subschema_for::<VolumeConfiguration>(),
            generator.subschema_for::<GatewayConfiguration>(),
        ];
        json_schema!({"oneOf": types, "required": ["type"]})
    }
}

impl JsonSchema for RunConfiguration {
    fn schema_name() -> Cow<'static, str> {
        "RunConfiguration".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let types = [
            generator.subschema_for::<TaskConfiguration>(),
            generator.subschema_for::<DevEnvironmentConfiguration>(),
            generator.subschema_for::<ServiceConfiguration>(),
        ];
        json_schema!({"oneOf": types, "required": ["type"]})
    }
}
