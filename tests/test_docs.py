"""What the documentation says is what the program does."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import get_args

import pytest

from mcp_gpu import __version__, cli
from mcp_gpu.gpu.actions import ACTIONS
from mcp_gpu.gpu.health.assess import GPU_CHECKS, NODE_CHECKS
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.settings.base import PREFIX
from mcp_gpu.variables import unknown_variables
from mcp_gpu.workloads.failure.model import Category
from support.page import anchors, links
from support.walk import blocks

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
MARK = "<!-- settings: written by `make test ARGS=--update-golden` -->\n"


HEALTH = ROOT / "docs" / "health.md"
HEALTH_MARK = "<!-- the rest: written by `make test ARGS=--update-golden` -->\n"


def findings() -> str:
    """Every finding and action there can be, as Markdown."""
    rows = ["\n| action | means |", "|---|---|"]
    rows += [f"| `{name}` | {meaning} |" for name, meaning in ACTIONS.items()]
    rows += [
        "\n## Findings\n",
        "| code | severity | meaning | action | source |",
        "|---|---|---|---|---|",
    ]
    for code in sorted(CODES.values(), key=lambda code: code.name):
        actions = ", ".join(f"`{action}`" for action in code.actions)
        cells = (f"`{code.name}`", ", ".join(code.severities), code.meaning, actions, code.source)
        rows.append(f"| {' | '.join(cells)} |")
    rows.append("\n## Checks\n\nThe names that `not_checked` uses.\n")
    for whose, checks in (("a GPU", GPU_CHECKS), ("a node", NODE_CHECKS)):
        rows.append(f"- Of {whose}: {', '.join(f'`{name}`' for name in checks)}.")
    rows.append("- Of a GPU that cannot be read at all: `readings`.")
    return "\n".join(rows) + "\n"


def test_every_finding_is_documented(request: pytest.FixtureRequest) -> None:
    written, mark, _ = HEALTH.read_text(encoding="utf-8").partition(HEALTH_MARK)
    assert mark
    if request.config.getoption("--update-golden"):
        HEALTH.write_text(written + mark + findings(), encoding="utf-8")
    assert HEALTH.read_text(encoding="utf-8") == written + mark + findings()


def tables() -> str:
    """Every command's settings as Markdown."""
    parts = []
    for name, command in cli.COMMANDS.items():
        cli.describe(command.settings)
        summary = (command.settings.__doc__ or "").strip()
        rows = ["| variable | default | meaning |", "|---|---|---|"]
        for field_name, field in command.settings.model_fields.items():
            assert field.description, f"{name}: setting {field_name} has no docstring"
            default = "" if field.default_factory else field.default
            shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
            empty = shown in (None, "", {})
            meaning = " ".join(field.description.split()).replace("|", "\\|")
            default_cell = "" if empty else f"`{shown}`"
            variable = f"{PREFIX}{field_name.upper()}"
            rows.append(f"| `{variable}` | {default_cell} | {meaning} |")
        parts.append(f"\n## `mcp-gpu {name}`\n\n{summary}\n\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def test_every_setting_is_documented(request: pytest.FixtureRequest) -> None:
    written, mark, _ = CONFIGURATION.read_text(encoding="utf-8").partition(MARK)
    assert mark
    if request.config.getoption("--update-golden"):
        CONFIGURATION.write_text(written + mark + tables(), encoding="utf-8")
    assert CONFIGURATION.read_text(encoding="utf-8") == written + mark + tables()


def test_no_setting_takes_a_name_that_kubernetes_uses() -> None:
    """A Service `mcp-gpu` puts these into every pod of its namespace."""
    links = {
        f"MCP_GPU_{part}{end}": "x"
        for part in ("", "GATEWAY_", "AGENT_", "AGENTS_")
        for end in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP",
                    "PORT_8080_TCP_ADDR")
    }  # fmt: skip
    known = {
        f"MCP_GPU_{name.upper()}"
        for command in cli.COMMANDS.values()
        for name in command.settings.model_fields
    }
    assert known & links.keys() == set()
    classes = [command.settings for command in cli.COMMANDS.values()]
    assert unknown_variables(classes, links) == []
    assert unknown_variables(classes, {"MCP_GPU_AGENST": "x"}) == ["MCP_GPU_AGENST"]


def test_the_readme_names_only_commands_and_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"mcp-gpu ([a-z]+)", text)) - {"gateway", "agent"}
    assert used <= {*cli.COMMANDS, "attach"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)\b", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_found_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    reached, ahead = set(), [index]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            named = (
                link.partition("#")[0] for link in links(page) if not re.match(r"[a-z]+:", link)
            )
            there = [(page.parent / name).resolve() for name in named if name.endswith(".md")]
            ahead += [target for target in there if target.exists()]
    assert {page for page in PAGES if page.is_relative_to(index.parent)} <= reached


def test_the_picture_shows_what_the_quickstart_does() -> None:
    """Which a test follows: so a picture of what the demo no longer prints is found out."""
    svg = (ROOT / "docs" / "pictures" / "demo.svg").read_text(encoding="utf-8")
    pictured = "".join(html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)", svg))
    first = blocks(ROOT / "docs" / "quickstart.md", "Without a cluster")[0]
    # Where lines are broken and columns begin is the terminal's affair.
    parts = "".join(f"${first.commands}{first.shown}".split()).split("...")
    pattern = ".*?".join(map(re.escape, parts))
    assert re.search(pattern, "".join(pictured.split()))


def test_every_threat_names_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = text.partition("## Threats")[2].partition("## What remains")[0]
    threats = [line.split(" | ") for line in table.splitlines() if line.startswith("| **")]
    assert threats
    for name, stopped, shown in threats:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", shown)
        assert stopped, name
        assert named, name
        for file, test in named:
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^(?:async )?def {test}\(", source, re.M), test


KNOWN = {
    f"{PREFIX}{name.upper()}"
    for command in cli.COMMANDS.values()
    for name in command.settings.model_fields
}

OTHERS = re.compile(r"MCP_GPU_(TEST_KUBECONFIG|CLUSTER|PORT|SERVICE_HOST|POD_\w+|NODE_\w+)")
"""What the tests read, and what Kubernetes and the chart make."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_variables_that_are_read(page: Path) -> None:
    if page.name != "CHANGELOG.md":
        named = set(re.findall(r"\bMCP_GPU_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
        assert {name for name in named - KNOWN if not OTHERS.fullmatch(name)} == set()


def test_every_category_of_failure_is_documented() -> None:
    text = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    _, table = text.split("| category | means |\n|---|---|\n")
    rows = re.findall(r"\| `(\w+)` \| \S.* \|\n", table.partition("\n\n")[0] + "\n")
    assert rows == list(get_args(Category))


def test_one_version_everywhere() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in pyproject
