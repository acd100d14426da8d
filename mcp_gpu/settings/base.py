"""What the settings are made of: the bases of all commands' classes, and their types."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliPositionalArg, NoDecode, SettingsConfigDict

PREFIX = "MCP_GPU_"
DEFAULT_HTTP_PORT = 8080


class SettingError(Exception):
    """A setting that reads well turns out to be unusable. The text says what to do instead."""


def _split(value: object) -> object:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _flat(value: tuple[str, ...]) -> tuple[str, ...]:
    # The command line hands over a list of what each flag said, commas and all.
    return tuple(part for entry in value for part in entry.replace(",", " ").split())


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_flat)]
"""Several names, separated by commas or blanks."""

File = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
"""A file's path. Where a client starts this program there is no shell that knows what `~` is."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]
LogLevel = Literal["debug", "info", "warning", "error"]


class LogSettings(BaseSettings):
    """What every command takes."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        defer_build=True,  # one command runs, and each class costs 8 ms
    )

    log_level: LogLevel = "info"
    """Least severe level that is logged, to standard error."""
    log_format: Literal["text", "json"] = "text"
    """text for people, json (one object per line) for log collectors."""


def is_positional(field: FieldInfo) -> bool:
    """Whether a setting is given on the command line without its name."""
    return get_args(CliPositionalArg)[-1] in field.metadata
