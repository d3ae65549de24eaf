//! The actions that are answered, each with the function that does it.

use serde_json::Value;

use crate::call::Call;
use crate::error::ApiError;
use crate::{
    account, addresses, capacity, images, instances, interfaces, key_pairs, launch, network, parameters,
    placement_groups, pricing, quotas, security_groups, spot, tagging, types, volumes,
};

/// Does an action.
pub(crate) type Handler = fn(&mut Call<'_>) -> Result<Value, ApiError>;

/// Whether an action changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Reads,
    Writes,
}

/// Finds what does an action of a service.
pub(crate) fn find(service: &str, action: &str) -> Option<(Handler, Effect)> {
    let (_, _, handler) = ACTIONS.into_iter().find(|(of, name, _)| (*of, *name) == (service, action))?;
    let reads = ["Describe", "Get", "List", "Simulate"].iter().any(|verb| action.starts_with(verb));
    Some((handler, if reads { Effect::Reads } else { Effect::Writes }))
}

/// All actions: the service, the name, and what does it.
const ACTIONS: [(&str, &str, Handler); 65] = [
    ("ec2", "AllocateAddress", addresses::allocate_address),
    ("ec2", "AssociateAddress", addresses::associate_address),
    ("ec2", "AttachVolume", volumes::attach_volume),
    ("ec2", "AuthorizeSecurityGroupEgress", security_groups::authorize_egress),
    ("ec2", "AuthorizeSecurityGroupIngress", security_groups::authorize_ingress),
    ("ec2", "CancelSpotInstanceRequests", spot::cancel_spot_instance_requests),
    ("ec2", "CreateNetworkInterface", interfaces::create_network_interface),
    ("ec2", "CreatePlacementGroup", placement_groups::create_placement_group),
    ("ec2", "CreateSecurityGroup", security_groups::create_security_group),
    ("ec2", "CreateTags", tagging::create_tags),
    ("ec2", "CreateVolume", volumes::create_volume),
    ("ec2", "DeleteKeyPair", key_pairs::delete_key_pair),
    ("ec2", "DeleteNetworkInterface", interfaces::delete_network_interface),
    ("ec2", "DeletePlacementGroup", placement_groups::delete_placement_group),
    ("ec2", "DeleteSecurityGroup", security_groups::delete_security_group),
    ("ec2", "DeleteTags", tagging::delete_tags),
    ("ec2", "DeleteVolume", volumes::delete_volume),
    ("ec2", "DescribeAddresses", addresses::describe_addresses),
    ("ec2", "DescribeAvailabilityZones", types::describe_availability_zones),
    ("ec2", "DescribeCapacityBlockOfferings", capacity::describe_capacity_block_offerings),
    ("ec2", "DescribeCapacityReservations", capacity::describe_capacity_reservations),
    ("ec2", "DescribeImages", images::describe_images),
    ("ec2", "DescribeInstanceAttribute", instances::describe_instance_attribute),
    ("ec2", "DescribeInstanceStatus", instances::describe_instance_status),
    ("ec2", "DescribeInstanceTopology", instances::describe_instance_topology),
    ("ec2", "DescribeInstanceTypeOfferings", types::describe_instance_type_offerings),
    ("ec2", "DescribeInstanceTypes", types::describe_instance_types),
    ("ec2", "DescribeInstances", instances::describe_instances),
    ("ec2", "DescribeInternetGateways", network::describe_internet_gateways),
    ("ec2", "DescribeKeyPairs", key_pairs::describe_key_pairs),
    ("ec2", "DescribeNatGateways", network::describe_nat_gateways),
    ("ec2", "DescribeNetworkInterfaces", interfaces::describe_network_interfaces),
    ("ec2", "DescribePlacementGroups", placement_groups::describe_placement_groups),
    ("ec2", "DescribeRegions", types::describe_regions),
    ("ec2", "DescribeRouteTables", network::describe_route_tables),
    ("ec2", "DescribeSecurityGroupRules", security_groups::describe_security_group_rules),
    ("ec2", "DescribeSecurityGroups", security_groups::describe_security_groups),
    ("ec2", "DescribeSpotInstanceRequests", spot::describe_spot_instance_requests),
    ("ec2", "DescribeSpotPriceHistory", spot::describe_spot_price_history),
    ("ec2", "DescribeSubnets", network::describe_subnets),
    ("ec2", "DescribeTags", tagging::describe_tags),
    ("ec2", "DescribeVolumes", volumes::describe_volumes),
    ("ec2", "DescribeVpcs", network::describe_vpcs),
    ("ec2", "DetachVolume", volumes::detach_volume),
    ("ec2", "DisassociateAddress", addresses::disassociate_address),
    ("ec2", "GetConsoleOutput", instances::get_console_output),
    ("ec2", "GetGroupsForCapacityReservation", capacity::get_groups_for_capacity_reservation),
    ("ec2", "ImportKeyPair", key_pairs::import_key_pair),
    ("ec2", "ModifyNetworkInterfaceAttribute", interfaces::modify_network_interface_attribute),
    ("ec2", "PurchaseCapacityBlock", capacity::purchase_capacity_block),
    ("ec2", "ReleaseAddress", addresses::release_address),
    ("ec2", "RevokeSecurityGroupEgress", security_groups::revoke_egress),
    ("ec2", "RevokeSecurityGroupIngress", security_groups::revoke_ingress),
    ("ec2", "RunInstances", launch::run_instances),
    ("ec2", "TerminateInstances", instances::terminate_instances),
    ("iam", "GetInstanceProfile", account::get_instance_profile),
    ("iam", "GetRole", account::get_role),
    ("iam", "SimulatePrincipalPolicy", account::simulate_principal_policy),
    ("pricing", "GetProducts", pricing::get_products),
    ("servicequotas", "GetServiceQuota", quotas::get_service_quota),
    ("servicequotas", "ListServiceQuotas", quotas::list_service_quotas),
    ("ssm", "GetParameter", parameters::get_parameter),
    ("ssm", "GetParameters", parameters::get_parameters),
    ("sts", "AssumeRole", account::assume_role),
    ("sts", "GetCallerIdentity", account::get_caller_identity),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    #[test]
    fn every_action_of_the_model_is_answered_and_no_other() {
        let services = ["ec2", "iam", "pricing", "servicequotas", "ssm", "sts"];
        let modelled: usize =
            services.iter().map(|service| model::service(service).unwrap().operations.len()).sum();
        assert_eq!(modelled, ACTIONS.len());
        for (service, action, _) in ACTIONS {
            assert!(model::service(service).unwrap().operations.contains_key(action), "{service} {action}");
        }
    }
}
