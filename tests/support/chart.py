"""The chart as Helm renders it; run as a program, the check of all of `charts/mcp-gpu/ci/`.

Helm 4 itself does it, as a library, and the API's own schemas judge it, strictly: a field that
the API does not know is an error, which a real API server would only drop.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from kubernetes_validate import utils as schemas

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "mcp-gpu"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))

KUBERNETES = ("1.25", "1.37")
"""Versions whose schemas every object has to fit: the oldest that Chart.yaml admits, and the
newest there is."""

SINCE = {
    "ValidatingAdmissionPolicy": "1.30",
    "ValidatingAdmissionPolicyBinding": "1.30",
    "ResourceClaimTemplate": "1.34",
}
"""Kinds that came later, which the chart makes there only where it is told to."""

FOREIGN = ("cert-manager.io", "gateway.networking.k8s.io", "monitoring.coreos.com")
"""API groups of other projects, of which Kubernetes has no schemas."""

PREDECESSOR = (
    "transport.mode=http,gateway.enabled=true,gateway.routingMode=http",
    "transport.mode=stdio,gateway.enabled=true,gateway.routingMode=exec",
    "transport.mode=http,gateway.routingMode=http",
)
"""What k8s-gpu-mcp-server was installed with, as `helm --set` takes it."""

ISSUED = "mcp-gpu/issued-at"
"""Annotation of a generated certificate: when it was made, in seconds since 1970."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C takes a twentieth of the time, and is missing from some builds."""

# Else a megabyte of definitions is read anew for each object.
schemas.schema_contents = cache(schemas.schema_contents)

LINT_INFO = 1
"""Severity below a warning."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """What one `helm install` would create and print."""

    objects: list[Object]
    notes: str

    def all(self, kind: str) -> list[Object]:
        return [entry for entry in self.objects if entry["kind"] == kind]

    def one(self, kind: str, component: str) -> Object:
        """The only object of a kind that belongs to "agent", "gateway" or "auth"."""
        label = "app.kubernetes.io/component"
        found = [e for e in self.all(kind) if e["metadata"]["labels"][label] == component]
        assert len(found) == 1, f"{len(found)} of kind {kind} for {component}"
        return found[0]

    def pods(self) -> dict[str, Object]:
        """The pod template of each component."""
        return {
            entry["metadata"]["labels"]["app.kubernetes.io/component"]: entry["spec"]["template"]
            for kind in ("DaemonSet", "Deployment")
            for entry in self.all(kind)
        }


def values_of(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def render(
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "gpu-mcp",
    namespace: str = "gpu-diagnostics",
    config: helm_python.Config | None = None,
) -> Rendered:
    """Render the chart; with a `config` against that API server, whose objects `lookup` sees.

    Raises:
        helm_python.HelmError: values that the chart refuses.
    """
    with helm_python.Chart.load(CHART) as chart:
        given = dict(values or {})
        if config is None:
            texts = chart.render(given, name=name, namespace=namespace)
        else:
            texts = config.render(chart, given, name=name, namespace=namespace)
    notes = texts.pop("mcp-gpu/templates/NOTES.txt")
    documents = (entry for text in texts.values() for entry in yaml.load_all(text, LOADER))
    return Rendered([entry for entry in documents if entry], notes)


def faults_of(rendered: Rendered) -> list[str]:
    """What the API's schemas find wrong."""
    faults = []
    for entry in rendered.objects:
        if entry["apiVersion"].partition("/")[0] in FOREIGN:
            continue
        for version in (_since(entry), *KUBERNETES[1:]):
            try:
                kubernetes_validate.validate(entry, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                place = ".".join(map(str, error.path))
                name = f"{entry['kind']} {entry['metadata']['name']}"
                faults.append(f"{name}: {place}: {error.message} (Kubernetes {version})")
    return faults


def _since(entry: Object) -> str:
    """The oldest version whose schemas an object has to fit."""
    claims = entry["kind"] == "DaemonSet" and "resourceClaims" in entry["spec"]["template"]["spec"]
    return SINCE.get("ResourceClaimTemplate" if claims else entry["kind"], KUBERNETES[0])


def settled(rendered: Rendered) -> dict[str, Object]:
    """Every object by its kind and name, without what is made anew each time."""
    objects = copy.deepcopy(rendered.objects)
    for entry in objects:
        if entry["kind"] == "Secret":
            entry["data"] = dict.fromkeys(entry["data"], "generated")
            if ISSUED in entry["metadata"]["annotations"]:
                entry["metadata"]["annotations"][ISSUED] = "now"
    return {f"{entry['kind']} {entry['metadata']['name']}": entry for entry in objects}


def changes(before: Mapping[str, Object], after: Mapping[str, Object]) -> dict[str, Any]:
    """What differs between two renderings: objects that came or went, and for the others each
    field with its value before and after, null where it is not set."""
    fields = {}
    for name in before.keys() & after.keys():
        old, new = dict(_fields(before[name])), dict(_fields(after[name]))
        found = {
            place: [old.get(place), new.get(place)]
            for place in old.keys() | new.keys()
            if old.get(place) != new.get(place)
        }
        if found:
            fields[name] = found
    return {
        "added": {name: after[name] for name in after.keys() - before.keys()},
        "removed": sorted(before.keys() - after.keys()),
        "changed": fields,
    }


def _fields(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its place; what has a name in a list is found by it, wherever it stands."""
    entries: Iterable[tuple[str, Any]]
    if isinstance(value, dict) and value:
        entries = ((f"{place}.{key}".lstrip("."), inner) for key, inner in value.items())
    elif isinstance(value, list) and value:
        named = all(isinstance(inner, dict) and "name" in inner for inner in value)
        entries = (
            (f"{place}[{inner['name'] if named else index}]", inner)
            for index, inner in enumerate(value)
        )
    else:
        yield place, value
        return
    for where, inner in entries:
        yield from _fields(inner, where)


def main() -> int:
    """Lint, render and validate with every file of values; returns the exit status."""
    faults = []
    seen: list[Object] = []
    for path in CI_VALUES:
        values = values_of(path)
        report = helm_python.lint(CHART, values, strict=True, namespace="gpu-diagnostics")
        faults += [
            f"{path.name}: {message['path']}: {message['error']}"
            for message in report["messages"]
            if message["severity"] > LINT_INFO
        ]
        rendered = render(values)
        fresh = [entry for entry in rendered.objects if entry not in seen]  # most files share most
        seen += fresh
        faults += [f"{path.name}: {f}" for f in faults_of(Rendered(fresh, rendered.notes))]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(
            f"chart: {len(CI_VALUES)} files of values, {len(seen)} different objects, "
            f"valid for Kubernetes {' and '.join(KUBERNETES)}"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
