"""What the documentation says is what the program does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from mcp_gpu import __version__, cli
from mcp_gpu.gpu.actions import ACTIONS
from mcp_gpu.gpu.health.assess import GPU_CHECKS, NODE_CHECKS
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.registry import Arguments
from mcp_gpu.settings.base import PREFIX
from mcp_gpu.tools import (
    allocation,
    fleet_allocation,
    fleet_health,
    fleet_inventory,
    fleet_node,
    fleet_processes,
    fleet_timeline,
    fleet_topology,
    fleet_xids,
    health,
    inventory,
    node,
    processes,
    topology,
    xids,
)
from mcp_gpu.tools.check_connectivity import ConnectivityArguments
from mcp_gpu.tools.explain_failure import FailureArguments
from mcp_gpu.tools.explain_xid import ExplainArguments
from mcp_gpu.tools.incident import IncidentArguments
from mcp_gpu.tools.timeline_model import TimelineArguments
from mcp_gpu.variables import unknown_variables
from mcp_gpu.workloads.failure.model import Category

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
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)\b", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def anchors(page: Path) -> set[str]:
    """What may follow the # of a link to a page: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target) | named_in(target), link


def named_in(page: Path) -> set[str]:
    """Anchors that a page sets itself."""
    return set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text(encoding="utf-8")))


TOOLS: dict[str, tuple[type[Arguments], ...]] = {
    "get_gpu_health": (health.AgentArguments, fleet_health.GatewayArguments),
    "get_gpu_inventory": (inventory.AgentArguments, fleet_inventory.GatewayArguments),
    "get_gpu_processes": (processes.AgentArguments, fleet_processes.GatewayArguments),
    "get_nvlink_topology": (topology.AgentArguments, fleet_topology.GatewayArguments),
    "describe_gpu_node": (node.AgentArguments, fleet_node.GatewayArguments),
    "analyze_xid_errors": (xids.AgentArguments, fleet_xids.GatewayArguments),
    "get_pod_gpu_allocation": (allocation.AgentArguments, fleet_allocation.GatewayArguments),
    "get_gpu_timeline": (TimelineArguments, fleet_timeline.GatewayArguments),
    "explain_xid": (ExplainArguments,),
    "explain_failure": (FailureArguments,),
    "get_incident_report": (IncidentArguments,),
    "check_connectivity": (ConnectivityArguments,),
}


def test_every_argument_of_every_tool_is_documented() -> None:
    text = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    told = {section.partition("\n")[0].strip("`"): section for section in sections}
    assert told.keys() == TOOLS.keys()
    for name, arguments in TOOLS.items():
        for argument in {field for each in arguments for field in each.model_fields}:
            assert f"`{argument}`" in told[name], f"{name}: {argument}"


def test_every_category_of_failure_is_documented() -> None:
    text = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    _, table = text.split("| category | means |\n|---|---|\n")
    rows = re.findall(r"\| `(\w+)` \| \S.* \|\n", table.partition("\n\n")[0] + "\n")
    assert rows == list(get_args(Category))


def test_one_version_everywhere() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in pyproject
