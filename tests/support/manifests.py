"""What the objects of a rendered chart say: variables, rights, volumes."""

from __future__ import annotations

from collections.abc import Iterator

from support.chart import Object, Rendered

__all__ = ["container", "environment", "every_pod", "files", "projected", "rules"]


def container(rendered: Rendered, component: str) -> Object:
    (only,) = rendered.pods()[component]["spec"]["containers"]
    found: Object = only
    return found


def environment(rendered: Rendered, component: str) -> dict[str, str]:
    """A container's variables; what the downward API fills in reads as its field."""
    return {
        entry["name"]: entry.get("value") or entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in container(rendered, component)["env"]
    }


def rules(rendered: Rendered, kind: str, component: str = "") -> list[tuple[str, str, str]]:
    """Groups, resources and verbs of each rule; of one component's roles, or of all."""
    return [
        (",".join(rule["apiGroups"]), ",".join(rule["resources"]), ",".join(rule["verbs"]))
        for entry in rendered.all(kind)
        if component in {"", entry["metadata"]["labels"]["app.kubernetes.io/component"]}
        for rule in entry["rules"]
    ]


def every_pod(rendered: Rendered) -> dict[str, Object]:
    """The spec of each pod by its container's name, those of hooks included."""
    templates = [*rendered.pods().values(), *rendered.all("Pod")]
    return {pod["spec"]["containers"][0]["name"]: pod["spec"] for pod in templates}


def files(volume: Object) -> Iterator[str]:
    """Names of the files that a volume holds."""
    sources = volume["projected"]["sources"] if "projected" in volume else [volume]
    for source in sources:
        if "serviceAccountToken" in source:
            yield source["serviceAccountToken"]["path"]
        for item in source.get("secret", {}).get("items", []):
            yield item["path"]
        if "configMap" in source:
            yield "fleet.toml"


def projected(spec: Object) -> list[Object]:
    """The projected tokens of a pod."""
    return [
        source["serviceAccountToken"]
        for volume in spec.get("volumes", [])
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]
