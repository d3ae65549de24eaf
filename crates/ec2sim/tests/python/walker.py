"""Walks answers against botocore's output shapes.

botocore's own parser takes anything: an element that it has no name for is dropped, a text that is no number fails late
or never, and a member that is missing is missing. Here each of these is a finding. The raw body is looked at, before
the parser has had it.
"""

import json
import re
import xml.etree.ElementTree as ElementTree

import boto3
from botocore.config import Config

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def client(service, endpoint, region="us-west-2", **options):
    config = Config(retries={"max_attempts": 0, "mode": "standard"}, read_timeout=20)
    options = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, **options}
    return boto3.client(service, endpoint_url=endpoint, region_name=region, config=config, **options)


class Walker:
    """Watches clients, and keeps what is wrong with the answers that they get."""

    def __init__(self):
        self.findings = []
        self.answered = set()

    def watch(self, client):
        client.meta.events.register("before-parse", self.before_parse)
        return client

    def before_parse(self, operation_model, response_dict, **_):
        service = operation_model.service_model
        name = f"{service.service_name}.{operation_model.name}"
        body = response_dict["body"]
        if response_dict["status_code"] >= 300:
            self.walk_refusal(name, service.metadata["protocol"], body)
            return
        self.answered.add(operation_model.name)
        output = operation_model.output_shape
        if service.metadata["protocol"] == "json":
            kind = response_dict["headers"].get("content-type", "")
            if not kind.startswith("application/x-amz-json-1."):
                self.find(name, f"is answered as {kind}")
            self.walk_json(name, output, json.loads(body))
            return
        root = strip_namespace(ElementTree.fromstring(body), self, name)
        if root.tag != f"{operation_model.name}Response":
            self.find(name, f"is answered in <{root.tag}>")
        if service.metadata["protocol"] == "ec2":
            request_id = root.find("requestId")
            if request_id is None:
                return self.find(name, "has no <requestId>")
            root.remove(request_id)
            if output is None:
                return [self.find(name, f"has <{child.tag}>") for child in root if child.tag != "return"]
            self.walk_xml(name, output, root)
            return
        if [child.tag for child in root] != [f"{operation_model.name}Result", "ResponseMetadata"]:
            return self.find(name, f"has {[child.tag for child in root]}")
        self.walk_xml(name, output, root[0])

    def walk_refusal(self, name, protocol, body):
        if protocol == "json":
            refusal = json.loads(body)
            if not refusal.get("__type") or "message" not in refusal:
                self.find(name, f"is refused with {refusal}")
            return
        root = ElementTree.fromstring(body)
        for element in root.iter():
            element.tag = element.tag.rsplit("}")[-1]
        paths = {
            "ec2": ("Response", "Errors/Error/Code", "Errors/Error/Message", "RequestID"),
            "query": ("ErrorResponse", "Error/Code", "Error/Message", "RequestId"),
        }[protocol]
        if root.tag != paths[0] or any(root.find(path) is None for path in paths[1:]):
            self.find(name, f"is refused with {body!r}")

    def find(self, path, what):
        self.findings.append(f"{path} {what}")

    def walk_xml(self, path, shape, element):
        if element.text and element.text.strip() and shape.type_name in ("structure", "list"):
            self.find(path, f"has the text {element.text!r}")
        if shape.type_name == "structure":
            names = {
                member.serialization.get("name", name): (name, member) for name, member in shape.members.items()
            }
            seen = set()
            for child in element:
                if child.tag not in names:
                    self.find(path, f"has <{child.tag}>, which the shape {shape.name} has not")
                    continue
                if child.tag in seen:
                    self.find(path, f"has <{child.tag}> twice")
                seen.add(child.tag)
                name, member = names[child.tag]
                self.walk_xml(f"{path}.{name}", member, child)
        elif shape.type_name == "list":
            item = shape.member.serialization.get("name", "member")
            for child in element:
                if child.tag != item:
                    self.find(path, f"has items in <{child.tag}> and not in <{item}>")
                self.walk_xml(path, shape.member, child)
        else:
            if len(element):
                self.find(path, "is no plain value")
            self.walk_text(path, shape, element.text or "")

    def walk_text(self, path, shape, text):
        fits = {
            "string": lambda: True,
            "blob": lambda: True,
            "integer": lambda: re.fullmatch(r"-?\d+", text),
            "long": lambda: re.fullmatch(r"-?\d+", text),
            "double": lambda: re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text),
            "float": lambda: re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text),
            "boolean": lambda: text in ("true", "false"),
            "timestamp": lambda: TIME.fullmatch(text),
        }[shape.type_name]()
        if not fits:
            self.find(path, f"is {text!r}, which is no {shape.type_name}")
        self.walk_enum(path, shape, text)

    def walk_enum(self, path, shape, text):
        if getattr(shape, "enum", None) and text not in shape.enum:
            self.find(path, f"is {text!r}, which is none of {shape.name}")

    def walk_json(self, path, shape, value):
        if shape.type_name == "structure":
            if not isinstance(value, dict):
                return self.find(path, "is no object")
            for name, inner in value.items():
                if name not in shape.members:
                    self.find(path, f"has {name}, which the shape {shape.name} has not")
                else:
                    self.walk_json(f"{path}.{name}", shape.members[name], inner)
        elif shape.type_name == "list":
            if not isinstance(value, list):
                return self.find(path, "is no list")
            for inner in value:
                self.walk_json(path, shape.member, inner)
        else:
            kinds = {
                "string": str, "blob": str, "integer": int, "long": int, "double": (int, float),
                "float": (int, float), "boolean": bool, "timestamp": (int, float),
            }
            if not isinstance(value, kinds[shape.type_name]):
                self.find(path, f"is {value!r}, which is no {shape.type_name}")
            elif isinstance(value, str):
                self.walk_enum(path, shape, value)


def strip_namespace(root, walker, name):
    namespace = root.tag.partition("}")[0].lstrip("{")
    if not re.fullmatch(r"https?://(ec2|sts|iam)\.amazonaws\.com/doc/\d{4}-\d\d-\d\d/", namespace):
        walker.find(name, f"is in the namespace {namespace!r}")
    for element in root.iter():
        element.tag = element.tag.rsplit("}")[-1]
    return root


def paths(value, path=""):
    """The paths of all members of a parsed answer that hold something."""
    found = set()
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "ResponseMetadata":
                continue
            below = f"{path}.{name}" if path else name
            found |= paths(inner, below) if isinstance(inner, (dict, list)) else {below}
    elif isinstance(value, list):
        for inner in value:
            found |= paths(inner, path) if isinstance(inner, (dict, list)) else {path}
    return found
