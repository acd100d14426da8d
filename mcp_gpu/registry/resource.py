"""One resource: what a tool answers, at an address of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import unquote

from mcp_types import ListResourcesResult, ListResourceTemplatesResult, ResourceTemplate
from mcp_types import Resource as ListedResource

from mcp_gpu.registry.completion import Completer
from mcp_gpu.registry.tool import Answer, UnknownResource
from transports.text import quoted

__all__ = ["Found", "Resource", "Resources"]

URI_CHARS = 2_000
"""Longest URI that is looked at: names of nodes are shorter."""

TOLD_CHARS = 100
"""How much of an unknown one is repeated."""

Variables = Mapping[str, str]
"""What stands in a URI for the variables of its template, by name, without percent signs."""

_VARIABLE = re.compile(r"\{(\w+)\}")


def _whole(answer: Answer, variables: Variables) -> Answer:
    return answer


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource, or a family of them. Reading one calls a tool and shows what it answers."""

    uri: str
    """A URI, or a template of them (RFC 6570, simple expansion of single path segments)."""
    name: str
    title: str
    description: str
    tool: str
    """Whose answer it shows."""
    arguments: Callable[[Variables], Mapping[str, Any]]
    """What the tool is asked. Raises `UnknownResource`."""
    narrowed: Callable[[Answer, Variables], Answer] = _whole
    """The part of the tool's answer to show. Raises `UnknownResource`."""
    with_text: bool = False
    """Whether the tool's text is shown beside the data."""
    ttl_ms: int = 0
    """How long what was read stays true, where it is the same for everybody; 0: it changes."""
    watched: bool = False
    """Whether a client may subscribe to it."""
    completes: Mapping[str, Completer] = field(default_factory=dict)
    """By variable."""

    mime_type: ClassVar[str] = "application/json"
    """Of the data."""

    @property
    def is_template(self) -> bool:
        """Whether it is a family of resources."""
        return "{" in self.uri

    @property
    def words(self) -> dict[str, str]:
        """What is listed of it beside the URI."""
        shown = ("name", "title", "description", "mime_type")
        return {name: getattr(self, name) for name in shown}

    @property
    def names(self) -> tuple[str, ...]:
        """The variables of the template."""
        return tuple(_VARIABLE.findall(self.uri))

    def variables(self, uri: str) -> Variables | None:
        """What the URI gives for the variables; None where it is not of this resource."""
        found = self._pattern.fullmatch(uri)
        return None if found is None else {k: unquote(v) for k, v in found.groupdict().items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = _VARIABLE.split(self.uri)  # text and names by turns
        return re.compile(
            "".join(
                f"(?P<{part}>[^/?#]+)" if position % 2 else re.escape(part)
                for position, part in enumerate(parts)
            )
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A URI that is one of a resource, whether there is such a thing or not."""

    uri: str
    resource: Resource
    variables: Variables

    def arguments(self) -> Mapping[str, Any]:
        """What its tool is asked.

        Raises:
            UnknownResource: there is no such thing.
        """
        return self.resource.arguments(self.variables)

    def narrowed(self, answer: Answer) -> Answer:
        """What it shows of the tool's answer.

        Raises:
            UnknownResource: there is no such thing.
        """
        return self.resource.narrowed(answer, self.variables)


class Resources:
    """The resources of one server."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        self._resources = {resource.uri: resource for resource in resources}
        self.listing = ListResourcesResult(
            resources=[
                ListedResource(uri=each.uri, **each.words)
                for each in resources
                if not each.is_template
            ]
        )
        self.templates = ListResourceTemplatesResult(
            resource_templates=[
                ResourceTemplate(uri_template=each.uri, **each.words)
                for each in resources
                if each.is_template
            ]
        )

    def match(self, uri: str) -> Found | None:
        """Which resource a URI is of; None: of none here."""
        if len(uri) <= URI_CHARS:
            for resource in self._resources.values():
                variables = resource.variables(uri)
                if variables is not None:
                    return Found(uri, resource, variables)
        return None

    def find(self, uri: str) -> Found:
        """Which resource a URI is of.

        Raises:
            UnknownResource: of none here.
        """
        found = self.match(uri)
        if found is None:
            raise UnknownResource(self._unknown(uri))
        return found

    def listed(self, uri: str) -> Resource:
        """The resource that is listed with this URI or template.

        Raises:
            UnknownResource: none is.
        """
        if uri not in self._resources:
            raise UnknownResource(self._unknown(uri))
        return self._resources[uri]

    def _unknown(self, uri: str) -> str:
        known = ", ".join(self._resources)
        return f"Unknown resource: {quoted(uri, TOLD_CHARS)}. Known: {known}"
