"""`mcp-gpu install` and `uninstall`: what is in a client's file and what stays as it was."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest
import yaml
from mcp import Client, StdioServerParameters, stdio_client

from mcp_gpu.clients.catalogue import CLIENTS
from mcp_gpu.clients.machine import Machine
from mcp_gpu.clients.model import ClientError
from mcp_gpu.settings.clients import InstallSettings
from support.home import FILES, Home, home_of
from test_foreign_clients import TOOLS

KEYS = {"vscode": "servers", "codex": "mcp_servers"}

CLAUDE = b"""{
  "numStartups": 184,
  "userID": "5f\\u00fcr",
  "mcpServers": {
    "github": {
      "type": "http",
      "url": "https://api.example.com/mcp",
      "headers": {"Authorization": "Bearer s3cret"}
    }
  },
  "projects": {
    "/home/me/a": { "mcpServers": {"gpu": {"command": "other"}}, "history": [1, 2.50, 1e3] }
  }
}
"""
VSCODE = b"""{
\t// Of the whole team.
\t"servers": {
\t\t"docs": { "type": "http", "url": "https://docs.example.com/mcp" }, // by hand
\t\t/* not now:
\t\t"old": {}, */
\t\t"files": {
\t\t\t"type": "stdio",
\t\t\t"command": "npx",
\t\t\t"args": ["-y", "files"], // two
\t\t}, // last
\t\t// The end.
\t},
\t"inputs": [
\t\t{ "type": "promptString", "id": "key", "description": "Key", "password": true }
\t]
}
"""
CODEX = b"""# Mine.
model = "o5"   # fast
notify = [
  "say",  # ] [not.a.table]
  "done",
]
text = \"\"\"
[mcp_servers.gpu]
\"\"\"

[mcp_servers]
inline = { command = "x", env = { KEY = "s3cret" } }

[mcp_servers.docs]
command = 'npx'
args = ["-y", "docs"]

