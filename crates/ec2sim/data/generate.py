"""Makes the files beside this one from what AWS publishes about its own services.

Run it with a Python that has botocore and moto (the environment that `cargo xtask test` prepares has both):

    python generate.py

`model.json`: names, types and shapes of the actions that the simulator answers, and the filters that it takes, from
botocore's service models. `types.json`: instance types as DescribeInstanceTypes tells them, and `offerings.json`: where
they are offered, from AWS's answers that moto bundles. Both packages are published under the Apache License 2.0.
Prices are in `prices.csv`, which is not made here.
"""

import csv
import gzip
import html
import json
import pathlib
import re
from importlib.metadata import version

import botocore
import moto

HERE = pathlib.Path(__file__).parent

ACTIONS = {
    "ec2": """
        DescribeRegions DescribeAvailabilityZones DescribeInstanceTypes DescribeInstanceTypeOfferings DescribeImages
        DescribeVpcs DescribeSubnets DescribeRouteTables DescribeInternetGateways DescribeNatGateways
        DescribeSecurityGroups DescribeSecurityGroupRules CreateSecurityGroup DeleteSecurityGroup
        AuthorizeSecurityGroupIngress AuthorizeSecurityGroupEgress RevokeSecurityGroupIngress
        RevokeSecurityGroupEgress ImportKeyPair DescribeKeyPairs DeleteKeyPair CreatePlacementGroup
        DescribePlacementGroups DeletePlacementGroup RunInstances DescribeInstances DescribeInstanceStatus
        DescribeInstanceAttribute DescribeInstanceTopology TerminateInstances GetConsoleOutput CreateTags DeleteTags
        DescribeTags DescribeSpotPriceHistory DescribeSpotInstanceRequests CancelSpotInstanceRequests
        DescribeCapacityReservations DescribeCapacityBlockOfferings PurchaseCapacityBlock AllocateAddress
        AssociateAddress DisassociateAddress ReleaseAddress DescribeAddresses CreateNetworkInterface
        DescribeNetworkInterfaces DeleteNetworkInterface ModifyNetworkInterfaceAttribute CreateVolume DescribeVolumes
        AttachVolume DetachVolume DeleteVolume GetGroupsForCapacityReservation
    """.split(),
    "sts": ["GetCallerIdentity", "AssumeRole"],
    "iam": ["GetInstanceProfile", "GetRole", "SimulatePrincipalPolicy"],
    "service-quotas": ["ListServiceQuotas", "GetServiceQuota"],
    "pricing": ["GetProducts"],
    "ssm": ["GetParameter", "GetParameters"],
}

# Lists of names that AWS adds to each week say nothing about the form of a request.
MOST_VALUES = 40

# Families that the fixed tests and the official server's list of types name.
FAMILIES = ("t2.", "t3.", "m5.", "c5.", "m7i.", "c7i.", "r7i.", "g4dn.", "g5.", "g6.", "g6e.", "gr6.", "g7e.")


def load(path):
    with gzip.open(path) as file:
        return json.load(file)


def newest_model(service):
    folder = pathlib.Path(botocore.__file__).parent / "data" / service
    return load(max(folder.iterdir()) / "service-2.json.gz")


def upper_first(name):
    return name[0].upper() + name[1:]


def filters_of(shape):
    """The names of the filters, which the model tells in its documentation only."""
    for member, what in shape.get("members", {}).items():
        if member in ("Filters", "Filter"):
            text = html.unescape(what.get("documentation", ""))
            names = re.findall(r"<li>\s*<p>\s*<code>([a-z0-9:<>./_-]+)</code>", text)
            return sorted(set(names))
    return None


