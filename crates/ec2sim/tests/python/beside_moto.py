"""Asks moto what the simulator is asked, and compares which members the answers hold.

    python beside_moto.py ENDPOINT

moto is no authority, but it was written by others. Whatever member it tells and the simulator does not is a finding,
unless the list below says why.
"""

import os
import sys

os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_DEFAULT_REGION="us-west-2")

from moto.server import ThreadedMotoServer  # noqa: E402
from walker import client, paths  # noqa: E402

# Members that moto tells and the simulator does not, with the reason.
ALLOWED = {
    "DescribeImages": {"Images.Platform": "only Windows has one, and there is none here"},
    "DescribeInstances": {
        "Reservations.Instances.StateReason.Code": "told while an instance comes or goes; moto has it always",
        "Reservations.Instances.StateReason.Message": "told while an instance comes or goes; moto has it always",
    },
    "DescribeNetworkInterfaces": {
        "NetworkInterfaces.RequesterId": "AWS tells it of interfaces that a service of its own asked for",
    },
}


def steps(ec2, iam, sts):
    """One call after the other, of which each yields its name and its answer."""
    yield "GetCallerIdentity", sts.get_caller_identity()
    yield "DescribeRegions", ec2.describe_regions()
    yield "DescribeAvailabilityZones", ec2.describe_availability_zones()
    types = ["p4d.24xlarge", "p5.48xlarge", "c7i.large", "g6e.24xlarge", "t3.small"]
    yield "DescribeInstanceTypes", ec2.describe_instance_types(InstanceTypes=types)
    where = [{"Name": "instance-type", "Values": types}]
    yield "DescribeInstanceTypeOfferings", ec2.describe_instance_type_offerings(Filters=where)
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])
    yield "DescribeVpcs", vpcs
    vpc = vpcs["Vpcs"][0]["VpcId"]
    mine = [{"Name": "vpc-id", "Values": [vpc]}]
    subnets = ec2.describe_subnets(Filters=mine)
    yield "DescribeSubnets", subnets
    subnet = next(one for one in subnets["Subnets"] if one["AvailabilityZone"] == "us-west-2a")
    yield "DescribeRouteTables", ec2.describe_route_tables(Filters=mine)
    group = ec2.create_security_group(GroupName="test", Description="A test", VpcId=vpc)
    yield "CreateSecurityGroup", group
    group = group["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    own = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    yield "AuthorizeSecurityGroupIngress", ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
    yield "AuthorizeSecurityGroupEgress", ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[own])
    yield "DescribeSecurityGroups", ec2.describe_security_groups(GroupIds=[group])
    yield "DescribeSecurityGroupRules", ec2.describe_security_group_rules(
        Filters=[{"Name": "group-id", "Values": [group]}]
    )
    images = ec2.describe_images(Owners=["amazon"], Filters=[{"Name": "architecture", "Values": ["x86_64"]}])
    yield "DescribeImages", images
    plain = [one for one in images["Images"] if one.get("RootDeviceType") == "ebs" and "Platform" not in one]
    made = ec2.run_instances(
        ImageId=plain[0]["ImageId"],
        InstanceType="m5.large",
        MinCount=1,
        MaxCount=1,
        SubnetId=subnet["SubnetId"],
        SecurityGroupIds=[group],
        UserData="#!/bin/sh\n",
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}],
    )
    yield "RunInstances", made
    instance = made["Instances"][0]["InstanceId"]
    yield "DescribeInstances", ec2.describe_instances(InstanceIds=[instance])
    yield "DescribeInstanceStatus", ec2.describe_instance_status(InstanceIds=[instance])
    yield "DescribeTags", ec2.describe_tags()
    interface = ec2.describe_network_interfaces(Filters=[{"Name": "attachment.instance-id", "Values": [instance]}])
    yield "DescribeNetworkInterfaces", interface
    address = ec2.allocate_address(Domain="vpc")
    yield "AllocateAddress", address
    place = {"NetworkInterfaceId": interface["NetworkInterfaces"][0]["NetworkInterfaceId"]}
    yield "AssociateAddress", ec2.associate_address(AllocationId=address["AllocationId"], **place)
    yield "DescribeAddresses", ec2.describe_addresses()
    volume = ec2.create_volume(AvailabilityZone="us-west-2a", Size=10, VolumeType="gp3")
    yield "CreateVolume", volume
    volume = volume["VolumeId"]
    yield "AttachVolume", ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdf")
    yield "DescribeVolumes", ec2.describe_volumes(VolumeIds=[volume])
    yield "DetachVolume", ec2.detach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdf")
    yield "TerminateInstances", ec2.terminate_instances(InstanceIds=[instance])
    key = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBEFk6LZQxjWMFNyuhSYe8Fc3rnqFgY0bZ0F3Cq6jJ1x test"
    yield "ImportKeyPair", ec2.import_key_pair(KeyName="key", PublicKeyMaterial=key)
    yield "DescribeKeyPairs", ec2.describe_key_pairs()


def ask(endpoint, keys):
    ec2, iam, sts = (
        client(service, endpoint, region, **keys)
        for service, region in (("ec2", "us-west-2"), ("iam", "us-east-1"), ("sts", "us-west-2"))
    )
    return {name: paths(answer) for name, answer in steps(ec2, iam, sts)}


def main():
    moto = ThreadedMotoServer("127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    theirs = ask(f"http://{host}:{port}", {})
    moto.stop()
    ours = ask(sys.argv[1], {})
    findings = []
    for name, told in theirs.items():
        missing = told - ours[name]
        allowed = ALLOWED.get(name, {})
        findings += [f"{name}: moto tells {path}" for path in sorted(missing - set(allowed))]
        findings += [f"{name}: {path} needs no excuse" for path in sorted(set(allowed) - missing)]
    for finding in findings:
        print(finding)
    print(f"{len(theirs)} actions compared")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
