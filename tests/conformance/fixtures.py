"""What the MCP conformance suite expects a server to have, on a bare `lowlevel.Server`.

Names, texts and behaviour are the suite's (each scenario's description prescribes them); what is
under test is the serving around it. As a program: serves on a free port and prints its URL.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import warnings
import zlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import (
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ContentBlock,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    GetPromptRequestParams,
    GetPromptResult,
    ImageContent,
    InputRequiredResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListRootsRequest,
    ListRootsResult,
    ListToolsResult,
    PaginatedRequestParams,
    Prompt,
    PromptArgument,
    PromptMessage,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    Tool,
    UnsubscribeRequestParams,
)

from mcp_gpu.serving.server import HttpEndpoint, Listening, serve
from mcp_gpu.telemetry.calls import Calls
from transports.base import Identity

Context = ServerRequestContext[Any, Any]
ToolRun = Callable[
    [Context, CallToolRequestParams], Awaitable[CallToolResult | InputRequiredResult]
]


def _png() -> str:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(b"\x00\xff\x00\x00")
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel)
    return b64encode(image + chunk(b"IEND", b"")).decode()


def _wav() -> str:
    """One silent sample."""
    form = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", 1)
    return b64encode(b"RIFF" + struct.pack("<I", len(body) + 2) + body + b"\x80\x00").decode()


def _text(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)])


def _image() -> ImageContent:
    return ImageContent(data=_png(), mime_type="image/png")


def _embedded(uri: str, text: str, mime_type: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _fixed(*content: ContentBlock, is_error: bool = False) -> ToolRun:
    async def run(context: Context, params: CallToolRequestParams) -> CallToolResult:
        return CallToolResult(content=list(content), is_error=is_error)

    return run


async def _log(context: Context, params: CallToolRequestParams) -> CallToolResult:
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            await context.session.send_log_message(
                "info", text, related_request_id=context.request_id
            )
        await anyio.sleep(0.05)
    return _text("Logged three messages.")


async def _progress(context: Context, params: CallToolRequestParams) -> CallToolResult:
    for done in (0, 50, 100):
        await context.session.report_progress(done, 100)
        await anyio.sleep(0.05)
    return _text("Reported progress three times.")


async def _missing_capability(context: Context, params: CallToolRequestParams) -> CallToolResult:
    capabilities = context.session.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            "This tool needs sampling.",
            {"requiredCapabilities": {"sampling": {}}},
        )
    return _text("Sampling is there.")


# Multi-round results (SEP-2322): a tool asks for input and is called again with it.


def _elicit(message: str, **properties: str) -> ElicitRequest:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _sample(text: str, max_tokens: int) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(text=text))
    return CreateMessageRequest(
        params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    )


_KEY = b"test fixtures need no secret"


def _sign(state: str) -> str:
    return f"{state}.{hmac.new(_KEY, state.encode(), hashlib.sha256).hexdigest()}"


def _state(params: CallToolRequestParams) -> str:
    """The state that came back.

    Raises:
        MCPError: it is not the one that was sent.
    """
    given = params.request_state or ""
    state = given.rpartition(".")[0]
    if not hmac.compare_digest(given.encode(), _sign(state).encode()):
        raise MCPError(INVALID_PARAMS, "requestState fails its integrity check")
    return state


def _asking(done: str, requests: Mapping[str, Any], *, state: str | None = None) -> ToolRun:
    """A tool that asks until every input is there, then says `done`."""

    async def run(
        context: Context, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        given = params.input_responses or {}
        if not given.keys() >= requests.keys():
            return InputRequiredResult(
                input_requests=dict(requests), request_state=_sign(state) if state else None
            )
        if state is not None:
            _state(params)
        return _text(done.format_map({name: _said(answer) for name, answer in given.items()}))

    return run


def _said(answer: object) -> str:
    if isinstance(answer, ElicitResult):
        return ", ".join(str(value) for value in (answer.content or {}).values())
    if isinstance(answer, ListRootsResult):
        return ", ".join(str(root.uri) for root in answer.roots)
    return getattr(getattr(answer, "content", None), "text", "")


async def _multi_round(
    context: Context, params: CallToolRequestParams
) -> CallToolResult | InputRequiredResult:
    state = _state(params) if params.request_state else ""
    if not state:
        step = {"step1": _elicit("Step 1: What is your name?", name="string")}
        return InputRequiredResult(input_requests=step, request_state=_sign("round-1"))
    if state == "round-1":
        step = {"step2": _elicit("Step 2: What is your favorite color?", color="string")}
        return InputRequiredResult(input_requests=step, request_state=_sign("round-2"))
    return _text("Both steps are done.")


async def _capabilities(
    context: Context, params: CallToolRequestParams
) -> CallToolResult | InputRequiredResult:
    has = context.session.client_capabilities
    requests: dict[str, Any] = {}
    if has is not None and has.sampling is not None:
        requests["sampled"] = _sample("Say anything.", 10)
    if has is not None and has.elicitation is not None:
        requests["elicited"] = _elicit("Say anything.", anything="string")
    if requests and not params.input_responses:
        return InputRequiredResult(input_requests=requests)
    return _text("Nothing more is needed.")


BUS = InMemorySubscriptionBus()


def _changing(event: ServerEvent) -> ToolRun:
    """A tool that says that a list has changed, to whoever subscribed."""

    async def run(context: Context, params: CallToolRequestParams) -> CallToolResult:
        await BUS.publish(event)
        return _text("Told the subscribers.")

    return run


_NAME = _elicit("What is your name?", name="string")
_CONFIRM = _elicit("Please confirm", ok="boolean")

TOOLS: dict[str, ToolRun] = {
    "test_simple_text": _fixed(TextContent(text="This is a simple text response for testing.")),
    "test_image_content": _fixed(_image()),
    "test_audio_content": _fixed(AudioContent(data=_wav(), mime_type="audio/wav")),
    "test_embedded_resource": _fixed(
        _embedded("test://embedded-resource", "This is an embedded resource content.")
    ),
    "test_multiple_content_types": _fixed(
        TextContent(text="Multiple content types test:"),
        _image(),
        _embedded(
            "test://mixed-content-resource", '{"test":"data","value":123}', "application/json"
        ),
    ),
    "test_error_handling": _fixed(
        TextContent(text="This tool intentionally returns an error for testing"), is_error=True
    ),
    "test_tool_with_logging": _log,
    "test_tool_with_progress": _progress,
    "test_missing_capability": _missing_capability,
    "test_input_required_result_elicitation": _asking("Hello, {user_name}!", {"user_name": _NAME}),
    "test_input_required_result_sampling": _asking(
        "{capital_question}", {"capital_question": _sample("What is the capital of France?", 100)}
    ),
    "test_input_required_result_list_roots": _asking(
        "Roots: {client_roots}", {"client_roots": ListRootsRequest()}
    ),
    "test_input_required_result_request_state": _asking(
        "state-ok", {"confirm": _CONFIRM}, state="confirming"
    ),
    "test_input_required_result_tampered_state": _asking(
        "The state is genuine.", {"confirm": _CONFIRM}, state="untampered"
    ),
    "test_input_required_result_multiple_inputs": _asking(
        "{user_name}, {greeting}, {client_roots}",
        {
            "user_name": _NAME,
            "greeting": _sample("Generate a greeting", 50),
            "client_roots": ListRootsRequest(),
        },
        state="multiple",
    ),
    "test_logging_tool": _log,
    "test_streaming_elicitation": _asking("Hello, {user_name}!", {"user_name": _NAME}),
    "test_trigger_tool_change": _changing(ToolsListChanged()),
    "test_trigger_prompt_change": _changing(PromptsListChanged()),
    "test_input_required_result_multi_round": _multi_round,
    "test_input_required_result_capabilities": _capabilities,
}


async def _list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(
        tools=[
            Tool(name=name, description=f"Fixture {name}.", input_schema={"type": "object"})
            for name in sorted(TOOLS)
        ]
    )


async def _call_tool(
    context: Context, params: CallToolRequestParams
) -> CallToolResult | InputRequiredResult:
    run = TOOLS.get(params.name)
    if run is None:
        raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name}")
    return await run(context, params)


# Resources


async def _list_resources(
    context: Context, params: PaginatedRequestParams | None
) -> ListResourcesResult:
    return ListResourcesResult(
        resources=[
            Resource(uri="test://static-text", name="text", mime_type="text/plain"),
            Resource(uri="test://static-binary", name="binary", mime_type="image/png"),
            Resource(uri="test://watched-resource", name="watched", mime_type="text/plain"),
        ]
    )


async def _list_templates(
    context: Context, params: PaginatedRequestParams | None
) -> ListResourceTemplatesResult:
    template = ResourceTemplate(
        uri_template="test://template/{id}/data", name="template", mime_type="application/json"
    )
    return ListResourceTemplatesResult(resource_templates=[template])


async def _read_resource(context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
    uri = str(params.uri)
    contents: TextResourceContents | BlobResourceContents
    if uri == "test://static-binary":
        contents = BlobResourceContents(uri=uri, mime_type="image/png", blob=_png())
    elif uri.startswith("test://template/") and uri.endswith("/data"):
        number = uri.removeprefix("test://template/").removesuffix("/data")
        data = {"id": number, "templateTest": True, "data": f"Data for ID: {number}"}
        contents = TextResourceContents(
            uri=uri, mime_type="application/json", text=json.dumps(data)
        )
    elif uri in ("test://static-text", "test://watched-resource"):
        text = "This is the content of the static text resource."
        contents = TextResourceContents(uri=uri, mime_type="text/plain", text=text)
    else:
        raise MCPError(INVALID_PARAMS, "Resource not found", {"uri": uri})
    return ReadResourceResult(contents=[contents])


async def _subscribe(
    context: Context, params: SubscribeRequestParams | UnsubscribeRequestParams
) -> EmptyResult:
    return EmptyResult()


# Prompts

PROMPTS = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}


async def _list_prompts(
    context: Context, params: PaginatedRequestParams | None
) -> ListPromptsResult:
    return ListPromptsResult(
        prompts=[
            Prompt(
                name=name,
                description=f"Fixture {name}.",
                arguments=[
                    PromptArgument(name=argument, description="An argument.", required=True)
                    for argument in arguments
                ],
            )
            for name, arguments in PROMPTS.items()
        ]
    )


async def _get_prompt(
    context: Context, params: GetPromptRequestParams
) -> GetPromptResult | InputRequiredResult:
    given = params.arguments or {}
    content: list[ContentBlock]
    match params.name:
        case "test_simple_prompt":
            content = [TextContent(text="This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            said = f"arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'"
            content = [TextContent(text=f"Prompt with arguments: {said}")]
        case "test_prompt_with_embedded_resource":
            text = "Embedded resource content for testing."
            content = [
                _embedded(given.get("resourceUri", ""), text),
                TextContent(text="Please process the embedded resource above."),
            ]
        case "test_prompt_with_image":
            content = [_image(), TextContent(text="Please analyze the image above.")]
        case "test_input_required_result_prompt":
            answers = params.input_responses or {}
            if "user_context" not in answers:
                question = _elicit("What context should the prompt use?", context="string")
                return InputRequiredResult(input_requests={"user_context": question})
            content = [TextContent(text=f"Context: {_said(answers['user_context'])}")]
        case _:
            raise MCPError(INVALID_PARAMS, f"Unknown prompt: {params.name}")
    return GetPromptResult(messages=[PromptMessage(role="user", content=part) for part in content])


async def _complete(context: Context, params: CompleteRequestParams) -> CompleteResult:
    values = [city for city in ("paris", "park", "party") if city.startswith(params.argument.value)]
    return CompleteResult(completion=Completion(values=values, total=len(values), has_more=False))


async def _set_level(context: Context, params: SetLevelRequestParams) -> EmptyResult:
    return EmptyResult()


def make_server() -> Server[Any]:
    hint = CacheHint(ttl_ms=60_000, scope="public")
    methods = ("tools/list", "prompts/list", "resources/list", "resources/templates/list")
    with warnings.catch_warnings():
        # Logging and subscriptions of the 2025 revisions, deprecated since.
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        return Server(
            "conformance-fixtures",
            version="1",
            cache_hints=dict.fromkeys((*methods, "resources/read"), hint),
            get_tool_input_schema=lambda name: {"type": "object"} if name in TOOLS else None,
            on_list_tools=_list_tools,
            on_call_tool=_call_tool,
            on_list_resources=_list_resources,
            on_list_resource_templates=_list_templates,
            on_read_resource=_read_resource,
            on_subscribe_resource=_subscribe,
            on_unsubscribe_resource=_subscribe,
            on_subscriptions_listen=ListenHandler(BUS),
            on_list_prompts=_list_prompts,
            on_get_prompt=_get_prompt,
            on_completion=_complete,
            on_set_logging_level=_set_level,
        )


@dataclass
class Fixtures:
    """The bare server, as `mcp_gpu.serving.server.serve` takes it."""

    server: Server[Any] = field(default_factory=make_server)
    calls: Calls = field(default_factory=Calls)

    def identity(self) -> Identity:
        return Identity(name="conformance-fixtures", version="1", node="fixture")

    def needs(self, method: str, params: Mapping[str, Any]) -> Iterable[str]:
        return ()

    def rights(
        self, method: str, params: Mapping[str, Any]
    ) -> Iterable[tuple[str, str, str, bool]]:
        return ()


class _PrintUrl:
    """Where `serve` says that it listens."""

    def started(self, value: Listening | None = None) -> None:
        assert value is not None
        host, port = value.http[0]
        print(f"http://{host}:{port}/mcp", flush=True)


async def main() -> None:
    await serve(Fixtures(), http=HttpEndpoint(port=0), task_status=_PrintUrl())


if __name__ == "__main__":
    anyio.run(main)
