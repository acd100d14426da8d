"""What the commands at a terminal share: a gateway asked by its URL, or the agents themselves, a
bar while one waits, and how it is said that there is nobody to ask.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from io import StringIO
from types import FrameType
from typing import Any, Final, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.fleet.question import plain
from mcp_gpu.fleet.router import FanOut
from mcp_gpu.fleet.selection import UnknownNodes
from mcp_gpu.gateway import Fleet, open_fleet
from mcp_gpu.registry import Arguments
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.terminal import TerminalSettings
from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.fleet_arguments import FleetArguments
from mcp_gpu.tools.spans import counted
from mcp_gpu.tools.ways import ways_line
from transports.base import Target
from transports.errors import TransportError
from transports.hosts import is_loopback
from transports.http import HttpSettings, HttpTransport
from transports.registry import read_options
from transports.session import call_tool
from transports.text import one_line

__all__ = [
    "LIMIT",
    "SEVERITY_COLOURS",
    "agents",
    "all_pages",
    "explained",
    "from_agents",
    "gateway",
    "notes",
    "obey_interrupts",
    "print_block",
    "print_rows",
    "progress_bar",
    "standard_output",
]

LIMIT: Final = 500
"""Most nodes in one page of a gateway's answer."""

PAGES: Final = 1000
"""Most pages to turn: more nodes than there can be in a cluster."""

ERROR_CHARS: Final = 2_000
"""Longest error of a gateway's that is shown."""

WHOLE: Final = 100_000
"""Width at which nothing is ever wrapped."""

SEVERITY_COLOURS: Final = {"critical": "red", "warning": "yellow", "info": "cyan"}

R = TypeVar("R", bound=BaseModel)

Ask = Callable[[Arguments], Awaitable[R]]


class OfNode(Protocol):
    """What is told of one node."""

    @property
    def node(self) -> str: ...


class Page(Protocol):
    """A gateway's answer that goes on over several pages."""

    @property
    def nodes(self) -> Sequence[OfNode]: ...

    @property
    def next_cursor(self) -> str | None: ...

    @property
    def nodes_omitted(self) -> int: ...

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self: ...


P = TypeVar("P", bound=Page)


@contextmanager
def standard_output() -> Iterator[Console]:
    """Where a command prints: as wide as the terminal is. Into a pipe or a file every line goes
    whole and without blanks at its end, for grep and diff."""
    if sys.stdout.isatty():
        yield Console(highlight=False, emoji=False)
        return
    text = StringIO()
    yield Console(file=text, width=WHOLE, highlight=False, emoji=False)
    sys.stdout.write("\n".join(line.rstrip() for line in text.getvalue().split("\n")))


def print_block(lines: Iterable[str], console: Console, style: str) -> None:
    """Print lines after an empty one, if there are any."""
    for number, line in enumerate(lines):
        if not number:
            console.print()
        console.print(escape(line), style=style)


def notes(found: FleetAnswer) -> Iterator[str]:
    """What is told at the end of any answer: how the answers came, and what knows more."""
    if found.failures_by_reason:
        yield "mcp-gpu doctor says why nodes do not answer, and what mends it."
    if found.passed_over:
        yield ways_line(found, see="mcp-gpu doctor")
    if found.nodes_omitted:
        yield f"{counted(found.nodes_omitted, 'more node')} not shown; name some with --nodes."
    if found.coverage.said_of_discovery:
        yield found.coverage.said_of_discovery


def print_rows(rows: Iterable[tuple[str, str]], console: Console) -> None:
    """Print labels and what belongs to each, which may hold markup, as two columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    console.print(Padding(table, (0, 0, 0, 3), expand=False))


@contextmanager
def progress_bar(task: str) -> Iterator[ProgressFnT]:
    """A bar on standard error while a person watches, nothing otherwise."""
    if not sys.stderr.isatty():

        async def unseen(
            progress: float, total: float | None = None, message: str | None = None
        ) -> None: ...

        yield unseen
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(task, total=None)

        async def show(
            progress: float, total: float | None = None, message: str | None = None
        ) -> None:
            bar.update(row, completed=progress, total=total)

        yield show


@contextmanager
def explained() -> Iterator[None]:
    """Say in one line that there is nobody to ask.

    Raises:
        SettingError: no agents are known, or not those that were named.
    """
    try:
        yield
    except DiscoveryError as error:
        raise SettingError(f"no agents are known: {error}") from error
    except UnknownNodes as error:
        known = ", ".join(error.known) or "none"
        raise SettingError(f"{error}; known: {known}") from error


@asynccontextmanager
async def agents(settings: TerminalSettings) -> AsyncIterator[Fleet]:
    """The agents themselves, for a command without `--url`.

    Raises:
        SettingError: they are not named well, or something is set that is for `--url`.
    """
    for name in ("ca_file", "plain_token"):
        if getattr(settings, name):
            raise SettingError(f"--{name.replace('_', '-')} goes with --url only")
    async with open_fleet(settings) as fleet:
        yield fleet


async def from_agents(
    settings: TerminalSettings,
    tool: str,
    arguments: Mapping[str, Any],
    result: type[R],
    report: ProgressFnT,
) -> FanOut[R]:
    """What the agents themselves answer.

    Raises:
        SettingError: no agents are known, or not those that were named.
    """

    async with agents(settings) as fleet:
        with explained():
            return await fleet.router.fan_out(
                tool, arguments, result, nodes=settings.nodes or None, progress=report
            )


async def all_pages(ask: Callable[[Arguments], Awaitable[P]], arguments: FleetArguments) -> P:
    """A gateway's answer with the nodes of all its pages."""
    first = page = await ask(arguments)
    listed = {each.node: each for each in first.nodes}
    for _ in range(PAGES):
        if page.next_cursor is None:
            break
        page = await ask(arguments.model_copy(update={"cursor": page.next_cursor}))
        listed |= {each.node: each for each in page.nodes}
    update = {"nodes": tuple(listed.values()), "nodes_omitted": page.nodes_omitted}
    return first.model_copy(update=update | {"next_cursor": page.next_cursor})


