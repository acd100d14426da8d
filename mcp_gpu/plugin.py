"""`kubectl mcp_gpu`: the same commands with kubectl's habits. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["arguments"]

GLOBAL: Final = ("--context", "--kubeconfig", "--namespace", "-n")
"""What people give to kubectl wherever they like, before the command as well."""

OWN_NAMESPACE: Final = "why"
"""The command whose -n is a pod's namespace."""


def arguments(given: Sequence[str]) -> list[str]:
    """The arguments of `mcp-gpu` that mean what these mean to kubectl.

    Flags before the command come after it, and -n is --namespace.
    """
    flags: list[str] = []
    rest = list(given)
    while rest and rest[0].startswith(GLOBAL):
        name, equals, _ = rest[0].partition("=")
        alone = name in GLOBAL and not equals
        flags += rest[: 1 + alone]
        del rest[: 1 + alone]
    command, after = rest[:1], [*flags, *rest[1:]]
    return command + (after if command == [OWN_NAMESPACE] else list(map(_namespace, after)))


def _namespace(word: str) -> str:
    if word == "-n":
        return "--namespace"
    if word.startswith("-n") and len(word) > 2:
        return f"--namespace={word[2:].removeprefix('=')}"
    return word