class Model:
    def __init__(self, service):
        self.source = newest_model(service)
        self.protocol = self.source["metadata"]["protocol"]
        self.shapes = {}

    def input_name(self, member, what):
        if self.protocol == "ec2":
            return what.get("queryName") or upper_first(what.get("locationName") or member)
        return what.get("locationName") or member

    def reference(self, name):
        """The name of a shape that is kept, or of a type where the shape says nothing more."""
        shape = self.source["shapes"][name]
        kind = shape["type"]
        if kind in ("structure", "list", "map"):
            self.keep(name)
            return name
        if "enum" in shape and len(shape["enum"]) <= MOST_VALUES:
            self.shapes[name] = {"enum": shape["enum"]}
            return name
        return kind

    def keep(self, name):
        if name in self.shapes:
            return
        shape = self.source["shapes"][name]
        kept = self.shapes[name] = {}
        if shape["type"] == "structure":
            members = kept["members"] = {}
            for member, what in shape["members"].items():
                output = what.get("locationName") or member
                members[member] = [self.reference(what["shape"]), self.input_name(member, what), output]
            if shape.get("required"):
                kept["required"] = shape["required"]
        elif shape["type"] == "list":
            kept["list"] = self.reference(shape["member"]["shape"])
            kept["item"] = shape["member"].get("locationName", "member")
        else:
            kept["map"] = self.reference(shape["value"]["shape"])

    def compact(self, actions):
        operations = {}
        for action in actions:
            operation = self.source["operations"][action]
            entry = operations[action] = {}
            for side in ("input", "output"):
                if side in operation:
                    name = operation[side]["shape"]
                    self.keep(name)
                    entry[side] = name
            filters = filters_of(self.source["shapes"][operation["input"]["shape"]]) if "input" in operation else None
            if filters is not None:
                entry["filters"] = filters
        metadata = self.source["metadata"]
        return {
            "protocol": self.protocol,
            "version": metadata["apiVersion"],
            "target": metadata.get("targetPrefix", ""),
            "namespace": metadata.get("xmlNamespace", ""),
            "operations": operations,
            "shapes": self.shapes,
        }


def cards_by_run(info):
    """Cards that are alike but for their number are written once, with how many there are."""
    runs = []
    for card in info["NetworkCards"]:
        alike = {key: value for key, value in card.items() if key != "NetworkCardIndex"}
        if runs and runs[-1]["Card"] == alike:
            runs[-1]["Count"] += 1
        else:
            runs.append({"Count": 1, "Card": alike})
    return runs


def known_part(model, name, value):
    """The part of a value that the model has words for: the bundled answers may be newer than the model."""
    shape = model["shapes"][name]
    if shape["type"] == "structure":
        return {
            member: known_part(model, shape["members"][member]["shape"], inner)
            for member, inner in value.items()
            if member in shape["members"]
        }
    if shape["type"] == "list":
        items = (known_part(model, shape["member"]["shape"], inner) for inner in value)
        return [item for item in items if item is not None]
    if "enum" in shape and len(shape["enum"]) <= MOST_VALUES and value not in shape["enum"]:
        return None
    return value


def instance_types(facts):
    model = newest_model("ec2")
    rows = load(pathlib.Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz")
    kept = {}
    for name, row in sorted(rows.items()):
        row = known_part(model, "InstanceTypeInfo", row)
        if not (row["NetworkInfo"].get("EfaSupported") or name.startswith(FAMILIES) or name in facts):
            continue
        row["NetworkInfo"] = {**row["NetworkInfo"], "NetworkCards": cards_by_run(row["NetworkInfo"])}
        kept[name] = row
    return kept


def offerings(names):
    """For each region its zones with their numbers, and for each type the letters of the zones that have it."""
    folder = pathlib.Path(moto.__file__).parent / "ec2/resources/instance_type_offerings/availability-zone"
    regions = {}
    for path in sorted(folder.glob("*.json.gz")):
        region = path.name.removesuffix(".json.gz")
        zones = {}
        for offer in load(path):
            zone = offer["Location"]
            # Local and wavelength zones have longer names, and are no zones of ordinary machines.
            if offer["InstanceType"] in names and re.fullmatch(re.escape(region) + "[a-z]", zone):
                zones.setdefault(offer["InstanceType"], set()).add(zone[-1])
        regions[region] = {name: "".join(sorted(letters)) for name, letters in sorted(zones.items())}
    return regions


def zone_ids():
    from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend

    return {
        region: {zone.name[-1]: zone.zone_id for zone in zones}
        for region, zones in sorted(RegionsAndZonesBackend.zones.items())
    }


def write(name, lines):
    (HERE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def line(key, value):
    return json.dumps(key) + ":" + json.dumps(value, separators=(",", ":"))


def main():
    with (HERE / "prices.csv").open() as file:
        facts = {row["instance_type"] for row in csv.DictReader(file)}
    source = f"botocore {version('botocore')}, Apache License 2.0"
    models = [line("source", source)]
    models += [line(service, Model(service).compact(actions)) for service, actions in ACTIONS.items()]
    write("model.json", models)
    source = f"AWS's answers as bundled in moto {version('moto')}, Apache License 2.0"
    types = instance_types(facts)
    write("types.json", [line("source", source)] + [line(name, row) for name, row in types.items()])
    zones = zone_ids()
    regions = {region: {"zones": zones[region], "types": offers} for region, offers in offerings(types).items()}
    write("offerings.json", [line("source", source)] + [line(name, row) for name, row in regions.items()])


if __name__ == "__main__":
    main()
