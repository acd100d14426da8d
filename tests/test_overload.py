"""A real gateway under more clients than it takes on, a short version of `make overload`."""

import json
from pathlib import Path

import anyio
import httpx
import pytest

from bench.overload import Crowd, request_of
from support.cluster import cluster
from support.wire import PATIENCE_SECONDS

CLIENTS = 40
SLOW = 10
CALLS = 2

FLEET = '[[nodes]]\nname = "a"\nprofile = "t4"\n'

FEW = ("--max-requests-inflight", "2", "--max-requests-waiting", "8")
PATIENT = [
    word
    for name in ("node-deadline", "call-deadline", "probe-timeout", "request-wait")
    for word in (f"--{name}-seconds", str(PATIENCE_SECONDS))
]
"""What a busy machine takes is not the question."""


def right(body: bytes) -> bool:
    coverage = json.loads(body)["result"]["structuredContent"]["coverage"]
    return bool(coverage["nodes_answered"] == 1)


@pytest.mark.skipif("sys.platform != 'linux'", reason="only Linux has all of 127.0.0.0/8")
async def test_a_crowd_is_answered_or_sent_away_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, FLEET, *FEW, *PATIENT) as here:
        await here.ask()
        crowd = Crowd(here.gateway.port, request_of("get_gpu_inventory"), right, heeds=0.1)
        with anyio.fail_after(6 * PATIENCE_SECONDS):
            async with anyio.create_task_group() as slow:
                for number in range(SLOW):
                    slow.start_soon(crowd.dawdle, number)
                async with anyio.create_task_group() as healthy:
                    for number in range(SLOW, CLIENTS):
                        healthy.start_soon(crowd.hurry, number, CALLS)
                slow.cancel_scope.cancel()
        assert crowd.seen.wrong == []
        assert crowd.seen.broken == 0
        assert crowd.seen.statuses.keys() == {200, 429}
        assert crowd.seen.statuses[200] == (CLIENTS - SLOW) * CALLS
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
            assert (await client.get(f"{here.gateway.url}/readyz")).status_code == 200
        assert (await here.ask())["coverage"]["nodes_answered"] == 1
        assert await here.gateway.end() == 0
        assert "Traceback" not in here.gateway.log.read_text()
