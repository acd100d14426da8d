"""The Pod Security Standards, as far as a pod of Linux containers may break them.

Written from the standards' text for Kubernetes 1.34: each check is one row of their tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

__all__ = ["Level", "level_of", "refusals"]

Level = Literal["restricted", "baseline", "privileged"]

HARMLESS_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
    "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
"""What `baseline` lets a container add."""

HARMLESS_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
"""Kinds of volumes that `restricted` admits."""

HARMLESS_SECCOMP = {"RuntimeDefault", "Localhost"}
HARMLESS_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}

HARMLESS_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}  # fmt: skip

Pod = dict[str, Any]


def level_of(pod: Pod) -> Level:
    """The strictest level that admits a pod (or a pod template)."""
    if refusals(pod, "baseline"):
        return "privileged"
    return "baseline" if refusals(pod, "restricted") else "restricted"


def refusals(pod: Pod, level: Literal["restricted", "baseline"]) -> list[str]:
    """Why a level does not admit a pod; empty if it does."""
    found = list(_baseline(pod))
    return found if level == "baseline" else [*found, *_restricted(pod)]


def _containers(pod: Pod) -> Iterator[Pod]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod["spec"].get(kind, ())


def _contexts(pod: Pod) -> Iterator[Pod]:
    """The security contexts: the pod's, and each container's."""
    yield pod["spec"].get("securityContext", {})
    for container in _containers(pod):
        yield container.get("securityContext", {})


def _baseline(pod: Pod) -> Iterator[str]:
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"hostPath {volume['hostPath']['path']}"
    for key, profile in pod.get("metadata", {}).get("annotations", {}).items():
        for_apparmor = key.startswith("container.apparmor.security.beta.kubernetes.io/")
        if for_apparmor and not profile.startswith(("runtime/default", "localhost/")):
            yield f"AppArmor {profile}"
    for context in _contexts(pod):
        if context.get("windowsOptions", {}).get("hostProcess"):
            yield "hostProcess"
        if context.get("seccompProfile", {}).get("type", "RuntimeDefault") not in HARMLESS_SECCOMP:
            yield "seccomp Unconfined"
        if context.get("appArmorProfile", {}).get("type") == "Unconfined":
            yield "AppArmor Unconfined"
        selinux = context.get("seLinuxOptions", {})
        if selinux.get("type", "") not in HARMLESS_SELINUX or selinux.keys() & {"user", "role"}:
            yield "seLinuxOptions"
        for sysctl in context.get("sysctls", ()):
            if sysctl["name"] not in HARMLESS_SYSCTLS:
                yield f"sysctl {sysctl['name']}"
    for container in _containers(pod):
        context = container.get("securityContext", {})
        if context.get("privileged"):
            yield "privileged"
        if context.get("procMount", "Default") != "Default":
            yield "procMount"
        for name in context.get("capabilities", {}).get("add", ()):
            if name not in HARMLESS_CAPABILITIES:
                yield f"capability {name}"
        for port in container.get("ports", ()):
            if port.get("hostPort"):
                yield f"hostPort {port['hostPort']}"
        probes = [
            container.get(f"{kind}Probe", {}) for kind in ("liveness", "readiness", "startup")
        ]
        for calls in (*probes, *container.get("lifecycle", {}).values()):
            for action in calls.values():
                if isinstance(action, dict) and action.get("host"):
                    yield f"host {action['host']} of a probe or lifecycle handler"


def _restricted(pod: Pod) -> Iterator[str]:
    spec = pod["spec"]
    for volume in spec.get("volumes", ()):
        if kinds := volume.keys() - {"name"} - HARMLESS_VOLUMES:
            yield f"volume of kind {', '.join(sorted(kinds))}"
    shared = spec.get("securityContext", {})
    if shared.get("runAsUser") == 0:
        yield "runAsUser 0 of the pod"
    for container in _containers(pod):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation"
        if not own.get("runAsNonRoot", shared.get("runAsNonRoot")):
            yield "runAsNonRoot"
        if own.get("runAsUser") == 0:
            yield "runAsUser 0"
        seccomp = own.get("seccompProfile", shared.get("seccompProfile", {}))
        if seccomp.get("type") not in HARMLESS_SECCOMP:
            yield "no seccomp profile"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", ()):
            yield "capabilities not dropped"
        if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            yield "capabilities added"
