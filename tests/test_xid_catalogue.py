"""The catalogue is NVIDIA's, code by code and rule by rule, and all of it is explained."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_gpu.gpu.actions import ACTIONS, advice, grave, recovery, weight
from mcp_gpu.gpu.xid import line, nvlink5
from mcp_gpu.gpu.xid.catalogue import (
    DATA,
    PROVENANCE,
    action_of,
    entries,
    entry,
)
from mcp_gpu.gpu.xid.explain import Explanation, explain

CODES: Final[list[dict[str, Any]]] = json.loads((DATA / "codes.json").read_text("utf-8"))
RULES: Final[list[dict[str, Any]]] = json.loads((DATA / "nvlink5.json").read_text("utf-8"))

# Of the columns as they were published and transcribed; a newer catalogue changes these on purpose.
CODES_SHA256 = "52be8a1ce7903dd2bdfe5dcd72a85f944393180aadc310b34dfce621f9e945cd"
RULES_SHA256 = "c6a910d6090a7df5536c33eaa81b199629f899beba7ca694651216736a0f89fc"

NUMBERS = [row["code"] for row in CODES]
BEFORE, FROM = 570, 580
"""A driver branch before R575, and one after."""


def digest(rows: list[dict[str, Any]]) -> str:
    canonical = json.dumps(rows, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def test_the_data_is_the_published_one() -> None:
    assert (len(CODES), len(RULES)) == (172, 95)
    assert (digest(CODES), digest(RULES)) == (CODES_SHA256, RULES_SHA256)


def test_the_catalogue_has_172_codes_and_tells_what_is_from_elsewhere() -> None:
    assert [found.code for found in entries()] == list(range(1, 173))
    assert sum(found.unused for found in entries()) == 61
    for code in (173, 999):
        found = entry(code)
        assert found is not None
        assert found not in entries()
        assert found.provenance != PROVENANCE
        assert explain(code).confidence == "low"
        assert explain(code).action == "NONE"
    assert entry(0) is entry(174) is entry(-1) is None


@pytest.mark.parametrize("row", CODES, ids=lambda row: str(row["code"]))
def test_an_entry_says_what_the_catalogue_says(row: dict[str, Any]) -> None:
    found = entry(row["code"])
    assert found is not None
    assert found.mnemonic == row["mnemonic"]
    assert row["name"] in (found.name, f"(unused in current catalogue) {found.name}")
    assert (found.bucket, found.investigate) == (row["immediate"], row["investigatory"])
    assert (found.category, found.links_154) == (row["cls"], row["m154"])
    assert found.unused == row["unused"]
    assert len(found.causes) == len(row["flags"])
    assert "".join(name[0] for name in found.architectures) == row["applies"].replace("·", "")
    if row["sev"] in ("critical", "warning", "info"):
        assert found.severity == row["sev"]
    assert found.action in ACTIONS
    # Only where the catalogue's action depends on the line may the code's differ from the bucket's.
    assert found.action == action_of(found.bucket) or found.bucket == "WORKFLOW_NVLINK5_ERR"


def test_every_code_in_use_has_words_of_its_own() -> None:
    used = [found for found in entries() if not found.unused]
    meanings = [found.meaning for found in used]
    assert len(set(meanings)) == len(meanings)
    for found in entries():
        assert found.meaning[0].isupper()
        assert found.meaning.endswith(".")
        assert found.advice.endswith(".")
        assert found.name not in ("", found.meaning)
    # What a later judgement is made from has to be told, not looked for behind a bucket's name.
    for code in (13, 31, 45, 48, 74, 137, 154, 159):
        named = entry(code)
        assert named is not None
        assert named.advice not in {advice(action) for action in ACTIONS}


def test_actions_have_an_order_and_words() -> None:
    *weighed, support = list(ACTIONS)[: list(ACTIONS).index("CONTACT_SUPPORT") + 1]
    assert [weight(action) for action in (*weighed, support)] == list(range(len(weighed) + 1))
    assert {weight(action) for action in ACTIONS} - {weight(action) for action in weighed} == {
        weight(support)
    }
    assert weight("NONE") < weight("RESTART_APP") < weight("RESET_GPU") < weight("REBOOT_NODE")
    assert weight("DRAIN_AND_RESET") < weight("CHECK_SEATING") < weight("CONTACT_SUPPORT")
    light = [action for action in weighed if not grave(action)]
    assert light == ["NONE", "RESTART_APP", "RESTART_FM"]
    assert all(advice(action).endswith(".") for action in ACTIONS)
    assert all("GPU 3" not in advice(action) for action in ACTIONS)
    assert "--id=3 on the node" in advice("RESET_GPU", 3)
    assert (recovery("recover_imex"), recovery("unknown(9)")) == ("RECOVER_IMEX", "UNKNOWN")
    assert (weight("SOMETHING_NEW"), advice("SOMETHING_NEW")) == (0, "")


@pytest.mark.parametrize("code", NUMBERS)
def test_each_code_is_read_from_a_line_and_explained(code: int) -> None:
    said = line.parse(f"NVRM: Xid (PCI:0000:53:00): {code}, pid=4242, name=python3, Ch 00000008")
    found = entry(code)
    assert said is not None
    assert found is not None
    assert (said.code, said.pid, said.process) == (code, 4242, "python3")
    told = explain(said.code, text=said.text, kind=said.kind)
    assert told == explain(code, text=f"NVRM: Xid (PCI:0000:53:00): {code}, Ch 00000008")
    assert told.known
    assert told.code == code
    assert (told.name, told.meaning) == (found.name, found.meaning)
    assert (told.bucket, told.investigate) == (found.bucket, found.investigate)
    assert (told.action, told.severity) == (found.action, found.severity)
    assert told.provenance == PROVENANCE
    assert (told.decoded, told.caused_by) == ((), None)
    assert Explanation.model_validate_json(told.model_dump_json()) == told


@pytest.mark.parametrize("code", [0, -1, 174, 998, 1000, 10**30])
def test_an_unknown_code_says_so_and_sends_nobody_to_the_vendor(code: int) -> None:
    told = explain(code, text="something new caused by previous Xid 79")
    assert not told.known
    assert told.action == "NONE"
    assert told.confidence == "low"
    assert "support" not in told.advice
    assert told.caused_by == 79
    assert str(code) in told.name


# 144 to 150.


def number(pattern: str, *, dont_care: str = "0") -> int:
    return int(pattern.replace("-", dont_care), 2)


def fits(pattern: str, info: int) -> bool:
    """The table's rule read literally: character by character."""
    return bool(pattern) and all(
        wanted in ("-", bit) for wanted, bit in zip(pattern, f"{info:032b}", strict=True)
    )


