"""A tiny model decoded by the persistent kernel; as a program, what loses the device: waits left out, and traps."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import custom_cuda_controls as emulated
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import EngineError, GGUFFile, read_gguf
from enginecmp.testing.tiny_models import tiny_model
from enginecmp_custom_cuda.compiling.sources import KERNELS
from enginecmp_custom_cuda.device import Device, open_device
from enginecmp_custom_cuda.engine.decode.step import DecodeSettings
from enginecmp_custom_cuda.engine.memory.pages import Cache
from enginecmp_custom_cuda.engine.persistent.plan import ring_of
from enginecmp_custom_cuda.engine.persistent.run import PersistentDecoder
from enginecmp_custom_cuda.weights.model import DeviceModel, load_model

POSITIONS = 256


class Case(NamedTuple):
    """A model, and how it is computed."""

    architecture: str
    kind: str
    exact: bool
    kv: str
    shape: dict[str, int]


WIDE = {"hidden": 576, "heads": 6, "kv_heads": 2, "head_dim": 64, "feed_forward": 1056}
NARROW = {"layers": 1, "hidden": 64, "heads": 4, "kv_heads": 4, "head_dim": 64, "feed_forward": 1056}
CASES = {
    "Q8_0": Case("llama", "Q8_0", False, "f16", WIDE),
    "F32": Case("qwen2", "F32", False, "f32", {}),
    "BF16": Case(
        "phi3", "BF16", False, "f32", {"hidden": 1056, "heads": 2, "kv_heads": 1, "head_dim": 128, "feed_forward": 544}
    ),
    "Q4_0 exact": Case("llama", "Q4_0", True, "f32", {"hidden": 288, "heads": 3, "kv_heads": 1, "head_dim": 96}),
    "Q4_0": Case(
        "qwen2", "Q4_0", False, "f16", {"hidden": 544, "heads": 7, "kv_heads": 1, "head_dim": 32, "feed_forward": 1568}
    ),
    "narrow": Case("llama", "Q8_0", False, "f16", NARROW),
}


class PersistentModel:
    """A model on a device with a cache, and decoders for it.

    The cache begins with random keys and values, so that a sequence may begin at any position.
    """

    def __init__(self, device: Device, path: Path, case: Case) -> None:
        self.device = device
        self.case = case
        self.file: GGUFFile = read_gguf(path)
        self.model: DeviceModel = load_model(device, self.file, POSITIONS)
        self.cache = Cache(device, self.model.config, case.kv, POSITIONS, 1)
        self.cache.pages.promise(0, POSITIONS)
        self.cache.grow(0, POSITIONS)
        element = np.float16 if case.kv == "f16" else np.float32
        count = self.cache._memory.nbytes // np.dtype(element).itemsize
        self._history = np.random.default_rng(0).standard_normal(count).astype(element)
        self.settings = DecodeSettings(positions=POSITIONS, kv=case.kv, exact=case.exact, logits=True)

    def decoder(self, **more: Any) -> PersistentDecoder:
        """Return a new decoder; skip the test where the device lacks its ring."""
        if more.get("ring") == "RING_BULK" and ring_of(self.device) != "RING_BULK":
            pytest.skip("RING_BULK needs compute capability 9.0")
        return PersistentDecoder(self.device, self.model, self.settings, self.cache, **more)

    def forget(self) -> None:
        """Put the cache back to its beginning."""
        self.device.upload(self.cache.layer_address(0), self._history)

    def logits(self, decoder: PersistentDecoder) -> NDArray[np.float32]:
        """Return the last token's logits."""
        return self.device.download(decoder.buffers.logits, (self.model.head.rows,), np.float32)

    def run(self, decoder: PersistentDecoder, position: int, tokens: int, token: int = 5) -> tuple[list[int], bytes]:
        """Decode from a position on; return ids and the last token's logits, bit for bit."""
        self.forget()
        decoder.bind(position, token)
        assert decoder.buffers.ring.wait(0) == token
        ids = self.ids(decoder, tokens)
        return ids, self.logits(decoder).tobytes()

    def ids(self, decoder: PersistentDecoder, tokens: int) -> list[int]:
        """Launch the kernel for so many tokens and return their ids."""
        decoder.enqueue(tokens)
        decoder.synchronize()
        return [decoder.buffers.ring.wait(0) for _ in range(tokens)]

    def close(self) -> None:
        """Free the memory."""
        self.cache.close()
        self.model.close()


