"""The program as on Windows, as far as another system can show it: run with its arguments.

What Windows lacks is absent for our own modules alone; libraries look after themselves.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["ATTRIBUTES", "MODULES", "install"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODULES = _names("curses dbm fcntl grp nis posix pty pwd readline resource spwd syslog termios tty")
"""Availability: Unix, in the words of Python's documentation."""

ATTRIBUTES: Mapping[str, frozenset[str]] = {
    "os": _names(
        "chown chroot confstr ctermid fchdir fchmod fchown fork forkpty getegid geteuid getgid "
        "getgroups getloadavg getpgid getpgrp getpriority getresuid getsid getuid initgroups "
        "killpg lchown lockf major mkfifo mknod minor nice openpty pipe2 posix_spawn pread pwrite "
        "register_at_fork sched_getaffinity sched_yield sendfile setegid seteuid setgid setgroups "
        "setpgid setpriority setsid setuid statvfs sync sysconf tcgetpgrp ttyname uname wait "
        "wait3 wait4 WEXITSTATUS WNOHANG O_CLOEXEC O_DIRECTORY O_DSYNC O_NOCTTY O_NOFOLLOW "
        "O_NONBLOCK O_SYNC"
    ),
    "signal": _names(
        "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 "
        "SIGWINCH alarm pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending "
        "sigtimedwait sigwait"
    ),
    "socket": _names("AF_UNIX CMSG_LEN SO_PEERCRED SO_REUSEPORT TCP_USER_TIMEOUT"),
    "select": _names("EPOLLIN PIPE_BUF POLLIN epoll kqueue poll"),
    "asyncio": _names("open_unix_connection start_unix_server"),
}
"""The same for names in modules that Windows has."""

OURS = ("mcp_gpu", "transports")


class _Lacking(ModuleType):
    """A module without what Windows does not have."""

    def __init__(self, whole: ModuleType, lacking: frozenset[str]) -> None:
        super().__init__(whole.__name__)
        self._whole = whole
        self._lacking = lacking

    def __getattr__(self, name: str) -> Any:
        if name in self._lacking:
            raise AttributeError(f"Windows has no {self.__name__}.{name}")
        return getattr(self._whole, name)


def install() -> None:
    """From now on, for what our modules import."""
    stand_ins = {
        whole.__name__: _Lacking(whole, ATTRIBUTES[whole.__name__])
        for whole in (os, signal, socket, select, asyncio)
    }
    everything = builtins.__import__

    def lacking(
        name: str,
        globals_: Mapping[str, Any] | None = None,
        locals_: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        importer = (globals_ or {}).get("__name__", "")
        if importer.partition(".")[0] in OURS:
            if name in MODULES:
                raise ModuleNotFoundError(f"Windows has no {name}", name=name)
            if name in stand_ins:
                return stand_ins[name]
        return everything(name, globals_, locals_, fromlist or (), level)

    builtins.__import__ = lacking


if __name__ == "__main__":
    install()
    sys.argv[0] = "mcp-gpu"
    sys.exit(importlib.import_module("mcp_gpu.__main__").main())
