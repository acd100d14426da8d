"""`/metrics`: every name a promise, and what it says true."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from cryptography import x509

from mcp_gpu.serving.endpoint import Ceilings
from mcp_gpu.serving.limits import Limits
from mcp_gpu.serving.pages import Pages, Readiness
from mcp_gpu.serving.stream import Stop
from mcp_gpu.telemetry.calls import Calls
from mcp_gpu.telemetry.histogram import Histogram
from mcp_gpu.telemetry.metrics import fleet, node, server
from mcp_gpu.telemetry.metrics.family import Metric
from support.chart import ROOT
from support.cluster import Running, cluster
from support.kubeapi.credentials import Authority
from support.metrics import OPENMETRICS, PROMISED, SERIES, Page, faults, promise
from transports.base import Identity

DOCS = ROOT / "docs" / "metrics.md"
MARK = "<!-- the rest: written by `make test ARGS=--update-golden` -->\n"

TEXT = "text/plain; version=0.0.4; charset=utf-8"

FLEET = """
[[nodes]]
name = "sick"
profile = "h100"

[[nodes.faults]]
kind = "lost"
gpu = 3

[[nodes]]
name = "well"
profile = "t4"
"""

HTTPS = {"mcp_gpu_tls_certificate_expiry_timestamp_seconds"}
"""Shown where HTTPS is served."""


@dataclass
class Scraped:
    """Pages of one small fleet: an agent with a lost GPU, another one, and a gateway over both."""

    agent: Page
    gateway: Page
    """After one call."""
    openmetrics: Page
    """The same in the other format."""
    orphaned: Page
    """The gateway again, after a call with one of the agents gone."""
    certificate_ends_at: float
    """Of the agent's HTTPS, by what it shows to who connects."""


async def scrape(running: Running, **headers: str) -> Page:
    async with httpx2.AsyncClient(verify=running.trust, trust_env=False, timeout=60) as client:
        answer = await client.get(f"{running.url}/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return Page(answer.text, answer.headers["content-type"])


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Scraped:
    """One fleet for all tests, which only read."""
    return anyio.run(scrape_all, tmp_path_factory.mktemp("metrics"))


async def scrape_all(folder: Path) -> Scraped:
    authority = Authority(folder)
    async with cluster(folder, FLEET, "--node-metrics", authority=authority) as running:
        await running.ask()
        sick = running.agents["sick"]
        pem = await anyio.to_thread.run_sync(ssl.get_server_certificate, ("127.0.0.1", sick.port))
        ends_at = x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.timestamp()
        agent, gateway = await scrape(sick), await scrape(running.gateway)
        openmetrics = await scrape(running.gateway, accept=OPENMETRICS)
        await running.agents["well"].end()
        await running.ask()
        orphaned = await scrape(running.gateway)
    return Scraped(agent, gateway, openmetrics, orphaned, ends_at)


# --- the promise -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(PROMISED))
def test_names_types_labels_and_meanings_are_a_promise(
    role: str, golden: Callable[[str, Any], None]
) -> None:
    golden(f"metrics/{role}.json", promise(role))


@pytest.mark.parametrize(("role", "lacks"), [("agent", set()), ("gateway", HTTPS)])
def test_what_is_shown_is_what_is_promised(role: str, lacks: set[str], scraped: Scraped) -> None:
    page: Page = getattr(scraped, role)
    kinds = {"info": "gauge"}  # which the older format does not know
    assert page.shown() == {
        each.name: (kinds.get(each.kind, each.kind), each.help)
        for each in PROMISED[role]
        if each.name not in lacks
    }
    for family in page.families:
        for sample in family.samples:
            if not sample.name.startswith("process_"):
                assert sample.labels.keys() == SERIES[sample.name], sample.name


def rows(metrics: Iterable[Metric]) -> list[str]:
    table = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for each in metrics:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        table.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    return table


def tables() -> str:
    """Every metric, as Markdown."""
    parts = (
        ("Agents and gateways", server.METRICS),
        ("Agents", node.METRICS),
        ("Gateways", fleet.METRICS),
    )
    return "".join(f"\n## {title}\n\n" + "\n".join(rows(of)) + "\n" for title, of in parts)


def test_every_metric_is_documented(request: pytest.FixtureRequest) -> None:
    written, mark, _ = DOCS.read_text(encoding="utf-8").partition(MARK)
    assert mark
    if request.config.getoption("--update-golden"):
        DOCS.write_text(written + mark + tables(), encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == written + mark + tables()


def test_the_page_tells_of_the_process_on_linux(scraped: Scraped) -> None:
    written = DOCS.read_text(encoding="utf-8")
    for page in (scraped.agent, scraped.gateway):
        names = {each.name for each in page.families if each.name.startswith("process_")}
        assert len(names) == 6
        for name in names:
            assert name in written
        assert 1e7 < page.value("process_resident_memory_bytes") < 1e9


# --- the form ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["agent", "gateway", "openmetrics", "orphaned"])
def test_the_page_is_as_prometheus_wants_it(which: str, scraped: Scraped) -> None:
    assert list(faults(getattr(scraped, which))) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# HELP mcp_gpu_x_ms Time.\n# TYPE mcp_gpu_x_ms gauge\nmcp_gpu_x_ms 1\n", "base unit"),
        ('# HELP mcp_gpu_x Calls.\n# TYPE mcp_gpu_x gauge\nmcp_gpu_x{job="a"} 1\n', "taken"),
        (
            "# HELP mcp_gpu_xs_total X.\n# TYPE mcp_gpu_xs_total gauge\nmcp_gpu_xs_total 1\n",
            "_total",
        ),
        ("# TYPE mcp_gpu_x gauge\nmcp_gpu_x 1\n", "sentence of help"),
        ("# HELP mcp_gpu_x X.\n# TYPE mcp_gpu_x gauge\nmcp_gpu_x NaN\n", "nan"),
        ("# HELP mcp_gpu_x X.\n# TYPE mcp_gpu_x gauge\nmcp_gpu_x 1\nmcp_gpu_x 2\n", "twice"),
        ("# HELP gpu_x X.\n# TYPE gpu_x gauge\ngpu_x 1\n", "prefix"),
        ("mcp_gpu_x 1\n", "without a type"),
        (
            "# HELP mcp_gpu_x X.\n# TYPE mcp_gpu_x gauge\n"
            + "".join(f'mcp_gpu_x{{id="{n}"}} 1\n' for n in range(200)),
            "200 series",
        ),
    ],
    ids=lambda each: each if len(each) < 20 else "",
)
def test_the_check_sees_what_is_not(text: str, fault: str) -> None:
    assert any(fault in each for each in faults(Page(text, "text/plain")))


