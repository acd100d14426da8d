"""What roles share of what they tell: traces and the audit log, from their settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from mcp_gpu import __version__
from mcp_gpu.settings.base import SettingError
from mcp_gpu.settings.serve import ServeSettings

if TYPE_CHECKING:
    from mcp_gpu.telemetry.audit import AuditLog

__all__ = ["observed"]

logger = logging.getLogger(__name__)

MISSING = "OpenTelemetry's SDK and exporter are not installed: pip install 'mcp-gpu[otel]'"


@contextmanager
def observed(
    settings: ServeSettings, service: str, resource: Mapping[str, str]
) -> Iterator[AuditLog | None]:
    """Send traces and keep the audit log meanwhile, as far as wanted. Enter and leave it outside of
    the event loop: the last spans and lines are waited for.

    Args:
        resource: what traces say of this process beside its name and version.

    Raises:
        SettingError: what is asked for cannot be had.
    """
    with ExitStack() as stack:
        _send_traces(stack, settings, service, resource)
        audit = None
        if settings.audit_log:
            from mcp_gpu.telemetry.audit import AuditError, AuditLog

            try:
                audit = stack.enter_context(AuditLog(settings.audit_log))
            except AuditError as error:
                raise SettingError(f"--audit-log: {error}") from error
        yield audit


def _send_traces(
    stack: ExitStack, settings: ServeSettings, service: str, resource: Mapping[str, str]
) -> None:
    asked = "--traces on" if settings.traces == "on" else settings.trace_variable()
    if settings.traces == "off" or not asked:
        return
    obstacle = settings.trace_obstacle()
    if not obstacle:
        try:
            from mcp_gpu.telemetry.export import exporting
        except ModuleNotFoundError:
            obstacle = MISSING
        else:
            known = {name: value for name, value in resource.items() if value}
            stack.enter_context(exporting(service, {"service.version": __version__, **known}))
            return
    if settings.traces == "on":
        raise SettingError(f"--traces on: {obstacle}")
    # Others' variables: a client hands its environment on to the servers that it starts.
    logger.warning("no traces are sent, though %s is set: %s", asked, obstacle)