# The rest is profiles.
[profiles.deep]
model = "o5-pro"
"""
EXISTING = {
    "claude": CLAUDE,
    "claude, other line ends": CLAUDE.replace(b"\n", b"\r\n"),
    "claude, byte order mark": b"\xef\xbb\xbf" + CLAUDE,
    "claude, in one line": b'{"mcpServers":{"a":{"command":"a","env":{"T":"s3cret"}}},"n":1}',
    "claude-desktop": b'{"mcpServers": {"a": {"command": "a", "args": []}}, "scale": 1}\n',
    "claude-desktop, four blanks": b'{\n    "mcpServers": {\n        "a": {}\n    }\n}',
    "cursor": b'{\n  "mcpServers": {\n    "a": {"url": "https://a.example.com"}\n  }\n}\n',
    "cursor, comments": VSCODE.replace(b'"servers"', b'"mcpServers"'),
    "vscode": VSCODE,
    "vscode, other line ends": VSCODE.replace(b"\n", b"\r\n"),
    "codex": CODEX,
    "codex, other line ends": CODEX.replace(b"\n", b"\r\n"),
    "codex, byte order mark": b"\xef\xbb\xbf" + CODEX,
}
"""Files with other servers in them."""

CLIENTS_PAGE = Path(__file__).parent.parent / "docs" / "clients.md"

URL = "https://gpu.example.com/mcp"


@pytest.fixture
def home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Home:
    return home_of(tmp_path / "home", capsys, monkeypatch)


def client_of(case: str) -> str:
    return case.partition(",")[0]


def data(path: Path) -> dict[str, Any]:
    """What a file says, comments aside."""
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    if path.suffix == ".toml":
        return tomllib.loads(text)
    try:
        found: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        found = CLIENTS["vscode"].format.read(text)
    return found


def servers(path: Path, client: str) -> dict[str, Any]:
    found: dict[str, Any] = data(path)[KEYS.get(client, "mcpServers")]
    return found


def without_ours(path: Path, client: str) -> dict[str, Any]:
    found = data(path)
    key = KEYS.get(client, "mcpServers")
    return found | {key: {name: each for name, each in found[key].items() if name != "gpu"}}


@pytest.mark.parametrize("case", EXISTING)
def test_a_server_is_added_changed_and_removed_among_others(case: str, home: Home) -> None:
    client, existing = client_of(case), EXISTING[case]
    path = home.write(client, existing)
    before = data(path)

    assert home.run("install", client, "--yes").status == 0
    assert without_ours(path, client) == before
    entry = servers(path, client)["gpu"]
    assert entry["args"][-2:] == ["gateway", "--stdio"]
    assert Path(entry["command"]).is_file()
    added = path.read_bytes()
    ends = b"\r\n" if b"\r\n" in existing else b"\n"
    assert added.count(b"\n") == added.count(ends)

    again = home.run("install", client, "--yes")
    assert (again.status, path.read_bytes()) == (0, added)
    assert "has it already" in again.out

    assert home.run("install", client, "--context", "prod", "--yes").status == 0
    assert without_ours(path, client) == before
    assert servers(path, client)["gpu"]["args"][-2:] == ["--context", "prod"]

    assert home.run("install", client, "--yes").status == 0
    assert path.read_bytes() == added
    assert home.run("uninstall", client, "--yes").status == 0
    assert path.read_bytes() == existing
    gone = home.run("uninstall", client, "--yes")
    assert (gone.status, path.read_bytes()) == (0, existing)
    assert "nothing to do" in gone.out


@pytest.mark.parametrize("case", EXISTING)
def test_each_change_is_undone_byte_for_byte(case: str, home: Home) -> None:
    client, existing = client_of(case), EXISTING[case]
    path = home.write(client, existing)

    def undone() -> bytes:
        assert home.run("install", client, "--undo", "--yes").status == 0
        return path.read_bytes()

    home.run("install", client, "--yes")
    added = path.read_bytes()
    assert undone() == existing
    assert "no change" in home.run("install", client, "--undo", "--yes").out
    assert path.read_bytes() == existing

    home.run("install", client, "--yes")
    home.run("install", client, "--namespace", "gpu", "--yes")
    assert undone() == added
    home.run("uninstall", client, "--yes")
    assert undone() == added
    assert [each.name for each in path.parent.iterdir() if each != home.project] == [path.name]


@pytest.mark.parametrize("case", [case for case in EXISTING if "desktop" not in case])
def test_a_gateway_is_named_by_url_without_its_token(case: str, home: Home) -> None:
    client, existing = client_of(case), EXISTING[case]
    path = home.write(client, existing)
    before = data(path)
    flags = ("--url", URL, "--token-variable", "GPU_TOKEN")
    assert home.run("install", client, *flags, "--yes").status == 0
    entry = servers(path, client)["gpu"]
    assert entry["url"] == URL
    shown = {
        "claude": "Bearer ${GPU_TOKEN}",
        "cursor": "Bearer ${env:GPU_TOKEN}",
        "vscode": "Bearer ${input:GPU_TOKEN}",
    }
    if client == "codex":
        assert entry == {"url": URL, "bearer_token_env_var": "GPU_TOKEN"}
    else:
        assert entry["headers"] == {"Authorization": shown[client]}
    if client == "vscode":
        *others, asked = data(path)["inputs"]
        assert others == before["inputs"]
        assert (asked["id"], asked["password"]) == ("GPU_TOKEN", True)
    else:
        assert without_ours(path, client) == before

    assert home.run("install", client, "--yes").status == 0
    assert {"url", "headers", "bearer_token_env_var"} & servers(path, client)["gpu"].keys() == set()
    assert without_ours(path, client) == before
    home.run("install", client, *flags, "--yes")
    assert home.run("uninstall", client, "--yes").status == 0
    assert path.read_bytes() == existing


@pytest.mark.parametrize("client", FILES)
@pytest.mark.parametrize("content", [None, b"", b"\n", b"{}", b"{}\n"])
def test_a_file_that_says_nothing_is_filled_and_undone(
    content: bytes | None, client: str, home: Home
) -> None:
    if content is not None:
        if client == "codex":
            content = content.replace(b"{}", b"")
        home.write(client, content)
    path = home.file(client)
    assert home.run("install", client, "--yes").status == 0
    assert list(data(path)) == [KEYS.get(client, "mcpServers")]
    assert home.run("install", client, "--undo", "--yes").status == 0
    assert (path.read_bytes() if path.exists() else None) == content


@pytest.mark.parametrize("client", FILES)
def test_what_the_user_added_to_the_entry_stays(client: str, home: Home) -> None:
    path = home.file(client)
    home.run("install", client, "--context", "a", "--yes")
    text = path.read_text()
    if client == "codex":
        text += 'startup_timeout_sec = 20\n\n[mcp_servers.gpu.env]\nA = "b"\n'
    else:
        text = text.replace('"command"', '"env": {"A": "b"},\n      "disabled": true, "command"')
    path.write_text(text)
    assert home.run("install", client, "--context", "b", "--yes").status == 0
    entry = servers(path, client)["gpu"]
    assert entry["args"][-1] == "b"
    assert entry["env"] == {"A": "b"}
    assert {"startup_timeout_sec", "disabled"} & entry.keys()
    assert home.run("uninstall", client, "--yes").status == 0
    assert data(path) == ({} if client == "codex" else {KEYS.get(client, "mcpServers"): {}})


def test_headers_of_the_user_stay_beside_ours(home: Home) -> None:
    entry = {"type": "http", "url": "https://old.example.com/mcp", "headers": {"X-Team": "a"}}
    path = home.write("claude", json.dumps({"mcpServers": {"gpu": entry}}).encode())
    home.run("install", "claude", "--url", URL, "--token-variable", "T", "--yes")
    headers = servers(path, "claude")["gpu"]["headers"]
    assert headers == {"X-Team": "a", "Authorization": "Bearer ${T}"}
    home.run("install", "claude", "--url", URL, "--yes")
    assert servers(path, "claude")["gpu"] == entry | {"url": URL}


def test_an_input_that_others_use_stays(home: Home) -> None:
    other = {"type": "http", "url": "https://a.example.com", "headers": {"K": "${input:T}"}}
    content = {"servers": {"a": other}, "inputs": [{"id": "T", "type": "promptString"}]}
    existing = json.dumps(content, indent=2).encode()
    path = home.write("vscode", existing)
    home.run("install", "vscode", "--url", URL, "--token-variable", "T", "--yes")
    assert data(path)["inputs"] == content["inputs"]
    home.run("uninstall", "vscode", "--yes")
    assert path.read_bytes() == existing


@pytest.mark.parametrize("client", FILES)
def test_undo_leaves_what_others_have_written_since(client: str, home: Home) -> None:
    path = home.write(client, EXISTING[client])
    home.run("install", client, "--yes")
    changed = path.read_bytes().replace(b"npx", b"bunx").replace(b'"a"', b'"z"')
    changed = changed.replace(b"184", b"185")
    path.write_bytes(changed)
    assert home.run("install", client, "--undo", "--yes").status == 0
    wanted = EXISTING[client].replace(b"npx", b"bunx").replace(b'"a"', b'"z"')
    assert path.read_bytes() == wanted.replace(b"184", b"185")


def test_it_asks_before_it_writes(home: Home) -> None:
    path = home.write("claude", CLAUDE)
    for answer in ("", "n\n", "what\n"):
        said = home.run("install", "claude", answer=answer)
        assert said.status == 1
        assert "Make this change? [y/N]" in said.out
        assert path.read_bytes() == CLAUDE
    dry = home.run("install", "claude", "--dry-run", answer="y\n")
    assert (dry.status, path.read_bytes()) == (0, CLAUDE)
    assert "[y/N]" not in dry.out
    assert (
        list(home.folder.iterdir()) == [path, home.project] or len(list(home.folder.iterdir())) == 2
    )
    assert home.run("install", "claude", answer="y\n").status == 0
    assert path.read_bytes() != CLAUDE
    assert path.with_name(".claude.json.mcp-gpu-backup").read_bytes() == CLAUDE


@pytest.mark.parametrize("case", EXISTING)
def test_the_change_is_shown_and_nothing_that_lies_around_it(case: str, home: Home) -> None:
    client = client_of(case)
    home.write(client, EXISTING[case])
    for verb in ("install", "uninstall"):
        said = home.run(verb, client, "--yes")
        assert '"gateway"' in said.out.replace("'", '"')
        assert "--stdio" in said.out
        for other in ("s3cret", "github", "files", "history"):
            assert other not in said.out


BROKEN = {
    "claude": {
        b"[]": "no JSON object",
        b'{"mcpServers": {': "line 1, column 17: a key",
        b'{"a": 1}\n{': "line 2, column 1: there is more than one value",
        b'{"a": 1,}': "line 1, column 9: a comma before the closing bracket",
        b"{\n  // no\n}": "line 2, column 3: a comment",
        b'{"a" 1}': "line 1, column 6: a colon",
        b'{"a": 1 "b": 2}': "line 1, column 9: a comma is missing",
        b'{"a": x}': "line 1, column 7: a value",
        b'{"a": "\n"}': "line 1, column 8: invalid control character",
        b'{"a": ': "line 1, column 7: it ends too early",
        b'{"mcpServers": []}': "'gpu' should lie in an object",
        b'{"mcpServers": {}, "mcpServers": {}}': "'mcpServers' is there twice",
        b'{"mcpServers": {"gpu": {"command": "npx", "args": ["gpu-docs"]}}}': "starts 'npx'",
        b"\xff\xfe{\x00}\x00": "not UTF-8",
        b"[" * 5000: "nested too deeply",
    },
    "vscode": {b'{"servers": null}': "'gpu' should lie in an object", b"{/*": "a key"},
    "codex": {
        b"a = ": "(at end of document)",
        b"mcp_servers = 1": "mcp_servers is no table",
        b'mcp_servers = { docs = { command = "x" } }\n': "not written as tables of their own",
        b'[mcp_servers]\ngpu = { command = "mcp-gpu" }\n': "not written as tables of their own",
        b"[[mcp_servers.gpu]]\n": "mcp_servers.gpu is no table",
    },
}


@pytest.mark.parametrize(
    ("client", "content"), [(client, each) for client, texts in BROKEN.items() for each in texts]
)
def test_what_cannot_be_edited_stays_and_is_told_in_a_line(
    client: str, content: bytes, home: Home
) -> None:
    path = home.write(client, content)
    said = home.run("install", client, "--yes")
    assert (said.status, said.out) == (2, "")
    (line,) = said.err.splitlines()
    assert line.startswith(f"mcp-gpu install: {path}")
    assert BROKEN[client][content] in line
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir() if each != home.project] == [path.name]


def test_a_link_stays_one_and_the_mode_of_its_file_too(home: Home) -> None:
    real = home.folder / "dotfiles" / "claude.json"
    real.parent.mkdir()
    real.write_bytes(CLAUDE)
    real.chmod(0o600)
    link = home.file("claude")
    link.symlink_to(real)
    assert home.run("install", "claude", "--yes").status == 0
    assert link.is_symlink()
    backup = real.with_name("claude.json.mcp-gpu-backup")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (real, backup)] == [0o600, 0o600]
    assert "gpu" in servers(link, "claude")
    assert home.run("install", "claude", "--undo", "--yes").status == 0
    assert (link.is_symlink(), real.read_bytes()) == (True, CLAUDE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_of_a_file_stays(home: Home) -> None:
    path = home.write("claude", CLAUDE)
    os.chown(path, 1234, 1234)
    assert home.run("install", "claude", "--yes").status == 0
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)


def test_a_file_that_may_not_be_written_is_left(home: Home) -> None:
    path = home.write("claude", CLAUDE)
    path.chmod(0o444)
    said = home.run("install", "claude", "--yes")
    assert said.status == 2
    assert said.err == f"mcp-gpu install: {path} is read-only; nothing was changed\n"
    assert path.read_bytes() == CLAUDE


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "below a file"])
def test_what_is_no_file_is_told(kind: str, home: Home) -> None:
    path = home.folder / "it"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case _:
            path.write_bytes(b"")
            path = path / "below"
    said = home.run("install", "claude", "--file", str(path), "--yes")
    assert (said.status, len(said.err.splitlines())) == (2, 1)
    assert str(path) in said.err


class Meanwhile(io.StringIO):
    """A person who answers after another program has written to the file."""

    def __init__(self, path: Path) -> None:
        super().__init__("y\n")
        self._path = path

    def readline(self, size: int | None = -1, /) -> str:
        self._path.write_bytes(CLAUDE.replace(b"184", b"185"))
        return super().readline(-1 if size is None else size)


def test_what_another_program_writes_meanwhile_is_not_lost(home: Home) -> None:
    path = home.write("claude", CLAUDE)
    said = home.run("install", "claude", answer=Meanwhile(path))
    assert said.status == 2
    assert "changed by another program; try again" in said.err
    assert path.read_bytes() == CLAUDE.replace(b"184", b"185")


def test_a_project_has_a_file_that_is_the_same_for_all(home: Home) -> None:
    places = {"claude": ".mcp.json", "cursor": ".cursor/mcp.json", "vscode": ".vscode/mcp.json"}
    flags = ("--scope", "project", "--kubeconfig", "~/.kube/team", "--yes")
    for client, place in {**places, "codex": ".codex/config.toml"}.items():
        assert home.run("install", client, *flags).status == 0
        entry = servers(home.project / place, client)["gpu"]
        assert entry["command"] == "mcp-gpu"
        assert entry["args"] == ["gateway", "--stdio", "--kubeconfig", "~/.kube/team"]
    said = home.run("install", "claude-desktop", *flags)
    assert (said.status, "no servers of a project" in said.err) == (2, True)


def test_flags_and_variables_go_to_the_gateway_in_full(home: Home) -> None:
    def written(*flags: str) -> list[str]:
        assert home.run("install", "claude", *flags, "--yes").status == 0
        _, _, *found = servers(home.file("claude"), "claude")["gpu"]["args"]
        return found

    home.monkeypatch.setenv("KUBECONFIG", "a.yaml")
    home.monkeypatch.setenv("MCP_GPU_NAMESPACE", "gpu")
    known = ["--namespace", "gpu", "--kubeconfig", str(home.project / "a.yaml")]
    assert written() == known
    assert written("--context", "a,b") == [*known, "--context", "a,b"]
    home.monkeypatch.delenv("MCP_GPU_NAMESPACE")
    assert written("--agents", "a=10.0.0.1") == ["--agents", "a=10.0.0.1"]
    home.monkeypatch.delenv("KUBECONFIG")
    assert written("--agents-file", "fleet.toml") == [
        "--agents-file",
        str(home.project / "fleet.toml"),
    ]
    options = '{"command": {"argv": ["ssh", "{node}"]}}'
    assert written("--transport-options", options, "--concurrency", "8") == [
        "--transport-options",
        options,
        "--concurrency",
        "8",
    ]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--url", "gpu.example.com"), "no MCP endpoint"),
        (("--url", "https://gpu.example.com"), "no MCP endpoint"),
        (("--url", "https://[::1"), "no MCP endpoint"),
        (("--url", "https://me:word@gpu.example.com/mcp"), "holds a password"),
        (("--url", "http://gpu.example.com/mcp", "--token-variable", "T"), "by https"),
        (("--url", URL, "--context", "prod"), "--context would do nothing"),
        (("--token-variable", "T"), "for a gateway at --url"),
        (("--transport-options", '{"http": {"token": "s3cret"}}'), "--agent-token-file"),
        (("--url", URL, "--token-variable", "a b"), "--token-variable: "),
        (("--name", "a.b"), "--name: "),
    ],
)
def test_what_cannot_work_is_refused(flags: tuple[str, ...], why: str, home: Home) -> None:
    said = home.run("install", "claude", *flags, "--yes")
    assert said.status == 2
    assert why in said.err
    assert "s3cret" not in said.err
    assert "word@" not in said.err
    assert not home.file("claude").exists()


def test_claude_desktop_is_told_where_urls_go(home: Home) -> None:
    said = home.run("install", "claude-desktop", "--url", URL, "--yes")
    assert said.status == 2
    assert "custom connector" in said.err


def test_every_client_of_the_flag_is_known_and_documented() -> None:
    literal = InstallSettings.model_fields["client"].annotation
    assert get_args(literal) == tuple(CLIENTS) == tuple(FILES)
    text = CLIENTS_PAGE.read_text(encoding="utf-8")
    for name, client in CLIENTS.items():
        assert f"\n| `{name}`" in text
        assert client.project is None or f"| `{client.project}` |" in text


def test_the_block_for_holmesgpt_is_yaml_and_names_tools_that_there_are() -> None:
    text = CLIENTS_PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (server,) = yaml.safe_load(block)["mcp_servers"].values()
    assert server["config"]["mode"] == "streamable-http"
    assert server["config"]["url"].endswith("/mcp")
    named = set(re.findall(r"\w+_\w+", server["llm_instructions"]))
    assert named
    assert named <= set(TOOLS["gateway"])


@pytest.mark.parametrize(
    ("system", "applications"),
    [("macos", "Library/Application Support"), ("windows", "AppData/Roaming")],
)
def test_files_lie_elsewhere_on_other_systems(
    system: Any, applications: str, tmp_path: Path
) -> None:
    machine = Machine(system=system, home=tmp_path, project=tmp_path / "p", environment={})
    places = {name: client.file("user", machine) for name, client in CLIENTS.items()}
    assert {name: str(path.relative_to(tmp_path)) for name, path in places.items()} == {
        "claude": ".claude.json",
        "claude-desktop": f"{applications}/Claude/claude_desktop_config.json",
        "cursor": ".cursor/mcp.json",
        "vscode": f"{applications}/Code/User/mcp.json",
        "codex": ".codex/config.toml",
    }


def test_variables_say_where_files_lie(tmp_path: Path) -> None:
    def place(client: str, system: Any, **environment: str) -> Path:
        machine = Machine(system=system, home=tmp_path, project=tmp_path, environment=environment)
        return CLIENTS[client].file("user", machine)

    assert place("claude", "linux", CLAUDE_CONFIG_DIR="/c") == Path("/c/.claude.json")
    assert place("claude", "linux", CLAUDE_CONFIG_DIR=" ") == tmp_path / ".claude.json"
    assert place("codex", "linux", CODEX_HOME="/c") == Path("/c/config.toml")
    assert place("vscode", "linux", XDG_CONFIG_HOME="/x") == Path("/x/Code/User/mcp.json")
    assert place("vscode", "windows", APPDATA="/r") == Path("/r/Code/User/mcp.json")

    roaming = tmp_path / "AppData/Local/Packages/Claude_abc/LocalCache/Roaming"
    roaming.mkdir(parents=True)
    assert place("claude-desktop", "windows", APPDATA="/r").parent.parent == roaming
    assert place("claude-desktop", "macos").parent.parent != roaming
    (tmp_path / "AppData/Local/Packages/Claude_def/LocalCache/Roaming").mkdir(parents=True)
    with pytest.raises(ClientError, match="--file"):
        place("claude-desktop", "windows")


async def test_what_is_written_starts_a_gateway(home: Home) -> None:
    home.run("install", "cursor", "--agents", "a=127.0.0.1:1", "--yes")
    entry = servers(home.file("cursor"), "cursor")["gpu"]
    server = StdioServerParameters(
        command=entry["command"],
        args=entry["args"],
        env={"HOME": str(home.folder), "PATH": "/usr/bin:/bin"},
        cwd="/",
    )
    with anyio.fail_after(60):
        async with Client(stdio_client(server)) as found:
            assert "get_gpu_health" in [tool.name for tool in (await found.list_tools()).tools]


def test_it_works_as_on_windows_and_by_a_process(tmp_path: Path) -> None:
    as_on_windows = str(Path(__file__).parent / "support" / "windows.py")
    for program in ([as_on_windows], ["-m", "mcp_gpu"]):
        file = tmp_path / "mcp.json"
        command = [sys.executable, *program, "install", "cursor", "--file", str(file), "--yes"]
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
            timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "gpu" in servers(file, "cursor")
        file.unlink()
