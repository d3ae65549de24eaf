//! Services: replicas behind one address.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, SeqAccess};
use serde::{Deserialize, Serialize, Serializer};

use super::base::{PythonVersion, run_configuration};
use super::checked::{Check, checked, constant};
use super::models::ServiceModel;
use super::names::settle_group_names;
use super::ports::PortMapping;
use super::probes::{self, ProbeConfig};
use super::profile::SpotPolicy;
use super::ranges::Range;
use super::references::EntityReference;
use super::resources::ResourcesSpec;
use super::retry::ProfileRetry;
use super::scaling::{self, RateLimit, ScalingSpec};
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

constant! {
    /// The `type` of a [`ServiceConfiguration`].
    pub struct ServiceType = "service";
}

run_configuration! {
    /// Keeps replicas running behind one address.
    pub struct ServiceConfiguration {
        /// Says that this is a service.
        #[serde(rename = "type", default)]
        pub kind: ServiceType,
        /// The port that the commands listen on.
        #[serde(deserialize_with = "crate::configurations::ports::service_port")]
        pub port: PortMapping,
        /// The gateway; null is the default one of the project, if it has one.
        #[serde(default)]
        pub gateway: Option<ServiceGateway>,
        /// Whether the path prefix of the in-server proxy is hidden from the service.
        #[serde(default = "yes")]
        pub strip_prefix: bool,
        /// The language model that the service offers.
        #[serde(default)]
        pub model: Option<ServiceModel>,
        /// Whether the gateway answers by HTTPS; null is what the gateway's certificate says.
        #[serde(default)]
        pub https: Option<Https>,
        /// Whether only members of the project may use it.
        #[serde(default = "yes")]
        pub auth: bool,
        /// How the number of replicas follows the load.
        #[serde(default)]
        pub scaling: Option<ScalingSpec>,
        /// How many requests the gateway lets through.
        #[serde(default)]
        pub rate_limits: Vec<RateLimit>,
        /// How the server learns that a replica is ready; null is the default of the model.
        #[serde(default)]
        pub probes: Option<Vec<ProbeConfig>>,
        /// How many replicas; null is one, or those of `groups`.
        #[serde(default)]
        pub replicas: Option<Replicas>,
        /// Replicas that differ from each other, in place of `replicas`.
        #[serde(default)]
        pub groups: Option<Vec<ReplicaGroup>>,
        /// Shell commands.
        #[serde(default)]
        pub commands: Vec<String>,
    }
}

fn yes() -> bool {
    true
}

/// The `replicas` of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicas {
    /// How many; both bounds are there.
    pub range: Range<u32>,
    /// The list form, which is the old spelling of `groups`. Reading a service moves it there.
    groups: Option<Vec<ReplicaGroup>>,
}

impl Replicas {
    /// This many replicas.
    pub fn new(range: Range<u32>) -> Self {
        Replicas { range, groups: None }
    }
}

impl Serialize for Replicas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.range.serialize(serializer)
    }
}

impl Shorthand for Replicas {
    const EXPECTING: &'static str = "a count such as `2`, a range such as `1..4`, or a list of groups";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Range::from_integer(value).map(Replicas::new)
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Range::from_text(text).map(Replicas::new)
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        let groups = shorthand::items(list)?;
        Ok(Replicas { range: Range::exactly(1), groups: Some(groups) })
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        Range::from_map(map).map(Replicas::new)
    }
}

impl_shorthand!(Replicas);

impl JsonSchema for Replicas {
    fn schema_name() -> Cow<'static, str> {
        "Replicas".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let range = generator.subschema_for::<Range<u32>>();
        let groups = generator.subschema_for::<Vec<ReplicaGroup>>();
        json_schema!({"description": Self::EXPECTING, "anyOf": [range, groups]})
    }
}

