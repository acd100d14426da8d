"""The machine that clients run on, as far as it says where their files lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One person's part of it."""

    system: Literal["linux", "macos", "windows"]
    home: Path
    project: Path
    """Folder of the project at hand."""
    environment: Mapping[str, str]

    @classmethod
    def here(cls) -> Machine:
        """This one, for who runs the program, where it was started."""
        system: Literal["linux", "macos", "windows"] = "linux"
        if sys.platform == "darwin":
            system = "macos"
        elif os.name == "nt":
            system = "windows"
        return cls(system=system, home=Path.home(), project=Path.cwd(), environment=os.environ)

    @property
    def applications(self) -> Path:
        """Where programs with windows keep their settings."""
        if self.system == "macos":
            return self.home / "Library" / "Application Support"
        if self.system == "windows":
            return self.named("APPDATA") or self.home / "AppData" / "Roaming"
        return self.named("XDG_CONFIG_HOME") or self.home / ".config"

    def packages(self, prefix: str) -> list[Path]:
        """What packaged programs for Windows of this name see instead of `applications`."""
        if self.system != "windows":
            return []
        local = self.named("LOCALAPPDATA") or self.home / "AppData" / "Local"
        return sorted(local.glob(f"Packages/{prefix}_*/LocalCache/Roaming"))

    def named(self, variable: str) -> Path | None:
        """The folder that a variable names, if it is set."""
        value = self.environment.get(variable, "").strip()
        return Path(value).expanduser() if value else None
