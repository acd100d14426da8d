"""The project's own Dockerfile, run here without a registry, and what it makes, run on a node."""

from __future__ import annotations

from pathlib import Path

from cluster.cluster import Cluster
from cluster.images import build_image, sent_to_builder

ROOT = Path(__file__).parents[2]


def test_the_dockerfile_makes_an_image_that_every_node_runs(own_cluster: Cluster) -> None:
    image = build_image(ROOT)
    own_cluster.load_image(image)
    for node in own_cluster.nodes:
        name = f"image-on-{node}"
        placed = f'--overrides={{"spec": {{"nodeName": "{node}"}}}}'
        start = ["run", name, f"--image={image.name}", "--restart=Never", placed]
        own_cluster.kubectl(*start, "--image-pull-policy=Never", "--", "--version")
        done = ["wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded"]
        try:
            own_cluster.kubectl(*done, "--timeout=60s", timeout=70)
            assert own_cluster.kubectl("logs", name).startswith("mcp-gpu ")
        finally:
            own_cluster.kubectl("delete", "pod", name, "--grace-period=0")


def test_a_build_sees_what_dockerignore_lets_in_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("*\n!kept\n!README.md\n**/__pycache__\n")
    wanted = ["README.md", "kept/deep/module.py", "kept/module.py"]
    for name in [*wanted, "other.md", "kept/__pycache__/module.pyc", "other/kept.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert [str(p.relative_to(tmp_path)) for p in sent_to_builder(tmp_path)] == wanted