@asynccontextmanager
async def gateway(
    settings: TerminalSettings, tool: str, result: type[R], report: ProgressFnT
) -> AsyncIterator[Ask[R]]:
    """A tool of the gateway at `--url`, as a function of its arguments.

    Raises:
        SettingError: the URL is none, nobody answers there, or the gateway cannot.
    """
    transport, target = _way_to(settings)

    async def ask(arguments: Arguments) -> R:
        try:
            outcome = await call_tool(
                transport,
                target,
                tool,
                arguments.model_dump(mode="json", exclude_none=True),
                timeout_seconds=settings.timeout_seconds,
                progress=report,
            )
        except TransportError as error:
            raise SettingError(f"no answer from {settings.url}: {error}") from error
        return _read(settings.url, outcome, result)

    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(transport)
        except ValueError as error:
            raise SettingError(f"--url {settings.url}: {error}") from error
        yield ask


def _way_to(settings: TerminalSettings) -> tuple[HttpTransport, Target]:
    if "@" in settings.url:
        raise SettingError(
            "--url may hold no user name or password, which would be in the list of processes and "
            "are never sent; a token goes into a file, --token-file"
        )
    try:
        url = urlsplit(settings.url)
        options = {"scheme": url.scheme, "path": url.path or "/mcp"}
        port = url.port or (443 if url.scheme == "https" else 80)
        if not url.hostname:
            raise ValueError("no host in it")
        target = Target(addresses=(url.hostname,), port=port)
        token_file = "" if settings.token_file is None else str(settings.token_file)
        if url.scheme == "https":
            options["token_file"], token_file = token_file, ""
            options["ca_file"] = "" if settings.ca_file is None else str(settings.ca_file)
        chosen = read_options(HttpSettings, options)
    except ValueError as error:
        raise SettingError(
            f"--url {settings.url!r}: {error}; it looks like http://127.0.0.1:8080/mcp"
        ) from error
    if chosen.scheme == "http":
        _check_plain(settings, url.hostname)
    return HttpTransport(chosen, plain_token_file=token_file), target


def _check_plain(settings: TerminalSettings, host: str) -> None:
    """Over plain HTTP there is no certificate to check, and a token is shown to all on the way."""
    if settings.ca_file is not None:
        raise SettingError(f"--ca-file is for --url https://..., which {settings.url} is not")
    if settings.token_file is not None and not (settings.plain_token or is_loopback(host)):
        raise SettingError(
            f"--url {settings.url}: a token goes over https, or to this machine: call "
            "https://..., or http://127.0.0.1:PORT/mcp while kubectl port-forward runs; or give "
            "--plain-token, and whoever is on the way can read it and call with it"
        )


def _read(url: str, outcome: CallToolResult, result: type[R]) -> R:
    if outcome.is_error:
        texts = [block.text for block in outcome.content if isinstance(block, TextContent)]
        raise SettingError(f"{url}: {one_line(' '.join(texts), ERROR_CHARS)}")
    try:
        return result.model_validate(plain(outcome.structured_content))
    except ValueError as error:  # pydantic's too
        raise SettingError(f"{url} is no gateway of this version") from error


def obey_interrupts() -> None:
    """Have SIGTERM end the program the way Ctrl-C does, by cleaning up, and either end it even
    where a shell without job control has it ignore Ctrl-C, as it was begun in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Not raised from here: the event loop turns SIGINT into a cancellation at a safe place.
    signal.raise_signal(signal.SIGINT)