def statuses(rule: dict[str, Any]) -> list[int]:
    return [int(one, 16) for one in rule["status"].split("/") if one]


def nvlink(code: int, info: int, status: int, *, word: str = "Nonfatal", link: int = 3) -> str:
    return (
        f"NVRM: Xid (PCI:0000:53:00): {code}, UNIT {word} XC0 i0 Link {link:02d}"
        f" (0x{info:08x} 0x{status:08x} 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)"
    )


def explained(code: int, info: int, status: int, branch: int | None, **more: Any) -> Explanation:
    said = line.parse(nvlink(code, info, status, **more))
    assert said is not None
    return explain(said.code, text=said.text, driver_branch=branch)


def names(told: Explanation, unit: str) -> bool:
    return any(f", {unit}" in sentence for sentence in told.decoded)


RULE_IDS = [f"{rule['xid']}-{rule['unit']}-{at}" for at, rule in enumerate(RULES)]


@pytest.mark.parametrize("dont_care", ["0", "1"])
@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
def test_each_rule_is_hit_by_its_line_on_either_side_of_r575(
    rule: dict[str, Any], dont_care: str
) -> None:
    code = rule["xid"]
    for status in statuses(rule) or [0, 0x12345678]:
        by_column = {
            branch: explained(code, number(rule[column], dont_care=dont_care), status, branch)
            for column, branch in (("v1", BEFORE), ("v2", FROM))
        }
        for column, branch in (("v1", BEFORE), ("v2", FROM)):
            told = by_column[branch]
            assert names(told, rule["unit"])
            assert told.bucket == rule["immediate"]
            assert told.action == action_of(rule["immediate"])
            assert told.investigate == rule["investigatory"]
            assert told.confidence == "high"
            info = number(rule[column], dont_care=dont_care)
            assert explained(code, info, status, None).action == told.action
            other = FROM if branch == BEFORE else BEFORE
            crossed = explained(code, info, status, other)
            if fits(rule["v2" if column == "v1" else "v1"], info):
                assert crossed == told.model_copy(update={"decoded": crossed.decoded})
            else:
                assert not names(crossed, rule["unit"]) or code == 150
                assert crossed.confidence == "low"


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule["action2"]], ids=str)
def test_a_second_mask_has_an_action_of_its_own(rule: dict[str, Any]) -> None:
    (status,) = statuses(rule)
    for column, branch in (("v1", BEFORE), ("v2", FROM)):
        first, second = number(rule[column]), number(rule[f"{column}_action2"])
        assert explained(145, first, status, branch).action == action_of(rule["immediate"])
        told = explained(145, second, status, branch)
        assert (told.bucket, told.action) == (rule["action2"], "RESET_GPU")
        assert told.severity == "critical"


@st.composite
def interrupts(draw: st.DrawFn) -> tuple[int, int]:
    """A code and an intrInfo made from some mask: its own bits, at most one of them wrong."""
    rule = draw(st.sampled_from(RULES))
    pattern = rule[draw(st.sampled_from(["v1", "v2"]))]
    noise = draw(st.integers(0, 2**32 - 1))
    cares = int("".join("0" if bit == "-" else "1" for bit in pattern), 2)
    flipped = draw(st.sampled_from([0, *(1 << at for at in range(32))]))
    return rule["xid"], (number(pattern) | noise & ~cares) ^ flipped


