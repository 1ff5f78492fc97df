"""The engine's hooks (docs/hooks.md). torch is imported by `cmp_load`, never by this module."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from enginecmp import EngineError, EngineInfo, LoadOptions, ModelInfo, Probe, UnknownOption, did_you_mean, hookimpl

from .config import ARCHITECTURES, ENGINE, QUANTIZATIONS, read_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .session import Session

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
_INSTALL = "pip install torch"


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's static facts."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        version = "not installed"  # the plugin is sound, cmp_probe says what is missing
    return EngineInfo(
        name=ENGINE,
        version=version,
        licence="BSD-3-Clause",
        devices=DEVICES,
        architectures=ARCHITECTURES,
        quantizations=QUANTIZATIONS,
        environment={"OMP_NUM_THREADS": "{threads}", "MKL_NUM_THREADS": "{threads}"},
        tuned="threads, and reduced precision with -o pytorch_baseline.dtype=bfloat16; nothing else on purpose",
        tunables={"cpu:threads": ("auto", "{cores}", "{half_cores}"), "dtype": ("float32", "bfloat16")},
        operations=("tokenize", "sampling", "matmul", "profile"),
        limits=(
            "every weight is dequantized to the compute dtype: a float32 run reads 4 bytes a weight at each token, "
            "whatever the file holds",
            "no batching of its own: requests run one after the other",
        ),
        homepage="https://pytorch.org",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether torch and the device are here; torch is imported only when a CUDA device answers."""
    if importlib.util.find_spec("torch") is None:
        return Probe(ok=False, reason="the Python package torch is not installed", mend=_INSTALL)
    if options.device not in DEVICES:
        return Probe(ok=False, reason=f"device '{options.device}' is not one of {', '.join(DEVICES)}")
    if options.device == "cpu":
        return Probe(ok=True)
    reason = _no_cuda_device()
    if reason is not None:
        return Probe(ok=False, reason=reason, mend="run with --device cpu")
    import torch

    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} cannot use this CUDA device (built for CUDA {torch.version.cuda})"
        return Probe(ok=False, reason=reason, mend="install a torch built for this driver: https://pytorch.org")
    return Probe(ok=True)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Dequantize a model into an eager module and return a session."""
    dtype_name = _read_dtype(options)
    if options.device not in DEVICES:
        msg = f"{ENGINE}: expected a device among {', '.join(DEVICES)}, came '{options.device}'; pass --device cpu"
        raise EngineError(msg)

    from enginecmp import read_gguf

    file = read_gguf(model.path)
    config = read_config(file, options.context_tokens)

    import torch

    from .session import Session
    from .weights import load_model

    if options.device == "cuda" and not torch.cuda.is_available():
        msg = f"{ENGINE}: expected a CUDA device, torch {torch.__version__} finds none; pass --device cpu"
        raise EngineError(msg)
    torch.set_num_threads(options.threads)
    if torch.get_num_interop_threads() != 1:
        # Refused once parallel work has begun. In a worker that cannot be; elsewhere this pool stays idle anyway,
        # since an eager model runs one operator at a time.
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
    # Float32 means float32: no TF32 on CUDA, no bfloat16 passes on CPU. This is also torch's own default.
    torch.set_float32_matmul_precision("highest")

    device = torch.device(options.device)
    limit, mend = config.position_limit(options.context_tokens)
    loaded = load_model(file, config, limit, device, getattr(torch, dtype_name))
    session = Session(loaded, device, limit, mend, model.path, options.threads)
    session.synchronize()
    return session


@hookimpl
def cmp_prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:
    """Run the prompt in one forward pass and return the first greedy id, the device done."""
    session.check_prompt(token_ids, len(token_ids) + output_tokens - 1)
    return session.prefill(token_ids)


@hookimpl
def cmp_decode(session: Session, n_tokens: int) -> Iterator[int]:
    """Yield the next greedy ids, one forward pass each, the device done at every yield."""
    for _ in range(n_tokens):
        yield session.step()


@hookimpl
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return raw logits at every position from one forward pass, (T, vocabulary), float32."""
    session.check_prompt(token_ids, len(token_ids))
    return session.score(token_ids)


@hookimpl
def cmp_metrics(session: Session) -> Mapping[str, float]:
    """Return weights_bytes and kv_cache_bytes; with cuda also what the allocator holds and event times."""
    return session.metrics()


@hookimpl
def cmp_operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return the tokenizers library's tokenizer, a draw in torch, or a product of two float32 matrices."""
    from .operations import operation

    return operation(session, kind, parameters)


@hookimpl
def cmp_profile(session: Session, token_ids: Sequence[int], n_tokens: int) -> Mapping[str, float]:
    """Return seconds per component; they sum to the whole."""
    from .profile import profile

    session.check_prompt(token_ids, len(token_ids) + n_tokens)
    return profile(session, token_ids, n_tokens)


@hookimpl
def cmp_reset(session: Session) -> None:
    """Empty the KV cache."""
    session.reset()


@hookimpl
def cmp_unload(session: Session) -> None:
    """Free weights and cache."""
    session.close()


def _read_dtype(options: LoadOptions) -> str:
    """Return the compute dtype: the option's, or float32 where numerics are exact."""
    for key in options.extra:
        if key != "dtype":
            msg = f"{ENGINE}: expected the option dtype, came '{key}'{did_you_mean(key, ['dtype'])}"
            raise UnknownOption(msg)
    dtype = options.extra.get("dtype", "float32")
    if dtype not in DTYPES:
        msg = f"{ENGINE}: expected dtype {', '.join(DTYPES)}, came '{dtype}'{did_you_mean(dtype, DTYPES)}"
        raise UnknownOption(msg)
    return "float32" if options.numerics == "exact" else dtype


def _no_cuda_device() -> str | None:
    """Return why there is no CUDA device, or None when the driver counts at least one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 is not there"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no device"
    return None
