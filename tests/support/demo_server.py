"""A small server to test serving with: as a module its registry, as a program a process."""

import argparse
import json
import logging
import sys
import threading
import time
from pathlib import Path

import anyio
from pydantic import BaseModel, ConfigDict, Field

from mcp_gpu.registry import Answer, Arguments, Call, Registry, Tool, ToolError
from mcp_gpu.serving.server import HttpEndpoint, ListenError, Listening, serve
from transports.base import Identity


class EchoArguments(Arguments):
    text: str = Field(description="What to say again.")
    times: int = Field(default=1, ge=1, le=1000)
    shout: bool = False


class NoArguments(Arguments):
    pass


class SleepArguments(Arguments):
    seconds: float = 0.0
    steps: int = 0


class SizeArguments(Arguments):
    chars: int


class Text(BaseModel):
    model_config = ConfigDict(frozen=True)

    title: str
    nothing: int | None = None


class Gate:
    """Lets a test see that calls have begun, and let them go on."""

    def __init__(self) -> None:
        self.entered = 0
        self.cancelled = 0
        self.changed = anyio.Event()
        self.open = anyio.Event()

    def notice(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until_entered(self, count: int) -> None:
        while self.entered < count:
            await self.changed.wait()

    async def until_cancelled(self, count: int) -> None:
        while self.cancelled < count:
            await self.changed.wait()


IDENTITY = Identity(name="demo", version="9.9", node="node-1", uid="uid-1", instance="i-1")


def registry(gate: Gate | None = None, *, answer_bytes: int = 1_000_000) -> Registry:
    gate = gate or Gate()

    async def echo(arguments: EchoArguments, call: Call) -> Answer:
        text = arguments.text * arguments.times
        return Answer(text.upper() if arguments.shout else text, Text(title=arguments.text))

    async def who(arguments: NoArguments, call: Call) -> Answer:
        return Answer(call.caller, Text(title=call.caller))

    async def wait(arguments: NoArguments, call: Call) -> Answer:
        gate.entered += 1
        gate.notice()
        try:
            await gate.open.wait()
        except BaseException:
            gate.cancelled += 1
            gate.notice()
            raise
        return Answer("waited", Text(title="waited"))

    async def sleep(arguments: SleepArguments, call: Call) -> Answer:
        for step in range(arguments.steps):
            await call.progress(step + 1, arguments.steps, f"step {step + 1}")
        print(json.dumps({"slept": "begun"}), file=sys.stderr, flush=True)
        await anyio.sleep(arguments.seconds)
        return Answer("slept", Text(title="slept"))

    async def block(arguments: SleepArguments, call: Call) -> Answer:
        print(json.dumps({"slept": "begun"}), file=sys.stderr, flush=True)
        time.sleep(arguments.seconds)  # noqa: ASYNC251 - what no tool may do, and one will
        return Answer("blocked", Text(title="blocked"))

    async def refuse(arguments: NoArguments, call: Call) -> Answer:
        raise ToolError("no agent is known; set MCP_GPU_AGENTS")

    async def crash(arguments: NoArguments, call: Call) -> Answer:
        raise RuntimeError("a secret of the house")

    async def large(arguments: SizeArguments, call: Call) -> Answer:
        return Answer("x" * arguments.chars, Text(title="large"))

    async def stray(arguments: NoArguments, call: Call) -> Answer:
        print("a stray print that is no protocol", flush=True)
        return Answer("printed", Text(title="printed"))

    def tool(run: object, arguments: type[Arguments], name: str) -> Tool:
        return Tool(
            name=name,
            title=f"Demo {name}",
            description=f"What {name} does.",
            arguments=arguments,
            result=Text,
            run=run,
        )

    return Registry(
        name="demo",
        version="9.9",
        instructions="Echo first.",
        tools=[
            tool(echo, EchoArguments, "echo"),
            tool(who, NoArguments, "who"),
            tool(wait, NoArguments, "wait"),
            tool(sleep, SleepArguments, "sleep"),
            tool(block, SleepArguments, "block"),
            tool(refuse, NoArguments, "refuse"),
            tool(crash, NoArguments, "crash"),
            tool(large, SizeArguments, "large"),
            tool(stray, NoArguments, "stray"),
        ],
        identity=lambda: IDENTITY,
        answer_bytes=answer_bytes,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--stdio", action="store_true")
    parser.add_argument("--hung-thread", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if options.hung_thread:
        threading.Thread(target=time.sleep, args=[600], daemon=True).start()

    async def run() -> None:
        http = None if options.http is None else HttpEndpoint(port=options.http)
        async with anyio.create_task_group() as tasks:
            start = _Started()
            tasks.start_soon(_announce, start)
            await serve(
                registry(),
                http=http,
                socket_path=options.socket,
                stdio=options.stdio,
                delay_seconds=options.delay,
                task_status=start,
            )
            tasks.cancel_scope.cancel()

    try:
        anyio.run(run)
    except* ListenError as errors:
        print(errors.exceptions[0], file=sys.stderr)
        sys.exit(2)


class _Started:
    def __init__(self) -> None:
        self.event = anyio.Event()
        self.listening = Listening()

    def started(self, value: Listening | None = None) -> None:
        assert value is not None
        self.listening = value
        self.event.set()


async def _announce(start: _Started) -> None:
    await start.event.wait()
    document = {"http": start.listening.http, "stdio": start.listening.stdio}
    print(json.dumps(document), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
