"""`gpu-triage`: one node in trouble, from the first look to a cause or to who has to look next."""

from __future__ import annotations

from collections.abc import Mapping, Set

from pydantic import Field

from mcp_gpu.prompts.arguments import IncidentId, NodeName
from mcp_gpu.prompts.guide import Guide
from mcp_gpu.prompts.health_check import VERDICTS
from mcp_gpu.registry import Arguments
from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.prompt import Prompt

__all__ = ["prompt"]


class TriageArguments(Arguments):
    """Which node, and what the trouble is called."""

    node: NodeName = Field(description="Node in trouble.")
    incident_id: IncidentId | None = Field(
        default=None,
        description="Id of the incident, as a report of it gave; its report is asked for.",
    )


def prompt(completes: Mapping[str, Completer]) -> Prompt[TriageArguments]:
    """The prompt of a gateway."""
    return Prompt(
        name="gpu-triage",
        title="Triage a GPU node",
        description="Triage an incident on one node: hardware, driver, workload or network, with "
        "the evidence, who is hit, and the next step.",
        arguments=TriageArguments,
        write=_text,
        completes=completes,
    )


def _text(arguments: TriageArguments, tools: Set[str]) -> str:
    node, incident = arguments.node, arguments.incident_id
    called = f" (incident {incident})" if incident else ""
    guide = Guide(
        f"Triage the GPUs of node {node}{called}: is it hardware, the driver, a workload, the "
        "network, or not known yet?",
        tools,
        fleet=True,
    )
    if incident:
        guide.step(
            "get_incident_report",
            text=f"Call {guide.call('get_incident_report', incident_id=incident)}: one timeline "
            f"of what happened. If it knows no such id, "
            f"{guide.call('get_incident_report', node, window='2h')}.",
        )
    else:
        guide.step(
            "get_incident_report",
            text=f"Call {guide.call('get_incident_report', node, window='2h')}: one timeline of "
            "what happened.",
        )
    guide.step(
        "get_gpu_health",
        text=f"{guide.call('get_gpu_health', node, detail='full', severity='info')}: what is wrong "
        f"now. {VERDICTS}",
    )
    guide.step(
        "check_connectivity",
        text=f"If the node did not answer, {guide.call('check_connectivity', node)} says which "
        "path fails and why. Then it is the network, the agent or the node as a whole until "
        "something of its GPUs is known.",
    )
    guide.step(
        "describe_gpu_node",
        text=f"{guide.call('describe_gpu_node', node)}: conditions, taints and events of the node, "
        "and whether NVML, the bus and Kubernetes count the same GPUs.",
    )
    guide.step(
        "analyze_xid_errors",
        "explain_xid",
        text=f"{guide.call('analyze_xid_errors', node, since='24h', detail='full')}: causes before "
        "what followed from them. `explain_xid` for codes that decide.",
    )
    guide.step(
        "get_gpu_timeline",
        text=f"{guide.call('get_gpu_timeline', node, window='2h')}: what changed first, and "
        "whether it changed on one GPU or on all.",
    )
    guide.step(
        "get_nvlink_topology",
        text="For findings about links or a slow collective, "
        f"{guide.call('get_nvlink_topology', node)}: asymmetries come first.",
    )
    guide.step(
        "get_gpu_inventory",
        text=f"For missing GPUs, {guide.call('get_gpu_inventory', node, detail='full')} has serial "
        "numbers and bus addresses of those there are.",
    )
    guide.step(
        "get_pod_gpu_allocation",
        text=f"{guide.call('get_pod_gpu_allocation', node)}: who is hit, and who would be by "
        "whatever is done next.",
    )
    guide.step(
        "get_gpu_processes",
        text=f"{guide.call('get_gpu_processes', node)}: what still runs, also outside of any "
        "allocation. An empty list means nothing where processes cannot be seen.",
    )
    guide.step(
        "explain_failure",
        text=f"{guide.call('explain_failure', pod='its-name', namespace='its-own')} for "
        "a pod that died there: it blames hardware only for a fact about that pod's own GPU at "
        "that time.",
    )
    guide.stop(
        "as soon as one cause explains the evidence with high confidence and those whom it hits "
        "are named."
    )
    guide.stop("if the node is healthy now and its log shows nothing: say so, do not go on.")
    guide.stop("where tools cannot see further: say what is missing and who can look.")
    return guide.report(
        (f"Head it with incident {incident} and node {node}. " if incident else "")
        + "The cause with its confidence, or that it is not known. Hardware only for a hardware "
        "fact: a finding, an Xid, a lost GPU. Then the evidence in the order of time, who is hit, "
        "the next step and who takes it, and what speaks against your reading."
    )
