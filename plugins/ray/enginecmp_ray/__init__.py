"""`cmp run --on ray`: the nodes of a Ray cluster. Ray places, watches and copies; each node runs an ordinary `cmp`."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from enginecmp.errors import CmpError, UsageError
from enginecmp.format.text import plain
from enginecmp.placement.node import Label, Node
from enginecmp_ray.pipe import Pipe

_SECONDS_TO_CONNECT = 5.0
_SECONDS_TO_START = 120.0
_SECONDS_TO_END = 15.0
_GIB = 2**30


class RayPlacement:
    """The nodes of a cluster.

    Args:
        where: "//HEAD:PORT" for a Ray client server, "HEAD:PORT" for the cluster's own address, "" for RAY_ADDRESS or
            the cluster that runs on this machine.

    Raises:
        UsageError: no cluster answers there.
    """

    def __init__(self, where: str) -> None:
        address = f"ray:{where}" if where.startswith("//") else where or os.environ.get("RAY_ADDRESS") or "auto"
        _require_listener(address)
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RayError, OSError, ValueError, RuntimeError) as error:
            fix = "start one with: ray start --head" if address == "auto" else "is it up, and of this version of Ray?"
            msg = f"--on ray: no cluster at {plain(address)}: {plain(str(error), 300)}; {fix}"
            raise UsageError(msg) from error
        self._ids: dict[str, str] = {}

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive and have CPUs; a head that was started with none only places."""
        alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        hosts = [node["NodeManagerHostname"] for node in alive]
        found = []
        for node in sorted(alive, key=lambda node: (node["NodeManagerHostname"], node["NodeID"])):
            host, labels = node["NodeManagerHostname"], node.get("Labels") or {}
            usual = host if hosts.count(host) == 1 else f"{host}-{node['NodeID'][:8]}"
            name = labels.get("enginecmp-name", usual)
            self._ids[name] = node["NodeID"]
            found.append(Node(name=name, labels=labels_of(node["Resources"], labels), price_per_hour=_price(labels)))
        return found

    def open(self, node: Node) -> RayChannel:
        """Start `cmp fleet-node` on a node, in the Python that Ray runs there.

        Raises:
            CmpError: Ray cannot start it there, or the packages are missing.
        """
        here = NodeAffinitySchedulingStrategy(node_id=self._ids[node.name], soft=False)
        # No resources: all of the node belongs to the run. Three threads, since reading waits for what comes.
        actor = ray.remote(Pipe).options(num_cpus=0, max_concurrency=3, scheduling_strategy=here).remote()
        try:
            ray.get(actor.start.remote(), timeout=_SECONDS_TO_START)
        except RayError as error:
            msg = (
                f"{node.name}: Ray cannot start cmp there: {_first_line(error)}; pip install enginecmp-ray on each node"
            )
            raise CmpError(msg) from error
        return RayChannel(actor)

    def close(self) -> None:
        """Let go of the cluster."""
        ray.shutdown()


class RayChannel:
    """The stdin and stdout of `cmp fleet-node` on a node; `enginecmp.placement.placement.Channel`.

    Args:
        actor: a `Pipe` on that node.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._why = ""

    def write(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            OSError: the node or its worker is gone.
        """
        try:
            ray.get(self._actor.write.remote(data))
        except RayError as error:
            self._why = _first_line(error)
            raise OSError(self._why) from error

    def read(self, most: int) -> bytes:
        """Return what has come, b"" at the end."""
        try:
            data: bytes = ray.get(self._actor.read.remote(most))
        except RayError as error:
            self._why = _first_line(error)
            return b""
        return data

    def close(self) -> None:
        """End it; where Ray kills the worker, the end of its stdin ends the run in order."""
        with contextlib.suppress(RayError):
            ray.get(self._actor.close.remote(), timeout=_SECONDS_TO_END)
        with contextlib.suppress(RayError, ValueError):
            ray.kill(self._actor)

    def why(self) -> str:
        """Return what Ray, or the node's stderr, said last."""
        if self._why:
            return self._why
        try:
            told: str = ray.get(self._actor.why.remote(), timeout=_SECONDS_TO_END)
        except RayError as error:
            return _first_line(error)
        return told


def _require_listener(address: str) -> None:
    """Look whether anything listens at HOST:PORT: Ray itself tries for minutes.

    Raises:
        UsageError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        msg = f"--on ray: no cluster at {plain(address)}: {error}; name its head, or start one with: ray start --head"
        raise UsageError(msg) from error


def labels_of(resources: Mapping[str, float], labels: Mapping[str, str]) -> dict[str, Label]:
    """Return Ray's resources and labels as `--require` asks for them.

    Args:
        resources: {"CPU": 16.0, "GPU": 1.0, "accelerator_type:H200": 1.0, "memory": bytes, …}.
        labels: of the node.
    """
    found: dict[str, Label] = dict(labels)
    for key, amount in resources.items():
        if key.startswith("accelerator_type:"):
            found["gpu"] = key.partition(":")[2]
        elif key in ("CPU", "GPU"):
            found[f"{key.lower()}s"] = amount
        elif key == "memory":
            found["memory_gib"] = amount / _GIB
        elif not key.startswith(("node:", "object_store_memory")):
            found[key] = amount
    return found


def _price(labels: Mapping[str, str]) -> float | None:
    try:
        return float(labels["price_per_hour"])
    except (KeyError, ValueError):
        return None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return plain(lines[-1] if lines else type(error).__name__, 300)
