"""docs/runbook.md has a section for every word that says that something is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from mcp_gpu.fleet.diagnosis.model import CODES
from mcp_gpu.fleet.model import PassedOver
from mcp_gpu.telemetry.calls import Outcome
from support.page import anchors

ROOT = Path(__file__).parent.parent
RUNBOOK = ROOT / "docs" / "runbook.md"


def words(kind: object) -> set[str]:
    """Of a closed list, and of those that it is made of."""
    return {word for each in get_args(kind) for word in (words(each) or {each})}


def test_every_reason_cause_and_outcome_has_a_section_and_no_section_is_of_another() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    found = re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    for heading, section in found:
        assert re.fullmatch(r"\n- \*\*Means:\*\* .+\n- \*\*Do:\*\* .+\n\n?", section), heading
    told = [heading.strip("`") for heading, _ in found if heading.startswith("`")]
    assert len(told) == len(set(told))
    assert set(told) == words(PassedOver) | set(CODES) | words(Outcome) - {"ok"}


def test_whatever_leads_to_the_runbook_arrives() -> None:
    """The chart's alerts do, by an address that nobody would see fail."""
    leading = {}
    for path in (*(ROOT / "charts").rglob("*"), *(ROOT / "mcp_gpu").rglob("*.py")):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            leading |= dict.fromkeys(re.findall(r"runbook\.md#([\w-]+)", text), path)
            alerts = re.findall(r"^\s*(?:- )?alert: *(\w+)", text, re.MULTILINE)
            leading |= dict.fromkeys((alert.lower() for alert in alerts), path)
    assert leading.keys() <= anchors(RUNBOOK), leading
