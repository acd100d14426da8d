"""The rooms and the doors between them. A new door is a decision: add it here on purpose."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LINES = 420
"""A longer module has outgrown its noun."""

TEXT = "transports.text"
"""What makes strangers' words harmless, wherever they come in."""

WIRE = {"transports.base", "transports.errors", "transports.framing", TEXT}
"""What both ends of the wire must agree on; does no I/O, so everybody may use it."""

FIGURES = "mcp_gpu.telemetry.histogram"
"""What durations are counted with."""

ENDS = {"transports.hosts", "transports.files"}
"""What a server tells apart as a client does: addresses from names, a file from its successor."""

# Who may import what inside the project, besides itself. Longest matching prefix counts.
MAY_IMPORT = {
    "transports": set[str](),
    "mcp_gpu.gpu": {FIGURES, TEXT},
    "mcp_gpu.node": {"mcp_gpu.gpu", TEXT},
    "mcp_gpu.fleet": {"transports", "mcp_gpu.telemetry"},
    "mcp_gpu.workloads": {
        "transports",
        "mcp_gpu.gpu",
        "mcp_gpu.fleet.discovery.nodes",  # what a node object says is read in one place
        "mcp_gpu.fleet.diagnosis.nodes",
    },
    "mcp_gpu.clients": {"mcp_gpu.sockets"},
    "mcp_gpu.sockets": set[str](),
    "mcp_gpu.postponed": set[str](),
    "mcp_gpu.logs": {TEXT, "mcp_gpu.telemetry.calls"},
    "mcp_gpu.telemetry": {"transports.errors", TEXT},
    # Reads the figures that others keep, so that none of them knows what they are kept for.
    "mcp_gpu.telemetry.metrics": {
        "mcp_gpu.telemetry",
        "mcp_gpu.gpu",
        "mcp_gpu.node",
        "mcp_gpu.fleet",
        "transports",
    },
    "mcp_gpu.registry": WIRE | {"mcp_gpu.telemetry"},
    "mcp_gpu.serving": WIRE | ENDS | {"mcp_gpu.telemetry"},
    "mcp_gpu.tools": {
        "mcp_gpu.registry",
        "mcp_gpu.gpu",
        "mcp_gpu.node",
        "mcp_gpu.fleet",
        "mcp_gpu.workloads",
        "mcp_gpu.telemetry.tracing",
        TEXT,
    },
    "mcp_gpu.prompts": {"mcp_gpu.registry", "mcp_gpu.tools", TEXT},
    "mcp_gpu.resources": {
        "mcp_gpu.registry",
        "mcp_gpu.prompts",
        "mcp_gpu.tools",
        "mcp_gpu.gpu",
        "mcp_gpu.fleet",
        TEXT,
    },
    "mcp_gpu.settings": {
        "mcp_gpu.serving.access.model",
        "mcp_gpu.serving.endpoint",
        "mcp_gpu.sockets",
    },
    "mcp_gpu.variables": {"mcp_gpu.settings"},
}
ROLES = {"agent", "sources", "gateway", "demo", "recording", "cli", "attach", "__main__"}
ROLES |= {"status", "top", "health", "topo", "xid", "why", "ps", "doctor"}
ROLES |= {"install", "completion", "plugin"}
ROLES |= {"terminal", "observed"}  # what those share

ONLY_IN = {
    "pynvml": ("mcp_gpu.gpu.nvml", "mcp_gpu.gpu.simulator"),
    "httpx2": (
        "transports.http",
        "transports.exchange",
        "transports.pool",
        "mcp_gpu.serving.access.documents",
    ),
    "httpcore2": ("transports.http", "transports.pool", "transports.portforward"),
    "pydantic_settings": ("mcp_gpu.settings", "mcp_gpu.cli"),
    "rich": (
        "mcp_gpu.status",
        "mcp_gpu.top",
        "mcp_gpu.health",
        "mcp_gpu.topo",
        "mcp_gpu.xid",
        "mcp_gpu.ps",
        "mcp_gpu.doctor",
        "mcp_gpu.why",
        "mcp_gpu.terminal",
        "mcp_gpu.demo",
    ),
    "uvicorn": ("mcp_gpu.serving",),
    "starlette": ("mcp_gpu.serving",),
    "h2": ("mcp_gpu.node.grpc",),
    "prometheus_client": ("mcp_gpu.telemetry.metrics.exposition",),
    "opentelemetry": ("mcp_gpu.telemetry",),
    "jwt": ("mcp_gpu.serving.access.signatures",),
    "kubernetes": ("transports.credentials",),
    "aiohttp": ("transports.kubernetes", "transports.refusals", "transports.websocket"),
}
"""Foreign systems, each behind one door."""