async def test_both_formats_tell_the_same(scraped: Scraped) -> None:
    assert scraped.gateway.media_type == TEXT
    assert scraped.openmetrics.media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert scraped.openmetrics.text.endswith("# EOF\n")
    name, labels = "mcp_gpu_path_calls_total", {"path": "http", "outcome": "ok"}
    assert scraped.openmetrics.value(name, **labels) == scraped.gateway.value(name, **labels) == 2
    assert scraped.openmetrics.shown().keys() == scraped.gateway.shown().keys()


def pages(**more: Any) -> Pages:
    identity = Identity(name="demo", version="9.9", node="node-1")
    return Pages(
        identity=lambda: identity,
        calls=Calls(),
        readiness=lambda: Readiness(True),
        stop=Stop(),
        tells_all=False,
        **{"limits": Limits(Ceilings()), **more},
    )


def ask_for(told: Pages, *accept: str) -> Page:
    headers = [(b"accept", each.encode("latin-1")) for each in accept]
    answer = told.paths["/metrics"]({"type": "http", "query_string": b"", "headers": headers})
    return Page(bytes(answer.body).decode(), answer.headers["content-type"])


@pytest.mark.parametrize(
    "accept",
    [
        (),
        ("*/*",),
        ("text/plain;version=0.0.4",),
        ("text/html, application/xhtml+xml;q=0.9",),
        ("application/openmetrics-text;q=0, text/plain",),
        ("application/openmetrics-text-2",),
        (";;;,,,=;q=",),
        ("\xe9\xff;version=abc",),
    ],
)
async def test_who_does_not_take_openmetrics_gets_the_older_format(accept: tuple[str, ...]) -> None:
    assert ask_for(pages(), *accept).media_type == TEXT


@pytest.mark.parametrize(
    "accept",
    [
        ("application/openmetrics-text",),
        ("APPLICATION/OpenMetrics-Text; version=abc",),
        ("text/html", "application/openmetrics-text;version=0.0.1"),
        (OPENMETRICS,),
    ],
)
async def test_who_takes_openmetrics_gets_it(accept: tuple[str, ...]) -> None:
    assert ask_for(pages(), *accept).media_type.startswith("application/openmetrics-text;")


# --- what it says ------------------------------------------------------------------------------


