"""A server of our own: started, waited for, and stopped with everything it started."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import psutil

from enginecmp import EngineError

from .address import Address

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_POLL_SECONDS = 0.1
_TERMINATE_SECONDS = 3.0


def arguments_of(command: str, places: Mapping[str, str]) -> list[str]:
    """Return a command's arguments, `{model}` and the like replaced, and "~/" at the beginning of one.

    Only known names are replaced, so that JSON in a command keeps its braces. Arguments in front that say NAME=VALUE
    are variables for the command, as in a shell.

    Raises:
        EngineError: it cannot be split.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        msg = f"openai_server: expected a command, got '{command}' ({error}); quote it as for a shell"
        raise EngineError(msg) from error
    for name, value in places.items():
        parts = [part.replace(f"{{{name}}}", value) for part in parts]
    return [os.path.expanduser(part) if part.startswith("~/") else part for part in parts]


def is_variable(argument: str) -> bool:
    """Say whether an argument in front of a command sets a variable for it."""
    return _VARIABLE.match(argument) is not None


def _with_environment(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command without the variables in front of it, and the environment with them."""
    variables = list(itertools.takewhile(is_variable, arguments))
    environment = dict(os.environ) | dict(word.split("=", 1) for word in variables)
    return list(arguments[len(variables) :]), environment


class Started(NamedTuple):
    """A server that was started here.

    Attributes:
        server: its process.
        log_filter: takes the API key out of what the server says; None where there is no key.
    """

    server: subprocess.Popen[bytes]
    log_filter: subprocess.Popen[bytes] | None

    @property
    def pid(self) -> int:
        """The server's process."""
        return self.server.pid


def start(arguments: list[str], key_variable: str) -> Started:
    """Start a server; it writes into the launch's log.

    It stays in the worker's process group, which the host kills as a whole, whatever becomes of the worker.

    Args:
        arguments: of the command.
        key_variable: holds the API key, which the server inherits and may repeat; empty without one.

    Raises:
        EngineError: there is no such command.
    """
    log_filter = _start_filter(key_variable)
    output = None if log_filter is None else log_filter.stdin
    arguments, environment = _with_environment(arguments)
    try:
        server = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    except (OSError, ValueError, IndexError) as error:
        _finish(log_filter)
        msg = (
            f"openai_server: expected a command that starts the server, got '{' '.join(arguments[:1])}': "
            f"{getattr(error, 'strerror', None) or error}; correct it"
        )
        raise EngineError(msg) from None
    if log_filter is not None and log_filter.stdin is not None:
        log_filter.stdin.close()
    return Started(server, log_filter)


def _start_filter(key_variable: str) -> subprocess.Popen[bytes] | None:
    if not key_variable:
        return None
    command = [sys.executable, "-P", "-m", "enginecmp_openai_server.log_filter", key_variable]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def _finish(log_filter: subprocess.Popen[bytes] | None) -> None:
    """Let the filter write the rest; a process that keeps the server's output open is not waited for."""
    if log_filter is None:
        return
    if log_filter.stdin is not None:
        log_filter.stdin.close()
    try:
        log_filter.wait(_TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        log_filter.kill()
        log_filter.wait()


def wait_until(answers: Callable[[float], bool], started: Started, seconds: float) -> None:
    """Wait until a started server answers.

    Args:
        answers: asks it once, for so many seconds at most.
        started: the server.
        seconds: longest time in all.

    Raises:
        EngineError: it ended, or did not answer in that time.
    """
    until = time.monotonic() + seconds
    while not answers(max(_POLL_SECONDS, until - time.monotonic())):
        if (code := started.server.poll()) is not None:
            _finish(started.log_filter)
            msg = f"openai_server: expected the started server to run, it ended with code {code}; see the launch's log"
            raise EngineError(msg)
        if time.monotonic() > until:
            end(started)
            msg = (
                f"openai_server: expected the started server to answer within {seconds:g} s, it did not; see the "
                "launch's log, or raise start_seconds"
            )
            raise EngineError(msg)
        time.sleep(_POLL_SECONDS)


def end(started: Started) -> None:
    """Stop a server and all that it started: politely, then not."""
    try:
        top = psutil.Process(started.pid)
        family = [*top.children(recursive=True), top]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        _signal(member.terminate)
    _, left = psutil.wait_procs(family, timeout=_TERMINATE_SECONDS)
    for member in left:
        _signal(member.kill)
    started.server.wait()
    _finish(started.log_filter)


def computing(started: Started | None, address: Address) -> list[psutil.Process]:
    """Return the processes of a server on this machine: the one that was started, whoever listens, and their children.

    A server elsewhere has none, and neither has one that this user may not see (another user's, a container's).
    """
    roots = [started.pid] if started is not None else []
    if address.host in ("localhost", "127.0.0.1", "::1"):
        with contextlib.suppress(psutil.Error, OSError):
            roots += [
                found.pid
                for found in psutil.net_connections("tcp")
                if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == address.port and found.pid
            ]
    family: dict[int, psutil.Process] = {}
    # A server in this process is on the engine's account already, and this process' children are not the server's.
    for pid in set(roots) - {os.getpid()}:
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(pid)
            family |= {member.pid: member for member in (top, *top.children(recursive=True))}
    return list(family.values())


def cpu_seconds(family: Sequence[psutil.Process]) -> float:
    """Return the CPU time that some processes have used so far."""
    total = 0.0
    for member in family:
        with contextlib.suppress(psutil.Error):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def run_once(arguments: list[str], key_variable: str) -> None:
    """Run the command that stops a server; what it says goes to the launch's log, as a server's own words do."""
    log_filter = _start_filter(key_variable)
    output = None if log_filter is None else log_filter.stdin
    arguments, environment = _with_environment(arguments)
    try:
        subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            timeout=_TERMINATE_SECONDS,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        msg = f"openai_server: expected the stop command to succeed, got: {error}; stop the server by hand"
        raise EngineError(msg) from None
    finally:
        _finish(log_filter)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
