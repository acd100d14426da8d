"""`explain_xid`: what a code or a line of the kernel log means. Needs no GPU and no agent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from mcp_gpu.gpu.actions import advice
from mcp_gpu.gpu.xid.excerpt import Excerpt, Explained, alone, read
from mcp_gpu.gpu.xid.explain import explain
from mcp_gpu.gpu.xid.incidents import CLEANUP
from mcp_gpu.gpu.xid.model import Kind
from mcp_gpu.gpu.xid.present import branch
from mcp_gpu.registry import Answer, Arguments, Call, Tool, ToolError
from mcp_gpu.tools.spans import counted
from mcp_gpu.tools.xids import SAMPLE_CHARS, others, within
from transports.text import quoted

__all__ = [
    "FORM",
    "NAME",
    "ExplainArguments",
    "explain_tool",
    "heading",
    "of_code",
    "rows",
    "sources",
]

NAME: Final = "explain_xid"

LINE_CHARS: Final = 32_768
"""Longest text to explain: some hundred lines of a log."""

TEXT_CHARS: Final = 8_000
"""The answer's text is never longer."""

FIRST_SXID: Final = 10_000
"""NVSwitches' codes begin here; GPUs' end far below."""

_SEVERITIES: Final = {"follow": "what comes with it decides"}
"""In words, where the name does not say it."""

FORM: Final = (
    "it looks like `NVRM: Xid (PCI:0000:53:00): 48, pid=1234, name=python, ...`, with any prefix"
)


_VERSION: Final = re.compile(r"[0-9]{3,4}(\.[0-9]+)*")


def _version(text: str) -> str:
    if _VERSION.fullmatch(text) is None:
        raise ValueError("should be a driver's version such as 580.105.08")
    return text


DriverVersion = Annotated[
    str,
    AfterValidator(_version),
    Field(json_schema_extra={"pattern": f"^{_VERSION.pattern}$"}),
]


class ExplainArguments(Arguments):
    """What is to be explained."""

    code: Annotated[int, Field(ge=1, le=99_999)] | None = Field(
        default=None, description="A code, such as 79; from 10000 on an NVSwitch's SXid."
    )
    line: Annotated[str, Field(min_length=1, max_length=LINE_CHARS)] | None = Field(
        default=None,
        description="A line of the kernel log, or an excerpt of many. Give this or `code`.",
    )
    driver_version: DriverVersion | None = Field(
        default=None,
        description="Such as 580.105.08: the registers of 144-150 are read by it. Without it both "
        "readings are told where they differ.",
    )


def explain_tool() -> Tool[ExplainArguments]:
    """The tool, the same on an agent and on a gateway."""

    async def run(arguments: ExplainArguments, call: Call) -> Answer:
        if (arguments.code is None) == (arguments.line is None):
            raise ToolError("Give code or line: one of them, and not both.")
        driver_branch = branch(arguments.driver_version)
        if arguments.code is not None:
            found = of_code(arguments.code, driver_branch)
        else:
            found = read((arguments.line or "").splitlines(), driver_branch=driver_branch)
            if not found.explained:
                raise ToolError(f"No Xid in {counted(found.lines, 'line')}: {FORM}.")
        return Answer("\n".join(within(_lines(found), TEXT_CHARS)), found)

    return Tool(
        name=NAME,
        title="Explain an Xid",
        description=(
            "Explain an NVIDIA Xid or SXid from its code, or from lines of the kernel log pasted "
            "as they are: NVIDIA's bucket and action, what it means and what to do, registers "
            "decoded, which of the lines follow from others, and where authorities disagree. "
            "Needs no GPU."
        ),
        arguments=ExplainArguments,
        result=Excerpt,
        run=run,
    )


def of_code(code: int, driver_branch: int | None) -> Excerpt:
    """What a code means without a line."""
    kind: Kind = "sxid" if code >= FIRST_SXID else "xid"
    said = explain(code, kind=kind, driver_branch=driver_branch)
    one = Explained(explanation=said, count=0, action=alone(said), note="", line="")
    return Excerpt(explained=(one,), omitted=0, chains=(), lines=0, xids=0)


def _lines(found: Excerpt) -> Iterator[str]:
    """An excerpt explained, for a model's or a person's eye."""
    yield from (f"follows: {chain}" for chain in found.chains)
    for one in found.explained:
        yield heading(one)
        yield from (f"  {label}: {value}" for label, value in rows(one))
    if found.omitted:
        yield f"{counted(found.omitted, 'more kind')} of Xids: ask for fewer lines"
    yield from sources(found)


def heading(one: Explained) -> str:
    """`Xid 48 x3: Double Bit ECC Error (ROBUST_CHANNEL_GPU_ECC_DBE)`."""
    said = one.explanation
    noun = "SXid" if said.kind == "sxid" else "Xid"
    times = f" x{one.count}" if one.count > 1 else ""
    symbol = f" ({said.mnemonic})" if said.mnemonic else ""
    return f"{noun} {said.code}{times}: {said.name}{symbol}"


def rows(one: Explained) -> Iterator[tuple[str, str]]:
    """What there is to say of one Xid, each with its label."""
    said = one.explanation
    yield "means", said.meaning
    yield "severity", _SEVERITIES.get(said.severity, said.severity)
    if said.known:
        further = said.investigate if said.investigate != said.bucket else ""
        then = f", then {further}" if further else ""
        yield "NVIDIA", f"{said.bucket or 'no bucket yet'}{then}"
    if one.note:
        yield "here", one.note
    yield "do", f"{one.action}: {_advice(one)}"
    if said.decoded:
        yield "reads", " ".join(said.decoded)
    if said.caused_by is not None:
        yield "cause", f"Xid {said.caused_by}, as the driver says"
    if said.note:
        yield "note", said.note
    if said.disagreements:
        yield "others", others(said.disagreements)
    if one.line:
        yield "line", quoted(one.line, SAMPLE_CHARS)


def _advice(one: Explained) -> str:
    said = one.explanation
    # What is said of a cleanup is said for when its company is not known.
    known = said.code == CLEANUP and one.note
    return advice(one.action) if known or one.action != alone(said) else said.advice


def sources(found: Excerpt) -> Iterator[str]:
    """Where it is known from."""
    yield from dict.fromkeys(f"Source: {one.explanation.provenance}" for one in found.explained)
