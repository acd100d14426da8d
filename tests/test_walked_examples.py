"""The examples of docs/adding-a-tool.md and docs/adding-a-transport.md work as they stand there."""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import anyio
import pytest

DOCS = Path(__file__).parent.parent / "docs"

SECONDS = 60


def examples(page: str) -> dict[str, str]:
    """The files that a page shows, by path."""
    text = (DOCS / page).read_text(encoding="utf-8")
    shown = re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return dict(shown)


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: a Unix socket's path has to be shorter than pytest makes them.
    with tempfile.TemporaryDirectory(prefix="example-") as made:
        yield Path(made)


def imported(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "tests"), [("adding-a-tool.md", 3), ("adding-a-transport.md", 3)])
async def test_an_example_works_as_it_is_told(
    page: str, tests: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = 0
    for shown, source in examples(page).items():
        path = folder / shown.replace("/", "-")
        path.write_text(source, encoding="utf-8")
        name = shown.removesuffix(".py").replace("/", ".")
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # gone again after the test
        module = imported(name, path)
        for test in [each for key, each in vars(module).items() if key.startswith("test_")]:
            given = {"folder": folder} if "folder" in inspect.signature(test).parameters else {}
            with anyio.fail_after(SECONDS):
                if inspect.iscoroutinefunction(test):
                    await test(**given)
                else:
                    test(**given)
            ran += 1
    assert ran == tests
