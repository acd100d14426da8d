"""The picture of the front page: what the demo prints, as a terminal shows it. `make picture`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "pictures" / "demo.svg"

COMMAND = "make run ARGS=--once"

COLUMNS = 118

AGE = re.compile(r"\b\d+ s$", re.MULTILINE)
"""The only thing that differs from one run to the next: how old each reading was."""


def main() -> None:
    """Run the demo and draw it."""
    # As in a terminal, with its colours.
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MCP_GPU_")} | colours
    command = [sys.executable, "-m", "mcp_gpu", "demo", "--once"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(done.stdout), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))


def drawn(said: str) -> str:
    """A terminal's screen as SVG, the same for the same text."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(
            file=nowhere, record=True, width=COLUMNS, force_terminal=True, color_system="truecolor"
        )
        console.print(Text.assemble(("$ ", "bold green"), (COMMAND, "bold")))
        text = Text.from_ansi(said.rstrip())
        plain = text.plain
        for age in reversed(list(AGE.finditer(plain))):
            text = Text.assemble(text[: age.start()], "1 s", text[age.end() :])
        console.print(text)
        svg = console.export_svg(title="mcp-gpu", unique_id="demo")
    # No font from another's server: readers' own monospaced one does.
    svg = re.sub(r"\s*@font-face \{.*?\}\n", "\n", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    main()
