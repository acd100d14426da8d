"""Profiles: what a kind of board answers to each NVML function, as data (docs/simulator.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mcp_gpu.gpu.simulator.library import Refused
from mcp_gpu.gpu.vital_fields import PER_LINK

_INVALID_ARGUMENT, _NOT_SUPPORTED = 2, 3

_FOLDER = Path(__file__).with_name("profiles")

_LINK_COUNT = "91"
"""The field that tells how many links the board has."""

_PEER_STATUS = "nvmlDeviceGetP2PStatus"

Profile = Mapping[str, Any]


class ProfileError(ValueError):
    """A profile that cannot be read, with its name and what is wrong."""


@cache
def load_profile(name: str) -> Profile:
    """A profile by the name of a shipped one ("h100") or by the path of a recorded one.

    Raises:
        ProfileError: there is none, or it is not a profile.
    """
    shipped = _FOLDER / f"{name}.json"
    source = Path(name) if "/" in name or name.endswith(".json") else shipped
    try:
        profile = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(shipped_profiles())
        raise ProfileError(
            f"no profile {name!r}: a path to a .json file, or one of {known}"
        ) from None
    except (OSError, ValueError) as error:
        raise ProfileError(f"profile {name!r}: {error}") from error
    if not isinstance(profile, dict) or not {"system", "gpu", "gpus"} <= profile.keys():
        raise ProfileError(f"profile {name!r}: not a profile, it needs system, gpu and gpus")
    return profile


def shipped_profiles() -> list[str]:
    """The names that `load_profile` knows without a path."""
    return sorted(entry.stem for entry in _FOLDER.glob("*.json"))


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; answers by key are merged key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for call, answer in layer.items():
            old = result.get(call)
            if isinstance(old, dict) and isinstance(answer, dict) and "error" not in answer:
                result[call] = {**old, **answer}
            else:
                result[call] = answer
    return result


def value(answer: Any) -> Any:
    """A profile's answer: absent means NOT_SUPPORTED, {"error": code} that code."""
    if answer is None:
        raise Refused(_NOT_SUPPORTED)
    if isinstance(answer, dict) and "error" in answer:
        raise Refused(answer["error"])
    return answer


def of_key(answer: Any, call: str, key: str) -> Any:
    if isinstance(answer, list):
        # One value per clock domain, sensor or link. Past the last link real boards refuse.
        position = int(key.split(",")[0])
        return answer[position] if position < len(answer) else {"error": _INVALID_ARGUMENT}
    if not isinstance(answer, dict) or "error" in answer:
        return answer
    if call == "fields":
        if key in answer:
            return answer[key]
        links = answer.get(_LINK_COUNT)
        if _is_per_link(key) and isinstance(links, int) and int(key.split(",")[1]) >= links:
            return {"error": _INVALID_ARGUMENT}
    return answer.get(key, answer.get(general(call, key)))


def general(call: str, key: str) -> str:
    """The key that stands for one without an answer of its own. Of "id,scope" of a field: for an
    NVLink the one of all links, and for the GPU the plain id; of "peer,capability" the
    capability."""
    if call == _PEER_STATUS:
        return key.rpartition(",")[2]
    if call != "fields":
        return key
    field, scope = key.split(",")
    return field if scope == "0" or _is_per_link(key) else key


def _is_per_link(key: str) -> bool:
    return int(key.split(",")[0]) in PER_LINK
