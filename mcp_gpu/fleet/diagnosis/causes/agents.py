"""Causes at the far end: no agent, a dead one, one that listens elsewhere, somebody else."""

from __future__ import annotations

from mcp_gpu.fleet.diagnosis.case import PORT_FORWARD, Agent, Case, names
from mcp_gpu.fleet.diagnosis.finding import SHOWN, Finding, Judgement, few
from mcp_gpu.fleet.diagnosis.model import Confidence

__all__ = [
    "absent",
    "down",
    "name_resolution",
    "node_down",
    "not_listening",
    "on_loopback",
    "stale_address",
]


def absent(case: Case) -> Judgement:
    """Nodes that should have an agent and have none that could be asked."""
    listed = case.survey.absent
    if not listed:
        return None
    more = len(listed) - SHOWN
    return Finding(
        "agent-absent",
        "there is no agent that could be asked",
        "high",
        tuple(node for node, _ in listed),
        (
            *(f"{node}: {why}" for node, why in listed[:SHOWN]),
            *([f"and {more} more"] if more > 0 else []),
        ),
        ("kubectl get daemonsets,pods -A -o wide -l app.kubernetes.io/name=mcp-gpu",),
    )


def down(case: Case) -> Judgement:
    """The agent does not run, or runs and answers nobody."""
    found = [agent for agent in case.agents if agent.down]
    if not found:
        return None
    gone = [agent for agent in found if agent.message("not_running")]
    explained = [agent for agent in found if _trouble(agent)]
    sure = len({*names(gone), *names(explained)}) == len(found)
    evidence = []
    for agent in found[:SHOWN]:
        ended = agent.message("not_running")
        silence = ended or "every path leads to the agent, and none gets an answer"
        evidence.append(f"{agent.name}: {_trouble(agent) or silence}")
    first = found[0].survey.target
    owner = found[0].pod.owner if found[0].pod else ""
    fix = []
    if first.pod:
        pod = f"-n {first.namespace} {first.pod}"
        earlier = " --previous" if found[0].pod is not None and found[0].pod.restarted else ""
        fix = [
            f"kubectl logs {pod}{earlier} --tail 50",
            f"kubectl delete pod {pod}  # {owner or 'its owner'} makes another",
        ]
    return Finding(
        "agent-down",
        "the agent does not run, or hangs",
        "high" if sure else "medium",
        names(found),
        tuple(evidence),
        tuple(fix) or ("# start the agent on that machine",),
    )


def node_down(case: Case) -> Judgement:
    """Neither the pod network nor the kubelet leads to the node."""
    found = [agent for agent in case.agents if agent.cut_off]
    if not found:
        return None
    troubled = [a for a in found if a.node and a.node.trouble]
    explained = [a for a in found if a.survey.explanation]
    evidence = [f"{few(names(found))}: neither http nor the kubelet answers"]
    evidence += [f"{a.name}: {a.node.trouble}" for a in troubled[:SHOWN] if a.node]
    if not troubled:
        evidence += [f"{a.name}: {a.survey.explanation}" for a in explained[:SHOWN]]
    node = found[0].survey.target.node
    return Finding(
        "node-down",
        "the node is off, or cut off from everything",
        "high" if len(troubled) == len(found) else "medium",
        names(found),
        tuple(evidence),
        (f"kubectl describe node {node}",),
        excludes=("node-network",),
    )


def not_listening(case: Case) -> Judgement:
    """The agent's machine refuses the port: nothing listens on it."""
    found = [
        agent
        for agent in case.agents
        if agent.http == "refused" and not agent.down and agent.outcome(PORT_FORWARD) != "ok"
    ]
    if not found:
        return None
    checked = [a for a in found if a.carried and a.outcome(PORT_FORWARD) == "refused"]
    alive = [agent for agent in found if agent.carried]
    target = found[0].survey.target
    evidence = [f"connections to TCP {target.port} are refused"]
    if checked:
        evidence.append("inside the pod the port is closed as well, and the agent is alive")
    elif alive:
        evidence.append("the agent is alive: another path reaches it")
    evidence += [f"{a.name}: {_trouble(a)}" for a in found[:1] if _trouble(a)]
    sure = len(checked) == len(found) and not case.denied(found)
    fix = [
        "# the agent's MCP_GPU_HTTP, MCP_GPU_HTTP_HOST and MCP_GPU_HTTP_PORT; its first log lines"
    ]
    if target.pod:
        fix.append(f"kubectl logs -n {target.namespace} {target.pod} --tail 50")
    return Finding(
        "agent-not-listening",
        f"nothing listens on TCP {target.port}",
        "high" if sure else "medium",
        names(found),
        tuple(evidence),
        tuple(fix),
    )