checked! {
    /// Replicas of a service that run the same commands.
    pub struct ReplicaGroup {
        /// The name; the index of the group when left out.
        #[serde(default, deserialize_with = "shorthand::text_or_null")]
        pub name: String,
        /// How many; both bounds are there. Also spelled `count`.
        #[serde(alias = "count")]
        pub replicas: Range<u32>,
        /// How the number of replicas follows the load.
        #[serde(default)]
        pub scaling: Option<ScalingSpec>,
        /// What each replica needs; not inherited from the service.
        #[serde(default)]
        pub resources: ResourcesSpec,
        /// Whether to use spot instances; null is what the service says.
        #[serde(default)]
        pub spot_policy: Option<SpotPolicy>,
        /// The reservation; null is what the service says.
        #[serde(default)]
        pub reservation: Option<String>,
        /// Shell commands.
        #[serde(default)]
        pub commands: Vec<String>,
        /// The container image; null is what the service says, as for the keys below.
        #[serde(default)]
        pub image: Option<String>,
        /// The Python of the default image.
        #[serde(default)]
        pub python: Option<PythonVersion>,
        /// Whether the default image has the CUDA compiler.
        #[serde(default)]
        pub nvcc: Option<bool>,
        /// Whether the replica can use Docker itself.
        #[serde(default)]
        pub docker: Option<bool>,
        /// Whether the container is privileged.
        #[serde(default)]
        pub privileged: Option<bool>,
        /// Makes the group the router of the service.
        #[serde(default)]
        pub router: Option<ReplicaGroupRouter>,
    }
}

checked! {
    /// The router that spreads requests over the other groups.
    #[derive(Copy, Default, Eq)]
    pub struct ReplicaGroupRouter {
        /// The program.
        #[serde(rename = "type", default)]
        pub kind: RouterType,
    }
}

impl Check for ReplicaGroupRouter {}

/// A program that routes requests for language models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RouterType {
    /// SGLang's model gateway.
    #[default]
    Smg,
    /// NVIDIA Dynamo.
    Dynamo,
}

impl Check for ReplicaGroup {
    fn check(&mut self) -> Result<(), String> {
        self.replicas.min.get_or_insert(0);
        check_replicas(self.replicas, self.scaling.as_ref())?;
        if self.image.is_some() && self.python.is_some() {
            return Err("`python` and `image` are mutually exclusive".to_owned());
        }
        if self.docker == Some(true) {
            let excluded = [
                ("image", self.image.is_some()),
                ("python", self.python.is_some()),
                ("nvcc", self.nvcc == Some(true)),
            ];
            for (key, is_set) in excluded {
                if is_set {
                    return Err(format!("`docker` and `{key}` are mutually exclusive"));
                }
            }
        }
        Ok(())
    }
}

fn check_replicas(replicas: Range<u32>, scaling: Option<&ScalingSpec>) -> Result<(), String> {
    if replicas.max.is_none() {
        return Err(format!("`replicas` needs an upper bound, found `{replicas}`"));
    }
    let is_fixed = replicas.min.unwrap_or(0) == replicas.max.unwrap_or(0);
    match (is_fixed, scaling) {
        (true, Some(_)) => Err("`scaling` needs `replicas` to be a range such as `1..4`".to_owned()),
        (false, None) => Err(format!("`replicas: {replicas}` is a range, which needs `scaling`")),
        _ => Ok(()),
    }
}

impl Check for ServiceConfiguration {
    fn check(&mut self) -> Result<(), String> {
        self.common().check()?;
        scaling::check_rate_limits(&self.rate_limits)?;
        probes::check_probes(self.probes.as_deref().unwrap_or_default())?;
        let list_key = self.move_listed_groups()?;
        if let Some(groups) = &mut self.groups {
            settle_group_names(list_key, groups.iter_mut().map(|group| &mut group.name))?;
            return self.check_groups(list_key);
        }
        let replicas = self.replicas.as_mut().map_or(Range::exactly(1), |replicas| {
            replicas.range.min.get_or_insert(0);
            replicas.range
        });
        check_replicas(replicas, self.scaling.as_ref())?;
        if self.commands.is_empty() && self.image.is_none() {
            return Err("a service needs `commands` or `image`".to_owned());
        }
        Ok(())
    }
}

