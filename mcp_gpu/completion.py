"""`mcp-gpu completion`: a shell's completion of commands, flags and what flags take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from mcp_gpu.cli import COMMANDS, summary
from mcp_gpu.settings.base import LogSettings, is_positional
from mcp_gpu.settings.local import CompletionSettings

__all__ = ["run"]


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    """As it is written, or empty for what has no name."""
    takes: Literal["nothing", "a file", "a choice", "a value"]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Verb:
    about: str
    flags: tuple[_Flag, ...]

    @property
    def words(self) -> list[str]:
        """What may come where no flag wants a value."""
        named = [flag.name for flag in self.flags if flag.name]
        return [word for flag in self.flags if not flag.name for word in flag.choices] + named


_HELP: Final = _Flag("--help", "nothing")

_ATTACH: Final = _Verb(
    "Connect standard input and output to this node's agent.",
    (
        _Flag("--socket", "a file"),
        _Flag("--idle", "a value"),
        _Flag("--relay-only", "nothing"),
        _Flag("--check", "nothing"),
        _HELP,
    ),
)
"""It has no settings class, which it could not afford."""


def run(settings: CompletionSettings) -> int:
    """Print the script. Returns 0."""
    verbs = {name: _verb(command.settings) for name, command in COMMANDS.items()}
    print("\n".join(SCRIPTS[settings.shell](verbs | {"attach": _ATTACH})))
    return 0


def _verb(settings: type[LogSettings]) -> _Verb:
    return _Verb(summary(settings), (*_flags(settings), _HELP))


def _flags(settings: type[LogSettings]) -> Iterator[_Flag]:
    shortcuts: Any = settings.model_config.get("cli_shortcuts") or {}
    for name, field in settings.model_fields.items():
        word = name.replace("_", "-")
        short = shortcuts.get(word)
        types = set(_types(field.annotation))
        choices = tuple(choice for each in types if isinstance(each, tuple) for choice in each)
        if is_positional(field):
            yield _Flag("", "a choice", choices)
            continue
        takes: Literal["nothing", "a file", "a choice", "a value"] = "a value"
        if choices:
            takes = "a choice"
        elif bool in types:
            takes = "nothing"
            yield _Flag(f"--no-{word}", takes)
        elif Path in types or name == "kubeconfig":
            takes = "a file"
        yield _Flag(f"--{word}", takes, choices)
        if short is not None:
            yield _Flag(f"{'-' if len(short) == 1 else '--'}{short}", takes, choices)


def _types(annotation: Any) -> Iterator[Any]:
    """What a value may be: types, and the choices of a literal as a tuple."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield tuple(map(str, get_args(annotation)))
    elif origin is Annotated:
        yield from _types(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _types(each)
    else:
        yield annotation


def _cases(verbs: Mapping[str, _Verb], *, choose: str, files: str) -> Iterator[str]:
    """Of a `case` over command and last word: what a flag takes, by commands of the shell."""
    for name, verb in verbs.items():
        for flag in verb.flags:
            if flag.name and flag.takes != "nothing":
                found = {"a file": files, "a value": ":"}.get(flag.takes)
                found = found or choose.format(words=" ".join(flag.choices))
                yield f"        {quote(f'{name} {flag.name}')}) {found}; return ;;"


def _bash(verbs: Mapping[str, _Verb]) -> Iterator[str]:
    choose = 'COMPREPLY=($(compgen -W "{words}" -- "$word"))'
    yield "_mcp_gpu() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}"'
    yield "    COMPREPLY=()"
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f"        {choose.format(words=' '.join(verbs))}"
    yield "        return"
    yield "    fi"
    yield '    case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in'
    yield from _cases(verbs, choose=choose, files='COMPREPLY=($(compgen -f -- "$word"))')
    yield "    esac"
    yield '    case "${COMP_WORDS[1]}" in'
    for name, verb in verbs.items():
        yield f"        {name}) {choose.format(words=' '.join(verb.words))} ;;"
    yield "    esac"
    yield "}"
    yield "complete -o filenames -F _mcp_gpu mcp-gpu"


def _zsh(verbs: Mapping[str, _Verb]) -> Iterator[str]:
    yield "#compdef mcp-gpu"
    yield "_mcp_gpu() {"
    yield "    if (( CURRENT == 2 )); then"
    yield "        local -a commands=("
    for name, verb in verbs.items():
        yield f"            {quote(f'{name}:{verb.about}')}"
    yield "        )"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield '    case "${words[2]} ${words[CURRENT-1]}" in'
    yield from _cases(verbs, choose="compadd -- {words}", files="_files")
    yield "    esac"
    yield '    case "${words[2]}" in'
    for name, verb in verbs.items():
        yield f"        {name}) compadd -- {' '.join(verb.words)} ;;"
    yield "    esac"
    yield "}"
    # Sourced, or found by its name in $fpath, where it is the function's body.
    yield 'if [ "$funcstack[1]" = "_mcp_gpu" ]; then'
    yield '    _mcp_gpu "$@"'
    yield "elif (( $+functions[compdef] )); then"
    yield "    compdef _mcp_gpu mcp-gpu"
    yield "fi"


def _fish(verbs: Mapping[str, _Verb]) -> Iterator[str]:
    yield "complete -c mcp-gpu -f"
    for name, verb in verbs.items():
        about = _fish_quote(verb.about)
        yield f"complete -c mcp-gpu -n __fish_use_subcommand -a {name} -d {about}"
        for flag in verb.flags:
            line = f"complete -c mcp-gpu -n '__fish_seen_subcommand_from {name}'"
            if not flag.name:
                yield f"{line} -a {_fish_quote(' '.join(flag.choices))}"
                continue
            option = "-l" if flag.name.startswith("--") else "-s"
            line += f" {option} {flag.name.lstrip('-')}"
            match flag.takes:
                case "a choice":
                    line += f" -x -a {_fish_quote(' '.join(flag.choices))}"
                case "a file":
                    line += " -r -F"
                case "a value":
                    line += " -x"
            yield line


def _fish_quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SCRIPTS: Final[Mapping[str, Callable[[Mapping[str, _Verb]], Iterator[str]]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
