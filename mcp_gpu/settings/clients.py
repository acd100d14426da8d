"""The commands that write this program into the configuration of its clients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from mcp_gpu.settings.base import File, LogLevel, LogSettings
from mcp_gpu.settings.fleet import FleetSettings


class ClientSettings(LogSettings):
    """Which file of which client is edited, and how."""

    log_level: LogLevel = "warning"
    """Least severe level that is logged, to standard error."""
    client: CliPositionalArg[Literal["claude", "claude-desktop", "cursor", "vscode", "codex"]]
    """Whose configuration: claude is Claude Code."""
    scope: Literal["user", "project"] = "user"
    """user: for yourself, everywhere. project: for all who work in the present folder, in a file
    that is meant to be shared."""
    file: File | None = None
    """The file to edit. Default: where the client looks for it."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "gpu"
    """What the client calls the server."""
    dry_run: bool = False
    """Show the change and make none."""
    yes: bool = False
    """Do not ask before the change is made."""


class InstallSettings(ClientSettings, FleetSettings):
    """Add a gateway to a client's configuration, or change it: mcp-gpu install claude."""

    url: str = ""
    """MCP endpoint of a gateway that runs already, such as https://gpu.example.com/mcp. Without it
    the client starts one on this machine, with the flags given here."""
    token_variable: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    """Environment variable of the client that holds the bearer token for --url. VS Code asks for
    the token instead, and calls it that. Without it none is shown, as for a gateway with OAuth."""
    undo: bool = False
    """Take the last change back that `install` or `uninstall` made to the file."""


class UninstallSettings(ClientSettings):
    """Take the gateway out of a client's configuration."""
