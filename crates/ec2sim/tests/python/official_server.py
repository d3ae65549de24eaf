"""Lets the official server 0.22.5 provision a fleet of two EFA machines against the simulator, and end it again.

    python official_server.py ENDPOINT DSTACK FOLDER

DSTACK is the program of an environment with `dstack[server,aws]`; FOLDER is empty. Nothing leaves this machine: the
catalog of prices is a file, and the endpoint of AWS is the simulator. What the simulator has seen is printed as JSON.
"""

import csv
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile

ENDPOINT, DSTACK, FOLDER = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
TOKEN = "00000000-1111-4222-8333-444444444444"
PROVIDERS = ("aws", "azure", "verda", "gcp", "lambdalabs", "nebius", "oci", "runpod", "cloudrift")
COLUMNS = (
    "instance_name location price cpu memory gpu_count gpu_name gpu_memory spot disk_size gpu_vendor flags cpu_arch"
    " provider_data"
).split()
OFFER = {
    "instance_name": "p5.48xlarge",
    "location": "us-west-2",
    "price": "55.04",
    "cpu": "192",
    "memory": "2048.0",
    "gpu_count": "8",
    "gpu_name": "H100",
    "gpu_memory": "80.0",
    "spot": "False",
    "disk_size": "",
    "gpu_vendor": "nvidia",
    "flags": "",
    "cpu_arch": "x86",
    "provider_data": "{}",
}
CONFIG = """
projects:
- name: main
  backends:
    - type: aws
      creds:
        type: default
      regions: ["us-west-2"]
      public_ips: false
      vpc_name: my-vpc
      os_images:
        nvidia:
          name: Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241115
          owner: 898082745236
          user: ubuntu
"""
FLEET = """
type: fleet
name: my-efa-fleet
nodes: 2
placement: cluster
resources:
  gpu: H100:8
"""


def write_catalog(folder):
    for provider in PROVIDERS:
        rows = io.StringIO()
        writer = csv.DictWriter(rows, COLUMNS)
        writer.writeheader()
        if provider == "aws":
            writer.writerow(OFFER)
        place = folder / provider / "1"
        place.mkdir(parents=True)
        (folder / provider / "version").write_text("1")
        with zipfile.ZipFile(place / "catalog.zip", "w") as archive:
            archive.writestr(f"{provider}.csv", rows.getvalue())


def look(name):
    return json.load(urllib.request.urlopen(f"{ENDPOINT}/_ec2sim/{name}", timeout=10))


def wait_for(what, seconds, holds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.2)
    raise SystemExit(f"{what} did not happen within {seconds} s: {look('counts')}")


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment():
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(FOLDER),
        "AWS_ENDPOINT_URL": ENDPOINT,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_EC2_METADATA_DISABLED": "true",
        "GPUHUNT_CATALOG_URL": (FOLDER / "catalog").as_uri(),
        "DSTACK_SERVER_DIR": str(FOLDER / "server"),
        "DSTACK_SERVER_LOG_LEVEL": "INFO",
        "COLUMNS": "200",
    }


def prepare():
    write_catalog(FOLDER / "catalog")
    (FOLDER / "server").mkdir()
    (FOLDER / "server" / "config.yml").write_text(CONFIG)
    (FOLDER / "fleet.dstack.yml").write_text(FLEET)
    # The client asks the world for news once a day; this says that it has.
    check = FOLDER / ".cache" / ".dstack" / "cli" / "last_check"
    check.parent.mkdir(parents=True)
    check.touch()


def provision(url, client):
    client(["project", "add", "--name", "main", "--url", url, "--token", TOKEN, "-y"])
    started = time.monotonic()
    client(["apply", "-f", "fleet.dstack.yml", "-y", "-d"])
    times = []
    for number in (1, 2):
        wait_for(f"launch {number}", 90, lambda: look("counts").get("RunInstances", 0) >= number)
        times.append(round(time.monotonic() - started, 1))
    wait_for("both machines", 30, lambda: kinds(look("orphans")).get("instance") == 2)
    made = look("orphans")
    # The server must have looked at its second machine, or its row is not written yet.
    wait_for("a look at the machines", 30, lambda: look("counts").get("DescribeInstances", 0) >= 3)
    # While it is busy with an instance, it refuses.
    wait_for("the order to delete", 90, lambda: client(["fleet", "delete", "my-efa-fleet", "-y"], may_fail=True))
    wait_for("the end of both machines", 90, lambda: "instance" not in kinds(look("orphans")))
    wait_for("the end of the placement group", 60, lambda: "placement-group" not in kinds(look("orphans")))
    return {"launched_after_s": times, "made": kinds(made), "left": kinds(look("orphans")), "counts": look("counts")}


def kinds(entries):
    counts = {}
    for entry in entries:
        counts[entry["kind"]] = counts.get(entry["kind"], 0) + 1
    return counts


def main():
    prepare()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [DSTACK, "server", "--host", "127.0.0.1", "--port", str(port), "--token", TOKEN, "-y"]
    log = open(FOLDER / "server.log", "w")
    server = subprocess.Popen(command, env=environment(), cwd=FOLDER, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def client(args, may_fail=False):
        done = subprocess.run(
            [DSTACK, *args], env=environment(), cwd=FOLDER, capture_output=True, text=True, timeout=120
        )
        if may_fail:
            return done.returncode == 0
        if done.returncode:
            raise SystemExit(f"`dstack {' '.join(args)}` failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    try:
        wait_for("the server's first answer", 60, lambda: server.poll() is not None or answers(f"{url}/healthcheck"))
        print(json.dumps(provision(url, client)))
    except BaseException:
        sys.stderr.write((FOLDER / "server.log").read_text()[-6000:])
        raise
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


if __name__ == "__main__":
    main()