@contextmanager
def persistent_model(device: Device, folder: Path, name: str) -> Iterator[PersistentModel]:
    """A case on a device, and its end."""
    case = CASES[name]
    rig = PersistentModel(device, Path(tiny_model(folder, case.architecture, case.kind, **case.shape).path), case)
    try:
        yield rig
    finally:
        rig.close()


# As a program


def _start(folder: str, ring: str, multiprocessors: int = 2, **more: Any) -> tuple[PersistentModel, PersistentDecoder]:
    device = open_device("emulated")
    emulated.set_patience(0.05)
    case = CASES["narrow"]
    rig = PersistentModel(device, Path(tiny_model(Path(folder), case.architecture, case.kind, **case.shape).path), case)
    decoder = rig.decoder(multiprocessors=multiprocessors, slots=4, splits=1, result_tiles=2, ring=ring, **more)
    return rig, decoder


def leave_out(folder: str, ring: str, seeds: int = 10) -> None:
    """Leave every place out where threads wait, and print whether some order of threads notices: another result.

    One order says little, so many are tried before a place counts as missed; each is the same on every machine.
    """
    rig, decoder = _start(folder, ring)
    expected = rig.run(decoder, 126, 3)
    order: Any
    for order in ("reverse", 1, 2):
        emulated.set_order(order)
        assert rig.run(decoder, 126, 3) == expected, order
    for place in emulated.used_barriers(decoder.module):
        noticed = "never"
        for order in ("forward", "reverse", *range(1, seeds)):
            emulated.set_order(order)
            emulated.remove_barrier(decoder.module, place.index)
            try:
                got = rig.run(decoder, 126, 3)
            except EngineError:
                noticed = f"lost, {order}"
                rig.device.close()
                rig, decoder = _start(folder, ring)
                break
            finally:
                if noticed == "never":
                    emulated.remove_barrier(decoder.module, None)
            if got != expected:
                noticed = f"differs, {order}"
                break
        line = (KERNELS / place.file).read_text().splitlines()[place.line - 1].strip()
        print(f"{place.file}:{place.line}\t{place.kind}\t{noticed}\t{line}", flush=True)


def give_up(folder: str, what: str) -> None:
    """Run a plan that cannot end, or with no patience, and print the error.

    The kernel's patience ends before the emulator's.
    """
    from enginecmp_custom_cuda.engine.persistent import plan, schedule

    if what == "counter":
        # It waits for one signal more of attention than there is.
        whole = schedule.generate

        def broken(*arguments: Any, **more: Any) -> schedule.Schedule:
            made = whole(*arguments, **more)
            at = next(
                n for n in range(made.offsets[0], made.offsets[1]) if made.rows[n, 0] & 15 == schedule.Kind.OUTPUT
            )
            made.rows[at, 4] += 1
            return made

        vars(plan).update(generate=broken, check=lambda made: [])
    patience = 1000 if what == "counter" else 0
    rig, decoder = _start(folder, "RING_BULK", multiprocessors=1, patience=patience)
    emulated.set_patience(60.0)
    try:
        print(rig.run(decoder, 10, 2))
    except EngineError as error:
        print(type(error).__name__, error)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        if sys.argv[1] == "leave_out":
            leave_out(scratch, sys.argv[2])
        else:
            give_up(scratch, sys.argv[2])
