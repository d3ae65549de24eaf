"""Asks every action that the simulator has, as boto3 asks, and walks every answer.

    python every_action.py ENDPOINT MODEL

The simulation must be one in which everything happens at once.
"""

import datetime
import json
import sys
import urllib.request

from botocore.exceptions import ClientError
from members import Members
from walker import Walker, client, paths

ENDPOINT, MODEL = sys.argv[1:]
WALKER = Walker()
MEMBERS = Members()
FAILED = []


def open_client(service, region="us-west-2", **options):
    return MEMBERS.watch(WALKER.watch(client(service, ENDPOINT, region, **options)))


def control(name, **body):
    request = urllib.request.Request(f"{ENDPOINT}/_ec2sim/{name}", json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request))


def expect(what, holds):
    if not holds:
        FAILED.append(what)


def has(answer, *wanted):
    """What others read must be there; what our backend reads is in `members.py`."""
    there = paths(answer)
    for path in wanted:
        expect(f"{path} is missing: {sorted(there)}", path in there)


def refused(code, call, **arguments):
    try:
        call(**arguments)
        FAILED.append(f"{call.__name__} with {arguments} is not refused with {code}")
    except ClientError as error:
        expect(f"{call.__name__}: {error} and not {code}", error.response["Error"]["Code"] == code)
        expect(f"{call.__name__}: no text", bool(error.response["Error"]["Message"]) or code == "ParameterNotFound")


def marks(kind):
    return {"ResourceType": kind, "Tags": [{"Key": "owner", "Value": "dstack"}]}


ec2 = open_client("ec2")


def accounts():
    sts, iam = open_client("sts"), open_client("iam", "us-east-1")
    has(sts.get_caller_identity(), "Account", "Arn", "UserId")
    role = sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/dstack-instance-role", RoleSessionName="test")
    has(role, "AssumedRoleUser.Arn")
    keys = role["Credentials"]
    session = open_client(
        "sts",
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )
    expect("the role speaks", "assumed-role" in session.get_caller_identity()["Arn"])
    refused("AccessDenied", sts.assume_role, RoleArn="arn:aws:iam::123456789012:role/no", RoleSessionName="test")
    profile = iam.get_instance_profile(InstanceProfileName="dstack-instance")
    has(profile, "InstanceProfile.Arn", "InstanceProfile.Roles.RoleName")
    refused("NoSuchEntity", iam.get_instance_profile, InstanceProfileName="no")
    has(iam.get_role(RoleName="dstack-instance-role"), "Role.Arn")
    policy = iam.simulate_principal_policy(
        PolicySourceArn="arn:aws:iam::123456789012:user/dstack", ActionNames=["ec2:RunInstances"]
    )
    expect("a policy", policy["EvaluationResults"][0]["EvalDecision"] == "allowed")


