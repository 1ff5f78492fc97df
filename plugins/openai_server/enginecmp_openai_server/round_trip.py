"""How long the way to a server and back takes, measured before anything is timed.

A TCP connection is established after one round trip of the network, answered by the other end's kernel: no server has a
part in it. Asking for the list of models adds HTTP on both sides. Behind a proxy both are the proxy's.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from statistics import median, quantiles

from enginecmp import EngineError

from .address import Address
from .client import Client

_TIMES = 11
_LONGEST_SECONDS = 2.0
"""Of all connections together; one is always made."""


def round_trips(client: Client) -> Mapping[str, float]:
    """Return medians and the spread of the network's round trip, in seconds; what cannot be had is absent.

    Returns:
        network_round_trip_seconds, network_round_trip_iqr_seconds (third quartile - first), http_round_trip_seconds.
    """
    found: dict[str, float] = {}
    connecting = _connecting(client.settings.address)
    if connecting:
        found["network_round_trip_seconds"] = median(connecting)
    if len(connecting) > 1:
        first, _, third = quantiles(connecting, n=4, method="inclusive")
        found["network_round_trip_iqr_seconds"] = third - first
    asking: list[float] = []
    with contextlib.suppress(EngineError):
        until = time.monotonic() + _LONGEST_SECONDS
        while len(asking) < _TIMES and time.monotonic() < until:
            began = time.perf_counter_ns()
            client.call("GET", "/models", seconds=_LONGEST_SECONDS)
            asking.append((time.perf_counter_ns() - began) / 1e9)
    if asking:
        found["http_round_trip_seconds"] = median(asking)
    return found


def _connecting(address: Address) -> list[float]:
    """Return how long it took to connect, in seconds, once the name is known."""
    taken: list[float] = []
    with contextlib.suppress(OSError):
        family, kind, protocol, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        until = time.monotonic() + _LONGEST_SECONDS
        while len(taken) < _TIMES and time.monotonic() < until:
            with socket.socket(family, kind, protocol) as opened:
                opened.settimeout(_LONGEST_SECONDS)
                began = time.perf_counter_ns()
                opened.connect(where)
                taken.append((time.perf_counter_ns() - began) / 1e9)
    return taken