impl ServiceConfiguration {
    /// Moves the list form of `replicas` to `groups`, and answers the key that the list was under.
    fn move_listed_groups(&mut self) -> Result<&'static str, String> {
        let replicas = self.replicas.as_mut();
        let Some(listed) = replicas.and_then(|replicas| replicas.groups.take()) else {
            return Ok("groups");
        };
        if self.groups.is_some() {
            return Err("`replicas` and `groups` are mutually exclusive".to_owned());
        }
        self.replicas = None;
        self.groups = Some(listed);
        Ok("replicas")
    }

    fn check_groups(&self, list_key: &str) -> Result<(), String> {
        let groups = self.groups.as_deref().unwrap_or_default();
        let excluded = [
            ("replicas", self.replicas.is_some()),
            ("scaling", self.scaling.is_some()),
            ("commands", !self.commands.is_empty()),
        ];
        for (key, is_set) in excluded {
            if is_set {
                return Err(format!("`{key}` cannot be used with groups of replicas"));
            }
        }
        if groups.is_empty() {
            return Err(format!("`{list_key}` must not be an empty list"));
        }
        for (index, group) in groups.iter().enumerate() {
            let place = format!("{list_key}[{index}]");
            self.check_levels(&place, group)?;
        }
        self.check_router(list_key, groups)
    }

    /// The keys of the container may stand with the service or with its groups, not with both.
    fn check_levels(&self, place: &str, group: &ReplicaGroup) -> Result<(), String> {
        let both = [
            ("image", self.image.is_some() && group.image.is_some()),
            ("python", self.python.is_some() && group.python.is_some()),
            ("nvcc", self.nvcc.is_some() && group.nvcc.is_some()),
            ("docker", self.docker.is_some() && group.docker.is_some()),
            ("privileged", self.privileged && group.privileged.is_some()),
        ];
        for (key, is_set_twice) in both {
            if is_set_twice {
                return Err(format!("`{place}.{key}` is also set for the whole service; set it in one place"));
            }
        }
        if self.image.is_some() && group.python.is_some() {
            return Err(format!("`{place}.python` and `image` are mutually exclusive"));
        }
        if self.python.is_some() && group.image.is_some() {
            return Err(format!("`{place}.image` and `python` are mutually exclusive"));
        }
        let has_image = self.image.is_some() || group.image.is_some();
        if group.commands.is_empty() && !has_image {
            return Err(format!("`{place}` needs `commands` or `image`"));
        }
        Ok(())
    }

    fn check_router(&self, list_key: &str, groups: &[ReplicaGroup]) -> Result<(), String> {
        let mut routers =
            groups.iter().enumerate().filter_map(|(index, group)| Some((index, group, group.router?)));
        let Some((index, group, router)) = routers.next() else {
            return Ok(());
        };
        if let Some((other, ..)) = routers.next() {
            return Err(format!("`{list_key}[{other}].router`: only one group can be the router"));
        }
        if group.replicas != Range::exactly(1) {
            return Err(format!("`{list_key}[{index}].replicas` of a router must be 1"));
        }
        let retries = !matches!(self.retry, None | Some(ProfileRetry::Enabled(false)));
        if router.kind == RouterType::Dynamo && retries {
            return Err("`retry` cannot be used with a `dynamo` router".to_owned());
        }
        Ok(())
    }

    /// The groups of replicas; one named `0` where the service has no `groups`.
    pub fn replica_groups(&self) -> Vec<ReplicaGroupView<'_>> {
        let Some(groups) = &self.groups else {
            return vec![ReplicaGroupView {
                name: "0",
                replicas: self.replicas.as_ref().map_or(Range::exactly(1), |r| r.range),
                scaling: self.scaling.as_ref(),
                resources: &self.resources,
                spot_policy: self.spot_policy,
                reservation: self.reservation.as_deref(),
                commands: &self.commands,
                image: self.image.as_deref(),
                python: self.python,
                nvcc: self.nvcc,
                docker: self.docker,
                privileged: self.privileged,
                router: None,
            }];
        };
        groups.iter().map(|group| self.group_view(group)).collect()
    }

    fn group_view<'a>(&'a self, group: &'a ReplicaGroup) -> ReplicaGroupView<'a> {
        ReplicaGroupView {
            name: &group.name,
            replicas: group.replicas,
            scaling: group.scaling.as_ref(),
            resources: &group.resources,
            spot_policy: group.spot_policy.or(self.spot_policy),
            reservation: group.reservation.as_deref().or(self.reservation.as_deref()),
            commands: &group.commands,
            image: group.image.as_deref().or(self.image.as_deref()),
            python: group.python.or(self.python),
            nvcc: group.nvcc.or(self.nvcc),
            docker: group.docker.or(self.docker),
            privileged: group.privileged.unwrap_or(self.privileged),
            router: group.router.map(|router| router.kind),
        }
    }
}

