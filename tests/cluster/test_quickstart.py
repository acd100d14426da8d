"""docs/quickstart.md on a cluster, followed to the letter."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cluster.cluster import Cluster
from cluster.release import image, removed
from support.ports import free_ports
from support.walk import ROOT, blocks, follow

PAGE = ROOT / "docs" / "quickstart.md"

SECONDS = 360
"""Bound for one block: two rollouts of which either may take what the page gives it."""

DOCKER = """#!/bin/sh
# Stands for Docker, which is not here: the image is built already and on every node.
case "$*" in
"build -t {name} .") ;;
"push {name}") ;;
*) echo "docker: not as expected: $*" >&2; exit 1 ;;
esac
"""


def test_the_quickstart_in_a_cluster_does_what_it_says(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    given = blocks(PAGE, "In a cluster")
    (repository,) = re.findall(r"export IMAGE=(\S+)", given[0].commands)
    (tag,) = set(re.findall(r'"\$IMAGE:([^"]+)"', given[0].commands))
    name = f"{repository}:{tag}"
    own_cluster.alias_image(image(own_cluster), name)
    docker = tmp_path / "docker"
    docker.write_text(DOCKER.format(name=name))
    docker.chmod(0o755)
    programs = f"{tmp_path}:{own_cluster.programs}:{os.environ['PATH']}"
    environment = {**own_cluster.environment(), "PATH": programs, "NO_PROXY": "*"}
    (port,) = free_ports(1)
    with removed(own_cluster, "gpu", "gpu"):
        follow(given, environment, port=port, seconds=SECONDS)
