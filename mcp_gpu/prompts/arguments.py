"""What a prompt may be told: one name, or a time. What is no name is refused, not carried on."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from transports.text import is_name

__all__ = ["INCIDENT_ID_CHARS", "IncidentId", "NodeName", "PodName"]

_POD = re.compile(r"(?:[a-z0-9][a-z0-9-]{0,62}/)?[a-z0-9][a-z0-9.-]{0,252}", re.ASCII)
"""A pod's name (RFC 1123 subdomain), after its namespace's (RFC 1123 label) or alone."""

MARKS = frozenset("`\"'<>{}")
"""In no name, and able to end the place where one stands."""


def _name(text: str) -> str:
    if not is_name(text) or MARKS & set(text):
        raise ValueError("should be one name, without blanks and quotation marks")
    return text


def _pod(text: str) -> str:
    if _POD.fullmatch(text) is None:
        raise ValueError("should be NAMESPACE/POD or POD")
    return text


NodeName = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_name)]
"""A node's, as `get_gpu_inventory` lists it."""

INCIDENT_ID_CHARS = 620
"""As `get_incident_report` gives: one names a cluster, a node, a namespace and a pod."""

IncidentId = Annotated[
    str, Field(min_length=1, max_length=INCIDENT_ID_CHARS), AfterValidator(_name)
]

PodName = Annotated[str, Field(min_length=1, max_length=320), AfterValidator(_pod)]
