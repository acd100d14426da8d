"""What is not known is said to be so: it is neither healthy, nor broken, nor ruled out."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from mcp_gpu.doctor import render, shortfall
from mcp_gpu.fleet.connectivity.checkup import Findings
from mcp_gpu.fleet.connectivity.model import Outcome, Place
from mcp_gpu.fleet.diagnosis.cni import Felix, IpPool, Plugin
from mcp_gpu.fleet.diagnosis.diagnosis import diagnose
from mcp_gpu.fleet.diagnosis.model import Cause, Diagnosis, Unread
from mcp_gpu.fleet.discovery import Table
from mcp_gpu.tools.connectivity_report import FleetConnectivity, page, whole
from mcp_gpu.tools.connectivity_text import LINES, lines
from support.surveys import GATEWAY, Fleet, policy

CROSS = (IpPool("default-ipv4-ippool", "10.244.0.0/16", vxlan="CrossSubnet"),)
ALWAYS = (IpPool("default-ipv4-ippool", "10.244.0.0/16", vxlan="Always"),)
NEVER = (IpPool("default-ipv4-ippool", "10.244.0.0/16"),)
CALICO = Fleet(pools=CROSS, felix=Felix())
WRAPPED = Fleet(pools=ALWAYS, felix=Felix())
FLANNEL = Plugin("flannel", "kube-flannel-ds", "kube-flannel", {}, "app=flannel")
CILIUM = Plugin("cilium", "cilium", "kube-system", {}, "k8s-app=cilium")
KUBE_ROUTER = Plugin("kube-router", "kube-router", "kube-system")
NETD = Plugin("gke", "netd", "kube-system")
AZURE = Plugin("azure", "azure-cns", "kube-system")
REMOTE = ["n1", "n2", "n3", "n4", "n5"]
MATES = ["n1", "n2", "n4"]


def all_of(names: list[str], outcome: Outcome = "connect_timeout") -> dict[str, Outcome]:
    return dict.fromkeys(names, outcome)


def late(*names: str, **more: dict[str, Outcome]) -> dict[str, dict[str, Outcome]]:
    """No path to these was tried, but for those of `more`."""
    vias = ("http", "portforward", "exec")
    return {via: all_of(list(names), "not_tried") | more.get(via, {}) for via in vias}


def diagnosed(fleet: Fleet) -> Diagnosis:
    return diagnose(fleet.survey(), fleet.evidence())


def told(fleet: Fleet) -> FleetConnectivity:
    table = Table((), 0.0, "a list")
    return whole(Findings(table, fleet.count, fleet.survey(), diagnosed(fleet)))


def codes(fleet: Fleet) -> list[str]:
    return [each.code for each in diagnosed(fleet).causes]


def ruled_out(fleet: Fleet) -> list[str]:
    return [each.partition(":")[0] for each in diagnosed(fleet).ruled_out]


def named(fleet: Fleet, code: str) -> Cause:
    return next(each for each in diagnosed(fleet).causes if each.code == code)


UNFINISHED = {
    "nothing tried": (
        CALICO.but(**late("n3", "n4")),
        "unknown: 4 of 6 nodes answer, 2 were not looked at to the end",
        "2 nodes were not looked at in time",
    ),
    "the best path failed": (
        CALICO.but(**late("n3", http={"n3": "refused"})),
        "unknown: 5 of 6 nodes answer, 1 was not looked at to the end. Cause (medium confidence):"
        " nothing listens on TCP 8080",
        "1 node was not looked at in time",
    ),
    "another is surely unreached": (
        CALICO.but(
            **late(
                "n3",
                http={"n5": "refused"},
                portforward={"n5": "refused"},
                exec={"n5": "not_running"},
            )
        ),
        "broken: 4 of 6 nodes answer, 1 was not looked at to the end. Cause (high confidence):"
        " the agent does not run, or hangs",
        "no path leads to 1 of 6 nodes; 1 node was not looked at in time",
    ),
}


@pytest.mark.parametrize("case", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_agents_that_were_not_looked_at_to_the_end(case: tuple[Fleet, str, str]) -> None:
    fleet, headline, problem = case
    found = diagnosed(fleet)
    assert found.headline == headline
    assert "unknown" not in [each.code for each in found.causes]
    report = told(fleet)
    assert shortfall(report) == problem
    (row,) = [line for line in lines(report, report.nodes) if "not looked at to the end" in line][
        1:
    ]
    assert row.startswith("! ")
    assert "no path works" not in row


def test_an_agent_that_answers_needs_no_other_path() -> None:
    fleet = CALICO.but(exec=all_of(["n0", *REMOTE], "not_tried"))
    assert diagnosed(fleet).verdict == "healthy"
    assert shortfall(told(fleet)) == ""


def test_a_node_to_which_no_path_applies_is_not_healthy() -> None:
    """As an agent by address alone, where only streams are allowed."""
    found = diagnosed(CALICO.but(vias=()))
    assert found.headline == (
        "broken: 0 of 6 nodes answer, to 6 no path applies. No known cause fits"
    )
    assert found.causes[0].evidence[0] == "no path applies: 6 of 6"
    assert "transport" in found.causes[0].fix[0]
    # HTTP alone cannot be expected to work from outside of the cluster.
    laptop = CALICO.but(place=Place(), vias=("http",), http=all_of(["n0", *REMOTE]))
    assert diagnosed(laptop).verdict == "broken"


def test_the_policy_that_helps_is_shown_whole_in_a_fleet_of_a_thousand() -> None:
    big = WRAPPED.but(count=1000, subnets=8, policies=(policy("default-deny"),))
    found = told(big.but(http=all_of(big.names[1:])))
    text = "\n".join(lines(page(found, 100, None), found.nodes))
    assert found.causes[0].fix[0] in text
    assert len(text.splitlines()) <= LINES


def test_a_policy_that_does_not_fit_is_told_of() -> None:
    (cause,) = diagnosed(WRAPPED.but(http=all_of(REMOTE), policies=(policy(),))).causes
    unread = tuple(Unread(what=f"u{n}", why="w", grant="g") for n in range(9))
    found = told(WRAPPED).model_copy(update={"causes": (cause,) * 6, "unread": unread})
    text = "\n".join(lines(found, ()))
    assert len(text.splitlines()) <= LINES
    assert "fix: a policy to apply, 13 lines: in the structured content" in text
    long = cause.model_copy(update={"fix": ("x\n" + "y" * 2000, "z" * 500)})
    text = "\n".join(lines(told(WRAPPED).model_copy(update={"causes": (long,)}), ()))
    assert "fix: a policy to apply, 2 lines: in the structured content" in text
    assert "fix: a command: in the structured content" in text


def test_a_terminal_is_not_flooded_either() -> None:
    (cause,) = diagnosed(CALICO.but(http=all_of(MATES))).causes
    many = tuple(f"pattern {n}" for n in range(50))
    unread = tuple(Unread(what=f"u{n}", why="w", grant="g") for n in range(50))
    found = told(CALICO).model_copy(
        update={"causes": (cause,) * 20, "patterns": many, "unread": unread, "ruled_out": many}
    )
    console = Console(file=StringIO(), record=True, width=300)
    render(found, console)
    shown = console.export_text()
    assert len(shown.splitlines()) < 200
    assert "12 more causes; --json tells all" in shown
    assert "114 more remarks; --json tells all" in shown


@pytest.mark.parametrize("unread", ["agent", "gateway", "both"])
def test_no_policy_is_made_ready_that_would_open_every_pod(unread: str) -> None:
    denying = policy("default-deny")
    fleet = WRAPPED.but(http=all_of(REMOTE), policies=(denying,))
    pods = dict(fleet.evidence().pods)
    for key in list(pods):
        own = "gateway" if key[1] == "gateway" else "agent"
        if unread in (own, "both"):
            del pods[key]
    (line,) = named(fleet.but(more={"pods": pods}), "network-policy").fix
    assert line.startswith("# add a NetworkPolicy in namespace gpu that allows ingress from")


def test_a_token_that_a_laptop_has_not_got() -> None:
    everybody = all_of(["n0", *REMOTE], "unauthorized")
    laptop = CALICO.but(place=Place(), http=all_of(["n0", *REMOTE]), portforward=everybody)
    cause = named(laptop, "token-rejected")
    assert (cause.confidence, cause.title) == ("medium", "agents want a token, and exec needs none")
    assert cause.fix == (
        "# exec first: --transports http,exec,portforward; or --agent-token-file FILE with"
        " --agent-scheme https",
    )
    # Nothing is broken: exec is the way from there until somebody gives a token.
    found = diagnosed(laptop)
    assert found.verdict == "healthy"
    assert found.headline.startswith("healthy: 6 of 6 nodes answer over exec. Fallback (medium ")
    # Where others take it, or exec does not work, something is.
    assert diagnosed(laptop.but(portforward={"n3": "unauthorized"})).verdict == "degraded"
    assert diagnosed(laptop.but(exec={"n3": "rbac"})).verdict == "broken"
    assert diagnosed(laptop.but(vias=("portforward",))).verdict == "broken"
    inside = named(CALICO.but(http={"n3": "unauthorized"}), "token-rejected")
    assert inside.confidence == "high"
    assert not any("restart" in line for line in inside.fix)
    assert "MCP_GPU_TOKEN_AUDIENCES" in inside.fix[0]


def test_agents_with_tls_and_a_laptop_that_was_not_told_of_it() -> None:
    everybody = all_of(["n0", *REMOTE], "tls_scheme")
    laptop = CALICO.but(place=Place(), http=all_of(["n0", *REMOTE]), portforward=everybody)
    found = diagnosed(laptop)
    assert found.verdict == "healthy"
    (cause,) = found.causes
    assert (cause.code, cause.confidence) == ("tls-scheme", "high")
    assert "exec wants none" in cause.title
    (line,) = cause.fix
    for flag in ("--transports", "--agent-scheme", "--agent-ca-file", "--agent-token-file"):
        assert flag in line
    # Some want a token besides, and are as well.
    mixed = {**everybody, "n3": "unauthorized"}
    assert diagnosed(laptop.but(portforward=mixed)).verdict == "healthy"
    # In the cluster it was set so by somebody.
    inside = diagnosed(CALICO.but(http=everybody))
    assert inside.verdict == "degraded"
    assert "MCP_GPU_AGENT_SCHEME=https" in inside.causes[0].fix[0]


def test_a_certificate_that_fails_through_the_api_server_stops_streams_alone() -> None:
    everybody = all_of(["n0", *REMOTE], "tls_name")
    laptop = CALICO.but(place=Place(), http=all_of(["n0", *REMOTE]), portforward=everybody)
    cause = named(laptop, "certificate-name")
    assert "MCP_GPU_AGENT_SERVER_NAME" in cause.fix[0]
    assert cause.fix[1].startswith("openssl s_client -connect ")


def test_a_stranger_with_another_certificate_is_told_from_a_fleet_that_is_not_trusted() -> None:
    one = named(CALICO.but(http={"n3": "tls_untrusted"}), "certificate-untrusted")
    assert any("others answer" in line for line in one.evidence)
    everybody = CALICO.but(http=all_of(["n0", *REMOTE], "tls_untrusted"))
    assert not any("others" in line for line in named(everybody, "certificate-untrusted").evidence)


ROUTING: dict[str, tuple[Fleet, str]] = {
    "Calico without wrapping": (CALICO.but(pools=NEVER, http=all_of(REMOTE)), "high"),
    "Calico without wrapping, one subnet": (
        CALICO.but(pools=NEVER, subnets=1, http=all_of(REMOTE)),
        "high",
    ),
    "flannel host-gw": (
        Fleet(
            plugins=(FLANNEL,),
            nodes={f"n{n}": {"flannel": "host-gw"} for n in range(6)},
            http=all_of(MATES),
        ),
        "medium",
    ),
    "kube-router": (Fleet(plugins=(KUBE_ROUTER,), http=all_of(MATES)), "medium"),
    "Cilium, perhaps routing natively": (Fleet(plugins=(CILIUM,), http=all_of(REMOTE)), "low"),
}


@pytest.mark.parametrize(("fleet", "confidence"), ROUTING.values(), ids=ROUTING.keys())
def test_packets_that_nobody_wraps_meet_the_source_check(fleet: Fleet, confidence: str) -> None:
    cause = named(fleet, "crosssubnet-source-check")
    assert cause.confidence == confidence
    assert any("--no-source-dest-check" in line for line in cause.fix)
    assert any("ippools" in line for line in cause.fix) == bool(fleet.pools)


def test_packets_that_nobody_wraps_are_lost_far_away_too() -> None:
    cause = named(CALICO.but(pools=NEVER, http=all_of(REMOTE)), "crosssubnet-source-check")
    assert cause.node_count == len(REMOTE)
    assert any('{"vxlanMode":"Always"}' in line for line in cause.fix)


def test_the_source_check_is_not_ruled_out_by_what_is_assumed() -> None:
    fleet = Fleet(plugins=(CILIUM,), provider="openstack:///{}", http=all_of(MATES))
    assert "crosssubnet-source-check" not in ruled_out(fleet)
    known = Fleet(
        plugins=(FLANNEL,),
        nodes={f"n{n}": {"flannel": "vxlan"} for n in range(6)},
        http=all_of(MATES),
    )
    assert "crosssubnet-source-check" in ruled_out(known)


def test_one_node_without_calicos_annotation_spoils_nothing() -> None:
    # By guesses of /24, all were in one subnet of /16 or none.
    nodes: dict[str, Any] = {
        f"n{n}": {
            "calico_address": f"10.0.{n}.1/16" if n in (0, 1, 2, 4) else f"10.1.{n}.1/16",
            "addresses": (f"10.{n}.0.1",),
        }
        for n in range(6)
    }
    nodes["n5"]["calico_address"] = ""
    fleet = CALICO.but(nodes=nodes, http=all_of(MATES))
    found = diagnosed(fleet)
    assert [each.code for each in found.causes] == ["crosssubnet-source-check"]
    assert "place not known: 1 of 1 over http" in found.patterns
    assert "subnets are from Calico's node annotations" in found.patterns


def test_guessed_subnets_decide_nothing() -> None:
    everybody = CALICO.but(annotated=False, http=all_of(REMOTE))
    assert "crosssubnet-source-check" not in ruled_out(everybody)
    assert [(each.code, each.confidence) for each in diagnosed(everybody).causes] == [
        ("crosssubnet-source-check", "low"),
        ("overlay-blocked", "low"),
    ]
    # Some of those that the guess calls far are lost, and the others are not.
    some = CALICO.but(annotated=False, http=all_of(["n3", "n5"]))
    assert "overlay-blocked" not in [*codes(some), *ruled_out(some)]


SILENT: dict[str, dict[str, Outcome]] = {
    "portforward": {"n3": "silent"},
    "exec": {"n3": "silent"},
}


def test_a_node_behind_a_firewall_is_no_dead_agent() -> None:
    walled = CALICO.but(http={"n3": "connect_timeout"}, **SILENT)
    assert "agent-down" not in codes(walled)
    for pods in ({"n3": {"trouble": "is crash looping", "restarted": True}}, {}):
        ill = walled.but(pods=pods)
        if not pods:  # the list of pods no longer has it
            known = dict(ill.evidence().pods)
            del known["gpu", "agent-n3"]
            ill = ill.but(more={"pods": known})
        cause = named(ill, "agent-down")
        assert ("--previous" in cause.fix[0]) == bool(pods)


def test_cilium_means_no_pod_by_a_block() -> None:
    block = policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}])
    other = policy(ingress=[{"from": [{"ipBlock": {"cidr": "192.168.0.0/16"}}]}])
    for each in (block, other):
        fleet = Fleet(plugins=(CILIUM,), http=all_of(REMOTE), policies=(each,))
        assert "network-policy" not in [*codes(fleet), *ruled_out(fleet)]
    calico = WRAPPED.but(http=all_of(REMOTE), policies=(block,))
    assert "network-policy" in ruled_out(calico)
    on_node = Fleet(
        plugins=(CILIUM,),
        http=all_of(REMOTE),
        policies=(policy(),),
        gateway={"host_network": True, "addresses": ("10.0.0.1",)},
    )
    (line,) = named(on_node, "network-policy").fix
    assert "fromEntities: [host, remote-node]" in line
    labels = policy(ingress=[{"from": [{"podSelector": {"matchLabels": GATEWAY}}]}])
    named_pods = Fleet(plugins=(CILIUM,), http=all_of(REMOTE), policies=(labels,))
    assert "network-policy" in ruled_out(named_pods)


@pytest.mark.parametrize("cloud", [NETD, AZURE])
def test_no_overlay_is_assumed_where_the_cloud_routes(cloud: Plugin) -> None:
    fleet = Fleet(plugins=(CILIUM, cloud), provider="gce://x/{}", http=all_of(REMOTE))
    assert not {"overlay-blocked", "checksum-offload"} & set(codes(fleet))


def test_no_overlay_is_assumed_where_calico_has_pools_of_other_addresses() -> None:
    pools = (IpPool("p", "10.99.0.0/16"),)
    fleet = Fleet(plugins=(CILIUM,), pools=pools, provider="x://{}", http=all_of(REMOTE))
    assert "overlay-blocked" not in codes(fleet)


def test_commands_of_aws_name_the_region() -> None:
    for fleet in (
        CALICO.but(http=all_of(MATES)),
        CALICO.but(http=all_of(["n3", "n5"])),
        Fleet(plugins=(Plugin("vpc-cni", "aws-node", "kube-system"),), http=all_of(REMOTE)),
    ):
        told_commands = [
            line for each in diagnosed(fleet).causes for line in each.fix if "aws ec2" in line
        ]
        assert told_commands
        assert all("--region eu-west-1" in line for line in told_commands)


@pytest.mark.parametrize(
    ("fleet", "key"),
    [
        (WRAPPED, "vxlanMTU"),
        (WRAPPED.but(pools=(IpPool("p", "10.244.0.0/16", ipip="Always"),)), "ipipMTU"),
        (WRAPPED.but(felix=Felix(wireguard=True)), "wireguardMTU"),
        (WRAPPED.but(pools=NEVER), ""),
        (Fleet(), ""),
    ],
)
def test_the_mtu_of_the_wrapping_in_use_is_set(fleet: Fleet, key: str) -> None:
    fix = named(fleet.but(http={"n3": "large_lost"}), "mtu").fix
    keys = [name for name in ("vxlanMTU", "ipipMTU", "wireguardMTU") if name in " ".join(fix)]
    assert keys == ([key] if key else [])
    assert "# pods take another MTU only when they are made anew" in fix


@pytest.mark.parametrize(
    ("pod", "fix"),
    [
        ({"mesh": "Istio"}, "kubectl -n gpu patch daemonset/agents"),
        ({"mesh": "Linkerd"}, "kubectl -n gpu patch daemonset/agents"),
        ({"mesh": "Kuma"}, "# have Kuma leave out TCP 8080"),
        (
            {"mesh": "Istio", "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "# ambient mode leaves out no single port",
        ),
    ],
)
def test_a_port_is_left_out_by_annotation_only_where_there_is_one(
    pod: dict[str, Any], fix: str
) -> None:
    everybody = ["n0", *REMOTE]
    fleet = Fleet(http=all_of(everybody, "reset"), pods=dict.fromkeys(everybody, pod))
    assert named(fleet, "mesh-mtls").fix[0].startswith(fix)


def test_a_loopback_that_is_the_nodes_proves_less() -> None:
    fleet = CALICO.but(http={"n3": "refused"})
    assert named(fleet, "agent-on-loopback").confidence == "high"
    shared = fleet.but(pods={"n3": {"host_network": True}})
    assert named(shared, "agent-on-loopback").confidence == "medium"
