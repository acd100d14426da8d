"""What Kubernetes did to the pods of a namespace while a block ran, for whoever has to explain it.

Events alone do not do: they say when a pod was made and deleted to the second, and nothing of the
moment at which it counted as ready.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cluster.cluster import Access

__all__ = ["Chronicle", "chronicled"]

END_SECONDS = 10
"""Bound for kubectl to end, once it is killed."""

POD = (
    "pod/{.metadata.name} on {.spec.nodeName} {.spec.containers[*].image} {.status.phase}"
    ' ready={.status.conditions[?(@.type=="Ready")].status}'
    " restarts={.status.containerStatuses[*].restartCount}"
    " deleted={.metadata.deletionTimestamp}"
)

EVENT = "{.involvedObject.kind}/{.involvedObject.name} {.reason}: {.message}"


class Chronicle:
    """Lines in the order in which they were heard, each with its time (UTC)."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def hear(self, watch: subprocess.Popen[str]) -> None:
        """Take down what it prints, until it ends."""
        assert watch.stdout is not None
        for line in watch.stdout:
            now = time.time()
            at = time.strftime("%H:%M:%S", time.gmtime(now))
            self._lines.append(f"{at}.{int(now % 1 * 1000):03} {line.rstrip()}")


@contextmanager
def chronicled(access: Access, namespace: str) -> Iterator[Chronicle]:
    """Watch its pods and events. What has been heard is complete after the block."""
    chronicle = Chronicle()
    with ExitStack() as stack:
        for kind, line in (("pods", POD), ("events", EVENT)):
            words = ["-n", namespace, "get", kind, "--watch", f'-o=jsonpath={line}{{"\\n"}}']
            watch = subprocess.Popen(
                access.command("kubectl", *words), stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(watch)
            heard = threading.Thread(target=chronicle.hear, args=[watch], name=f"hear {kind}")
            heard.start()
            stack.callback(heard.join, END_SECONDS)
            stack.callback(watch.kill)
        yield chronicle
