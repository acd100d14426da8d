"""A gateway that leaves tools out: clients see neither them nor what shows their answers."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from mcp import Client, MCPError
from mcp_types import PromptReference, ResourceTemplateReference, TextContent

from mcp_gpu.cli import main
from support.cluster import Running, start_all
from support.ports import free_ports

LEFT_OUT = "explain_failure,get_incident_report,get_gpu_inventory"


async def test_what_is_left_out_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    port, nobody = free_ports(2)
    arguments = ["gateway", "--agents", f"n1=127.0.0.1:{nobody}", "--transports", "http"]
    arguments += ["--http-port", str(port), "--without-tools", LEFT_OUT]
    gateway = Running(arguments, port, tmp_path / "gateway.log")
    async with AsyncExitStack() as stack:
        await start_all(stack, [gateway])
        client = await stack.enter_async_context(Client(f"{gateway.url}/mcp", mode="2026-07-28"))
        told = [client.instructions or ""]
        tools = {each.name for each in (await client.list_tools()).tools}
        assert len(tools) == 9
        assert tools.isdisjoint(LEFT_OUT.split(","))
        templates = (await client.list_resource_templates()).resource_templates
        assert [each.uri_template for each in templates] == ["gpu://node/{node}", "xid://{code}"]
        told.append(json.dumps([each.model_dump(mode="json") for each in templates]))
        for name, given in (
            ("gpu-triage", {"node": "n1"}),
            ("gpu-triage", {"node": "n1", "incident_id": "inc-20261126T100220Z-1b8ca1-n1"}),
            ("why-is-my-job-slow", {"pod": "train-0"}),
            ("gpu-health-check", {}),
            ("diagnose-xid-errors", {}),
        ):
            prompt = await client.get_prompt(name, given)
            (content,) = [each.content for each in prompt.messages]
            assert isinstance(content, TextContent)
            assert "get_gpu_health" in content.text
            told.append(content.text)
        for name in LEFT_OUT.split(","):
            assert not any(name in text for text in told), name
            with pytest.raises(MCPError, match=f'Unknown tool: "{name}". Known: analyze_xid'):
                await client.call_tool(name, {})
        with pytest.raises(MCPError, match="Unknown resource"):
            await client.read_resource("gpu://node/n1/gpu/0")
        for reference in (
            PromptReference(name="gpu-triage"),
            ResourceTemplateReference(uri="gpu://node/{node}"),
        ):
            found = await client.complete(reference, {"name": "node", "value": ""})
            assert found.completion.values == []  # the names were get_gpu_inventory's


def test_a_tool_that_there_is_not_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    flags = ["--agents", f"127.0.0.1:{port}", "--http-port", str(port)]
    assert main(["gateway", *flags, "--without-tools", "get_gpu_helth"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert '--without-tools: no such tool: "get_gpu_helth". Known: analyze_xid_errors, ' in line