def quotas_and_prices():
    quotas, pricing = open_client("service-quotas"), open_client("pricing", "us-east-1")
    has(quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-417A185B"), "Quota.Value", "Quota.QuotaName")
    refused("NoSuchResourceException", quotas.get_service_quota, ServiceCode="ec2", QuotaCode="L-0")
    listed = quotas.get_paginator("list_service_quotas").paginate(ServiceCode="ec2", PaginationConfig={"PageSize": 5})
    expect("all quotas", sum(len(page["Quotas"]) for page in listed) > 10)
    filters = [
        {"Type": "TERM_MATCH", "Field": field, "Value": value}
        for field, value in {"instanceType": "p5.48xlarge", "regionCode": "us-west-2", "tenancy": "Shared"}.items()
    ]
    prices = pricing.get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
    term = next(iter(json.loads(prices[0])["terms"]["OnDemand"].values()))
    price = next(iter(term["priceDimensions"].values()))["pricePerUnit"]["USD"]
    expect(f"the price {price}", float(price) == 55.04)


def parameters():
    ssm = open_client("ssm")
    name = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    has(ssm.get_parameter(Name=name), "Parameter.Value")
    many = ssm.get_parameters(Names=[name, "/no"])
    expect("parameters", len(many["Parameters"]) == 1 and many["InvalidParameters"] == ["/no"])
    refused("ParameterNotFound", ssm.get_parameter, Name="/no")


def catalog():
    has(ec2.describe_regions(AllRegions=True), "Regions.RegionName", "Regions.OptInStatus", "Regions.Endpoint")
    zones = ec2.describe_availability_zones(Filters=[{"Name": "region-name", "Values": ["us-west-2"]}])
    has(zones, "AvailabilityZones.ZoneId", "AvailabilityZones.ZoneType")
    efa = [{"Name": "network-info.efa-supported", "Values": ["true"]}]
    types = ec2.describe_instance_types(InstanceTypes=["p5.48xlarge"], Filters=efa)["InstanceTypes"]
    expect("a type with EFA", [one["InstanceType"] for one in types] == ["p5.48xlarge"])
    pages = list(ec2.get_paginator("describe_instance_types").paginate())
    names = [one["InstanceType"] for page in pages for one in page["InstanceTypes"]]
    expect("types in pages", len(pages) > 1 and len(set(names)) == len(names) > 200)
    refused("InvalidInstanceType", ec2.describe_instance_types, InstanceTypes=["p99.large"])
    prices = ec2.describe_spot_price_history(InstanceTypes=["p5.48xlarge"], ProductDescriptions=["Linux/UNIX"])
    has(prices, "SpotPriceHistory.Timestamp")
    refused("InvalidParameterValue", ec2.describe_vpcs, Filters=[{"Name": "colour", "Values": ["red"]}])


def network():
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "tag:Name", "Values": ["my-vpc"]}])
    has(vpcs, "Vpcs.IsDefault")
    vpc = vpcs["Vpcs"][0]["VpcId"]
    mine = [{"Name": "vpc-id", "Values": [vpc]}]
    subnets = ec2.describe_subnets(Filters=mine)
    ec2.describe_route_tables(Filters=mine)
    has(ec2.describe_internet_gateways(), "InternetGateways.Attachments.VpcId")
    has(ec2.describe_nat_gateways(), "NatGateways.NatGatewayId")
    return vpc, subnets["Subnets"]


def security_group(vpc):
    tags = [marks("security-group")]
    group = ec2.create_security_group(GroupName="test", Description="A test", VpcId=vpc, TagSpecifications=tags)
    has(group, "Tags.Key")
    group = group["GroupId"]
    refused("InvalidGroup.Duplicate", ec2.create_security_group, GroupName="test", Description="x", VpcId=vpc)
    world = {"CidrIp": "0.0.0.0/0", "Description": "SSH"}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [world]}
    own = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    made = ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, own])
    has(made, "Return", "SecurityGroupRules.SecurityGroupRuleId", "SecurityGroupRules.ReferencedGroupInfo.GroupId")
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[own])
    refused("InvalidPermission.Duplicate", ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[ssh])
    described = ec2.describe_security_groups(GroupIds=[group])
    has(described, "SecurityGroups.IpPermissions.FromPort", "SecurityGroups.IpPermissionsEgress.IpRanges.CidrIp")
    ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[ssh])
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[own])
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[own])
    return group


def keys():
    material = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBEFk6LZQxjWMFNyuhSYe8Fc3rnqFgY0bZ0F3Cq6jJ1x test"
    has(ec2.import_key_pair(KeyName="key", PublicKeyMaterial=material), "KeyPairId", "KeyFingerprint")
    refused("InvalidKeyPair.Duplicate", ec2.import_key_pair, KeyName="key", PublicKeyMaterial=material)
    has(ec2.describe_key_pairs(IncludePublicKey=True), "KeyPairs.PublicKey", "KeyPairs.CreateTime")


def images():
    name = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241115"
    found = ec2.describe_images(Filters=[{"Name": "name", "Values": [name]}], Owners=["898082745236"])
    return found["Images"][0]["ImageId"]


