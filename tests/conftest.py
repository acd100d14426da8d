"""Shared fixtures."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.door import Clock
    from support.kubeapi.access import FakeCluster

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asyncio only: uvicorn and the Kubernetes client are; anyio gives the structure."""
    return "asyncio"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files anew; what changes there belongs in CHANGELOG.md",
    )
    parser.addoption(
        "--require-node",
        action="store_true",
        help="fail, not skip, the tests that need what `make node` installs",
    )
    parser.addoption(
        "--require-cluster",
        action="store_true",
        help="fail, not skip, the tests that need a Kubernetes where none can be made",
    )


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Whatever a test runs of the command line, which sets up the logs of its whole process."""
    loggers = [logging.getLogger(name) for name in ("", "mcp_gpu", "transports")]
    levels = [each.level for each in loggers]
    handlers = set(loggers[0].handlers)
    yield
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
    for handler in set(loggers[0].handlers) - handlers:
        if type(handler) is logging.StreamHandler:  # pytest's own come and go as it likes
            loggers[0].removeHandler(handler)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Compare what clients see with the promise kept in tests/golden/."""

    def compare(name: str, shown: Any) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(shown, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        assert shown == json.loads(path.read_text(encoding="utf-8"))

    return compare


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What is known of tokens and rights ages by this clock."""
    from support.door import Clock

    return Clock(monkeypatch)


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeCluster]:
    """This process is a pod of a cluster that says who is who and who may what."""
    from support.kubeapi.access import FakeCluster

    fake = FakeCluster(tmp_path)
    async with fake.running(monkeypatch):
        yield fake
