"""`mcp-gpu install` and `uninstall`: this program in the configuration of a client."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mcp_gpu.clients.catalogue import CLIENTS, Client
from mcp_gpu.clients.difference import difference
from mcp_gpu.clients.file import ClientFile
from mcp_gpu.clients.machine import Machine
from mcp_gpu.clients.model import Change, ClientError, Local, Remote
from mcp_gpu.settings.base import LogSettings, SettingError
from mcp_gpu.settings.clients import InstallSettings, UninstallSettings
from mcp_gpu.settings.fleet import FleetSettings
from transports.hosts import is_loopback

__all__ = ["install", "uninstall"]

KUBECONFIG: Final = "~/.kube/config"

NOT_DONE: Final = 1
"""Exit status where the answer was no."""


def install(settings: InstallSettings) -> int:
    """Write the gateway into the file, or undo that. Returns 0, or 1 if it was declined.

    Raises:
        SettingError: settings contradict each other, or the file cannot be edited.
    """
    client = CLIENTS[settings.client]
    with _refusals():
        file = _file(settings, client)
        if settings.undo:
            return _undo(settings, client, file)
        server = _remote(settings) if settings.url else _local(settings)
        new = _edited(client, file, settings.name, server)
        if file.same(new):
            print(f"{file.path} has it already, as {settings.name!r}.")
            return 0
        return _replace(settings, file, new, client.next)


def uninstall(settings: UninstallSettings) -> int:
    """Take the gateway out of the file. Returns 0, or 1 if it was declined.

    Raises:
        SettingError: the file cannot be edited.
    """
    client = CLIENTS[settings.client]
    with _refusals():
        file = _file(settings, client)
        new = _edited(client, file, settings.name, None)
        if new == file.text:
            print(f"{file.path} has no server {settings.name!r}: nothing to do.")
            return 0
        return _replace(settings, file, new, client.next)


@contextmanager
def _refusals() -> Iterator[None]:
    """What cannot be edited ends the command in a line."""
    try:
        yield
    except ClientError as error:
        raise SettingError(str(error)) from None


def _edited(client: Client, file: ClientFile, name: str, server: Local | Remote | None) -> str:
    try:
        return client.applied(file.text, client.changes(file.text, name, server))
    except ClientError as error:
        raise _with_place(error, file) from None


def _file(settings: InstallSettings | UninstallSettings, client: Client) -> ClientFile:
    return ClientFile.read(settings.file or client.file(settings.scope, Machine.here()))


def _with_place(error: ClientError, file: ClientFile) -> ClientError:
    return ClientError(f"{file.path}: {error}; nothing was changed")


def _replace(
    settings: InstallSettings | UninstallSettings, file: ClientFile, new: str, after: str
) -> int:
    if not _agreed(settings, file, new):
        return 0 if settings.dry_run else NOT_DONE
    file.replace(new)
    kept = f" What was there before is in {file.backup}." if file.exists else ""
    print(f"Changed {file.path}.{kept}\n{after}")
    return 0


def _undo(settings: InstallSettings, client: Client, file: ClientFile) -> int:
    former = file.kept()
    then = client.state(former.text, settings.name)
    try:
        now = client.state(file.text, settings.name)
        replayed = [Change(place, now.get(place)) for place in {**then, **now}]
        alone = client.applied(former.text, replayed) == file.text
    except ClientError as error:
        raise _with_place(error, file) from None
    if not (file.exists and (former.exists or alone)) or then == now:
        print(f"{file.path}: no change of {settings.name!r} is known that could be undone.")
        return 0
    if not alone:
        # Others have written to it since, so that only this one entry becomes what it was.
        changes = [Change(place, then.get(place)) for place in {**now, **then}]
        return _replace(settings, file, client.applied(file.text, changes), client.next)
    if not _agreed(settings, file, former.text):
        return 0 if settings.dry_run else NOT_DONE
    file.restore(former)
    print(f"{file.path} is as it was before." if former.exists else f"Removed {file.path}.")
    return 0


def _agreed(settings: InstallSettings | UninstallSettings, file: ClientFile, new: str) -> bool:
    """Show what would change, and ask, as far as is wanted."""
    print(file.path if file.exists else f"{file.path} (a new file)")
    for line in difference(file.text, new):
        print(f"  {line}")
    if settings.dry_run:
        print("Nothing was changed: --dry-run.")
        return False
    if settings.yes:
        return True
    print("Make this change? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("Nothing was changed.")
    return False


def _remote(settings: InstallSettings) -> Remote:
    flags = " ".join(flag for flag, _ in _flags(settings, shared=True))
    if flags:
        raise SettingError(f"--url names a gateway that runs already: {flags} would do nothing")
    try:
        parts = urlsplit(settings.url)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https") or not parts.path.strip("/"):
        raise SettingError("--url is no MCP endpoint, such as https://gpu.example.com/mcp")
    if parts.username is not None or parts.password is not None:
        raise SettingError("--url holds a password, which the file would show: --token-variable")
    if settings.token_variable and parts.scheme == "http" and not is_loopback(host):
        raise SettingError("--token-variable: whoever is on the way could read it; --url by https")
    return Remote(settings.url, settings.token_variable)


def _local(settings: InstallSettings) -> Local:
    if settings.token_variable:
        raise SettingError("--token-variable is for a gateway at --url")
    if any("token" in options for options in settings.transport_options.values()):
        raise SettingError(
            "--transport-options holds a token, which the file would show: --agent-token-file"
        )
    shared = settings.scope == "project"
    command, *first = ["mcp-gpu"] if shared else _program()
    flags = [word for flag in _flags(settings, shared=shared) for word in flag]
    return Local(command, [*first, "gateway", "--stdio", *flags])


def _program() -> list[str]:
    """How a client starts this program, which has neither its PATH nor its folder."""
    name = "mcp-gpu.exe" if os.name == "nt" else "mcp-gpu"
    script = Path(sysconfig.get_path("scripts")) / name
    return [str(script)] if script.is_file() else [sys.executable, "-m", "mcp_gpu"]


def _flags(settings: InstallSettings, *, shared: bool) -> Iterator[tuple[str, str]]:
    """What of the settings differs from a gateway's own, as its flags.

    Variables count as well: the client starts it without those of this shell.
    """
    for name, field in FleetSettings.model_fields.items():
        value = getattr(settings, name)
        if name == "kubeconfig":
            value = settings.kubeconfig if shared else _kubeconfig(settings)
        if name in LogSettings.model_fields or value == field.get_default():
            continue
        yield f"--{name.replace('_', '-')}", _word(value, shared=shared)


def _kubeconfig(settings: FleetSettings) -> str:
    """In full, where it is another than the client's gateway would find by itself."""
    if settings.agents or settings.agents_dns:
        return settings.kubeconfig
    paths = settings.kubeconfig_paths()
    usual = [os.path.abspath(os.path.expanduser(KUBECONFIG))]
    return "" if paths == usual else os.pathsep.join(paths)


def _word(value: Any, *, shared: bool) -> str:
    if isinstance(value, Path):
        return str(value if shared else value.absolute())
    if isinstance(value, tuple):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)
