//! The clients of AWS's services, made when they are first used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::Credentials;
use tokio::sync::OnceCell;

use super::config::{AwsConfig, Creds, SourceCreds};

/// The region where services are asked that have no region.
pub(super) const HOME_REGION: &str = "us-east-1";

/// How long AWS may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one try may take. A launch of hundreds of machines takes a while.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(40);

/// How long a call may take, with all of its tries.
const CALL_TIMEOUT: Duration = Duration::from_secs(55);

/// The clients of one account.
#[derive(Debug)]
pub(super) struct Clients {
    creds: Creds,
    endpoint_url: Option<String>,
    config: OnceCell<SdkConfig>,
    ec2: Mutex<HashMap<String, aws_sdk_ec2::Client>>,
    quotas: Mutex<HashMap<String, aws_sdk_servicequotas::Client>>,
}

impl Clients {
    pub(super) fn new(config: &AwsConfig) -> Clients {
        Clients {
            creds: config.creds.clone(),
            endpoint_url: config.endpoint_url.clone(),
            config: OnceCell::new(),
            ec2: Mutex::default(),
            quotas: Mutex::default(),
        }
    }

    async fn config(&self) -> &SdkConfig {
        self.config.get_or_init(|| Box::pin(self.load())).await
    }

    async fn load(&self) -> SdkConfig {
        let base = || {
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .operation_timeout(CALL_TIMEOUT)
                .build();
            let loader = aws_config::defaults(BehaviorVersion::latest())
                .region(Region::from_static(HOME_REGION))
                .timeout_config(timeouts)
                .retry_config(RetryConfig::standard());
            match &self.endpoint_url {
                Some(url) => loader.endpoint_url(url),
                None => loader,
            }
        };
        let key = |access: &str, secret: &str| Credentials::new(access, secret, None, None, "config.yml");
        match &self.creds {
            Creds::Default => base().load().await,
            Creds::AccessKey { access_key, secret_key } => {
                base().credentials_provider(key(access_key, secret_key)).load().await
            }
            Creds::AssumeRole { role_arn, external_id, source } => {
                let source = match source {
                    Some(SourceCreds::AccessKey { access_key, secret_key }) => {
                        base().credentials_provider(key(access_key, secret_key)).load().await
                    }
                    Some(SourceCreds::Default) | None => base().load().await,
                };
                let mut role = AssumeRoleProvider::builder(role_arn).session_name("dstack").configure(&source);
                if let Some(external_id) = external_id {
                    role = role.external_id(external_id);
                }
                base().credentials_provider(role.build().await).load().await
            }
        }
    }

    /// EC2 in a region.
    pub(super) async fn ec2(&self, region: &str) -> aws_sdk_ec2::Client {
        let config = self.config().await;
        let mut clients = self.ec2.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let builder = aws_sdk_ec2::config::Builder::from(config).region(Region::new(region.to_owned()));
            aws_sdk_ec2::Client::from_conf(builder.build())
        };
        clients.entry(region.to_owned()).or_insert_with(make).clone()
    }

    /// The service that knows the account's limits in a region.
    pub(super) async fn quotas(&self, region: &str) -> aws_sdk_servicequotas::Client {
        let config = self.config().await;
        let mut clients = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let builder =
                aws_sdk_servicequotas::config::Builder::from(config).region(Region::new(region.to_owned()));
            aws_sdk_servicequotas::Client::from_conf(builder.build())
        };
        clients.entry(region.to_owned()).or_insert_with(make).clone()
    }

    /// The service that knows who we are.
    pub(super) async fn sts(&self) -> aws_sdk_sts::Client {
        aws_sdk_sts::Client::new(self.config().await)
    }

    /// The service that knows instance profiles.
    pub(super) async fn iam(&self) -> aws_sdk_iam::Client {
        aws_sdk_iam::Client::new(self.config().await)
    }

    /// The service that knows prices, which answers in few regions only.
    pub(super) async fn pricing(&self) -> aws_sdk_pricing::Client {
        aws_sdk_pricing::Client::new(self.config().await)
    }
}