def efa_launch(image, subnet, group):
    nics = [{"DeviceIndex": 0, "SubnetId": subnet, "Groups": [group], "DeleteOnTermination": True}]
    for card in range(32):
        nics.append(
            {
                "NetworkCardIndex": card,
                "DeviceIndex": 0 if card else 1,
                "InterfaceType": "efa-only",
                "SubnetId": subnet,
                "Groups": [group],
            }
        )
    return {
        "ImageId": image,
        "InstanceType": "p5.48xlarge",
        "MinCount": 2,
        "MaxCount": 2,
        "KeyName": "key",
        "NetworkInterfaces": nics,
        "Placement": {"GroupName": "group"},
        "ClientToken": "token",
        "UserData": "#cloud-config\n",
        "IamInstanceProfile": {"Name": "dstack-instance"},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 100, "VolumeType": "gp3"}}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "TagSpecifications": [marks(kind) for kind in ("instance", "volume", "network-interface")],
    }


def instances(image, subnet, group):
    placement = ec2.create_placement_group(
        GroupName="group",
        Strategy="cluster",
        TagSpecifications=[marks("placement-group")],
    )
    has(placement, "PlacementGroup.GroupName", "PlacementGroup.State")
    ec2.describe_placement_groups(GroupNames=["group"])
    launch = efa_launch(image, subnet, group)
    refused("DryRunOperation", ec2.run_instances, **launch, DryRun=True)
    made = ec2.run_instances(**launch)
    has(made, "ReservationId")
    ids = [one["InstanceId"] for one in made["Instances"]]
    again = ec2.run_instances(**launch)
    expect("the same token makes nothing", [one["InstanceId"] for one in again["Instances"]] == ids)
    refused("IdempotentParameterMismatch", ec2.run_instances, **{**launch, "MaxCount": 3})
    by_tag = [{"Name": "tag:owner", "Values": ["dstack"]}, {"Name": "instance-state-name", "Values": ["running"]}]
    described = ec2.describe_instances(Filters=by_tag)
    has(
        described,
        "Reservations.Instances.NetworkInterfaces.InterfaceType",
        "Reservations.Instances.ClientToken",
        "Reservations.Instances.LaunchTime",
        "Reservations.Instances.BlockDeviceMappings.Ebs.VolumeId",
    )
    expect("interfaces", [len(one["NetworkInterfaces"]) for one in described["Reservations"][0]["Instances"]] == [33, 33])
    control("instances/report", instance_id=ids[0], healthy=True, console="ready\n")
    status = ec2.describe_instance_status(InstanceIds=ids)
    has(status, "InstanceStatuses.InstanceStatus.Details.Status", "InstanceStatuses.SystemStatus.Status")
    console = ec2.get_console_output(InstanceId=ids[0], Latest=True)
    expect("the console", console["Output"] == "ready\n")
    has(ec2.describe_instance_topology(InstanceIds=ids), "Instances.ZoneId")
    for attribute in ("blockDeviceMapping", "userData", "instanceType", "groupSet", "instanceInitiatedShutdownBehavior"):
        ec2.describe_instance_attribute(InstanceId=ids[0], Attribute=attribute)
    refused("InvalidPlacementGroup.InUse", ec2.delete_placement_group, GroupName="group")
    refused("InvalidInstanceID.NotFound", ec2.describe_instances, InstanceIds=["i-0123456789abcdef0"])
    refused("InvalidInstanceID.Malformed", ec2.describe_instances, InstanceIds=["i-what"])
    return ids


def tags(ids):
    ec2.create_tags(Resources=ids, Tags=[{"Key": "more", "Value": "x"}])
    has(ec2.describe_tags(Filters=[{"Name": "key", "Values": ["more"]}]), "Tags.ResourceId", "Tags.ResourceType")
    ec2.delete_tags(Resources=ids, Tags=[{"Key": "more"}])
    expect("tags are gone", not ec2.describe_tags(Filters=[{"Name": "key", "Values": ["more"]}])["Tags"])
    refused("InvalidParameterValue", ec2.create_tags, Resources=ids, Tags=[{"Key": "aws:x", "Value": "x"}])


