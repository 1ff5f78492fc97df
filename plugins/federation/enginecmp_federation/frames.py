"""How the engine `numpy_federation` writes rounds: one MessagePack map a message, arrays as type, shape and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp_federation.compression import Floats, Parts


class _Array(msgspec.Struct, array_like=True):
    dtype: Literal["float32", "float16", "int8", "uint32"]
    shape: tuple[int, ...]
    data: bytes


class _Frame(msgspec.Struct):
    round_number: int
    examples: int
    arrays: dict[str, _Array]


class NodeFrames:
    """A node's side (`rounds.NodeCodec`)."""

    def __init__(self, node: int) -> None:
        self._round_number = 0

    def opened(self, request: bytes) -> tuple[int, list[Floats]]:
        """Return a request's round number and adapter."""
        frame = msgspec.msgpack.decode(request, type=_Frame)
        self._round_number = frame.round_number
        return frame.round_number, [np.asarray(_array(each), np.float32) for each in frame.arrays.values()]

    def answer(self, parts: Parts, examples: int) -> bytes:
        """Return the answer to the request that was opened last."""
        return packed(self._round_number, parts, examples)


def packed(round_number: int, arrays: Mapping[str, NDArray[Any]], examples: int) -> bytes:
    """Return one message."""
    plain = {name: _Array(str(each.dtype), each.shape, each.tobytes()) for name, each in arrays.items()}  # type: ignore[arg-type]
    return msgspec.msgpack.encode(_Frame(round_number, examples, plain))


def request(round_number: int, adapter: Sequence[Floats]) -> bytes:
    """Return what every node is asked: the adapter to start from."""
    return packed(round_number, {str(number): matrix for number, matrix in enumerate(adapter)}, 0)


def unpacked(reply: bytes) -> tuple[Parts, int]:
    """Return a node's parts and examples.

    Raises:
        msgspec.ValidationError: no message of this form.
    """
    frame = msgspec.msgpack.decode(reply, type=_Frame)
    return {name: _array(each) for name, each in frame.arrays.items()}, frame.examples


def _array(one: _Array) -> NDArray[Any]:
    return np.frombuffer(one.data, one.dtype).reshape(one.shape)
