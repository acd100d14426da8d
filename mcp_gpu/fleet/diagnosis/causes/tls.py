"""Causes in TLS between gateway and agents: certificates, and who speaks it at all."""

from __future__ import annotations

from mcp_gpu.fleet.connectivity.model import Outcome
from mcp_gpu.fleet.diagnosis.case import Agent, Case, names
from mcp_gpu.fleet.diagnosis.finding import Finding
from mcp_gpu.fleet.diagnosis.model import Code

__all__ = ["expired", "failed", "scheme", "untrusted", "wrong_name"]


def untrusted(case: Case) -> Finding | None:
    """An agent's certificate is signed by nobody whom the gateway trusts."""
    return _cause(
        case,
        "tls_untrusted",
        "certificate-untrusted",
        "agents' certificates are signed by no authority that the gateway trusts",
        "# MCP_GPU_AGENT_CA_FILE has to hold the authority that signed them. Where others are"
        " trusted, somebody else may answer at this address: see who has it",
    )


def wrong_name(case: Case) -> Finding | None:
    """An agent's certificate is for another name."""
    return _cause(
        case,
        "tls_name",
        "certificate-name",
        "agents' certificates do not have the name that the gateway checks them for",
        "# MCP_GPU_AGENT_SERVER_NAME has to be one of their names; where agents are called by"
        " name, they need that name too",
    )


def expired(case: Case) -> Finding | None:
    """An agent's certificate has ended, or not begun."""
    return _cause(
        case,
        "tls_expired",
        "certificate-expired",
        "agents' certificates have expired",
        "# renew what MCP_GPU_TLS_CERT_FILE holds; agents read it again by themselves. Not valid"
        " yet: look at the nodes' clocks",
    )


def scheme(case: Case) -> Finding | None:
    """One end speaks TLS and the other does not."""
    found = [agent for agent in case.agents if agent.had("tls_scheme")]
    if case.outside and found and not any(agent.http == "tls_scheme" for agent in found):
        return Finding(
            "tls-scheme",
            "of gateway and agents one speaks TLS over a port-forward and the other does not; exec"
            " wants none",
            "high",
            names(found),
            (f"{found[0].name}: {found[0].message('tls_scheme')}",),
            (
                "# exec first: --transports http,exec,portforward; or, where agents speak TLS,"
                " --agent-scheme https with --agent-ca-file and --agent-token-file",
            ),
            "streams",
        )
    return _cause(
        case,
        "tls_scheme",
        "tls-scheme",
        "of gateway and agents one speaks TLS and the other does not",
        "# MCP_GPU_AGENT_SCHEME=https at the gateway and MCP_GPU_TLS_CERT_FILE at agents, or"
        " neither",
    )


def failed(case: Case) -> Finding | None:
    """Any other end of a handshake."""
    return _cause(
        case,
        "tls",
        "tls",
        "TLS with agents fails in the handshake",
        "# its words say why; agents speak TLS 1.2 and 1.3",
    )


def _cause(case: Case, outcome: Outcome, code: Code, title: str, fix: str) -> Finding | None:
    found = [agent for agent in case.agents if agent.had(outcome)]
    if not found:
        return None
    first = found[0]
    direct = [agent for agent in found if agent.http == outcome]
    evidence = [f"{first.name}: {first.message(outcome)}"]
    answered = sum(agent.http == "ok" for agent in case.agents)
    if direct and answered:
        evidence.append(f"{answered} others answer over the same settings")
    return Finding(
        code,
        title,
        "high",
        names(found),
        tuple(evidence),
        (fix, _look(first)),
        "http" if direct else "streams",
    )


def _look(agent: Agent) -> str:
    """The command that shows the certificate."""
    address = agent.addresses[0] if agent.addresses else "ADDRESS"
    address = f"[{address}]" if ":" in address else address
    return (
        f"openssl s_client -connect {address}:{agent.survey.target.port} </dev/null"
        " | openssl x509 -noout -issuer -enddate -ext subjectAltName"
    )