def volumes(ids, zone):
    volume = ec2.create_volume(AvailabilityZone=zone, Size=10, VolumeType="gp3", TagSpecifications=[marks("volume")])
    has(volume, "VolumeId", "Size", "State", "CreateTime")
    volume = volume["VolumeId"]
    has(ec2.attach_volume(VolumeId=volume, InstanceId=ids[0], Device="/dev/sdf"), "State", "Device", "AttachTime")
    has(ec2.describe_volumes(VolumeIds=[volume]), "Volumes.Attachments.InstanceId", "Volumes.Iops")
    refused("VolumeInUse", ec2.delete_volume, VolumeId=volume)
    has(ec2.detach_volume(VolumeId=volume), "State")
    refused("IncorrectState", ec2.detach_volume, VolumeId=volume)
    ec2.delete_volume(VolumeId=volume)
    refused("InvalidVolume.NotFound", ec2.describe_volumes, VolumeIds=[volume])


def addresses(image, public_subnet):
    launch = {"ImageId": image, "InstanceType": "m5.large", "MinCount": 1, "MaxCount": 1, "SubnetId": public_subnet}
    instance = ec2.run_instances(**launch)["Instances"][0]
    interface = instance["NetworkInterfaces"][0]["NetworkInterfaceId"]
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=[marks("elastic-ip")])
    place = {"AllocationId": address["AllocationId"], "NetworkInterfaceId": interface}
    associated = ec2.associate_address(**place, AllowReassociation=False)
    refused("Resource.AlreadyAssociated", ec2.associate_address, **place, AllowReassociation=False)
    has(ec2.describe_addresses(), "Addresses.InstanceId", "Addresses.NetworkInterfaceId")
    refused("InvalidIPAddress.InUse", ec2.release_address, AllocationId=address["AllocationId"])
    has(
        ec2.describe_network_interfaces(NetworkInterfaceIds=[interface]),
        "NetworkInterfaces.Association.AllocationId",
        "NetworkInterfaces.Attachment.InstanceId",
    )
    described = ec2.describe_instances(InstanceIds=[instance["InstanceId"]])
    has(described, "Reservations.Instances.PublicIpAddress", "Reservations.Instances.PublicDnsName")
    ec2.disassociate_address(AssociationId=associated["AssociationId"])
    ec2.release_address(AllocationId=address["AllocationId"])
    ec2.modify_network_interface_attribute(NetworkInterfaceId=interface, Description={"Value": "first"})
    ec2.modify_network_interface_attribute(NetworkInterfaceId=interface, AssociatePublicIpAddress=True)
    described = ec2.describe_instances(InstanceIds=[instance["InstanceId"]])
    has(described, "Reservations.Instances.PublicIpAddress")
    return instance["InstanceId"]


def interfaces(subnet, group):
    made = ec2.create_network_interface(
        SubnetId=subnet, Groups=[group], InterfaceType="efa", TagSpecifications=[marks("network-interface")]
    )
    has(made, "NetworkInterface.NetworkInterfaceId", "NetworkInterface.MacAddress", "NetworkInterface.Status")
    ec2.describe_network_interfaces(Filters=[{"Name": "status", "Values": ["available"]}])
    ec2.delete_network_interface(NetworkInterfaceId=made["NetworkInterface"]["NetworkInterfaceId"])


def spot(image, subnet):
    launch = {
        "ImageId": image,
        "InstanceType": "g5.xlarge",
        "MinCount": 1,
        "MaxCount": 1,
        "SubnetId": subnet,
        "InstanceMarketOptions": {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        },
    }
    made = ec2.run_instances(**launch)["Instances"][0]
    has(made, "InstanceLifecycle", "SpotInstanceRequestId")
    request = made["SpotInstanceRequestId"]
    described = ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[request])
    has(described, "SpotInstanceRequests.State", "SpotInstanceRequests.Status.Code", "SpotInstanceRequests.InstanceId")
    has(ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request]), "CancelledSpotInstanceRequests.State")
    control("instances/interrupt", region="us-west-2", instance_id=made["InstanceId"], notice_ms=0)
    ended = ec2.describe_instances(InstanceIds=[made["InstanceId"]])["Reservations"][0]["Instances"][0]
    expect(f"an interruption: {ended['StateReason']}", ended["StateReason"]["Code"] == "Server.SpotInstanceTermination")


