//! Gateways: the public entry to services.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

use super::checked::{Check, checked, constant};
use super::names::check_resource_name;
use super::shorthand::{self, Shorthand, impl_shorthand};
use crate::backends::BackendType;

constant! {
    /// The `type` of a [`GatewayConfiguration`].
    pub struct GatewayType = "gateway";
}

constant! {
    /// The kind of a load balancer: an AWS application load balancer.
    pub struct LoadBalancerType = "alb";
}

checked! {
    /// A machine that leads the public to services.
    #[derive(Eq)]
    pub struct GatewayConfiguration {
        /// Says that this is a gateway.
        #[serde(rename = "type", default)]
        pub kind: GatewayType,
        /// The name; null is one that the server makes up.
        #[serde(default)]
        pub name: Option<String>,
        /// Whether services of the project use it unless they say otherwise.
        #[serde(default)]
        pub default: Option<bool>,
        /// The backend.
        pub backend: BackendType,
        /// The region.
        pub region: String,
        /// The instance type; null is a small one.
        #[serde(default)]
        pub instance_type: Option<String>,
        /// The domain of which services get subdomains.
        #[serde(default)]
        pub domain: Option<String>,
        /// Whether it has a public address.
        #[serde(default = "yes")]
        pub public_ip: bool,
        /// What is put in front of it.
        #[serde(default)]
        pub load_balancer: Option<GatewayLoadBalancer>,
        /// Who signs for the domain; null is no HTTPS.
        #[serde(default = "default_certificate")]
        pub certificate: Option<GatewayCertificate>,
        /// How many machines; null is one.
        #[serde(default, deserialize_with = "shorthand::optional_integer::<_, _, 1, 9>")]
        pub replicas: Option<u32>,
        /// Tags of the resources that are created at the cloud.
        #[serde(default, deserialize_with = "super::profile::optional_tags")]
        pub tags: Option<BTreeMap<String, String>>,
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional field")]
fn default_certificate() -> Option<GatewayCertificate> {
    Some(GatewayCertificate::LetsEncrypt)
}

impl Check for GatewayConfiguration {
    fn check(&mut self) -> Result<(), String> {
        if self.instance_type.as_deref() == Some("") {
            return Err("`instance_type` must not be empty".to_owned());
        }
        Ok(())
    }
}

impl GatewayConfiguration {
    /// Checks what the official server checks only when a gateway is submitted; the errors are the
    /// official ones.
    pub fn check_submission(&self) -> Result<(), String> {
        self.name.as_deref().map_or(Ok(()), check_resource_name)
    }
}

checked! {
    /// A load balancer in front of a gateway.
    #[derive(Copy, Eq)]
    pub struct GatewayLoadBalancer {
        /// Its kind.
        #[serde(rename = "type", default)]
        pub kind: LoadBalancerType,
    }
}

impl Check for GatewayLoadBalancer {}

/// Who signs for a gateway's domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum GatewayCertificate {
    /// Let's Encrypt.
    LetsEncrypt,
    /// AWS Certificate Manager.
    Acm {
        /// The name of the certificate.
        arn: String,
    },
    /// Google's Certificate Manager.
    GcpCm {
        /// The name of the certificate.
        name: String,
    },
}

impl Shorthand for GatewayCertificate {
    const EXPECTING: &'static str = "`{type: lets-encrypt}`, `{type: acm, arn: …}` or `{type: gcp-cm, name: …}`";

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let CertificateFields { kind, arn, name } = shorthand::fields(map)?;
        let stray = match kind {
            CertificateType::LetsEncrypt | CertificateType::GcpCm if arn.is_some() => Some("arn"),
            CertificateType::LetsEncrypt | CertificateType::Acm if name.is_some() => Some("name"),
            _ => None,
        };
        if let Some(key) = stray {
            return Err(A::Error::custom(format!("`{key}` is not for this `type` of certificate")));
        }
        match kind {
            CertificateType::LetsEncrypt => Ok(GatewayCertificate::LetsEncrypt),
            CertificateType::Acm => {
                let arn = arn.ok_or_else(|| A::Error::missing_field("arn"))?;
                Ok(GatewayCertificate::Acm { arn })
            }
            CertificateType::GcpCm => {
                let name = name.ok_or_else(|| A::Error::missing_field("name"))?;
                Ok(GatewayCertificate::GcpCm { name })
            }
        }
    }
}

impl_shorthand!(GatewayCertificate);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CertificateFields {
    #[serde(rename = "type")]
    kind: CertificateType,
    #[serde(default)]
    arn: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum CertificateType {
    LetsEncrypt,
    Acm,
    GcpCm,
}

impl JsonSchema for GatewayCertificate {
    fn schema_name() -> Cow<'static, str> {
        "GatewayCertificate".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mapping = CertificateFields::json_schema(generator);
        json_schema!({"description": Self::EXPECTING, "anyOf": [mapping]})
    }
}
