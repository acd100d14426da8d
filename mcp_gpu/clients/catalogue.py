"""The clients: where each keeps its servers, and how it writes one.

Sources: code.claude.com/docs/en/mcp, modelcontextprotocol.io/quickstart/user, cursor.com/docs/mcp,
code.visualstudio.com/docs/copilot/reference/mcp-configuration, developers.openai.com/codex/mcp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_gpu.clients.jsontext import Json
from mcp_gpu.clients.machine import Machine
from mcp_gpu.clients.model import (
    Change,
    ClientError,
    Entry,
    Format,
    Item,
    Local,
    Place,
    Remote,
    Scope,
    merged,
)
from mcp_gpu.clients.tomltext import Toml

__all__ = ["CLIENTS", "Client"]

_INPUT = re.compile(r"\$\{input:([^}]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A program that uses MCP servers."""

    title: str
    format: Format
    key: str
    """What its file calls the servers."""
    user: Callable[[Machine], Path]
    project: str | None
    """Its file within a project's folder."""
    token: str | None
    """How an HTTP header names a token without holding it; None: it calls no servers by URL."""
    typed: bool
    """Whether an entry says which transport it is of."""
    next: str
    """What makes it see the change."""

    def file(self, scope: Scope, machine: Machine) -> Path:
        """Where servers of this scope are written.

        Raises:
            ClientError: it has no such scope.
        """
        if scope == "user":
            return self.user(machine)
        if self.project is None:
            raise ClientError(f"{self.title} has no servers of a project; leave --scope out")
        return machine.project / self.project

    def changes(self, text: str, name: str, server: Local | Remote | None) -> list[Change]:
        """What is to be done to a text for this server to be in it, or no server.

        Raises:
            ClientError: the text is malformed, or the name is another server's there.
        """
        data = self.format.read(text)
        servers = data.get(self.key)
        servers = servers if isinstance(servers, dict) else {}
        old = servers.get(name)
        if old is not None and _foreign(old):
            raise ClientError(
                f"its server {name!r} starts {old['command']!r}: --name tells ours apart from it"
            )
        entry = None if server is None else merged(old, self._entry(server))
        changes = [Change((self.key, name), entry)]
        asked, was_asked = _inputs(entry), _inputs(old)
        others = [each for key, each in servers.items() if key != name]
        changes += [
            Change(("inputs", Item("id", each)), None)
            for each in sorted(was_asked - asked - _inputs(others))
        ]
        known = {each.get("id") for each in data.get("inputs", ()) if isinstance(each, dict)}
        changes += [
            Change(("inputs", Item("id", each)), _input(each)) for each in sorted(asked - known)
        ]
        return changes

    def applied(self, text: str, changes: list[Change]) -> str:
        """The text with these changes made.

        Raises:
            ClientError: one cannot be made.
        """
        for change in changes:
            if change.value is None:
                text = self.format.take(text, change.path)
            else:
                text = self.format.put(text, change.path, change.value)
        return text

    def state(self, text: str, name: str) -> dict[Place, Entry | None]:
        """What is there of this server: its entry, and what VS Code asks for because of it.

        Raises:
            ClientError: the text is malformed.
        """
        data = self.format.read(text)
        servers = data.get(self.key)
        entry = servers.get(name) if isinstance(servers, dict) else None
        found: dict[Place, Entry | None] = {(self.key, name): entry}
        for each in data.get("inputs", ()) if _inputs(entry) else ():
            if isinstance(each, dict) and each.get("id") in _inputs(entry):
                found["inputs", Item("id", each["id"])] = each
        return found

    def _entry(self, server: Local | Remote) -> Entry:
        if isinstance(server, Local):
            typed = {"type": "stdio"} if self.typed else {}
            return typed | {"command": server.command, "args": list(server.arguments)}
        if self.token is None:
            raise ClientError(
                f"{self.title} reads no servers by URL from its file: add {server.url} as a custom"
                " connector in its settings, or leave --url out for a gateway on this machine"
            )
        entry: Entry = ({"type": "http"} if self.typed else {}) | {"url": server.url}
        if not server.token_variable:
            return entry
        if not self.token:
            return entry | {"bearer_token_env_var": server.token_variable}
        token = self.token.replace("NAME", server.token_variable)
        return entry | {"headers": {"Authorization": f"Bearer {token}"}}


def _foreign(entry: object) -> bool:
    """Whether it starts another program than this one."""
    if not isinstance(entry, dict) or not isinstance(entry.get("command"), str):
        return False
    words = f"{entry['command']} {entry.get('args', '')}"
    return not re.search(r"mcp[-_]gpu", words)


def _inputs(entry: object) -> set[str]:
    """The inputs that VS Code asks for because of it."""
    return set(_INPUT.findall(str(entry)))


def _input(name: str) -> Entry:
    return {
        "type": "promptString",
        "id": name,
        "description": "Token for mcp-gpu",
        "password": True,
    }


def _claude(machine: Machine) -> Path:
    return (machine.named("CLAUDE_CONFIG_DIR") or machine.home) / ".claude.json"


def _claude_desktop(machine: Machine) -> Path:
    # Windows shows a packaged program other files under the name of those outside.
    packaged = machine.packages("Claude")
    if len(packaged) > 1:
        found = " and ".join(str(each) for each in packaged)
        raise ClientError(f"there are several Claude Desktops, in {found}: name the file by --file")
    folder = packaged[0] if packaged else machine.applications
    return folder / "Claude" / "claude_desktop_config.json"


def _codex(machine: Machine) -> Path:
    return (machine.named("CODEX_HOME") or machine.home / ".codex") / "config.toml"


CLIENTS: Final[Mapping[str, Client]] = {
    "claude": Client(
        title="Claude Code",
        format=Json(comments=False),
        key="mcpServers",
        user=_claude,
        project=".mcp.json",
        token="${NAME}",
        typed=True,
        next="New sessions of Claude Code have it; `claude mcp list` tries it.",
    ),
    "claude-desktop": Client(
        title="Claude Desktop",
        format=Json(comments=False),
        key="mcpServers",
        user=_claude_desktop,
        project=None,
        token=None,
        typed=False,
        next="Quit Claude Desktop and start it again.",
    ),
    "cursor": Client(
        title="Cursor",
        format=Json(comments=True),
        key="mcpServers",
        user=lambda machine: machine.home / ".cursor" / "mcp.json",
        project=".cursor/mcp.json",
        token="${env:NAME}",
        typed=False,
        next="Switch it on in Cursor's settings, under MCP.",
    ),
    "vscode": Client(
        title="VS Code",
        format=Json(comments=True),
        key="servers",
        user=lambda machine: machine.applications / "Code" / "User" / "mcp.json",
        project=".vscode/mcp.json",
        # Of ${env:NAME} in headers its reference says nothing, and 1.137 sent it as it stands.
        token="${input:NAME}",
        typed=True,
        next="Start it in VS Code by `MCP: List Servers`.",
    ),
    "codex": Client(
        title="Codex",
        format=Toml(),
        key="mcp_servers",
        user=_codex,
        project=".codex/config.toml",
        token="",
        typed=False,
        next="New sessions of Codex have it; `codex mcp list` shows it.",
    ),
}
