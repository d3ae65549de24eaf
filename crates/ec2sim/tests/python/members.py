"""What a backend reads of each answer, compared with every answer of that action.

A backend that finds a member missing does without: it takes a machine for another's, or a price for none. So that the
simulator does not teach it to, here is every member that `crates/backends/src/aws` reads, by action and by where in the
answer it stands (lists are gone through; `*` are the values of an object whose keys are of no matter):

    Name                 each item has it
    ?Name                some items have it, and one was seen
    Name@Member=a|b      each item has it whose member has one of these values, and one was seen
"""

import json

INSTANCE = {
    "": """
        InstanceId AmiLaunchIndex State.Name Placement.AvailabilityZone PrivateIpAddress@State.Name=pending|running
    """,
    "Tags": "Key Value",
    "NetworkInterfaces": "NetworkInterfaceId Attachment.DeviceIndex Attachment.NetworkCardIndex",
}


def below(path, members):
    return {f"{path}.{inner}".rstrip("."): names for inner, names in members.items()}


READ = {
    "AllocateAddress": {"": "AllocationId PublicIp"},
    "AssumeRole": {"Credentials": "AccessKeyId SecretAccessKey SessionToken Expiration"},
    "CreateSecurityGroup": {"": "GroupId"},
    "DescribeAddresses": {"Addresses": "AllocationId PublicIp ?AssociationId", "Addresses.Tags": "Key Value"},
    "DescribeAvailabilityZones": {"AvailabilityZones": "ZoneName"},
    "DescribeCapacityReservations": {
        "CapacityReservations": """
            CapacityReservationId State ReservationType InstanceType AvailabilityZone Tenancy AvailableInstanceCount
            TotalInstanceCount StartDate EndDate@ReservationType=capacity-block ?PlacementGroupArn
        """,
    },
    "DescribeImages": {
        "Images": "ImageId Name State CreationDate RootDeviceType RootDeviceName",
        "Images.BlockDeviceMappings": "DeviceName ?Ebs.VolumeSize",
    },
    "DescribeInstanceTopology": {"Instances": "InstanceId NetworkNodes"},
    "DescribeInstanceTypeOfferings": {"InstanceTypeOfferings": "InstanceType Location"},
    "DescribeInstanceTypes": {
        "InstanceTypes": """
            InstanceType ProcessorInfo.SupportedArchitectures SupportedUsageClasses VCpuInfo.DefaultVCpus
            MemoryInfo.SizeInMiB PlacementGroupInfo.SupportedStrategies NetworkInfo.DefaultNetworkCardIndex
            NetworkInfo.EfaInfo.MaximumEfaInterfaces@NetworkInfo.EfaSupported=True
            ?NeuronInfo ?InferenceAcceleratorInfo ?FpgaInfo ?MediaAcceleratorInfo
        """,
        "InstanceTypes.GpuInfo.Gpus": "Manufacturer Name Count MemoryInfo.SizeInMiB",
        "InstanceTypes.NetworkInfo.NetworkCards": "NetworkCardIndex MaximumNetworkInterfaces InterfaceTypes",
    },
    "DescribeInstances": {
        **below("Reservations.Instances", INSTANCE),
        "Reservations.Instances": INSTANCE[""]
        + """
            ?PublicIpAddress ?Placement.GroupName
            StateReason.Code@State.Name=shutting-down|terminated StateReason.Message@State.Name=shutting-down|terminated
        """,
    },
    "DescribeNetworkInterfaces": {
        "NetworkInterfaces": "NetworkInterfaceId",
        "NetworkInterfaces.TagSet": "Key Value",
    },
    "DescribePlacementGroups": {
        "PlacementGroups": "GroupName Strategy State",
        "PlacementGroups.Tags": "Key Value",
    },
    "DescribeRouteTables": {
        "RouteTables.Associations": "Main SubnetId@Main=False",
        "RouteTables.Routes": "State DestinationCidrBlock ?GatewayId ?NatGatewayId",
    },
    "DescribeSecurityGroupRules": {
        "SecurityGroupRules": """
            SecurityGroupRuleId IsEgress IpProtocol FromPort ToPort ?CidrIpv4 ?Description ?ReferencedGroupInfo.GroupId
        """,
    },
    "DescribeSecurityGroups": {"SecurityGroups": "GroupId"},
    "DescribeSpotPriceHistory": {"SpotPriceHistory": "InstanceType AvailabilityZone SpotPrice"},
    "DescribeSubnets": {"Subnets": "SubnetId VpcId AvailabilityZone AvailableIpAddressCount"},
    "DescribeVolumes": {"Volumes": "VolumeId", "Volumes.Tags": "Key Value"},
    "DescribeVpcs": {"Vpcs": "VpcId CidrBlock", "Vpcs.CidrBlockAssociationSet": "CidrBlock"},
    "GetCallerIdentity": {"": "Account"},
    "GetGroupsForCapacityReservation": {"CapacityReservationGroups": "GroupArn"},
    "GetProducts": {
        "PriceList": "product.attributes.instanceType",
        "PriceList.terms.OnDemand.*.priceDimensions.*": "unit pricePerUnit.USD",
    },
    "ListServiceQuotas": {"Quotas": "QuotaCode QuotaName Value"},
    "RunInstances": below("Instances", INSTANCE),
}


class Members:
    """Watches clients, and keeps what their answers lack."""

    def __init__(self):
        self.missing = set()
        self.unseen = {
            (action, path, name)
            for action, paths in READ.items()
            for path, names in paths.items()
            for name in names.split()
        }

    def watch(self, client):
        client.meta.events.register("after-call", self.after_call)
        return client

    def after_call(self, http_response, parsed, model, **_):
        if http_response.status_code < 300:
            self.compare(model.name, parsed)

    def compare(self, action, answer):
        for path, names in READ.get(action, {}).items():
            for item in items(answer, path.split(".") if path else []):
                for name in names.split():
                    self.compare_item(action, path, name, item)

    def compare_item(self, action, path, name, item):
        member, _, condition = name.lstrip("?").partition("@")
        other, _, values = condition.partition("=")
        if condition and str(value_of(item, other)) not in values.split("|"):
            return
        if value_of(item, member) not in (None, "", []):
            self.unseen.discard((action, path, name))
        elif not name.startswith("?"):
            self.missing.add(f"{action}: an item of `{path}` has no `{member}`: {json.dumps(item, default=str)[:300]}")

    def findings(self):
        """What was missing, and what no answer had."""
        unseen = (f"{action}: no item of `{path}` had `{name}`" for action, path, name in self.unseen)
        return sorted(self.missing) + sorted(unseen)


def items(value, path):
    """All objects that are at a path."""
    if isinstance(value, list):
        return [found for inner in value for found in items(inner, path)]
    if isinstance(value, str):
        # The price list is made of texts.
        value = json.loads(value)
    if not path:
        return [value]
    inner = list(value.values()) if path[0] == "*" else value.get(path[0], [])
    return items(inner, path[1:])


def value_of(item, member):
    for name in member.split("."):
        if not isinstance(item, dict):
            return None
        item = item.get(name)
    return item