READS_ENVIRONMENT = {
    "mcp_gpu.settings.telemetry",  # OTEL_*, which are OpenTelemetry's and not ours
    "mcp_gpu.settings.fleet",
    "mcp_gpu.variables",  # looks for misspelt settings
    "mcp_gpu.clients.machine",  # where clients are told that their files lie
    "mcp_gpu.sockets",  # `mcp-gpu attach` has no time for pydantic
    "transports.credentials",  # KUBERNETES_SERVICE_HOST, by which a pod knows that it is one
    "transports.program",  # hands its own on to programs that make credentials
    "mcp_gpu.serving.access.cluster_api",  # where Kubernetes says that its API server is
    "mcp_gpu.demo",  # hands its own on to its agents, less what is meant for itself
}


@cache
def modules() -> list[tuple[str, Path]]:
    found = []
    for package in ("mcp_gpu", "transports"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append((name.removesuffix(".__init__"), path))
    return found


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Of a module's source, all of them."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def room(module: str) -> str | None:
    fitting = [package for package in MAY_IMPORT if within(module, package)]
    return max(fitting, key=len, default=None)


def test_a_module_imports_only_what_its_room_may() -> None:
    names = {name for name, _ in modules()}
    wrong = []
    for module, path in modules():
        place = room(module)
        if place is None:
            if module != "mcp_gpu" and module.removeprefix("mcp_gpu.") not in ROLES:
                wrong.append(f"{module} is in no room: give it one, or name it among the roles")
            continue
        doors = {place} | MAY_IMPORT[place]
        wrong += [
            f"{module} imports {imported}; {place} may import {sorted(MAY_IMPORT[place])}"
            for imported in sorted(imports(path) & names - {"mcp_gpu"})
            if not any(within(imported, door) for door in doors)
        ]
    assert wrong == []


@pytest.mark.parametrize(("foreign", "doors"), list(ONLY_IN.items()))
def test_a_foreign_system_has_one_door(foreign: str, doors: tuple[str, ...]) -> None:
    users = {m for m, path in modules() if any(within(i, foreign) for i in imports(path))}
    strangers = {m for m in users if not any(within(m, door) for door in doors)}
    assert strangers == set()
    assert users, f"nobody imports {foreign}: take it out of this list"


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        module
        for module, path in modules()
        if any(
            isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
            for node in nodes(path)
        )
    }
    assert readers == READS_ENVIRONMENT


def test_a_module_is_one_noun() -> None:
    lengths = {m: len(path.read_text(encoding="utf-8").splitlines()) for m, path in modules()}
    assert {module: lines for module, lines in lengths.items() if lines > LINES} == {}


def loaded_by(code: str) -> set[str]:
    script = f"import sys; {code}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_attach_loads_nothing_heavy() -> None:
    loaded = loaded_by("import mcp_gpu.__main__, mcp_gpu.attach")
    heavy = {"mcp", "mcp_types", "pydantic", "kubernetes", "anyio", "httpx2", "asyncio", "argparse"}
    assert loaded & heavy == set()


def test_the_transports_stand_alone() -> None:
    everything = ", ".join(name for name, _ in modules() if within(name, "transports"))
    loaded = loaded_by(f"import {everything}")
    assert {"mcp_gpu", "pynvml", "pydantic_settings"} & loaded == set()


