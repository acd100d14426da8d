"""Shared fixtures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