def reservations():
    start = datetime.datetime.now(datetime.timezone.utc)
    asked = {"InstanceType": "p5.48xlarge", "InstanceCount": 2, "CapacityDurationHours": 24, "StartDateRange": start}
    offers = ec2.describe_capacity_block_offerings(**asked)
    has(offers, "CapacityBlockOfferings.UpfrontFee", "CapacityBlockOfferings.StartDate")
    offer = offers["CapacityBlockOfferings"][0]["CapacityBlockOfferingId"]
    bought = ec2.purchase_capacity_block(CapacityBlockOfferingId=offer, InstancePlatform="Linux/UNIX")
    expect("a block is scheduled", bought["CapacityReservation"]["State"] == "scheduled")
    place = {"region": "us-west-2", "zone": "us-west-2a", "instance_type": "g5.xlarge", "count": 2}
    made = [
        control("reservations", **place)["reservation_id"],
        control("reservations", **place, placement_group="reserved")["reservation_id"],
        bought["CapacityReservation"]["CapacityReservationId"],
    ]
    described = ec2.describe_capacity_reservations(CapacityReservationIds=made)["CapacityReservations"]
    expect(f"reservations: {described}", len(described) == 3)
    grouped = control("reservations", **place, groups=["training"])["reservation_id"]
    groups = ec2.get_groups_for_capacity_reservation(CapacityReservationId=grouped)["CapacityReservationGroups"]
    name = "arn:aws:resource-groups:us-west-2:123456789012:group/training"
    expect(f"groups of a reservation: {groups}", [group["GroupArn"] for group in groups] == [name])


def main():
    # Here it matters what is answered, and not how fast it may be asked.
    control("rates", bucket="RunInstances", capacity=100, per_second=10)
    accounts()
    quotas_and_prices()
    parameters()
    catalog()
    vpc, subnets = network()
    group = security_group(vpc)
    keys()
    image = images()
    offers = ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["p5.48xlarge"]}]
    )
    zone = offers["InstanceTypeOfferings"][0]["Location"]
    name = {tag["Value"]: subnet["SubnetId"] for subnet in subnets for tag in subnet["Tags"]}
    private = name[f"private-{zone}"]
    ids = instances(image, private, group)
    tags(ids)
    volumes(ids, zone)
    interfaces(private, group)
    ids.append(addresses(image, next(subnet for tag, subnet in name.items() if tag.startswith("public-"))))
    spot(image, private)
    reservations()
    has(ec2.terminate_instances(InstanceIds=ids), "TerminatingInstances.PreviousState.Name")
    ended = ec2.describe_instances(InstanceIds=ids)
    has(ended, "Reservations.Instances.StateTransitionReason")
    ec2.delete_placement_group(GroupName="group")
    ec2.delete_security_group(GroupId=group)
    ec2.delete_key_pair(KeyName="key")
    orphans = json.load(urllib.request.urlopen(f"{ENDPOINT}/_ec2sim/orphans"))
    left = [one for one in orphans if one["kind"] != "capacity-reservation"]
    expect(f"orphans: {left}", not left)
    with open(MODEL) as file:
        services = json.load(file)
    modelled = {action for name, one in services.items() if name != "source" for action in one["operations"]}
    expect(f"never asked: {sorted(modelled - WALKER.answered)}", modelled <= WALKER.answered)
    FAILED.extend(MEMBERS.findings())
    for finding in sorted(set(WALKER.findings)) + FAILED:
        print(finding)
    print(f"{len(WALKER.answered)} actions answered")
    sys.exit(1 if WALKER.findings or FAILED else 0)


if __name__ == "__main__":
    main()