@given(interrupts(), st.integers(0, 2**32 - 1), st.sampled_from([None, 535, 574, 575, 590]))
def test_masks_and_statuses_are_matched_bit_by_bit(
    what: tuple[int, int], status: int, branch: int | None
) -> None:
    code, info = what
    columns = ["v1", "v2"] if branch is None else ["v1" if branch < 575 else "v2"]
    hit, action = set(), "NONE"
    for rule in RULES:
        wanted = statuses(rule)
        if rule["xid"] != code:
            continue
        if code < 149 and not any(status & bit for bit in wanted):
            continue
        if code >= 149 and wanted and status not in wanted:
            continue
        for column in columns:
            for mask, bucket in ((column, "immediate"), (f"{column}_action2", "action2")):
                if fits(rule[mask], info):
                    hit.add(rule["unit"])
                    action = max(action, action_of(rule[bucket]), key=weight)
    told = explained(code, info, status, branch)
    assert {rule["unit"] for rule in RULES if names(told, rule["unit"] + " with")
            or names(told, rule["unit"] + ":")} == hit  # fmt: skip
    assert told.action == action


def test_a_known_driver_is_not_read_by_the_other_column() -> None:
    told = explained(145, 0x04082907, 0x8, BEFORE)
    assert told.confidence == "low"
    assert told.bucket == "WORKFLOW_NVLINK5_ERR"
    assert (
        "which is not this driver's (branch 570), it would be unit RLW_SRC_TRACK"
        in (told.decoded[-1])
    )
    assert explained(145, 0x04082907, 0x8, nvlink5.V2_FROM_BRANCH).confidence == "high"
    assert explained(145, 0x04082907, 0x8, nvlink5.V2_FROM_BRANCH - 1).confidence == "low"


def test_several_statuses_ask_for_the_heaviest_and_each_is_told() -> None:
    told = explained(145, number(RULES[7]["v2"]), 0x1 | 0x40 | 0x100, FROM, word="Fatal")
    assert told.action == "RESET_GPU"
    for status, bucket in ((0x1, "XID_154_EVAL"), (0x40, "RESET_GPU"), (0x100, "IGNORE")):
        assert any(f"{status:#010x}: {bucket}," in sentence for sentence in told.decoded)


@pytest.mark.parametrize(
    ("info", "status", "gap"),
    [
        (0x0000007F, 0x1, "has no unit for intrInfo 0x0000007f"),
        (0x00000004, 0x0, "has no case for errorStatus 0x00000000"),
        (0x00000004, 0x1000, "has no case for errorStatus 0x00001000"),
        (0x00000004, 0x1100, "has no case for the bits 0x00001000"),
    ],
)
def test_what_the_table_does_not_have_is_said_and_judged_by_the_drivers_word(
    info: int, status: int, gap: str
) -> None:
    fatal = explained(145, info, status, FROM, word="Fatal")
    mild = explained(145, info, status, FROM, word="Nonfatal")
    for told in (fatal, mild):
        assert any(gap in sentence for sentence in told.decoded)
        assert told.confidence == "low"
    assert (fatal.action, fatal.severity) == ("RESET_GPU", "critical")
    assert (mild.action, mild.severity) == ("NONE", "warning")
    assert fatal.advice.startswith("Follow a 154")


def test_a_line_cut_before_its_status_is_decoded_as_far_as_it_goes() -> None:
    start = "NVRM: Xid (PCI:0000:53:00): "
    whole = explain(
        149, text=f"{start}149, NETIR Fatal XC0 i0 Link -1 (0x000fe406", driver_branch=570
    )
    assert (whole.action, whole.confidence) == ("RESET_GPU", "high")
    assert "no link of its own" in whole.decoded[0]
    part = explain(145, text=f"{start}145, RLW_REMAP Nonfatal XC0 i0 Link 2 (0x00000004 0x000")
    assert part.confidence == "low"
    assert any("ends before errorStatus" in sentence for sentence in part.decoded)
    for cut in ("XC0 i0 Li", "XC0 i0 Link 2 (", "XC0 i0 Link 2 (0x0000"):
        assert explain(145, text=f"{start}145, RLW_REMAP Nonfatal {cut}").decoded == ()


def test_without_numbers_a_code_asks_for_the_heaviest_of_its_cases() -> None:
    for code in nvlink5.CODES:
        rules = [rule for rule in RULES if rule["xid"] == code]
        heaviest = max((action_of(rule["immediate"]) for rule in rules), key=weight)
        told = explain(code)
        assert (told.action, told.severity, told.confidence) == (heaviest, "follow", "low")


@given(st.integers(-5, 1100), st.text(), st.sampled_from([None, -1, 0, 570, 580]))
def test_no_text_breaks_an_explanation(code: int, text: str, branch: int | None) -> None:
    for kind in ("xid", "sxid"):
        told = explain(code, text=text, kind=kind, driver_branch=branch)  # type: ignore[arg-type]
        assert told.action in ACTIONS
        assert told.advice
