"""What plugins share whose engine is a Rust extension over the crate `plugins/rust_shim`.

The extension's class `Session` is the same for all of them, and so are the hooks that call it: a plugin imports them
into its module, beside a `cmp_engine` and a `cmp_load` of its own. Nothing native is imported here: the processor is
asked for the instructions that the extension was compiled to before that happens.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from enginecmp.hookspecs import hookimpl
from enginecmp.types import LoadOptions, Probe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CPUINFO = Path("/proc/cpuinfo")

NEEDED_FLAGS = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
"""What rustc's target-cpu=x86-64-v3 assumes beyond the baseline, as Linux spells it (lzcnt is part of abm)."""


class RustSession(Protocol):
    """The class `Session` of an extension over rust_shim."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""

    def reset(self) -> None:
        """Empty the cache."""

    def prefill(self, token_ids: Sequence[int], output_tokens: int) -> int:
        """Run a prompt and return the first greedy id."""

    def decode(self, n_tokens: int) -> tuple[list[int], list[int]]:
        """Return the next greedy ids and when each was on the host, nanoseconds of the host's clock."""

    def score(self, token_ids: Sequence[int]) -> bytes:
        """Return float32 logits of every position, row after row."""

    def metrics(self) -> dict[str, float]:
        """Return sizes in bytes and the last request's times in seconds."""

    def close(self) -> None:
        """Free everything."""


def probe_extension(
    package: str, options: LoadOptions, *, install: str, install_portable: str, install_cuda: str
) -> Probe:
    """Look for the extension and the processor's instructions, then for the device in the extension.

    Args:
        package: the plugin's module, which holds the extension `_shim`.
        options: the device.
        install: command that builds the extension.
        install_portable: the same for a processor without AVX2.
        install_cuda: the same with CUDA.
    """
    spec = importlib.util.find_spec(f"{package}._shim")
    if spec is None or spec.origin is None:
        return Probe(ok=False, reason="its Rust extension is not built", fix=install)
    # An instruction that the CPU does not have would end the process, so this is settled before the import.
    if (missing := missing_flags()) and compiled_for_v3(package) in Path(spec.origin).read_bytes():
        return Probe(
            ok=False,
            reason=f"the extension is compiled for x86-64-v3 and this CPU has no {', '.join(missing)}",
            fix=install_portable,
        )
    if options.device == "cpu":
        return Probe(ok=True)
    if options.device != "cuda":
        return Probe(ok=False, reason=f"runs on cpu and cuda, not on {options.device}", fix="pass --device cpu")
    if "cuda" not in importlib.import_module(f"{package}._shim").features():
        return Probe(ok=False, reason="the extension was built without CUDA", fix=install_cuda)
    return Probe(ok=True)


def compiled_for_v3(package: str) -> bytes:
    """Return what stands in the extension's file where it needs more than the baseline (`compiled_for!` in Rust)."""
    return f"{package.replace('_', '-')} compiled for x86-64-v3".encode()


def missing_flags() -> list[str]:
    """Return what this CPU lacks of x86-64-v3; nothing on other architectures or where Linux does not tell."""
    if platform.machine() != "x86_64" or not CPUINFO.exists():
        return []
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return [] if flags is None else [flag for flag in NEEDED_FLAGS if flag not in flags]


@hookimpl
def cmp_prefill(session: RustSession, token_ids: Sequence[int], output_tokens: int) -> int:
    """Run the prompt, in pieces where it is long, and choose on the device; ends when the id is on the host."""
    return session.prefill(token_ids, output_tokens)


@hookimpl
def cmp_decode(session: RustSession, n_tokens: int) -> Iterator[int]:
    """Yield greedy ids, each when it is on the host: one call into Rust a token."""
    for _ in range(n_tokens):
        ids, _ = session.decode(1)
        yield ids[0]


@hookimpl
def cmp_score(session: RustSession, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Run the prompt as `cmp_prefill` does, with logits at every position."""
    import numpy as np

    return np.frombuffer(session.score(token_ids), np.float32).reshape(len(token_ids), session.vocabulary)


@hookimpl
def cmp_metrics(session: RustSession) -> Mapping[str, float]:
    """Return sizes, and the times of the last request by Rust's own stamps: a cross-check of the host's clock."""
    return session.metrics()


@hookimpl
def cmp_reset(session: RustSession) -> None:
    """Start over at position 0; the cache's memory stays."""
    session.reset()


@hookimpl
def cmp_unload(session: RustSession) -> None:
    """Free weights and cache."""
    session.close()
