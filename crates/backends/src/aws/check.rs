//! Whether an account can be used as it is configured: the credentials, the profile, the networks, and the permissions.

use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder;
use aws_sdk_ec2::types::{IamInstanceProfileSpecification, IpPermission, PlacementStrategy, ResourceType};
use futures_util::future::join_all;

use super::config::Creds;
use super::errors::failure;
use super::tags::specification;
use super::{Account, images};
use crate::keys::invalid;
use crate::{Error, ErrorKind, Result};

/// A type that every region has.
const SMALL: &str = "t3.micro";

/// The name of what is never made.
const NOTHING: &str = "dstack-check";

/// A group that does not exist.
const NO_GROUP: &str = "sg-00000000000000000";

/// Asks AWS. The first thing that is missing is told, with its key.
pub(super) async fn check(account: &Account) -> Result<()> {
    credentials(account).await?;
    profile(account).await?;
    networks(account).await?;
    permissions(account).await
}

async fn credentials(account: &Account) -> Result<()> {
    let Err(error) = account.clients.sts().await.get_caller_identity().send().await else { return Ok(()) };
    let error = failure("tell who we are", &error);
    if error.kind.is_transient() {
        return Err(error);
    }
    let field = match account.config.creds {
        Creds::AccessKey { .. } => "`creds.access_key`, `creds.secret_key`",
        Creds::Default | Creds::AssumeRole { .. } => "`creds`",
    };
    let message = format!("{field} of backend `aws`: Invalid credentials: {error}");
    Err(Error { kind: ErrorKind::InvalidCredentials, message, ..error })
}

async fn profile(account: &Account) -> Result<()> {
    let Some(name) = &account.config.iam_instance_profile else { return Ok(()) };
    let asked = account.clients.iam().await.get_instance_profile().instance_profile_name(name).send().await;
    match asked {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("NoSuchEntity") => {
            Err(invalid(format!("IAM instance profile {name} not found (`iam_instance_profile`)")))
        }
        Err(error) => {
            let error = failure("tell of the instance profile", &error);
            let message = format!("Failed to check IAM instance profile {name}: {error}");
            Err(Error { message, ..error })
        }
    }
}

async fn networks(account: &Account) -> Result<()> {
    let regions = &account.config.regions;
    let resolved = join_all(regions.iter().map(|region| account.network(region))).await;
    match resolved.into_iter().find_map(Result::err) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Calls that only ask whether they might be made.
struct DryRuns<'a> {
    account: &'a Account,
    region: &'a str,
    ec2: aws_sdk_ec2::Client,
    /// What is denied, as policies name it.
    denied: Vec<String>,
}

/// Makes a call that only asks, and takes down what is denied. AWS says that before it says anything else.
macro_rules! dry_run {
    ($runs:ident, $action:literal, $request:expr) => {
        if let Err(error) = $request.dry_run(true).send().await
            && matches!(error.code(), Some("UnauthorizedOperation" | "AccessDenied"))
        {
            let named = error.message().and_then(action_in).unwrap_or($action);
            if $runs.denied.iter().all(|known| known != named) {
                $runs.denied.push(named.to_owned());
            }
        }
    };
}

/// The action that a refusal names, which may be one that comes with what was asked for.
fn action_in(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("is not authorized to perform: ")?;
    rest.split_whitespace().next()
}

/// Asks AWS for what will be done, without doing it: for all of it in the first region, and for machines in each, because
/// policies of organizations deny whole regions. What the policy allows only for what is marked as ours cannot be asked
/// for before something is.
async fn permissions(account: &Account) -> Result<()> {
    let regions = &account.config.regions;
    let asked = regions.iter().enumerate().map(|(number, region)| async move {
        let ec2 = account.clients.ec2(region).await;
        let mut runs = DryRuns { account, region, ec2, denied: vec![] };
        runs.machines().await;
        if number == 0 {
            runs.looks().await;
            runs.network().await;
            runs.addresses().await;
        }
        runs.denied
    });
    let mut told: Vec<String> = vec![];
    for (region, denied) in regions.iter().zip(join_all(asked).await) {
        if !denied.is_empty() {
            told.push(format!("{} in {region}", denied.join(", ")));
        }
    }
    if told.is_empty() {
        return Ok(());
    }
    let message =
        format!("the credentials lack permissions: {}; docs/aws.md has the whole policy", told.join("; "));
    Err(Error::new(ErrorKind::PermissionDenied, message))
}