def test_an_agent_tells_of_its_gpus_and_of_reading_them(scraped: Scraped) -> None:
    page = scraped.agent
    assert page.value("mcp_gpu_build_info", name="mcp-gpu", simulated="true") == 1
    assert page.value("mcp_gpu_nvml_state", state="ok") == 1
    assert sum(page.values("mcp_gpu_nvml_state")) == 1
    assert page.value("mcp_gpu_nvml_blocked_seconds") == 0
    assert page.value("mcp_gpu_nvml_initializations_total") >= 1
    assert page.value("mcp_gpu_nvml_errors_total", error="GpuIsLost") >= 1
    assert page.value("mcp_gpu_nvml_call_duration_seconds_count") > 100
    assert page.value("mcp_gpu_gpu_health", gpu="3", verdict="failed", simulated="true") == 1
    assert page.value("mcp_gpu_gpu_health", gpu="0", verdict="healthy", simulated="true") == 1
    assert sum(page.values("mcp_gpu_gpu_health")) == len(page.values("mcp_gpu_gpu_health")) / 4 == 8
    assert sum(page.values("mcp_gpu_findings", severity="critical", simulated="true")) >= 1
    assert page.value("mcp_gpu_gpus_expected") == page.value("mcp_gpu_gpus") == 8
    for readings in ("fast", "slow"):
        assert 0 <= page.value("mcp_gpu_snapshot_age_seconds", readings=readings) < 120
    assert page.value("mcp_gpu_tls_certificate_expiry_timestamp_seconds") == (
        scraped.certificate_ends_at
    )
    assert page.value("mcp_gpu_recorder_save_failures_total") == 0


def test_a_gateway_tells_of_its_agents_and_the_ways_to_them(scraped: Scraped) -> None:
    page = scraped.gateway
    assert page.value("mcp_gpu_build_info", name="mcp-gpu-gateway", simulated="false") == 1
    assert page.value("mcp_gpu_discovery_up") == 1
    assert page.value("mcp_gpu_discovery_age_seconds") < 60
    assert page.value("mcp_gpu_agents", state="ready") == 2
    assert page.value("mcp_gpu_nodes", path="http") == 2 == sum(page.values("mcp_gpu_nodes"))
    for sick in ("sick", "well"):
        assert page.value("mcp_gpu_node_path_info", node=sick, path="http") == 1
    assert page.value("mcp_gpu_agent_paths", path="http", state="in_use") == 2
    assert sum(page.values("mcp_gpu_agent_paths", path="command")) == 2
    assert page.value("mcp_gpu_node_answers_total", path="http") == 2
    assert sum(page.values("mcp_gpu_node_failures_total")) == 0
    assert page.value("mcp_gpu_path_call_duration_seconds_count", path="http") == 2
    assert page.value("mcp_gpu_path_probes_total", path="http", outcome="ok") >= 2
    assert page.value("mcp_gpu_path_probe_duration_seconds_count", path="http") >= 2
    assert page.value("mcp_gpu_tool_calls_total", tool="get_gpu_inventory", outcome="ok") == 1
    assert page.value("mcp_gpu_tool_call_duration_seconds_count", tool="get_gpu_inventory") == 1
    assert page.value("mcp_gpu_tool_calls_running", tool="get_gpu_inventory") == 0
    assert sum(page.values("mcp_gpu_path_attempts_waiting", kind="call")) == 0


def test_a_gateway_tells_of_an_agent_that_is_gone(scraped: Scraped) -> None:
    page = scraped.orphaned
    assert page.value("mcp_gpu_nodes", path="none") == 1
    assert page.value("mcp_gpu_node_path_info", node="well") == 1
    assert page.value("mcp_gpu_node_path_info", node="well", path="none") == 1
    assert page.value("mcp_gpu_agent_paths", path="http", state="failed") == 1
    assert page.value("mcp_gpu_agent_paths", path="command", state="failed") == 1
    assert page.value("mcp_gpu_node_answers_total", path="http") == 3
    assert sum(page.values("mcp_gpu_node_failures_total")) == 1
    failed = [
        sample.labels
        for family in page.families
        for sample in family.samples
        if family.name in {"mcp_gpu_path_probes", "mcp_gpu_path_calls"}
        and sample.labels["outcome"] not in {"ok", "cancelled"}
        and sample.value
    ]
    assert {each["path"] for each in failed} >= {"http", "command"}


@dataclass
class Full:
    """Limits that are met."""

    running: int = 7
    waiting: int = 3
    subscriptions: int = 5
    shed: Mapping[str, int] = field(default_factory=lambda: {"queue": 2})


async def test_what_was_turned_away_at_the_limits_is_told() -> None:
    page = ask_for(pages(limits=Full()))
    assert page.value("mcp_gpu_requests_running") == 7
    assert page.value("mcp_gpu_requests_waiting") == 3
    assert page.value("mcp_gpu_requests_shed_total", limit="queue") == 2
    assert page.value("mcp_gpu_subscriptions_open") == 5


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert list(histogram.buckets()) == [(1.0, 2), (2.0, 4), (float("inf"), 5)]
    assert histogram.sum == 14.0
