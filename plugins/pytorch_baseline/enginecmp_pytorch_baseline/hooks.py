"""The engine's hooks (docs/hooks.md). torch is imported by `cmp_load`, never by this module."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from enginecmp import Decoding, EngineError, EngineInfo, LoadOptions, ModelInfo, Probe, hookimpl
from enginecmp.plugin_tools.engine_options import EngineOptions

from .config import ARCHITECTURES, ENGINE, QUANTIZATIONS, read_config

if TYPE_CHECKING:
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
        operations=("tokenize", "sampling", "matmul", "elementwise", "layer", "profile"),
        decoding=("sampling", "end_of_sequence"),
        option_names=("dtype",),
        limits=(
            "every weight is dequantized to the compute dtype: a float32 run reads 4 bytes a weight at each token, "
            "whatever the file holds",
            "no batching of its own: requests run one after the other",
        ),
        reads_split_models=True,
        homepage="https://pytorch.org",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether torch and the device are here; torch is imported only when a CUDA device answers."""
    if importlib.util.find_spec("torch") is None:
        return Probe(ok=False, reason="the Python package torch is not installed", fix=_INSTALL)
    if options.device not in DEVICES:
        return Probe(ok=False, reason=f"device '{options.device}' is not one of {', '.join(DEVICES)}")
    if options.device == "cpu":
        return Probe(ok=True)
    reason = _no_cuda_device()
    if reason is not None:
        return Probe(ok=False, reason=reason, fix="run with --device cpu")
    import torch

    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} cannot use this CUDA device (built for CUDA {torch.version.cuda})"
        return Probe(ok=False, reason=reason, fix="install a torch built for this driver: https://pytorch.org")
    return Probe(ok=True)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Dequantize a model into an eager module and return a session."""
    dtype_name = _read_dtype(options)
    if options.device not in DEVICES:
        msg = f"{ENGINE}: expected a device among {', '.join(DEVICES)}, got '{options.device}'; pass --device cpu"
        raise EngineError(msg)

    from enginecmp import read_gguf

    begun = time.perf_counter()
    file = read_gguf(model.path)
    config = read_config(file, options.context_tokens)
    parsed = time.perf_counter()

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
    limit, fix = config.position_limit(options.context_tokens)
    ready = time.perf_counter()
    loaded = load_model(file, config, limit, device, getattr(torch, dtype_name))
    mapped = time.perf_counter()
    session = Session(loaded, device, limit, fix, model.path, options.threads)
    session.synchronize()
    # What is neither header nor weights: importing torch above all.
    init = (ready - parsed) + (time.perf_counter() - mapped)
    session.load_phases = {
        "load_parse_seconds": parsed - begun,
        "load_map_seconds": mapped - ready,
        "load_init_seconds": init,
    }
    return session


@hookimpl
def cmp_decoding(session: Session, decoding: Decoding) -> None:
    """Draw ids in torch; a request that may end is over when the worker sees its last id."""
    session.decode_by(decoding)


@hookimpl
def cmp_operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return the tokenizers library's tokenizer, a draw in torch, or a product of two float32 matrices."""
    from .operations import operation

    return operation(session, kind, parameters)


@hookimpl
def cmp_denoise(
    session: Session, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
) -> Iterator[Sequence[tuple[int, int, int]]]:
    """Yield what each denoising step commits: one forward pass over all sequences a step, no cache."""
    return session.denoise(token_ids, output_tokens, steps, block_tokens)


@hookimpl
def cmp_profile(session: Session, token_ids: Sequence[int], n_tokens: int) -> Mapping[str, float]:
    """Return seconds per component; they sum to the whole."""
    from .profile import profile

    session.check_prompt(token_ids, len(token_ids) + n_tokens)
    return profile(session, token_ids, n_tokens)


def _read_dtype(options: LoadOptions) -> str:
    """Return the compute dtype: the option's, or float32 where numerics are exact."""
    dtype = EngineOptions(ENGINE, options, ["dtype"]).choice("dtype", DTYPES)
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