def test_a_command_that_is_not_run_costs_no_protocol() -> None:
    """`--help`, and what is said of a wrong flag: the MCP SDK costs more than all the rest."""
    assert {"mcp", "mcp_types", "httpx2", "rich"} & loaded_by("import mcp_gpu.cli") == set()


def test_a_cluster_is_paid_for_by_those_who_talk_to_one() -> None:
    code = (
        "import asyncio\n"
        "from transports import exec, portforward\n"
        "async def enter():\n"
        "    async with exec.ExecTransport(), portforward.PortForwardTransport(): pass\n"
        "asyncio.run(enter())"
    )
    assert {"kubernetes", "aiohttp"} & loaded_by(f"__builtins__.exec({code!r})") == set()


def tools_of(role: str) -> str:
    """The modules of its tools, which the role imports at their first calls."""
    inside = imports(ROOT / "mcp_gpu" / "tools" / f"{role}.py")
    names = {name for name, _ in modules()}
    return ", ".join(sorted(each for each in inside & names if within(each, "mcp_gpu.tools")))


@pytest.mark.parametrize("role", ["agent", "gateway"])
def test_a_tool_is_paid_for_by_its_first_call(role: str) -> None:
    loaded = loaded_by(f"import mcp_gpu.{role}, mcp_gpu.serving.stdio")
    assert set(tools_of(role).split(", ")) & loaded == set()
    assert {"mcp_gpu.gpu.health.assess", "mcp_gpu.gpu.xid.analysis"} & loaded == set()
    shown = {"prompts.roles", "prompts.guide", "resources.gpus", "resources.xids"}
    shown |= {"registry.completion", "registry.prompt", "registry.resource"}
    assert {f"mcp_gpu.{each}" for each in shown} & loaded == set()


def test_a_gateway_loads_no_gpu_library() -> None:
    loaded = loaded_by(f"import mcp_gpu.gateway, {tools_of('gateway')}")
    strangers = {"pynvml", "mcp_gpu.gpu.nvml", "rich"}
    # A gateway over named agents has no use for a Kubernetes client.
    assert (strangers | {"kubernetes", "aiohttp"}) & loaded == set()


def test_an_agent_loads_no_gateway() -> None:
    loaded = loaded_by(f"import mcp_gpu.agent, {tools_of('agent')}")
    strangers = {
        "mcp_gpu.fleet",
        "mcp_gpu.workloads",
        "transports.http",
        "rich",
        "mcp_gpu.gpu.simulator",
    }
    assert (strangers | {"kubernetes", "aiohttp"}) & loaded == set()


@pytest.mark.parametrize("role", ["agent", "gateway"])
def test_metrics_are_paid_for_by_the_first_scrape(role: str) -> None:
    loaded = loaded_by(f"import mcp_gpu.{role}, mcp_gpu.serving.http")
    assert {"prometheus_client", "mcp_gpu.telemetry.metrics"} & loaded == set()


def test_a_token_is_paid_for_by_those_who_check_it() -> None:
    served = "mcp_gpu.serving.server, mcp_gpu.serving.http"
    loaded = loaded_by(f"import mcp_gpu.agent, mcp_gpu.gateway, {served}")
    access = "mcp_gpu.serving.access"
    ways = {"cluster_api", "cluster_keys", "documents", "keys", "oauth", "reviews", "rights"}
    assert ({f"{access}.{way}" for way in ways} | {"jwt"}) & loaded == set()
    reviewing = loaded_by(f"import {served}, {access}.reviews, {access}.rights")
    assert {"jwt", "kubernetes", "aiohttp"} & reviewing == set()
    signed = loaded_by(f"import mcp_gpu.agent, {served}, {access}.cluster_keys")
    assert {"kubernetes", "aiohttp"} & signed == set()


def test_a_start_reads_no_source() -> None:
    """As pydantic does for models that take their fields' descriptions from it: 20 ms a start."""
    printed = loaded_by("import mcp_gpu.cli, mcp_gpu.agent, linecache; print(*linecache.cache)")
    ours = {str(path) for _, path in modules()}
    assert printed & ours == set()
