from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytest

from transports import registry
from transports.command import CommandTransport
from transports.http import HttpTransport
from transports.memory import MemoryTransport


def make_memory(options: Any) -> MemoryTransport:
    return MemoryTransport({})


def make_nothing(options: Any) -> None:
    return None


def make_trouble(options: Any) -> None:
    raise RuntimeError("no luck")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """What other packages register beside ours: installing a package is too slow for a test."""
    found: list[EntryPoint] = []

    def both(**query: Any) -> list[EntryPoint]:
        return [*entry_points(**query), *(entry for entry in found if entry.matches(**query))]

    monkeypatch.setattr(registry, "entry_points", both)
    return found


def plugin(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=registry.GROUP)


def test_our_own_transports_are_found_as_anybody_elses_would_be() -> None:
    assert registry.known() == ("command", "exec", "http", "portforward")
    assert isinstance(registry.load("http", {"connect_timeout_seconds": 1}), HttpTransport)
    command = registry.load("command", {"argv": ["ssh", "{node}", "mcp-gpu", "attach"]})
    assert isinstance(command, CommandTransport)


def test_a_third_partys_transport_is_loaded_by_its_name(plugins: list[EntryPoint]) -> None:
    plugins.append(plugin("carrier-pigeon", f"{__name__}:make_memory"))
    assert registry.known() == ("carrier-pigeon", "command", "exec", "http", "portforward")
    assert registry.load("carrier-pigeon").name == "memory"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown transport 'htpp'; known: command, exec, http"):
        registry.load("htpp")


def test_a_name_registered_twice_is_refused(plugins: list[EntryPoint]) -> None:
    plugins.append(plugin("http", "pigeons:make"))
    with pytest.raises(ValueError, match=r"'http' is registered twice, by .* and pigeons:make"):
        registry.load("http")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_package:make", "No module named 'no_such_package'"),
        (f"{__name__}:no_such_name", "no_such_name"),
        (f"{__name__}:make_trouble", "RuntimeError: no luck"),
        (f"{__name__}:make_nothing", "made a NoneType, not a Transport"),
    ],
)
def test_a_broken_plugin_is_named(plugins: list[EntryPoint], value: str, words: str) -> None:
    plugins.append(plugin("pigeon", value))
    with pytest.raises(ValueError, match=f"transport 'pigeon' of {value} is broken: .*{words}"):
        registry.load("pigeon")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("http", {"conect_timeout_seconds": 1}, "unknown option 'conect_timeout_seconds'; known: "),
        ("http", {"connect_timeout_seconds": "soon"}, "option 'connect_timeout_seconds': "),
        ("http", {"scheme": "gopher"}, "option 'scheme': "),
        ("http", {"token": "a", "token_file": "b"}, "exclude each other"),
        ("http", {"token": "s3cret"}, "token needs the scheme https"),
        ("http", {"token_file": "b"}, "token_file needs the scheme https"),
        ("portforward", {"token_file": "b"}, "token_file needs the scheme https"),
        ("http", {"server_name": "a.svc"}, "server_name needs the scheme https"),
        ("http", {"scheme": "https", "server_name": "a b"}, "server_name is not a DNS name"),
        ("http", {"scheme": "https", "server_name": "10.0.0.1"}, "server_name is not a DNS name"),
        ("http", {"ca_file": "/ca.pem"}, "ca_file needs the scheme https"),
        ("http", {"path": "mcp"}, "path must start with a slash"),
        ("command", {"argv": "ssh {node}"}, "option 'argv': "),
        ("command", {"argv": ["ssh", "{host}"]}, "{host} is none of {address}, "),
    ],
)
def test_an_option_that_is_wrong_is_refused_by_name(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"transport '{name}': ") as caught:
        registry.load(name, options)
    assert words in str(caught.value)


def test_a_refused_token_is_not_shown() -> None:
    for token in ("s3 cret", ["s3", "cret"], "s3\ncret"):
        with pytest.raises(ValueError, match="token") as caught:
            registry.load("http", {"scheme": "https", "token": token})
        assert "cret" not in str(caught.value)
        assert "cret" not in repr(caught.value.__cause__)
