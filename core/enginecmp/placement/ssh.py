"""`--on ssh:hosts.toml`: nodes that the system's `ssh` reaches."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.documents import named_by_user, read_toml, require_known
from enginecmp.placement.node import Label, Node
from enginecmp.placement.pipes import CommandChannel

# Nobody is there to answer a question; a machine that is gone is told within a minute, not after hours.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[host]] of hosts.toml.

    Attributes:
        name: of the node.
        address: what `ssh` takes: a host, user@host, or an alias of ssh_config.
        port: 0 leaves it to ssh_config.
        cmp: the command on that host: a path, or words like ["env", "X=1", "/opt/venv/bin/cmp"].
        options: further -o options of ssh: {"IdentityFile": "~/.ssh/bench"}.
        labels: what `--require` asks for.
        price_per_hour: what an hour of it costs.
    """

    name: str
    address: str
    port: int = 0
    cmp: str | list[str] = "cmp"
    options: dict[str, str] = {}
    labels: dict[str, Label | int] = {}
    price_per_hour: float | None = None


def read_hosts(file: Path) -> list[Host]:
    """Return the hosts of a hosts.toml.

    Raises:
        UsageError: it cannot be read, or says something else than hosts.
    """
    where = f"--on ssh:{file}"
    with named_by_user("--on ssh:", file):
        content = read_toml(file)
    require_known(content, ("host",), where)
    tables = content.get("host")
    if not isinstance(tables, list) or not tables:
        msg = f"{where}: expected at least one [[host]] table, got none"
        raise UsageError(msg)
    return [_host(table, f"{where}, host {number}") for number, table in enumerate(tables, start=1)]


def _host(table: Any, where: str) -> Host:
    if isinstance(table, dict):
        require_known(table, Host.__struct_fields__, where)
    try:
        host = msgspec.convert(table, Host)
    except msgspec.ValidationError as error:
        msg = f"{where}: {error}"
        raise UsageError(msg) from error
    words = [host.address, *_words(host), *host.options, *host.options.values()]
    if not host.address or host.address.startswith("-") or not all(word and word.isprintable() for word in words):
        # Behind a "-" ssh would read an option, which can name a command to run here.
        msg = f"{where}: expected an address like user@machine and printable words, got '{host.address!r}'"
        raise UsageError(msg)
    if not 0 <= host.port < 1 << 16:
        msg = f"{where}: expected a port up to 65535, got {host.port}"
        raise UsageError(msg)
    return host


def _words(host: Host) -> list[str]:
    return [host.cmp] if isinstance(host.cmp, str) else host.cmp


class SshPlacement:
    """The hosts of a hosts.toml.

    Args:
        file: its path.

    Raises:
        UsageError: as `read_hosts`.
    """

    def __init__(self, file: str) -> None:
        if not file:
            msg = "--on ssh: expected a file of hosts; try --on ssh:hosts.toml"
            raise UsageError(msg)
        hosts = read_hosts(Path(file))
        self._hosts = {host.name: host for host in hosts}
        self._nodes = [
            Node(name=host.name, labels=dict(host.labels), price_per_hour=host.price_per_hour) for host in hosts
        ]

    def nodes(self) -> list[Node]:
        """Return one node a host."""
        return self._nodes

    def open(self, node: Node) -> CommandChannel:
        """Start `cmp fleet-node` through ssh."""
        return CommandChannel(ssh_command(self._hosts[node.name]))

    def close(self) -> None:
        """Do nothing: every channel is a process of its own."""


def ssh_command(host: Host) -> list[str]:
    """Return the command that opens a host: the user's options first, since ssh takes the first of each."""
    options = [f"{key}={value}" for key, value in (*host.options.items(), *_OPTIONS.items())]
    port = ["-p", str(host.port)] if host.port else []
    # What stands behind the address goes through the shell of the other machine.
    return [
        *("ssh", "-T", *port),
        *(word for option in options for word in ("-o", option)),
        *("--", host.address, shlex.join([*_words(host), "fleet-node"])),
    ]
