"""The commands. Each is a settings class (its flags) and a function that runs it."""

from __future__ import annotations

import ast
import gc
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from mcp_gpu import __version__, logs
from mcp_gpu.settings.base import LogSettings, SettingError
from mcp_gpu.sockets import UNIX
from mcp_gpu.variables import unknown_variables
from transports.errors import leaves

__all__ = ["COMMANDS", "describe", "main", "summary"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Command:
    """Named as `module:name`, and imported when it is wanted, since start-up time counts."""

    named_settings: str
    run: str
    anywhere: bool = False
    """Runs on Windows too. The others are an agent, or start some."""

    @property
    def settings(self) -> type[LogSettings]:
        found: type[LogSettings] = _imported(f"mcp_gpu.settings.{self.named_settings}")
        return found


COMMANDS = {
    "agent": _Command("agent:AgentSettings", "mcp_gpu.agent:run"),
    "gateway": _Command("fleet:GatewaySettings", "mcp_gpu.gateway:run", anywhere=True),
    "status": _Command("terminal:StatusSettings", "mcp_gpu.status:run", anywhere=True),
    "top": _Command("terminal:TopSettings", "mcp_gpu.top:run", anywhere=True),
    "health": _Command("terminal:HealthSettings", "mcp_gpu.health:run", anywhere=True),
    "topo": _Command("terminal:TopoSettings", "mcp_gpu.topo:run", anywhere=True),
    "xid": _Command("terminal:XidSettings", "mcp_gpu.xid:run", anywhere=True),
    "ps": _Command("terminal:PsSettings", "mcp_gpu.ps:run", anywhere=True),
    "why": _Command("terminal:WhySettings", "mcp_gpu.why:run", anywhere=True),
    "doctor": _Command("terminal:DoctorSettings", "mcp_gpu.doctor:run", anywhere=True),
    "install": _Command("clients:InstallSettings", "mcp_gpu.install:install", anywhere=True),
    "uninstall": _Command("clients:UninstallSettings", "mcp_gpu.install:uninstall", anywhere=True),
    "completion": _Command("local:CompletionSettings", "mcp_gpu.completion:run", anywhere=True),
    "demo": _Command("local:DemoSettings", "mcp_gpu.demo:run"),
    "record": _Command("local:RecordSettings", "mcp_gpu.recording:run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the process's exit status: 2 for wrong usage, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"], []):
        print(_usage(), file=sys.stderr if not arguments else sys.stdout)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"mcp-gpu {__version__}")
        return 0
    name, *flags = arguments
    command = COMMANDS.get(name)
    if command is None:
        return _complain(f"unknown command {name!r}; one of: {', '.join([*COMMANDS, 'attach'])}")
    if not (UNIX or command.anywhere):
        fitting = ", ".join(each for each, found in COMMANDS.items() if found.anywhere)
        print(
            f"mcp-gpu {name}: runs on Linux and macOS; here there are: {fitting}", file=sys.stderr
        )
        return 2
    if any(flag == "-h" or "--help".startswith(flag) for flag in flags):
        describe(command.settings)
    try:
        chosen = command.settings(_cli_parse_args=flags, _cli_prog_name=f"mcp-gpu {name}")
    except ValidationError as error:
        return _complain(*(_problem(detail) for detail in error.errors()), command=name)
    except SettingsError as error:
        return _complain(str(error), command=name)
    logs.configure(chosen.log_level, chosen.log_format)
    for variable in unknown_variables(each.settings for each in (command, *COMMANDS.values())):
        logger.warning("no setting is called %s; it has no effect", variable)
    run: Callable[[LogSettings], int] = _imported(command.run)
    gc.freeze()  # what the imports made lives as long as the process
    gc.enable()
    try:
        return run(chosen)
    except (SettingError, ExceptionGroup) as error:
        # Every task group on the way up wraps it once more.
        known = [leaf for leaf in leaves(error) if isinstance(leaf, SettingError)]
        if not known:
            raise
        print(f"mcp-gpu {name}: {known[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def describe(command: type[LogSettings]) -> None:
    """Give each setting the text below it in the source as its description.

    For whoever shows them. pydantic can do so when a class is made, but takes 20 ms at every start.
    """
    for base in reversed(command.__mro__):
        if issubclass(base, LogSettings):
            _describe(base, command)


def _describe(base: type[LogSettings], command: type[LogSettings]) -> None:
    (node,) = ast.parse(inspect.getsource(base)).body
    assert isinstance(node, ast.ClassDef)
    for field, below in pairwise(node.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                command.model_fields[name].description = inspect.cleandoc(text)


def _imported(named: str) -> Any:
    module, _, name = named.partition(":")
    return getattr(import_module(module), name)


def _usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [
        f"mcp-gpu {__version__}: ask an NVIDIA fleet on Kubernetes what is wrong with its GPUs.",
        "",
        "usage: mcp-gpu COMMAND [flags]     (mcp-gpu COMMAND --help lists the flags)",
        "",
    ]
    lines += [f"  {name:<{width}}{summary(command.settings)}" for name, command in COMMANDS.items()]
    lines.append(f"  {'attach':<{width}}Connect standard input and output to this node's agent.")
    return "\n".join(lines)


def summary(command: type[LogSettings]) -> str:
    """What a command does, in a line."""
    return (command.__doc__ or "").partition("\n")[0]


def _problem(detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"]).replace("_", "-")
    message = detail["msg"].removeprefix("Value error, ")
    problem = f"--{name}: {message[:1].lower()}{message[1:]}"
    # Options of transports may hold a token; what is a plain setting may be quoted.
    plain = len(detail["loc"]) == 1 and isinstance(detail["input"], str | int | float)
    return f"{problem}, not {detail['input']!r}" if plain else problem


def _complain(*problems: str, command: str = "") -> int:
    program = f"mcp-gpu {command}".rstrip()
    for problem in problems:
        print(f"{program}: {problem}", file=sys.stderr)
    print(f"try: {program} --help", file=sys.stderr)
    return 2
