"""Clients that call a gateway's Service over and over, and miss nothing that goes wrong.

Run as a program in a machine's network: `python -m cluster.callers`, with what to call as JSON in
the first line of stdin. It goes on until stdin ends, and then prints what it has seen.

They are stricter than most clients: nothing is sent twice, and a connection that was kept and turns
out to be closed is a failed call.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.cluster import Cluster
from cluster.release import CALL_SECONDS, Release, call
from cluster.successor import ARGUMENT, FIELD

__all__ = ["Seen", "calling"]

TESTS = Path(__file__).parents[1]

KINDS = ("kept", "kept, with arguments", "new", "new, with arguments")
"""One client each: whether it keeps its connection, and what it asks."""

PAUSE_SECONDS = 0.1
"""Between two calls of one client, so that what is upgraded has the processors too."""

TOLD = 20
"""Failures kept, of those seen."""


@dataclass
class Seen:
    """What became of the calls of some clients."""

    calls: Counter[str] = field(default_factory=Counter)
    """By kind of client, and those with the new argument once more by its name."""
    connections: int = 0
    failures: int = 0
    told: list[str] = field(default_factory=list)
    """What the first failures were."""

    def add(self, other: Seen) -> None:
        self.calls += other.calls
        self.connections += other.connections
        self.failures += other.failures
        self.told = sorted([*self.told, *other.told])[:TOLD]


@contextmanager
def calling(release: Release, machines: Sequence[str]) -> Iterator[Seen]:
    """Have clients on these machines call while the block runs. What they have seen is complete
    after it."""
    cluster, seen = release.cluster, Seen()
    with ExitStack() as stack:
        running = [_start(cluster, name, stack) for name in machines]
        asked = {"address": release.address, "token": release.token(), "nodes": cluster.nodes}
        for each in running:
            assert each.stdin is not None
            each.stdin.write(json.dumps(asked) + "\n")
            each.stdin.flush()
        yield seen
        for each in running:
            said, _ = each.communicate(timeout=CALL_SECONDS + 10)
            assert each.returncode == 0
            found = json.loads(said)
            seen.add(Seen(**{**found, "calls": Counter(found["calls"])}))


def _start(cluster: Cluster, machine: str, stack: ExitStack) -> subprocess.Popen[str]:
    command = [*cluster.namespace(machine).wires(), "env", f"PYTHONPATH={TESTS}"]
    command += [sys.executable, "-m", "cluster.callers"]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.enter_context(popen)
    stack.callback(popen.kill)
    return popen


class Caller:
    """One client."""

    def __init__(self, kind: str, address: str, token: str, nodes: list[str]) -> None:
        self.seen = Seen()
        self._kind = kind
        self._address = address
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
        }
        self._nodes = nodes
        self._connection: http.client.HTTPConnection | None = None
        self._offered = False
        """Whether who is at the other end offers the new argument."""

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            begun = time.time()
            self.seen.calls[self._kind] += 1
            try:
                self._call()
            except Exception as error:
                self._fail(begun, error)
            if not self._kind.startswith("kept"):
                self._hang_up()
            stop.wait(PAUSE_SECONDS)
        self._hang_up()

    def _fail(self, begun: float, error: Exception) -> None:
        self.seen.failures += 1
        if len(self.seen.told) < TOLD:
            at = time.strftime("%H:%M:%S", time.gmtime(begun))
            words = f"{at} after {time.time() - begun:.2f} s: {self._kind}: {error!r}"
            self.seen.told.append(words)
        self._hang_up()

    def _call(self) -> None:
        """One call that has to be answered for every node."""
        if self._connection is None:
            connection = http.client.HTTPConnection(self._address, 8080, timeout=CALL_SECONDS)
            connection.connect()
            self._connection = connection
            self.seen.connections += 1
            self._offered = self._offers()
            if self._connection is None:  # it was the last that this server answered
                return self._call()
        arguments: dict[str, Any] = {}
        if self._kind.endswith("arguments"):
            arguments = {"detail": "full", "nodes": self._nodes}
            if self._offered:
                self.seen.calls[ARGUMENT] += 1
                arguments[ARGUMENT] = f"{self._kind} {self.seen.calls[ARGUMENT]}"
        result = self._ask(call("get_gpu_inventory", **arguments))
        answer = result.get("structuredContent")
        if result.get("isError") or answer is None:
            raise ValueError(f"refused: {json.dumps(result)[:1000]}")
        found = [node["node"] for node in answer["nodes"]]
        if answer["failures"] or found != self._nodes:
            raise ValueError(f"of {found}: {json.dumps(answer['failures'])[:2000]}")
        wrong = {node.get(FIELD) for node in answer["nodes"]}
        # An agent from before says nothing of what it does not know.
        if not wrong <= {None, "", arguments.get(ARGUMENT, "")}:
            raise ValueError(f"came back as {wrong}")
        return None

    def _offers(self) -> bool:
        listed = self._ask({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
        (tool,) = (each for each in listed["tools"] if each["name"] == "get_gpu_inventory")
        return ARGUMENT in tool["inputSchema"]["properties"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._connection is not None
        self._connection.request("POST", "/mcp", json.dumps(request), self._headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.will_close:
            self._hang_up()
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {body[:500]!r}")
        result: dict[str, Any] = json.loads(body)["result"]
        return result

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    stop, seen = threading.Event(), Seen()
    callers = [Caller(kind, **asked) for kind in KINDS]
    threads = [threading.Thread(target=each.run, args=[stop]) for each in callers]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread, caller in zip(threads, callers, strict=True):
        thread.join()
        seen.add(caller.seen)
    json.dump(vars(seen), sys.stdout)


if __name__ == "__main__":
    main()
