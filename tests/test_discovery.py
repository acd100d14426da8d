"""Discovery: lists, files and DNS names become targets; bad input is named."""

import socket
from pathlib import Path

import anyio
import pytest

from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.fleet.discovery.dns import DnsDiscovery
from mcp_gpu.fleet.discovery.static import StaticDiscovery
from transports.base import Target


def targets(text: str) -> tuple[Target, ...]:
    return StaticDiscovery.from_text(text).table().targets


def test_an_entry_is_a_host_with_node_and_port_where_given() -> None:
    assert targets("10.0.0.1, b=node-b.gpu.svc:9000 c=10.0.0.3") == (
        Target(addresses=("10.0.0.1",), port=8080),
        Target(node="b", addresses=("node-b.gpu.svc",), port=9000),
        Target(node="c", addresses=("10.0.0.3",), port=8080),
    )


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("[fd00::1]:9000", "fd00::1", 9000),
        ("fd00::1", "fd00::1", 8080),
        ("[fd00::1]", "fd00::1", 8080),
        ("http://10.0.0.1:81/mcp", "10.0.0.1", 81),
        ("http://agent.example/", "agent.example", 8080),
    ],
)
def test_addresses_are_read_the_way_people_write_them(text: str, address: str, port: int) -> None:
    assert targets(text) == (Target(addresses=(address,), port=port),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no agents"),
        ("a=1.1.1.1,a=2.2.2.2", "agent named twice: a"),
        ("1.1.1.1,1.1.1.1:8080", "agent named twice: 1.1.1.1:8080"),
        ("=1.1.1.1", "empty node name"),
        ("host:port", "'port' is not a port number"),
        ("host:70000", "'70000' is not a port number"),
        ("host/path", "not host"),
        ("a=", "not host"),
    ],
)
def test_a_bad_list_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(DiscoveryError, match=complaint):
        StaticDiscovery.from_text(text)


def test_a_file_gives_each_agent_its_own_way(tmp_path: Path) -> None:
    file = tmp_path / "agents.toml"
    file.write_text(
        """
        [[agents]]
        node = "a"
        addresses = ["10.0.0.1:9000", "fd00::1"]
        [[agents]]
        node = "b"
        namespace = "gpu"
        command = { argv = ["ssh", "b", "mcp-gpu", "attach", "--relay-only"] }
        """
    )
    a, b = StaticDiscovery.from_file(file).table().targets
    assert a == Target(node="a", addresses=("10.0.0.1", "fd00::1"), port=9000)
    assert (b.node, b.namespace, b.addresses) == ("b", "gpu", ())
    assert b.options["command"]["argv"][0] == "ssh"
    assert a.key != b.key


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("agents = 3", "no .*agents.* tables"),
        ("[[agent]]\nnode='a'", "unknown key 'agent'"),
        ("[[agents]]\nnode='a'\nexec={argv=['x']}", "agent 1: exec takes no options for one"),
        ("[[agents]]\nnode='a'", "agent 1: neither an address, nor a namespace and pod"),
        ("[[agents]]\nnode=3\naddress='x'", "agent 1: node is not a string"),
        ("[[agents]]\naddress=['x', 3]", "agent 1: address is neither"),
        ("[[agents]]\naddress='x'\nnoed='a'", "agent 1: unknown key 'noed'"),
        ("[[agents]]\naddress='x:y'", "agent 1: 'y' is not a port"),
        ("[[agents", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "agents.toml"
    file.write_text(text)
    with pytest.raises(DiscoveryError, match=complaint):
        StaticDiscovery.from_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError, match=r"nowhere\.toml: No such file"):
        StaticDiscovery.from_file(tmp_path / "nowhere.toml")


async def test_dns_gives_every_address_of_the_name() -> None:
    discovery = DnsDiscovery("localhost:9000")
    with pytest.raises(DiscoveryError, match="not asked yet"):
        discovery.table()
    with anyio.fail_after(10):
        await discovery.refresh()
    found = discovery.table()
    addresses = {address for target in found.targets for address in target.addresses}
    assert "127.0.0.1" in addresses
    assert {target.port for target in found.targets} == {9000}
    assert all(target.node == "" and target.ready for target in found.targets)


async def test_an_address_that_dns_drops_stays_known_and_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A headless Service drops agents that are not ready; their nodes still exist."""
    answers = [["10.0.0.1", "10.0.0.2"], ["10.0.0.1"]]

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        addresses = answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 8080)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    discovery = DnsDiscovery("agents.gpu.svc")
    with anyio.fail_after(10):
        await discovery.refresh()
        await discovery.refresh()
    ready = {target.addresses[0]: target.ready for target in discovery.table().targets}
    assert ready == {"10.0.0.1": True, "10.0.0.2": False}


async def test_an_outage_of_dns_keeps_the_table_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    discovery = DnsDiscovery("localhost")
    with anyio.fail_after(10):
        await discovery.refresh()
    before = discovery.table()
    assert before.problem is None

    def fails(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with anyio.fail_after(10):
        await discovery.refresh()
    after = discovery.table()
    assert after.targets == before.targets
    assert after.as_of == before.as_of
    assert after.problem is not None
    assert "Temporary failure" in after.problem


async def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()

    def hangs(*_: object, **__: object) -> list[object]:
        release.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    discovery = DnsDiscovery("slow.example", resolve_timeout_seconds=0.05)
    try:
        with anyio.fail_after(10):
            await discovery.refresh()
        with pytest.raises(DiscoveryError, match="no answer from DNS"):
            discovery.table()
    finally:
        release.set()
