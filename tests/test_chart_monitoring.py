"""What the chart brings for Prometheus and Grafana, and that it asks only for what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest

from support import chart
from support.chart import CHART, Rendered, render
from support.manifests import container, environment
from support.metrics import SERIES

MONITORS = ("PodMonitor", "ServiceMonitor")

ON = {
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}

SCRAPED = {"namespace", "pod", "node", "job", "instance", "container"}
"""Labels that a scrape adds."""

PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"}

CLAUSES = {"by", "on", "without", "ignoring", "group_left", "group_right"}


def monitors(rendered: Rendered) -> dict[str, Any]:
    return {
        entry["metadata"]["labels"]["app.kubernetes.io/component"]: entry
        for kind in MONITORS
        for entry in rendered.all(kind)
    }


def rules(rendered: Rendered) -> list[dict[str, Any]]:
    (entry,) = rendered.all("PrometheusRule")
    return [rule for group in entry["spec"]["groups"] for rule in group["rules"]]


def dashboard(rendered: Rendered) -> dict[str, Any]:
    (config,) = rendered.all("ConfigMap")
    loaded: dict[str, Any] = json.loads(config["data"]["mcp-gpu.json"])
    return loaded


def asked(shown: dict[str, Any]) -> Iterator[str]:
    """Every query of a dashboard."""
    for panel in shown["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (v["query"]["query"] for v in shown["templating"]["list"] if v["type"] == "query")


def strangers(query: str) -> Iterator[str]:
    """What a query names that no agent and no gateway has: metrics, labels, values of labels."""
    names = re.findall(r"\b(?:mcp_gpu|process)_[a-z_]+", query)
    assert names, query
    yield from (name for name in names if name not in SERIES and name not in PROCESS)
    known = set(SCRAPED).union(*(SERIES.get(name, ()) for name in names))
    for name, matchers in re.findall(r"\b((?:mcp_gpu|process)_[a-z_]+)\{([^}]*)\}", query):
        for label in re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers):
            if label not in SERIES.get(name, set()) | SCRAPED:
                yield f"{name} has no label {label}"
    for clause, labels in re.findall(r"\b([a-z_]+)\s*\(([a-z_, ]*)\)", query):
        if clause in CLAUSES:
            yield from (f"label {each}" for each in labels.split(", ") if each not in known)


# --- what is asked for ---------------------------------------------------------------------------


def test_nothing_is_made_where_nobody_asks_for_it() -> None:
    rendered = render()
    made = {entry["kind"] for entry in rendered.objects}
    assert made & {*MONITORS, "PrometheusRule", "ConfigMap"} == set()
    assert "MCP_GPU_NODE_METRICS" not in environment(rendered, "gateway")


def test_rules_and_dashboard_ask_only_for_what_there_is() -> None:
    rendered = render({"monitoring": ON})
    queries = [rule["expr"] for rule in rules(rendered)] + list(asked(dashboard(rendered)))
    assert len(queries) > 35
    assert {query: list(strangers(query)) for query in queries if [*strangers(query)]} == {}


@pytest.mark.parametrize(
    "query",
    [
        "mcp_gpu_gpuz",
        'mcp_gpu_gpu_health{verdikt="failed"}',
        "sum by (tol) (mcp_gpu_tool_calls_running)",
        "mcp_gpu_tool_call_duration_seconds",
        "sum by (le) (mcp_gpu_gpus)",
    ],
)
def test_the_check_sees_what_there_is_not(query: str) -> None:
    assert [*strangers(query)]


def test_values_of_labels_that_are_asked_for_exist() -> None:
    """A misspelt one would match nothing, and an alert on it never fire."""
    from typing import get_args

    from mcp_gpu.fleet import census
    from mcp_gpu.fleet.paths import PathStatus
    from mcp_gpu.fleet.tally import OUTCOMES
    from mcp_gpu.gpu.health.model import Verdict
    from mcp_gpu.gpu.model import SnapshotState
    from mcp_gpu.telemetry import calls

    known = {*get_args(PathStatus), *OUTCOMES, *get_args(Verdict), *get_args(SnapshotState)}
    known |= {*get_args(calls.Outcome), census.NO_PATH, census.UNTRIED, census.NO_AGENT}
    known |= {"http", "slow", "mcp-gpu-gateway"}
    rendered = render({"monitoring": ON}, namespace="here")
    queries = [rule["expr"] for rule in rules(rendered)] + list(asked(dashboard(rendered)))
    for query in queries:
        for label, values in re.findall(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', query):
            if label not in {"namespace", "pod"}:
                assert set(values.split("|")) <= known, query


# --- the rules -----------------------------------------------------------------------------------


def test_every_alert_says_what_it_is_about_and_links_to_what_to_do() -> None:
    url = "https://docs.example.org/runbook.md"
    given = {"prometheusRule": {"enabled": True, "runbookUrl": url}}
    found = rules(render({"monitoring": given}, namespace="gpus"))
    names = [rule["alert"] for rule in found]
    assert len(set(names)) == len(names) >= 15
    for rule in found:
        assert re.fullmatch(r"McpGpu[A-Z][A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        annotations = rule["annotations"]
        assert annotations["runbook_url"] == f"{url}#{rule['alert'].lower()}"
        for text in (annotations["summary"], annotations["description"]):
            assert text.endswith("."), rule["alert"]
        # Of this release's namespace alone, wherever it names a metric.
        assert rule["expr"].count('namespace="gpus"') == rule["expr"].count("mcp_gpu_")
        # A label that is told is one that the expression keeps.
        told = set(re.findall(r"\$labels\.([a-z_]+)", " ".join(annotations.values())))
        kept = re.findall(r"\bby \(([a-z_, ]+)\)", rule["expr"])
        assert told <= {label for each in kept for label in each.split(", ")}, rule["alert"]


def test_agents_alone_have_no_alerts_about_a_gateway() -> None:
    values = {"monitoring": ON, "gateway": {"enabled": False}}
    names = {rule["alert"] for rule in rules(render(values))}
    assert "McpGpuGpuFailed" in names
    assert "McpGpuGatewayAbsent" not in names


# --- the dashboard -------------------------------------------------------------------------------


def test_grafana_finds_a_dashboard_that_holds_together() -> None:
    rendered = render({"monitoring": ON})
    (config,) = rendered.all("ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    shown = dashboard(rendered)
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])
    variables = {each["name"] for each in shown["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(shown)))
    assert used == variables
    taken = set()
    for panel in shown["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["targets"]


# --- the monitors --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MONITORS)
def test_a_monitor_finds_the_port_that_serves_metrics(kind: str) -> None:
    wanted = {kind[0].lower() + kind[1:]: {"enabled": True, "labels": {"release": "x"}}}
    rendered = render({"monitoring": wanted})
    found = monitors(rendered)
    assert {entry["kind"] for entry in found.values()} == {kind}
    assert found.keys() == {"agent", "gateway"}
    for component, entry in found.items():
        assert entry["metadata"]["labels"]["release"] == "x"
        selected = entry["spec"]["selector"]["matchLabels"].items()
        (endpoint,) = entry["spec"].get("podMetricsEndpoints") or entry["spec"]["endpoints"]
        if kind == "PodMonitor":
            meta = rendered.pods()[component]["metadata"]
            ports = container(rendered, component)["ports"]
        else:
            service = rendered.one("Service", component)
            meta, ports = service["metadata"], service["spec"]["ports"]
        assert selected <= meta["labels"].items()
        assert endpoint["port"] in {port["name"] for port in ports}
        assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "30s")
        relabelled = [each["targetLabel"] for each in endpoint.get("relabelings", ())]
        assert relabelled == (["node"] if component == "agent" else [])


def test_https_is_scraped_by_the_authority_and_a_name_of_the_certificate() -> None:
    values = {
        "monitoring": {"podMonitor": {"enabled": True}},
        "gateway": {"tls": {"source": "certManager"}},
        "agent": {"tls": {"source": "certManager"}},
    }
    rendered = render(values)
    issued = {entry["spec"]["secretName"]: entry for entry in rendered.all("Certificate")}
    for component, entry in monitors(rendered).items():
        (endpoint,) = entry["spec"]["podMetricsEndpoints"]
        assert endpoint["scheme"] == "https"
        secret = endpoint["tlsConfig"]["ca"]["secret"]
        assert secret["key"] == "ca.crt"
        names = issued[secret["name"]]["spec"]["dnsNames"]
        assert endpoint["tlsConfig"]["serverName"] in names, component


def test_without_tokens_it_is_plain_http() -> None:
    values = {"auth": {"mode": "none"}, "monitoring": {"podMonitor": {"enabled": True}}}
    for entry in monitors(render(values)).values():
        (endpoint,) = entry["spec"]["podMetricsEndpoints"]
        assert endpoint["scheme"] == "http"
        assert "tlsConfig" not in endpoint


def test_agents_without_a_port_are_not_scraped() -> None:
    values = {"transport": {"mode": "stdio"}, "monitoring": {"podMonitor": {"enabled": True}}}
    assert monitors(render(values)).keys() == {"gateway"}


def test_two_monitors_of_the_same_are_refused() -> None:
    both = {kind: {"enabled": True} for kind in ("podMonitor", "serviceMonitor")}
    with pytest.raises(helm_python.HelmError, match="enable one of them"):
        render({"monitoring": both})


def test_a_network_policy_lets_prometheus_in_to_both_sides() -> None:
    prometheus = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
    clients = {"podSelector": {"matchLabels": {"app": "x"}}}
    policy = {"enabled": True, "gatewayFrom": [clients]}
    values = {"networkPolicy": policy, "monitoring": {"from": [prometheus]}}
    rendered = render(values)
    for component in ("agent", "gateway"):
        (rule,) = rendered.one("NetworkPolicy", component)["spec"]["ingress"]
        assert prometheus in rule["from"], component
    # Who lets everyone in lets Prometheus in, too: a peer named would shut the others out.
    open_to_all = render({**values, "networkPolicy": {"enabled": True}})
    (rule,) = open_to_all.one("NetworkPolicy", "gateway")["spec"]["ingress"]
    assert "from" not in rule


def test_nodes_are_named_where_that_is_asked_for() -> None:
    rendered = render({"monitoring": {"nodeMetrics": True}})
    assert environment(rendered, "gateway")["MCP_GPU_NODE_METRICS"] == "true"


def test_the_rules_are_in_the_chart_as_it_is_shipped() -> None:
    ignored = (CHART / ".helmignore").read_text(encoding="utf-8").split()
    assert "files/" not in ignored
    assert chart.faults_of(render({"monitoring": ON})) == []