def on_loopback(case: Case) -> Judgement:
    """The port is open inside the pod and refused outside of it."""
    found = [
        agent
        for agent in case.agents
        if agent.http == "refused" and agent.outcome(PORT_FORWARD) == "ok"
    ]
    if not found:
        return None
    target = found[0].survey.target
    owner = (found[0].pod.owner if found[0].pod else "") or "daemonset/AGENTS"
    # In the node's network the loopback is the node's, and anybody's; and some plugins refuse
    # what policies forbid.
    shared = any(agent.pod is not None and agent.pod.host_network for agent in found)
    return Finding(
        "agent-on-loopback",
        "agents listen on loopback only",
        "medium" if shared or case.denied(found) else "high",
        names(found),
        (
            f"TCP {target.port} is refused at the pod's address",
            "the same port answers through the kubelet, which dials the pod's loopback",
        ),
        (f"kubectl -n {target.namespace} set env {owner} MCP_GPU_HTTP_HOST=0.0.0.0,::",),
    )


def stale_address(case: Case) -> Judgement:
    """Somebody else answers where the agent should be."""
    found = [agent for agent in case.agents if agent.http in ("wrong_identity", "foreign")]
    if not found:
        return None
    moved = [a for a in found if a.pod and a.pod.addresses and not _shares(a)]
    carried = [agent for agent in found if agent.carried]
    another = [agent for agent in found if agent.http == "wrong_identity"]
    confidence: Confidence = "medium"
    if len({*names(moved), *names(carried), *names(another)}) == len(found):
        confidence = "high"
    evidence = [f"{a.name}: {a.message(a.http)}" for a in found[:SHOWN]]
    if moved and moved[0].pod:
        pod, listed = moved[0].pod, moved[0].addresses
        evidence.append(
            f"{moved[0].name}: the pod has {few(pod.addresses)}, the list says {few(listed)}"
        )
    if carried:
        evidence.append("the agent meant is alive: another path reaches it")
    target = found[0].survey.target
    services = f"-n {target.namespace} " if target.namespace else ""
    return Finding(
        "stale-address",
        "somebody else answers at the agent's address",
        confidence,
        names(found),
        tuple(evidence),
        (
            f"kubectl get endpointslices,pods {services}-o wide  # do addresses agree?",
            "# a proxy between gateway and agents looks the same where it answers for all of them",
        )
        if target.pod
        else ("# correct the address in the list of agents",),
    )


def name_resolution(case: Case) -> Judgement:
    """Agents' names are not known to DNS."""
    found = [agent for agent in case.agents if agent.http == "dns"]
    if not found:
        return None
    return Finding(
        "name-resolution",
        "agents' names cannot be resolved",
        "high",
        names(found),
        (f"{found[0].name}: {found[0].message('dns')}",),
        (
            "kubectl -n kube-system get pods -l k8s-app=kube-dns  # is DNS well?",
            "# or reach agents by address: gateway.agentAddress=ip, MCP_GPU_AGENT_ADDRESS=ip",
        ),
    )


def _trouble(agent: Agent) -> str:
    """What Kubernetes says of an agent that is not well."""
    if agent.pod is not None and agent.pod.trouble:
        return f"its pod {agent.pod.trouble}"
    return agent.survey.explanation


def _shares(agent: Agent) -> bool:
    """Whether the pod still has an address that it is asked at; names say nothing."""
    assert agent.pod is not None
    literal = [each for each in agent.addresses if ":" in each or each[-1:].isdigit()]
    return not literal or bool(set(literal) & set(agent.pod.addresses))