/// One group of a service's replicas, with the keys of the service filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplicaGroupView<'a> {
    /// The name.
    pub name: &'a str,
    /// How many; both bounds are there.
    pub replicas: Range<u32>,
    /// How the number of replicas follows the load.
    pub scaling: Option<&'a ScalingSpec>,
    /// What each replica needs.
    pub resources: &'a ResourcesSpec,
    /// Whether to use spot instances.
    pub spot_policy: Option<SpotPolicy>,
    /// The reservation.
    pub reservation: Option<&'a str>,
    /// Shell commands.
    pub commands: &'a [String],
    /// The container image.
    pub image: Option<&'a str>,
    /// The Python of the default image.
    pub python: Option<PythonVersion>,
    /// Whether the default image has the CUDA compiler.
    pub nvcc: Option<bool>,
    /// Whether the replica can use Docker itself.
    pub docker: Option<bool>,
    /// Whether the container is privileged.
    pub privileged: bool,
    /// The program, if the group is the router.
    pub router: Option<RouterType>,
}

/// The `gateway` of a service. Written as `true`, `false`, `name` or `project/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceGateway {
    /// The default one, or none at all.
    Enabled(bool),
    /// This one.
    Reference(EntityReference),
}

impl Serialize for ServiceGateway {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ServiceGateway::Enabled(enabled) => serializer.serialize_bool(*enabled),
            ServiceGateway::Reference(reference) => reference.serialize(serializer),
        }
    }
}

impl Shorthand for ServiceGateway {
    const EXPECTING: &'static str = "`true`, `false`, `name` or `project/name`";

    fn from_bool(value: bool) -> Result<Self, Refusal> {
        Ok(ServiceGateway::Enabled(value))
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        EntityReference::from_text(text).map(ServiceGateway::Reference)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        EntityReference::from_map(map).map(ServiceGateway::Reference)
    }
}

impl_shorthand!(ServiceGateway);

impl JsonSchema for ServiceGateway {
    fn schema_name() -> Cow<'static, str> {
        "ServiceGateway".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let reference = generator.subschema_for::<EntityReference>();
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [{"type": "boolean"}, reference],
        })
    }
}

/// The `https` of a service. Written as `true`, `false` or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Https {
    /// Yes or no.
    Enabled(bool),
    /// As the gateway's certificate says.
    Auto,
}

impl Serialize for Https {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Https::Enabled(enabled) => serializer.serialize_bool(*enabled),
            Https::Auto => serializer.serialize_str("auto"),
        }
    }
}

impl Shorthand for Https {
    const EXPECTING: &'static str = "`true`, `false` or `auto`";

    fn from_bool(value: bool) -> Result<Self, Refusal> {
        Ok(Https::Enabled(value))
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        if text == "auto" {
            return Ok(Https::Auto);
        }
        Err(format!("expected {}, found `{text}`", Self::EXPECTING).into())
    }
}

impl_shorthand!(Https);

impl JsonSchema for Https {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Https".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [{"type": "boolean"}, {"type": "string", "const": "auto"}],
        })
    }
}
