"""llama.cpp's process-wide state and the one structure that goes into every call: log, backend, batch."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp import ContextOverflow, EngineError

_import_start = time.perf_counter()
import llama_cpp.llama_cpp as lib  # noqa: E402 - timed, because the package brings much that is not used here

__all__ = ["IMPORT_SECONDS", "Batch", "complaint", "decode_failure", "lib", "log", "prepare", "supports_gpu_offload"]

IMPORT_SECONDS = time.perf_counter() - _import_start

# enum ggml_log_level
_INFO, _WARN, _ERROR, _CONTINUE = 2, 3, 4, 5


class _Log:
    """Takes llama.cpp's log: keeps what it said last, passes it on to stderr.

    Attributes:
        verbose: pass on everything, not only warnings and errors.
        errors: the first few error lines since they were last cleared.
    """

    def __init__(self) -> None:
        self.verbose = False
        self.errors: list[str] = []
        self._level = _INFO
        # ctypes keeps no reference to a callback that C holds.
        self.callback = lib.llama_log_callback(self._write)

    def _write(self, level: int, text: bytes, _data: Any) -> None:
        if level != _CONTINUE:
            self._level = level
        if self._level >= _ERROR and len(self.errors) < 4 and (line := text.decode("utf-8", "replace").strip()):
            self.errors.append(line)
        if self.verbose or self._level >= _WARN:
            # Not sys.stderr: this may be called from a thread of llama.cpp's, and in the middle of an exit.
            os.write(2, text)


log = _Log()
_backend_ready = False


def prepare(verbose: bool) -> None:
    """Take over the log and, once per process, start the backends."""
    global _backend_ready
    log.verbose = verbose
    log.errors.clear()
    # Again at every load: the Python package installs its own when something imports it later.
    lib.llama_log_set(log.callback, None)
    if not _backend_ready:
        lib.llama_backend_init()
        _backend_ready = True


def supports_gpu_offload() -> bool:
    """Say whether this build has a GPU backend that sees a device."""
    prepare(verbose=False)
    return bool(lib.llama_supports_gpu_offload())


def complaint() -> str:
    """Return the first error that llama.cpp reported, without its function names; empty when there is none.

    It reports a failure where it happens and again in every caller, so the first one says most.
    """
    if not log.errors:
        return ""
    parts = log.errors[0].split(": ")
    while len(parts) > 1 and " " not in parts[0]:
        parts.pop(0)
    return ": ".join(parts)


def decode_failure(code: int) -> EngineError:
    """Return the error that a code of llama_decode stands for (llama.h, llama_decode)."""
    said = complaint()
    tail = f" ({said})" if said else ""
    if code == 1:
        fix = "load it with a larger context_tokens, or send fewer requests"
        msg = f"llamacpp: no room in the KV cache for this batch{tail}; {fix}"
        return ContextOverflow(msg)
    meaning = {
        2: "was aborted",
        -1: "refused the batch: token ids or positions are not valid",
        -2: "could not reserve memory for the batch",
        -3: "failed while computing",
    }.get(code, "failed")
    msg = f"llamacpp: llama_decode {meaning}, code {code}{tail}"
    return EngineError(msg)


def as_ids(token_ids: Sequence[int]) -> NDArray[np.int32]:
    """Return token ids as llama.cpp takes them, int32, (T,).

    Raises:
        EngineError: one does not fit 32 bits; llama.cpp itself looks whether the vocabulary has the others.
    """
    try:
        return np.asarray(token_ids, np.int32)
    except OverflowError:
        msg = f"llamacpp: expected token ids of 32 bits, got {max(token_ids, key=abs)}; take ids of the vocabulary"
        raise EngineError(msg) from None


class Batch:
    """A llama_batch whose arrays belong to numpy: filled by slices, nothing to free, never allocated again.

    Args:
        capacity: most tokens that it holds.

    Attributes:
        tokens, positions, sequences: int32, (capacity,).
        outputs: int8, (capacity,), 1 where logits are wanted.
        native: what llama_decode takes; set its `n_tokens`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.sequences = np.zeros(capacity, np.int32)
        self.outputs = np.zeros(capacity, np.int8)
        self._sequence_counts = np.ones(capacity, np.int32)
        # seq_id is an array of pointers, one per token, each to that token's list of sequences: here of length 1.
        step = self.sequences.itemsize
        self._sequence_pointers = np.arange(capacity, dtype=np.uintp) * step + self.sequences.ctypes.data
        int32 = ctypes.POINTER(ctypes.c_int32)
        self.native = lib.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(int32),
            embd=None,
            pos=self.positions.ctypes.data_as(int32),
            n_seq_id=self._sequence_counts.ctypes.data_as(int32),
            seq_id=self._sequence_pointers.ctypes.data_as(ctypes.POINTER(int32)),
            logits=self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def put(self, start: int, tokens: Sequence[int] | np.ndarray[Any, Any], position: int, sequence: int) -> int:
        """Write consecutive tokens of one sequence, without logits; return the index after the last one."""
        stop = start + len(tokens)
        self.tokens[start:stop] = tokens
        self.positions[start:stop] = np.arange(position, position + stop - start, dtype=np.int32)
        self.sequences[start:stop] = sequence
        self.outputs[start:stop] = 0
        return stop
