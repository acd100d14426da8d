"""Claude Code itself, over what `mcp-gpu install` writes."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest

from support import node
from support.cluster import cluster
from support.home import home_of

FLEET = '[[nodes]]\nname = "h100-a"\nprofile = "h100"\n'

TOKEN = "t-0123456789abcdef"

LIST_SECONDS = 90
"""Bound for it on a busy machine; it takes 8 s, of which it waits most."""


@pytest.mark.node
async def test_claude_code_connects_over_both_transports(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node.require(request.config, node.CLAUDE)
    home = home_of(tmp_path / "home", capsys, monkeypatch)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    async with cluster(tmp_path, FLEET, "--token-file", str(token)) as running:
        agents = str(tmp_path / "agents.toml")
        url = f"{running.gateway.url}/mcp"
        home.write("claude", b'{"mcpServers": {"gone": {"command": "/none"}}}')
        for name, *flags in (
            ("local", "--agents-file", agents),
            ("remote", "--url", url, "--token-variable", "GPU_TOKEN"),
            ("stranger", "--url", url, "--token-variable", "OTHER_TOKEN"),
        ):
            done = home.run("install", "claude", "--name", name, *flags, "--yes")
            assert done.status == 0, done.err
        environment = node.environment(home.folder) | {
            "GPU_TOKEN": TOKEN,
            "OTHER_TOKEN": "wrong",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        with anyio.fail_after(LIST_SECONDS):
            listed = await anyio.run_process(
                [str(node.CLAUDE), "mcp", "list"], check=False, env=environment, cwd=home.project
            )
    said = re.findall(r"^(\w+): .* - . (\w+)", listed.stdout.decode(), re.MULTILINE)
    assert dict(said) == {
        "gone": "Failed",
        "local": "Connected",
        "remote": "Connected",
        "stranger": "Failed",
    }
