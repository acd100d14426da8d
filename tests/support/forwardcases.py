"""What holds for port-forward through any API server: the fake one, and a real cluster.

Each case takes a `ForwardSite` and is a test body; `CASES` are all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest

from transports.base import Target
from transports.errors import Denied, Gone, TransportError, Unreachable
from transports.portforward import PortForwardSettings, PortForwardTransport
from transports.session import call_tool

SECONDS = 60.0
"""Bounds every case."""


@dataclass(frozen=True, kw_only=True)
class ForwardSite:
    """An agent's pod, and who may reach it."""

    kubeconfig: str
    """Of a caller with `get` and `create` on `pods/portforward` in the namespace."""
    stranger: str
    """A kubeconfig of one without."""
    token_file: str
    """What the agent asks callers for."""
    target: Target
    trust: Mapping[str, str]
    """How its certificate is checked: the options `ca_file` and `server_name`."""
    tool: str = "get_gpu_inventory"
    """One that the agent answers at once."""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def transport(self, **settings: Any) -> PortForwardTransport:
        defaults = {"kubeconfig": self.kubeconfig, "token_file": self.token_file}
        defaults |= {"scheme": "https", **self.trust}
        return PortForwardTransport(PortForwardSettings(**{**defaults, **settings}))

    async def call(self, transport: PortForwardTransport, target: Target | None = None) -> None:
        """A call that must be answered."""
        result = await call_tool(
            transport, target or self.target, self.tool, self.arguments, timeout_seconds=SECONDS
        )
        assert not result.is_error


async def calls_are_answered_at_once_and_one_after_the_other(site: ForwardSite) -> None:
    async with site.transport() as transport:
        with anyio.fail_after(SECONDS):
            assert (await transport.probe(site.target)).node
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(site.call, transport)
        for _ in range(20):
            await site.call(transport)


async def loopback_earns_no_trust(site: ForwardSite) -> None:
    for shown in ({"token_file": ""}, {"token_file": "", "token": "wrong"}):
        async with site.transport(**shown) as transport:
            with anyio.fail_after(SECONDS):
                assert (await transport.probe(site.target)).node  # asks nothing that is secret
            with pytest.raises(Denied, match="HTTP 401") as caught:
                await site.call(transport)
            assert caught.value.symptom == "unauthorized"


async def a_port_where_nobody_listens_is_unreachable(site: ForwardSite) -> None:
    nobody = replace(site.target, port=9)
    async with site.transport() as transport:
        error = await _fails(transport, nobody)
        assert (type(error), error.symptom) == (Unreachable, "refused")
        assert "9" in error.message
        with pytest.raises(Unreachable, match="refused"):
            await site.call(transport, nobody)
        await site.call(transport)


async def what_is_not_there_is_gone(site: ForwardSite) -> None:
    nobody = Target(namespace=site.target.namespace, pod="nobody")
    async with site.transport() as transport:
        error = await _fails(transport, nobody)
    assert type(error) is Gone
    assert 'pods "nobody" not found' in error.message


async def a_caller_without_the_role_is_denied(site: ForwardSite) -> None:
    async with site.transport(kubeconfig=site.stranger) as transport:
        error = await _fails(transport, site.target)
    assert (type(error), error.symptom) == (Denied, "rbac")
    words = "grant get and create on pods/portforward: an access review denies "
    assert error.message.startswith(words)


CASES = (
    calls_are_answered_at_once_and_one_after_the_other,
    loopback_earns_no_trust,
    a_port_where_nobody_listens_is_unreachable,
    what_is_not_there_is_gone,
    a_caller_without_the_role_is_denied,
)


async def _fails(transport: PortForwardTransport, target: Target) -> TransportError:
    with anyio.fail_after(SECONDS), pytest.raises(TransportError) as caught:
        await transport.probe(target)
    return caught.value
