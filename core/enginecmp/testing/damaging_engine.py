"""A plugin that runs the engine under test and damages one of its answers, in the real worker and on the real wire.

`MODULE_VARIABLE` of the environment names the engine's plugin, the engine option `OPTION` one of `ANSWERS`, `SILENCES`
or `STEPS`. What comes before the damage is the engine's own.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from enginecmp import hookspecs
from enginecmp.hookspecs import hookimpl
from enginecmp.plugins.manager import load_object, manager_with
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.protocol import MAGIC, Channel

MODULE_VARIABLE = "CMP_DAMAGED_MODULE"
OPTION = "damage"

FOR_EVER_SECONDS = 3600.0


def _packed(message: Any, length: int | None = None) -> bytes:
    body = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
    return MAGIC + struct.pack("<I", len(body) if length is None else length) + body


def _changed(**changes: Any) -> Callable[[Mapping[str, Any]], bytes]:
    return lambda ok: _packed({"ok": {**ok, **changes}})


def _backwards(ok: Mapping[str, Any]) -> bytes:
    return _packed({"ok": {**ok, "start_ns": ok["end_ns"], "end_ns": ok["start_ns"]}})


ANSWERS: dict[str, Callable[[Mapping[str, Any]], bytes]] = {
    "another shape": lambda ok: _packed({"ok": "done"}),
    "not a number": _changed(metrics={"weights_bytes": float("nan")}),
    "backwards": _backwards,
    "too many tokens": _changed(output_tokens=10**12),
    "no such token": _changed(ids=[(1 << 31) - 1]),
    "the host's reading": _changed(metrics={"rss_bytes": 0.0}),
    "nested": lambda ok: _packed(b"\x81\xa2zz" + b"\x91" * 100_000 + b"\xc0"),
    "too long": lambda ok: _packed(b"", (1 << 32) - 1),
    "twice": lambda ok: 2 * _packed({"ok": ok}),
}
"""What is sent instead of the answer to the first request."""


def _die(channel: Channel, whole: bytes) -> None:
    _write(channel, whole[: len(whole) // 2])
    os._exit(9)


def _dribble(channel: Channel, whole: bytes) -> None:
    for byte in whole:
        _write(channel, bytes([byte]))
        time.sleep(0.2)


def _hang(channel: Channel, whole: bytes) -> None:
    _write(channel, whole[: len(whole) // 2])
    time.sleep(FOR_EVER_SECONDS)


SILENCES: dict[str, Callable[[Channel, bytes], None]] = {
    "dies in the middle": _die,
    "byte by byte": _dribble,
    "hangs in the middle": _hang,
}
"""How the answer to the first request does not come whole."""

STEPS: dict[str, Callable[[Any], Any]] = {
    "no list": lambda pairs: 5,
    "a stranger's token": lambda pairs: [*pairs, ("nobody", 1)],
    "two tokens at once": lambda pairs: [*pairs, *pairs],
}
"""What `cmp_step` returns instead of what the engine did."""


def _write(channel: Channel, data: bytes) -> None:
    while data:
        data = data[os.write(channel.fileno(), data) :]


def _damage_first_request(what: str) -> None:
    """Let this process's channel send something else as the answer to the first request."""
    receive, send, asked = Channel.receive, Channel.send, [""]

    def receive_and_note(self: Channel, *arguments: Any, **more: Any) -> Any:
        message = receive(self, *arguments, **more)
        asked[0] = message["op"] if message else ""
        return message

    def send_damaged(self: Channel, message: dict[str, Any], timeout_seconds: float | None = None) -> None:
        if asked[0] != "request" or "ok" not in message:
            send(self, message, timeout_seconds)
            return
        Channel.send = send  # type: ignore[method-assign] # the others are the engine's own again
        if what in ANSWERS:
            _write(self, ANSWERS[what](message["ok"]))
        else:
            SILENCES[what](self, _packed(message))

    Channel.receive, Channel.send = receive_and_note, send_damaged  # type: ignore[method-assign]


class Damaging:
    """The engine's own hooks, but for loading and steps.

    Args:
        module: of the engine's plugin.
    """

    def __init__(self, module: str) -> None:
        engine = load_object(module)
        self._hook = manager_with(engine).hook
        self._what = ""
        for name in vars(hookspecs):
            own = getattr(engine, name, None)
            if name.startswith("cmp_") and name not in vars(Damaging) and hasattr(own, f"{hookspecs.PROJECT}_impl"):
                setattr(self, name, own)
        if self._hook.cmp_step.get_hookimpls():

            @hookimpl
            def cmp_step(session: Any, wake: int) -> Any:
                pairs = self._hook.cmp_step(session=session, wake=wake)
                return STEPS[self._what](pairs) if pairs and self._what in STEPS else pairs

            self.cmp_step = cmp_step

    @hookimpl
    def cmp_load(self, model: ModelInfo, options: LoadOptions) -> Any:
        """Load the engine without our option, and be ready to do damage."""
        extra = dict(options.extra)
        self._what = extra.pop(OPTION, "")
        if self._what in ANSWERS or self._what in SILENCES:
            _damage_first_request(self._what)
        return self._hook.cmp_load(model=model, options=msgspec.structs.replace(options, extra=extra))


if MODULE_VARIABLE in os.environ:
    engine = Damaging(os.environ[MODULE_VARIABLE])
