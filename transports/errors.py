"""Why an agent could not be reached, as one small tree.

    TransportError(message, target, transport)
    ├─ Unreachable   nothing there or no way there: refused, connect timeout, DNS, no command
    ├─ Denied        the way is forbidden: HTTP 401/403/421, RBAC, admission
    ├─ Gone          the pod, the container or the agent in it is not running
    ├─ Broken        the connection died in mid-call
    ├─ TimedOut      connected, and then no answer within the deadline
    └─ BadPeer       what answered is not our agent, or sent what is not the protocol

Each class carries the `reason` that answers show (a closed list), and each error the `symptom`
by which a diagnosis tells one cause from another.
Foreign exceptions and exception groups never leave the module that wraps
their library: it maps them here, narrowest class first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from transports.text import one_line

if TYPE_CHECKING:
    from transports.base import Target

Reason = Literal["unreachable", "denied", "not_running", "broken", "timeout", "bad_response"]
"""The closed list of reasons a path can fail for."""

Symptom = Literal[
    "refused",
    "connect_timeout",
    "no_route",
    "dns",
    "tls",
    "tls_untrusted",
    "tls_name",
    "tls_expired",
    "tls_scheme",
    "reset",
    "silent",
    "large_lost",
    "unauthorized",
    "forbidden",
    "http_error",
    "foreign",
    "rbac",
    "admission",
    "credentials",
    "api_unreachable",
    "kubelet_unreachable",
    "not_running",
    "no_command",
    "other",
]
"""How a failure looks on the wire, finer than its reason: what a diagnosis goes by."""

MESSAGE_CHARS = 500
"""Longest message of an error: a peer's own words are part of many, and an answer about a fleet
carries one per agent."""


class TransportError(Exception):
    """A path to an agent failed. Raised only as one of the subclasses below.

    The message is one line of at most `MESSAGE_CHARS`, safe to show in a terminal.
    """

    reason: ClassVar[Reason]
    symptom: Symptom = "other"
    """How it looked. A class has a usual one; whoever raises it may know better."""

    def __init__(
        self, message: str, *, target: Target, transport: str, symptom: Symptom | None = None
    ) -> None:
        self.message = one_line(message, MESSAGE_CHARS)
        super().__init__(self.message)
        self.target = target
        self.transport = transport
        if symptom is not None:
            self.symptom = symptom

    def __reduce__(self) -> tuple[object, ...]:
        said = (self.message, self.target, self.transport, self.symptom)
        return (_rebuild, (type(self), *said))


class Unreachable(TransportError):
    """Nothing answers there, or there is no way there. The next path may work."""

    reason = "unreachable"


class Denied(TransportError):
    """The way exists and is forbidden to us. Another path is authorised separately."""

    reason = "denied"


class Gone(TransportError):
    """The way works as far as the node, where no agent runs."""

    reason = "not_running"
    symptom = "not_running"


class Broken(TransportError):
    """The connection died after the call was sent: whether it was carried out is unknown."""

    reason = "broken"
    symptom = "reset"


class TimedOut(TransportError):
    """Connected, and then silence for longer than the caller would wait."""

    reason = "timeout"
    symptom = "silent"


class BadPeer(TransportError):
    """Something answers, but it is not the agent that was meant or not the protocol."""

    reason = "bad_response"
    symptom = "foreign"


def _rebuild(
    cls: type[TransportError], message: str, target: Target, transport: str, symptom: Symptom
) -> TransportError:
    return cls(message, target=target, transport=transport, symptom=symptom)


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, before it is known whom it leaves without an answer.

    Each caller gets an error of its own: a raised one collects its raiser's traceback.
    """

    kind: type[TransportError]
    message: str
    symptom: Symptom | None = None
    """None: the usual one of its kind."""

    def __str__(self) -> str:
        return f"{self.kind.reason}: {one_line(self.message, MESSAGE_CHARS)}"

    def error(self, target: Target, transport: str) -> TransportError:
        """The failure as the exception to raise to one caller."""
        return self.kind(self.message, target=target, transport=transport, symptom=self.symptom)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside a group, however deeply nested; a plain exception is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it, outermost first, each as its leaves."""
    while error is not None:
        yield from leaves(error)
        error = error.__cause__ or error.__context__


@contextmanager
def mapped(
    table: Mapping[type[Exception], type[TransportError]], *, target: Target, transport: str
) -> Iterator[None]:
    """Turn a library's exceptions, grouped or bare, into one `TransportError`.

    Args:
        table: foreign class to ours; of several that match, the narrowest wins.

    Raises:
        TransportError: the first leaf that is one already, else the first that `table` maps.
            Whatever the table does not know is a defect of ours and passes unchanged.
    """
    try:
        yield
    except TransportError:
        raise
    except Exception as error:
        found = list(leaves(error))
        for leaf in found:
            if isinstance(leaf, TransportError):
                raise leaf from None
        for leaf in found:
            cls = next((table[c] for c in type(leaf).__mro__ if c in table), None)
            if cls is not None:
                text = str(leaf) or type(leaf).__name__
                raise cls(text, target=target, transport=transport) from leaf
        raise


REASONS: tuple[str, ...] = get_args(Reason)