impl DryRuns<'_> {
    async fn machines(&mut self) {
        let ec2 = &self.ec2;
        dry_run!(self, "ec2:DescribeInstances", ec2.describe_instances());
        dry_run!(self, "ec2:DescribeImages", ec2.describe_images().owners("self"));
        dry_run!(self, "ec2:DescribeInstanceTypes", ec2.describe_instance_types());
        dry_run!(self, "ec2:DescribeInstanceTypeOfferings", ec2.describe_instance_type_offerings());
        // Without an image or a subnet there is another error, which is told elsewhere.
        if let Some(request) = self.small_machine().await {
            dry_run!(self, "ec2:RunInstances", request);
        }
    }

    /// The request for a machine of the smallest kind, with all that needs a permission of its own.
    async fn small_machine(&self) -> Option<RunInstancesFluentBuilder> {
        let (account, region) = (self.account, self.region);
        let facts = account.facts_of_type(&self.ec2, SMALL).await.ok()?;
        let asked = images::wanted(&account.config, region, &facts);
        let image = account.images.get(&asked, images::find(&self.ec2, &asked)).await.ok()?;
        let network = account.network(region).await.ok()?;
        let subnet = network.subnets.values().flatten().next()?;
        let tags = account.owner.tags();
        let mut request = self
            .ec2
            .run_instances()
            .image_id(&image.id)
            .instance_type(SMALL.into())
            .subnet_id(&subnet.id)
            .min_count(1)
            .max_count(1);
        for kind in [ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface] {
            request = request.tag_specifications(specification(kind, &tags));
        }
        if let Some(profile) = &account.config.iam_instance_profile {
            let profile = IamInstanceProfileSpecification::builder().name(profile).build();
            request = request.iam_instance_profile(profile);
        }
        Some(request)
    }

    async fn looks(&mut self) {
        let ec2 = &self.ec2;
        dry_run!(self, "ec2:DescribePlacementGroups", ec2.describe_placement_groups());
        dry_run!(self, "ec2:DescribeNetworkInterfaces", ec2.describe_network_interfaces());
        dry_run!(self, "ec2:DescribeVolumes", ec2.describe_volumes());
        dry_run!(self, "ec2:DescribeAddresses", ec2.describe_addresses());
        dry_run!(self, "ec2:DescribeSpotPriceHistory", ec2.describe_spot_price_history());
        dry_run!(self, "ec2:DescribeCapacityReservations", ec2.describe_capacity_reservations());
        let groups = ec2.get_groups_for_capacity_reservation().capacity_reservation_id("cr-00000000000000000");
        dry_run!(self, "ec2:GetGroupsForCapacityReservation", groups);
    }

    async fn network(&mut self) {
        let ec2 = &self.ec2;
        let tags = self.account.owner.tags();
        let group = ec2.create_placement_group().group_name(NOTHING).strategy(PlacementStrategy::Cluster);
        let marked = group.tag_specifications(specification(ResourceType::PlacementGroup, &tags));
        dry_run!(self, "ec2:CreatePlacementGroup", marked);
        dry_run!(self, "ec2:DeletePlacementGroup", ec2.delete_placement_group().group_name(NOTHING));
        if self.account.config.network.security_group_ids.contains_key(self.region) {
            return;
        }
        let Ok(network) = self.account.network(self.region).await else { return };
        dry_run!(self, "ec2:DescribeSecurityGroups", ec2.describe_security_groups());
        dry_run!(self, "ec2:DescribeSecurityGroupRules", ec2.describe_security_group_rules());
        let group = ec2.create_security_group().group_name(NOTHING).description("Generated by dstack");
        let marked = group.tag_specifications(specification(ResourceType::SecurityGroup, &tags));
        dry_run!(self, "ec2:CreateSecurityGroup", marked.vpc_id(&network.vpc_id));
        let all = IpPermission::builder().ip_protocol("-1").build();
        let ingress = ec2.authorize_security_group_ingress().group_id(NO_GROUP).ip_permissions(all.clone());
        dry_run!(self, "ec2:AuthorizeSecurityGroupIngress", ingress);
        let egress = ec2.authorize_security_group_egress().group_id(NO_GROUP).ip_permissions(all.clone());
        dry_run!(self, "ec2:AuthorizeSecurityGroupEgress", egress);
        let revoked = ec2.revoke_security_group_ingress().group_id(NO_GROUP).ip_permissions(all);
        dry_run!(self, "ec2:RevokeSecurityGroupIngress", revoked);
    }

    async fn addresses(&mut self) {
        if !self.account.config.public_ips {
            return;
        }
        let ec2 = &self.ec2;
        let (address, association) = ("eipalloc-00000000000000000", "eipassoc-00000000000000000");
        dry_run!(self, "ec2:AllocateAddress", ec2.allocate_address());
        let associated =
            ec2.associate_address().allocation_id(address).network_interface_id("eni-00000000000000000");
        dry_run!(self, "ec2:AssociateAddress", associated);
        dry_run!(self, "ec2:DisassociateAddress", ec2.disassociate_address().association_id(association));
        dry_run!(self, "ec2:ReleaseAddress", ec2.release_address().allocation_id(address));
    }
}
