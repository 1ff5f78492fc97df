"""What a server says of itself on /metrics, while it is measured: queue, running requests, KV cache, prefix cache.

Read in the sensors' process, never in the worker or the host, every two seconds: a server makes that page with its own
processor time. It is bounded in time and size, and only the lines that are wanted reach the parser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import util

from enginecmp import EngineError, LoadOptions, SensorAbsent

from .announcement import Announced, announced
from .client import Client
from .metric_names import NAMES, named_values, wanted
from .options import read_settings

PERIOD_SECONDS = 2.0
_ANSWER_SECONDS = 1.0
_MOST_BYTES = 1 << 20
_ERRORS_IN_A_ROW = 3


class ServerSensor:
    """Reads /metrics of the server of the launch under way.

    Attributes:
        name: of the sensor.
        period_seconds: between two readings.
    """

    name = "server"
    period_seconds = PERIOD_SECONDS

    def __init__(self) -> None:
        self._server: Announced | None = None
        self._client: Client | None = None
        self._errors = 0

    def start(self) -> Mapping[str, object]:
        """Return what it reads of which kinds of server.

        Raises:
            SensorAbsent: the library that parses the page is not installed.
        """
        if util.find_spec("prometheus_client") is None:
            msg = "server: expected the package prometheus-client, it is not installed; pip install prometheus-client"
            raise SensorAbsent(msg)
        return {"path": "/metrics", "values": {kind: sorted(names) for kind, names in NAMES.items()}}

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return what the server tells that the first process drives; nothing where none is there, or none tells."""
        found = announced(pids[0]) if pids else None
        if found != self._server:
            self.close()
            self._server, self._errors = found, 0
        if found is None or found.kind not in NAMES or self._errors >= _ERRORS_IN_A_ROW:
            return {}, ()
        try:
            values = self._values(found)
        except (EngineError, OSError, ValueError):
            # A server under full load may not answer in time, and one without the page never does.
            values = {}
        self._errors = 0 if values else self._errors + 1
        return values, ()

    def _values(self, server: Announced) -> dict[str, float]:
        if self._client is None:
            self._client = Client(read_settings(LoadOptions(extra=server.extra)))
        reply = self._client.call("GET", "/metrics", root=True, seconds=_ANSWER_SECONDS, most_bytes=_MOST_BYTES)
        return read_page(server.kind, reply.body) if reply.status == 200 else {}

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
        self._client = None


def read_page(kind: str, page: bytes) -> dict[str, float]:
    """Return what a page in Prometheus' text format holds, under our names.

    Args:
        kind: key of `metric_names.NAMES`.
        page: as the server sent it.

    Raises:
        ValueError: a line that is wanted is none of that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    names = wanted(kind)
    lines = [line for line in page.split(b"\n") if line.partition(b"{")[0].partition(b" ")[0] in names]
    text = b"\n".join(lines).decode("utf-8", "replace") + "\n"
    families = text_string_to_metric_families(text)
    return named_values(kind, ((sample.name, sample.value) for family in families for sample in family.samples))
