#!/usr/bin/env python3
"""Stands in for the agent: says what the machine has, and listens."""

import fcntl
import json
import os
import socket
import sys


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


def discover():
    gpus = [
        {
            "vendor": "nvidia",
            "name": "H100",
            "memory_mib": 81920,
            "index": index,
            "uuid": f"GPU-{index}",
            "pci": None,
            "numa_node": None,
        }
        for index in range(4)
    ]
    print(
        json.dumps(
            {
                "hostname": "stub",
                "cpu_arch": "x86",
                "cpus": 8,
                "memory_bytes": 32 << 30,
                "disk_available_bytes": 400 << 30,
                "gpus": gpus,
            }
        )
    )


def host():
    home = option("--home")
    # A test may say why the agent cannot start.
    trouble = os.path.join(os.path.dirname(home), "trouble")
    if os.path.exists(trouble):
        sys.exit(open(trouble).read())
    lock = open(os.path.join(home, "agent.lock"), "a")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(os.path.join(home, "starts"), "a") as starts:
        print(json.dumps({"args": sys.argv[1:], "env": dict(os.environ)}), file=starts)
    path = option("--socket")
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    while True:
        listener.accept()[0].close()


def clean():
    # Beside the program, because homes go away.
    path = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "cleaned")
    with open(path, "a") as cleaned:
        print(json.dumps(sys.argv[1:]), file=cleaned)
    # A test may say why containers run on.
    refusal = os.path.join(os.path.dirname(path), "refusal")
    if os.path.exists(refusal):
        sys.exit(open(refusal).read())


roles = {
    "discover": discover,
    "host": host,
    "remove-containers": clean,
    "remove-network": clean,
}
roles[sys.argv[1]]()
