"""Resources of real agents and a real gateway, as clients of both eras read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client, MCPError
from mcp_types import ResourceTemplateReference

from support.cluster import Cluster, cluster
from support.schemas import promised
from support.wire import ERAS, PATIENCE_SECONDS

FLEET = """
[[nodes]]
name = "h100-a"
profile = "h100"
faults = [{ kind = "lost", gpu = 3 }]
[[nodes]]
name = "t4-a"
profile = "t4"
gpus = 2
"""

GOLDEN = Path(__file__).parent / "golden" / "resources"

NOT_FOUND = {"2026-07-28": -32602, "legacy": -32002}
"""What an unknown resource is by the protocol of each era."""

READ_BYTES = 64_000
"""More than any resource of such a fleet takes."""


@pytest.fixture(scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path_factory.mktemp("fleet"), FLEET) as running:
        yield running


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def of_gateway(fleet: Cluster, era: Any) -> AsyncIterator[Client]:
    with anyio.fail_after(2 * PATIENCE_SECONDS):
        async with Client(f"{fleet.gateway.url}/mcp", mode=era) as client:
            yield client


@pytest.fixture
async def of_agent(fleet: Cluster, era: Any) -> AsyncIterator[Client]:
    with anyio.fail_after(2 * PATIENCE_SECONDS):
        async with Client(f"{fleet.agents['h100-a'].url}/mcp", mode=era) as client:
            yield client


async def read(client: Client, uri: str) -> dict[str, Any]:
    """The data of a resource."""
    first, *_ = (await client.read_resource(uri)).contents
    assert (first.uri, first.mime_type) == (uri, "application/json")
    assert len(first.text.encode()) < READ_BYTES  # type: ignore[union-attr]
    found: dict[str, Any] = json.loads(first.text)  # type: ignore[union-attr]
    return found


async def shown(client: Client) -> str:
    """What a client is shown of resources, as a file keeps it."""
    listed: list[Any] = [*(await client.list_resources()).resources]
    listed += (await client.list_resource_templates()).resource_templates
    documents = [each.model_dump(by_alias=True, mode="json", exclude_none=True) for each in listed]
    return json.dumps(documents, indent=1) + "\n"


@pytest.mark.parametrize("role", ["agent", "gateway"])
async def test_what_is_listed_is_what_the_golden_file_says(
    role: str, of_agent: Client, of_gateway: Client, pytestconfig: pytest.Config
) -> None:
    """A change of the file changes what clients see: say so in CHANGELOG.md."""
    path = GOLDEN / f"{role}.json"
    text = await shown(of_gateway if role == "gateway" else of_agent)
    if pytestconfig.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_only_what_is_served_is_claimed(fleet: Cluster, mode: Any) -> None:
    for role in (fleet.agents["h100-a"], fleet.gateway):
        async with Client(f"{role.url}/mcp", mode=mode) as client:
            claimed = client.server_capabilities
        assert claimed.prompts is not None
        assert claimed.resources is not None
        assert claimed.tools is not None
        assert claimed.completions is not None
        for each in (claimed.prompts, claimed.resources, claimed.tools):
            assert not each.list_changed
        # Over HTTP, which keeps no sessions here, updates have no way before 2026-07-28.
        assert claimed.resources.subscribe is (mode == "auto")


async def test_the_fleet_and_its_nodes_show_their_health(of_gateway: Client) -> None:
    schema = promised("gateway", "get_gpu_health")
    everything = await read(of_gateway, "gpu://fleet")
    jsonschema.validate(everything, schema)
    assert everything["verdict"] == "failed"
    assert everything["simulated"] is True
    assert everything["coverage"]["nodes_answered"] == 2
    one = await read(of_gateway, "gpu://node/t4-a")
    jsonschema.validate(one, schema)
    assert [node["node"] for node in one["nodes"]] == ["t4-a"]


async def test_a_gpu_shows_its_fields(of_gateway: Client, of_agent: Client) -> None:
    found = await read(of_gateway, "gpu://node/h100-a/gpu/2")
    jsonschema.validate(found, promised("gateway", "get_gpu_inventory"))
    (node,) = found["nodes"]
    (gpu,) = node["gpus"]
    assert (node["node"], gpu["index"], node["simulated"]) == ("h100-a", 2, True)
    mine = await read(of_agent, "gpu://node/h100-a/gpu/2")
    jsonschema.validate(mine, promised("agent", "get_gpu_inventory"))
    assert mine["gpus"][0]["uuid"] == gpu["uuid"]


async def test_an_agent_shows_its_own_node(of_agent: Client) -> None:
    found = await read(of_agent, "gpu://node/h100-a")
    jsonschema.validate(found, promised("agent", "get_gpu_health"))
    assert (found["node"], found["verdict"]) == ("h100-a", "failed")


async def test_an_xid_is_explained_in_data_and_in_words(
    of_gateway: Client, of_agent: Client
) -> None:
    for client in (of_gateway, of_agent):
        data, words = (await client.read_resource("xid://79")).contents
        assert json.loads(data.text)["explained"][0]["explanation"]["code"] == 79  # type: ignore[union-attr]
        assert words.mime_type == "text/plain"
        assert "fallen off the bus" in words.text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("uri", "known"),
    [
        ("gpu://node/h100-b", "h100-a, t4-a"),
        ("gpu://node/h100-b/gpu/0", "h100-a, t4-a"),
        ("gpu://node/h100-a%2Ft4-a", "h100-a, t4-a"),
        ("gpu://node/t4-a/gpu/2", "GPU 0, 1"),
        ("gpu://node/t4-a/gpu/x", "the index of a GPU"),
        ("gpu://node/t4-a/gpu/01", "the index of a GPU"),
        ("gpu://node/t4-a/gpu/-1", "the index of a GPU"),
        ("gpu://nodes", "gpu://fleet, gpu://node/{node}"),
        ("gpu://fleet/", "gpu://fleet, gpu://node/{node}"),
        ("GPU://FLEET", "gpu://fleet, gpu://node/{node}"),
        ("xid://0", "codes from 1 to"),
        ("xid://079", "codes from 1 to"),
        ("xid://10001", "explain_xid says what can be said"),
        ("xid://79?x=1", "xid://{code}"),
        ("file:///etc/passwd", "gpu://fleet"),
        ("", "gpu://fleet"),
        ("gpu://node/" + "x" * 10_000, "gpu://fleet"),
    ],
)
async def test_an_unknown_resource_is_the_protocols_own_error(
    of_gateway: Client, era: str, uri: str, known: str
) -> None:
    with pytest.raises(MCPError) as caught:
        await of_gateway.read_resource(uri)
    assert caught.value.code == NOT_FOUND[era]
    assert caught.value.data == {"uri": uri}
    assert known in caught.value.message
    assert len(caught.value.message) < 1_000


async def test_an_agent_knows_no_other_node(of_agent: Client, era: str) -> None:
    for uri in ("gpu://fleet", "gpu://node/t4-a", "gpu://node/h100-a/gpu/8"):
        with pytest.raises(MCPError) as caught:
            await of_agent.read_resource(uri)
        assert caught.value.code == NOT_FOUND[era]
        assert "h100-a" in caught.value.message


@pytest.mark.parametrize(
    ("uri", "argument", "typed", "given", "values"),
    [
        ("gpu://node/{node}", "node", "", {}, ["h100-a", "t4-a"]),
        ("gpu://node/{node}", "node", "t", {}, ["t4-a"]),
        ("gpu://node/{node}", "node", "4", {}, []),
        ("gpu://node/{node}/gpu/{gpu}", "node", "h", {}, ["h100-a"]),
        ("gpu://node/{node}/gpu/{gpu}", "gpu", "", {"node": "t4-a"}, ["0", "1"]),
        ("gpu://node/{node}/gpu/{gpu}", "gpu", "", {"node": "nobody"}, []),
        ("gpu://node/{node}/gpu/{gpu}", "gpu", "", {}, []),
        ("xid://{code}", "code", "15", {}, ["15", *map(str, range(150, 160))]),
    ],
)
async def test_parts_of_a_uri_are_completed(
    of_gateway: Client, uri: str, argument: str, typed: str, given: Any, values: list[str]
) -> None:
    found = await of_gateway.complete(
        ResourceTemplateReference(uri=uri), {"name": argument, "value": typed}, given
    )
    assert found.completion.values == values
    assert found.completion.total == len(values)


async def test_an_agent_completes_its_own_gpus(of_agent: Client) -> None:
    found = await of_agent.complete(
        ResourceTemplateReference(uri="gpu://node/h100-a/gpu/{gpu}"), {"name": "gpu", "value": ""}
    )
    assert found.completion.values == [str(index) for index in range(8)]


async def test_of_the_many_codes_the_first_hundred_are_told(of_gateway: Client) -> None:
    found = await of_gateway.complete(
        ResourceTemplateReference(uri="xid://{code}"), {"name": "code", "value": ""}
    )
    told = found.completion
    assert (len(told.values), told.has_more) == (100, True)
    assert told.total is not None
    assert told.total > 150


async def test_a_template_that_is_not_there_completes_nothing(of_gateway: Client) -> None:
    for uri, argument in (("gpu://{node}", "node"), ("gpu://node/{node}", "gpu")):
        with pytest.raises(MCPError) as caught:
            await of_gateway.complete(
                ResourceTemplateReference(uri=uri), {"name": argument, "value": ""}
            )
        assert caught.value.code == -32602
