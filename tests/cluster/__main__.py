"""The commands of the test cluster, which the Makefile calls."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from cluster.binaries import Unavailable, binaries, missing
from cluster.cluster import Cluster, take_down
from cluster.contents import contents
from cluster.images import build_image
from cluster.plan import Plan
from cluster.remains import remains

ROOT = Path(__file__).parents[2]

LARGEST = 12
"""Packages that `image` prints."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="build Kubernetes, etcd, CoreDNS and Helm; print where")
    verbs.add_parser("up", help="bring the cluster up and keep it")
    verbs.add_parser("down", help="take it down, or what is left of it")
    verbs.add_parser("shell", help="a shell with kubectl and helm for the running cluster")
    verbs.add_parser("image", help="build the project's image; print its layers and packages")
    verbs.add_parser("leftovers", help="count what is there of it; exit 1 if anything is")
    verb = parser.parse_args().verb
    try:
        plan = Plan.chosen()
        if verb in ("build", "up") and (reason := missing()):
            raise Unavailable(reason)
        return int(globals()[f"_{verb}"](plan))
    except (Unavailable, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _build(plan: Plan) -> int:
    print(binaries())
    return 0


def _up(plan: Plan) -> int:
    cluster = Cluster.running(plan)
    if cluster is None:
        cluster = Cluster.up(plan, keep=True)
    elif cluster.owner is not None:
        raise Unavailable(f"process {cluster.owner.pid} is running tests on it, and will end it")
    else:
        print("already up")
    for name, version in cluster.versions().items():
        print(f"{name:12} {version}")
    for name, seconds in cluster.phases.items():
        print(f"{seconds:6.1f} s  {name}")
    print(f"{cluster.memory() / 1e9:.1f} GB of memory")
    print(f"nodes: {', '.join(cluster.nodes)}")
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _down(plan: Plan) -> int:
    take_down(plan)
    return 0


def _shell(plan: Plan) -> int:
    cluster = Cluster.running(plan)
    if cluster is None:
        raise Unavailable("no cluster is running (run: make cluster)")
    path = f"{cluster.programs}:{os.environ['PATH']}"
    environment = os.environ | cluster.environment() | {"PATH": path, "PS1": "cluster$ "}
    print(f"kubectl and helm are for the cluster with the nodes {', '.join(cluster.nodes)}.")
    print(f"On a node: nsenter --net=/run/netns/{plan.prefix}-n1. Leave with exit.")
    return subprocess.run(["sh", "-i"], env=environment).returncode


def _image(plan: Plan) -> int:
    found = contents(build_image(ROOT).archive)
    *below, own = found.layers
    names = [*["base, without a shell"] * len(below), "mcp-gpu"]
    for name, layer in zip(names, (*below, own), strict=True):
        sizes = f"{layer.unpacked / 1e6:7.1f} MB unpacked {layer.compressed / 1e6:6.1f} MB gzipped"
        print(f"{sizes} {len(layer.files):6} files  {name}")
    for name, size in list(found.packages().items())[:LARGEST]:
        print(f"{size / 1e6:7.1f} MB {name}")
    return 0


def _leftovers(plan: Plan) -> int:
    left = remains(plan)
    for kind, things in left.items():
        print(f"{len(things):5} {kind}")
    return 1 if any(left.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
