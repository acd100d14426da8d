"""The program that a kubeconfig names to make credentials: started, bounded, never quoted."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["PROGRAM_SECONDS", "ProgramFailed", "ask"]

PROGRAM_SECONDS = 30.0
"""For one run: it may ask a cloud, or wait for somebody to log in."""

PAUSE_SECONDS = 5.0
"""How long a failure is believed. Everything that wants the API server asks; the program may open
a browser each time it runs."""

_SHOWN = ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url")
"""What of a cluster's entry a program is told as it stands, if it wants to know."""

_failed: dict[str, tuple[float, str]] = {}
"""By what would be run: when it failed, and how."""


class ProgramFailed(Exception):
    """It gave no credentials. The text holds nothing that the program has said, nor its arguments,
    which may hold a secret."""


def ask(section: Mapping[str, Any], folder: str, cluster: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the program of a user's `exec` section gives: `status` of an ExecCredential. Blocks.

    The library's way logs a user's whole entry when a program fails, goes on as nobody, lets it
    read our standard input, and never ends one that hangs.

    Args:
        folder: of the kubeconfig, which a command with a relative path is relative to.
        cluster: the kubeconfig's entry, for programs that ask for it (`provideClusterInfo`).

    Raises:
        ProgramFailed: it gave none, now or a moment ago.
    """
    key = json.dumps([section, folder], sort_keys=True, default=str)
    since, words = _failed.get(key, (0.0, ""))
    if words and time.monotonic() - since < PAUSE_SECONDS:
        raise ProgramFailed(words)
    try:
        status = _read(_run(section, folder, cluster), str(section["command"]))
    except ProgramFailed as error:
        _failed[key] = (time.monotonic(), str(error))
        raise
    _failed.pop(key, None)
    return status


def _run(section: Mapping[str, Any], folder: str, cluster: Mapping[str, Any]) -> bytes:
    command = str(section["command"])
    path = _find(command, folder)
    info: dict[str, Any] = {
        "apiVersion": section["apiVersion"],
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }
    if section.get("provideClusterInfo"):
        info["spec"]["cluster"] = _described(cluster, folder)
    own = {entry["name"]: entry["value"] for entry in section.get("env") or ()}
    try:
        started = subprocess.Popen(
            [path, *(section.get("args") or ())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may say there what must not be logged
            env={**os.environ, **own, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            start_new_session=True,  # without effect on Windows
        )
    except OSError as error:
        raise ProgramFailed(
            f"the program for credentials {command!r} cannot be started: {error.strerror}"
        ) from error
    with started:
        try:
            said, _ = started.communicate(timeout=PROGRAM_SECONDS)
        except subprocess.TimeoutExpired:
            raise ProgramFailed(
                f"the program for credentials {command!r} took longer than {PROGRAM_SECONDS:g} s"
            ) from None
        finally:
            _end(started)
    if started.returncode != 0:
        raise ProgramFailed(
            f"the program for credentials {command!r} failed with exit status {started.returncode}"
        )
    return said


def _find(command: str, folder: str) -> str:
    """As kubectl finds it; with the endings that programs have on Windows.

    Raises:
        ProgramFailed: it is not there.
    """
    if os.path.dirname(command):
        wanted = os.path.join(folder, os.path.expanduser(command))
        if found := shutil.which(wanted):
            return found
        raise ProgramFailed(f"the program for credentials {command!r} is not there")
    if found := shutil.which(command):
        return found
    raise ProgramFailed(
        f"the program for credentials {command!r} is in no folder of PATH, which clients often "
        "set to a short one: give its full path in the kubeconfig, or PATH in the client's "
        "configuration"
    )


def _described(cluster: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The cluster as `spec.cluster` of an ExecCredential has it."""
    shown = {name: cluster[name] for name in _SHOWN if name in cluster}
    if authority := cluster.get("certificate-authority-data"):
        shown["certificate-authority-data"] = authority
    elif file := cluster.get("certificate-authority"):
        with open(os.path.join(folder, file), "rb") as opened:
            content = opened.read()
        shown["certificate-authority-data"] = base64.b64encode(content).decode()
    for extension in cluster.get("extensions") or ():
        if extension["name"] == "client.authentication.k8s.io/exec":
            shown["config"] = extension["extension"]
    return shown


def _read(said: bytes, command: str) -> Mapping[str, Any]:
    try:
        status = json.loads(said)["status"]
        if "token" in status or {"clientCertificateData", "clientKeyData"} <= status.keys():
            return dict(status)
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise ProgramFailed(f"the program for credentials {command!r} gave none")


def _end(program: subprocess.Popen[bytes]) -> None:
    """Kill the program with all it started, if it is still there."""
    if program.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(program.pid, signal.SIGKILL)
    else:
        program.kill()
