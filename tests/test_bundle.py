"""The bundle for Claude Desktop, as its own tool packs and unpacks it."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client

from mcp_gpu import __version__
from mcp_gpu.settings.base import PREFIX
from mcp_gpu.settings.fleet import GatewaySettings
from support import node

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "requirements" / "mcpb" / "manifest.json"


def test_the_manifest_is_of_this_version_and_sets_what_there_is() -> None:
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    assert manifest["version"] == __version__
    environment = manifest["server"]["mcp_config"]["env"]
    names = {name.removeprefix(PREFIX).lower() for name in environment}
    assert names <= GatewaySettings.model_fields.keys()
    asked = {f"${{user_config.{name}}}" for name in manifest["user_config"]}
    assert asked == set(environment.values())


@pytest.mark.node
async def test_what_is_packed_is_valid_and_serves(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    node.require(request.config, node.MCPB)
    bundle, folder = tmp_path / "mcp-gpu.mcpb", tmp_path / "unpacked"
    environment = node.environment(tmp_path)
    with anyio.fail_after(180):
        build = [
            sys.executable,
            str(ROOT / "requirements" / "mcpb" / "build.py"),
            str(node.MCPB),
            str(bundle),
        ]
        built = await anyio.run_process(build, env=environment, check=False)
        assert built.returncode == 0, built.stderr.decode()
        assert "Manifest schema validation passes!" in built.stdout.decode()
        unpack = [str(node.MCPB), "unpack", str(bundle), str(folder)]
        await anyio.run_process(unpack, env=environment)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert f"mcp_gpu-{__version__}.dist-info/entry_points.txt" in found
    assert not [name for name in found if "__pycache__" in name or name.startswith("tests")]
    # Every line is a version: nothing else is installed than what is tested here.
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert all("==" in line for line in project["dependencies"])

    manifest = json.loads((folder / "manifest.json").read_text())
    server = StdioServerParameters(
        command=sys.executable,
        args=[manifest["server"]["entry_point"], "--agents", "a=127.0.0.1:1"],
        env={
            "HOME": str(tmp_path),
            "PATH": os.defpath,
            **dict.fromkeys(manifest["server"]["mcp_config"]["env"], ""),
        },
        cwd=folder,
    )
    with anyio.fail_after(60):
        async with Client(stdio_client(server)) as client:
            assert "get_gpu_health" in [tool.name for tool in (await client.list_tools()).tools]
