"""docs/tools.md has of each tool what a client is shown of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mcp_gpu.tools import agent, gateway

PAGE = Path(__file__).parent.parent / "docs" / "tools.md"

BEGIN = "<!-- from here: written by `make test ARGS=--update-golden` -->\n"
END = "<!-- to here -->\n"

SHARED = ("nodes", "limit", "cursor")
"""Arguments, and parts of answers, that the page tells once for all gateways' tools."""

SHARED_PARTS = (
    *("simulated", "coverage", "ways", "passed_over", "next_cursor", "nodes_omitted"),
    *("failures", "failures_omitted", "failures_by_reason"),
)

Listed = dict[str, Any]


def listed(path: Path) -> dict[str, Listed]:
    tools = json.loads(path.read_text(encoding="utf-8"))["tools"]
    return {tool["name"]: tool for tool in tools}


def reference(of_agent: Listed | None, of_gateway: Listed | None) -> str:
    """What both roles list of one tool, as Markdown."""
    roles = {"Agents": of_agent, "Gateways": of_gateway}
    having = {role: tool for role, tool in roles.items() if tool is not None}
    told = {role: tool["description"] for role, tool in having.items()}
    if len(set(told.values())) == 1:
        lines = [f"{' and '.join(told).capitalize()}: {next(iter(told.values()))}"]
    else:
        lines = [f"- {role}: {text}" for role, text in told.items()]
    lines += ["", *arguments(having), "", "<details><summary>Fields of the answer</summary>", ""]
    lines += [*fields(having), "", "</details>"]
    return "\n".join(lines) + "\n"


def arguments(having: dict[str, Listed]) -> list[str]:
    schemas = {role: tool["inputSchema"] for role, tool in having.items()}
    rows = [
        f"| argument | {' | '.join(having)} | takes | meaning |",
        "|---" * (3 + len(having)) + "|",
    ]
    names = dict.fromkeys(name for each in schemas.values() for name in each.get("properties", {}))
    shared = [name for name in SHARED if is_shared(name, schemas)]
    for name in sorted(names.keys() - set(shared), key=list(names).index):
        of = {role: each.get("properties", {}).get(name) for role, each in schemas.items()}
        cells = [default(name, of[role], schemas[role]) for role in having]
        takes, means = (either(of, tell) for tell in (kind, meaning))
        rows.append(f"| `{name}` | {' | '.join(cells)} | {takes} | {means} |")
    if shared:
        cells = ["above" if role == "Gateways" else "" for role in having]
        rows.append(f"| {', '.join(f'`{n}`' for n in shared)} | {' | '.join(cells)} | | above |")
    return rows if len(rows) > 2 else ["No arguments."]


def is_shared(name: str, schemas: dict[str, Listed]) -> bool:
    """Whether only gateways have it, as all their tools do."""
    having = [role for role, each in schemas.items() if name in each.get("properties", {})]
    return having == ["Gateways"]


def default(name: str, schema: Listed | None, tool: Listed) -> str:
    if schema is None:
        return ""
    if name in tool.get("required", ()):
        return "needed"
    value = schema.get("default")
    return f"`{json.dumps(value).strip(chr(34))}`" if value not in (None, "") else "optional"


def either(of: dict[str, Listed | None], tell: Any) -> str:
    """What is told of an argument, for each role where that differs."""
    told = {role: tell(schema) for role, schema in of.items() if schema is not None}
    if len(set(told.values())) == 1:
        return str(next(iter(told.values())))
    return "; ".join(f"{role.lower()}: {text}".removesuffix(".") for role, text in told.items())


def meaning(schema: Listed) -> str:
    return str(schema.get("description", "")).replace("|", "\\|")


def kind(schema: Listed) -> str:
    """A type in few words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        kinds = [kind(each) for each in schema["anyOf"] if each.get("type") != "null"]
        null = " or null" if len(kinds) < len(schema["anyOf"]) and "default" not in schema else ""
        return " or ".join(dict.fromkeys(kinds)) + null
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    match schema.get("type"):
        case "array":
            most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
            items = schema.get("items") or {}
            return f"list of {kind(items)}{most}"
        case "object":
            values = schema.get("additionalProperties")
            return f"object of {kind(values)}" if isinstance(values, dict) else "object"
        case "string":
            most = schema.get("maxLength")
            return f"text of at most {most:,} characters" if most else "text"
        case "integer" | "number" as number:
            least, most = schema.get("minimum"), schema.get("maximum")
            within = f", {least:,} to {most:,}" if most is not None and least is not None else ""
            return f"{number}{within}"
        case other:
            return str(other or "anything")


def fields(having: dict[str, Listed]) -> list[str]:
    """Of the answer itself. What they are made of is in the schema that a server lists."""
    rows = []
    for role, tool in having.items():
        rows += ["", f"{role}:", "", "| field | is | |", "|---|---|---|"]
        rows += [
            f"| `{name}` | {kind(told)} | {meaning(told)} |"
            for name, told in tool["outputSchema"]["properties"].items()
            if role == "Agents" or name not in SHARED_PARTS
        ]
    return rows[1:]


AGENT, GATEWAY = listed(agent.LISTING), listed(gateway.LISTING)


def test_every_tool_is_documented_as_it_is_listed(request: pytest.FixtureRequest) -> None:
    before, *sections = re.split(r"^(?=## )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {section.split("\n")[0] for section in sections} == {
        f"## `{name}`" for name in AGENT | GATEWAY
    }
    made = [before]
    for section in sections:
        head, begin, rest = section.partition(BEGIN)
        _, end, after = rest.partition(END)
        assert begin, head
        assert end, head
        name = head.split("`")[1]
        told = reference(AGENT.get(name), GATEWAY.get(name))
        made.append(f"{head}{begin}\n{told}\n{end}{after}")
    if request.config.getoption("--update-golden"):
        PAGE.write_text("".join(made), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == "".join(made)


def test_what_is_told_once_is_shared_by_all_that_list_nodes() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    for name in SHARED:
        assert f"| `{name}` |" in text
    for name in SHARED_PARTS:
        assert f"`{name}`" in text
