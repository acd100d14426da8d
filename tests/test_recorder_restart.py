"""A real agent that ends and starts again still knows what its GPUs did, by its file."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from support.cluster import Running, clean_up
from support.ports import free_ports
from support.results import data

LIMIT_SECONDS = 60


async def timeline(running: Running, **arguments: Any) -> dict[str, Any]:
    async with Client(f"{running.url}/mcp", mode="2026-07-28") as client:
        answer = await client.call_tool("get_gpu_timeline", arguments)
    return data(answer)


async def known(running: Running, **arguments: Any) -> int:
    """How many points of two minutes, up to now unless told otherwise, have a reading."""
    asked = {"gpu": 0, "window": "2m", "metrics": ["power_draw_watts"], "points": 60}
    (gpu,) = (await timeline(running, **asked | arguments))["gpus"]
    return sum(value is not None for series in gpu["series"] for value in series["values"])


@pytest.mark.parametrize("keeps", [True, False])
async def test_what_was_before_a_restart_is_there_where_a_folder_is_named(
    tmp_path: Path, keeps: bool
) -> None:
    (port,) = free_ports(1)
    arguments = ["agent", "--node-name", "h100-a", "--simulate", "demo", "--http-port", str(port)]
    arguments += ["--http-host", "127.0.0.1", "--socket", str(tmp_path / "run" / "agent.sock")]
    arguments += ["--fast-seconds", "0.2"]
    if keeps:
        arguments += ["--recorder-directory", str(tmp_path / "kept")]
    agent = Running(arguments, port, tmp_path / "agent.log")
    try:
        await agent.start()
        with anyio.fail_after(LIMIT_SECONDS):
            while await known(agent) < 4:
                await anyio.sleep(0.2)  # cells fill as time passes
        # No cell of these times is open any more.
        earlier = (datetime.now(UTC) - timedelta(seconds=4)).isoformat()
        assert await known(agent, until=earlier)
        assert await agent.end(signal.SIGTERM) == 0
        await agent.start()
        with anyio.fail_after(LIMIT_SECONDS):
            while not await known(agent):
                await anyio.sleep(0.05)
        after = await known(agent, until=earlier)
    finally:
        await clean_up(agent)
    assert (after > 0) is keeps
    assert (tmp_path / "kept" / "timeline").exists() is keeps
