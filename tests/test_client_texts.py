"""JSON and TOML edited in place, however they are laid out."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_gpu.clients.jsontext import Json
from mcp_gpu.clients.model import Entry, Item
from mcp_gpu.clients.tomltext import Toml

LAX = Json(comments=True)
STRICT = Json(comments=False)

ENTRY: Entry = {"type": "stdio", "command": "mcp-gpu", "args": ["gateway", "--stdio"]}
OTHER: Entry = {"type": "http", "url": "https://gpu.example.com/mcp", "headers": {"A": "${B}"}}

texts = st.text(st.characters(codec="utf-8"), max_size=6)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
servers = st.dictionaries(texts.filter(lambda name: name != "gpu"), values, max_size=3)
documents = st.builds(
    lambda before, found, after: before | {"servers": found} | after,
    st.dictionaries(texts.filter(lambda name: name != "servers"), values, max_size=2),
    servers,
    st.dictionaries(texts.filter(lambda name: name != "servers"), values, max_size=2),
)


def blanks(newline: str) -> st.SearchStrategy[str]:
    pieces = [" ", "\t", newline, f"// c, }} ]{newline}", "/* c, [ { */", f"/* {newline} */"]
    return st.lists(st.sampled_from(pieces), max_size=3).map("".join)


@st.composite
def laid_out(draw: st.DrawFn, data: Any, newline: str) -> str:
    """A text of it with blanks, comments and trailing commas wherever there may be some."""

    def gap() -> str:
        return draw(blanks(newline))

    def written(value: Any) -> str:
        if not isinstance(value, dict | list):
            return json.dumps(value, ensure_ascii=draw(st.booleans()))
        inside = [
            f"{gap()}{json.dumps(key)}{gap()}:{gap()}{written(each)}{gap()}"
            for key, each in (value.items() if isinstance(value, dict) else ())
        ] or [f"{gap()}{written(each)}{gap()}" for each in value]
        comma = "," if inside and draw(st.booleans()) else ""
        opened, closed = "{}" if isinstance(value, dict) else "[]"
        return f"{opened}{','.join(inside)}{comma}{gap()}{closed}"

    return gap() + written(data) + gap()


@settings(deadline=None, max_examples=60)
@given(data=st.data(), document=documents, newline=st.sampled_from(["\n", "\r\n"]))
def test_only_the_entry_changes_in_any_json(
    data: st.DataObject, document: dict[str, Any], newline: str
) -> None:
    text = data.draw(laid_out(document, newline))
    assert LAX.read(text) == document
    place = ("servers", "gpu")
    added = LAX.put(text, place, ENTRY)
    assert LAX.read(added) == document | {"servers": document["servers"] | {"gpu": ENTRY}}
    changed = LAX.put(added, place, OTHER)
    assert LAX.read(changed) == document | {"servers": document["servers"] | {"gpu": OTHER}}
    assert LAX.put(changed, place, OTHER) == changed
    removed = LAX.take(changed, place)
    assert LAX.read(removed) == document
    if document["servers"]:
        assert removed == text

    item = ("inputs", Item("id", "T"))
    asked = LAX.put(text, item, {"id": "T"})
    inputs = document.get("inputs")
    assert LAX.read(asked)["inputs"] == [*(inputs if isinstance(inputs, list) else []), {"id": "T"}]
    assert LAX.take(asked, place) == asked


@settings(deadline=None)
@given(document=documents, indent=st.none() | st.sampled_from([0, 2, 4, "\t"]))
def test_any_json_that_python_writes_comes_back(
    document: dict[str, Any], indent: int | str | None
) -> None:
    text = json.dumps(document, indent=indent)
    added = STRICT.put(text, ("servers", "gpu"), ENTRY)
    assert json.loads(added)["servers"] == document["servers"] | {"gpu": ENTRY}
    assert STRICT.take(added, ("servers", "gpu")) == text


tables = st.sampled_from(
    [
        '[mcp_servers.docs]\ncommand = "x" # ]\nargs = [\n  "a", # "\n]\n',
        "[mcp_servers.docs.env]\nA = '''\n[mcp_servers.gpu]\n'''\n",
        '[ mcp_servers . "d.e" ]\nurl = "https://a"\n',
        '[[other]]\na = """\\"\n[x]"""\n',
        "[profiles.gpu]\n'a=b' = { c = [1, 2] }\nd.\"e f\" = 1979-05-27\n",
        "# A comment.\n\n",
        "# [mcp_servers.gpu]\n",
        "\n",
    ]
)


@settings(deadline=None)
@given(
    parts=st.lists(tables, unique=True),
    end=st.sampled_from(["", "\n", "# end\n", "# end"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_only_the_table_changes_in_any_toml(parts: list[str], end: str, newline: str) -> None:
    text = ('model = "o5"\n' + "".join(parts) + end).replace("\n", newline)
    toml, place = Toml(), ("mcp_servers", "gpu")
    before = tomllib.loads(text)
    added = toml.put(text, place, {"command": "a\x7f\"'", "args": ["b", "c"]})
    assert added.startswith(text)
    assert toml.read(added)["mcp_servers"]["gpu"] == {"command": "a\x7f\"'", "args": ["b", "c"]}
    changed = toml.put(added, place, {"args": ["d"], "url": "e"})
    assert toml.read(changed)["mcp_servers"]["gpu"] == {"args": ["d"], "url": "e"}
    assert changed.startswith(text)
    removed = toml.take(changed, place)
    assert toml.read(removed) == before
    if text.endswith("\n"):
        assert removed == text
    # What comes after it stays as well.
    more = f"{newline}# Of the next one.{newline}[z]{newline}"
    assert toml.take(added + more, place).endswith(more)
