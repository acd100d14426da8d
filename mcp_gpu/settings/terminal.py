"""The commands that ask a fleet for a person at a terminal."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from mcp_gpu.settings.base import File, LogLevel, Names, Seconds
from mcp_gpu.settings.fleet import FleetSettings


class TerminalSettings(FleetSettings):
    """What every command takes that asks a fleet for a person at a terminal."""

    model_config = SettingsConfigDict(cli_shortcuts={"json-output": "json"})

    log_level: LogLevel = "warning"
    """Least severe level that is logged, to standard error."""
    url: str = ""
    """MCP endpoint of a gateway, such as http://127.0.0.1:8080/mcp. Without it, the agents are
    asked directly."""
    token_file: File | None = None
    """File with the bearer token to show to the gateway at --url, which has to be https or on this
    machine, as kubectl port-forward makes it. Of several lines the first counts."""
    plain_token: bool = False
    """Show the token over plain HTTP to another machine, too, such as a gateway's Service within a
    cluster: whoever is on the way can read it and call with it."""
    ca_file: File | None = None
    """PEM file of the authorities that the certificate at --url is checked against. Default: the
    system's."""
    nodes: Names = ()
    """Only these nodes."""
    json_output: bool = False
    """Print the structured answer as JSON. For short: --json."""
    timeout_seconds: Seconds = 30.0
    """Longest wait for a gateway's answer."""


class StatusSettings(TerminalSettings):
    """Show the fleet's GPUs in the terminal."""


class TopSettings(TerminalSettings):
    """Show what the fleet's GPUs do, again and again, until Ctrl-C."""

    interval_seconds: Seconds = 2.0
    """How often the nodes are asked."""
    once: bool = False
    """Show it once and exit: 1 if some node did not answer. So it is with --json, and where the
    output is no terminal."""


class HealthSettings(TerminalSettings):
    """Say what is wrong with the fleet's GPUs, and what to do. Exits 1 unless all are healthy."""

    severity: Literal["critical", "warning", "info"] = "warning"
    """Least severe findings that are shown; the rest are counted."""


class TopoSettings(TerminalSettings):
    """Show how the GPUs of each node are joined. Exits 1 if something differs or is unknown."""


class XidSettings(TerminalSettings):
    """Say what the fleet's Xid errors mean (exits 1 if any asks for something), or explain one."""

    since: str = "boot"
    """From when on: boot (each node's present one), a duration up to now such as 30m, 2h or 3d, or
    an ISO 8601 time with its zone."""
    codes: Names = ()
    """Only these codes, and the chains that hold one of them."""
    explain: str = ""
    """Explain this code or line of a kernel log instead, or with `-` the log on standard input, as
    in `dmesg | mcp-gpu xid --explain -`. Needs no fleet and no GPU. Exits 1 only if there is no Xid
    that is known in it, whatever those explained ask for."""
    driver_version: str = ""
    """Driver that wrote the lines to explain, such as 580.105.08: the registers of 144 to 150 are
    read by it. Only with --explain."""


class PsSettings(TerminalSettings):
    """Show which pods hold which GPUs of the fleet."""

    pod_namespace: str = ""
    """Only pods of this namespace; --namespace is that of the agents."""
    pod: str = ""
    """Only pods of this name."""


class WhySettings(TerminalSettings):
    """Say why a pod or a Job failed, and what to do first: mcp-gpu why POD -n NAMESPACE."""

    model_config = SettingsConfigDict(cli_shortcuts={"json-output": "json", "pod-namespace": "n"})

    pod: CliPositionalArg[str] = ""
    """Name of the pod, or of a Job, JobSet or PyTorchJob, whose pod that failed first is
    explained."""
    pod_namespace: str = "default"
    """Namespace of the pod. For short: -n. (--namespace is that of the agents.)"""
    report: bool = False
    """Print the report of the incident instead, ready to paste: what else went wrong on its node
    then, in order."""
    timeout_seconds: Seconds = 60.0
    """Longest wait for a gateway's answer."""


class DoctorSettings(TerminalSettings):
    """Try every path to every agent, and say what is broken, why, and how to mend it."""

    timeout_seconds: Seconds = 90.0
    """Longest wait for a gateway's answer."""
    every_path: bool = False
    """Try all paths of all agents even in a fleet of more than 64: opens a stream to each."""
    in_cluster: bool = False
    """Pre-flight from the gateway's own pod, as a Helm test runs it: waits for the agents first,
    and exits 1 only with --strict."""
    wait_seconds: Annotated[float, Field(ge=0, le=600)] = 60.0
    """Longest wait for the agents to be there and ready. Only with --in-cluster."""
    strict: bool = False
    """Exit 1 where no path leads to some node. Only with --in-cluster."""
