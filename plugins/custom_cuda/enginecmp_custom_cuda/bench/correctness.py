"""The part "correctness": on the device itself, every kernel and whole models against the oracle.

A check that fails is written down and the next one runs; the parent shows it in capitals and ends with code 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from ..compiling import build
from ..device import Device
from ..engine.cublaslt import Expand
from ..engine.decode import defines
from ..engine.gemm import ACTIVATION_BYTES, TENSOR_CORES, Activation, Activations, TileMultiplier, ceil_div
from ..engine.params import matrix_of
from ..engine.prefill_params import Finish, FinishKind, Rows
from ..engine.sampling import Sampler, Strategy
from ..oracle import dp4a, reference
from ..oracle import sampling as drawing
from ..weights.kinds import decode, encode
from . import steps, whole
from .context import Context
from .lab import EXACT_TOLERANCE, Lab, distance

DEFINES = {"KV": "KV_F16", "HEAD_DIM": "16"}
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")

SIZES = ((1, 72, 96), (16, 70, 512), (33, 128, 544), (130, 136, 1088), (300, 384, 2048))
"""Tokens, rows and columns: edges of tiles, of chunks and of splits."""

STAGES = ("gemm", "norms", "expand", "sampling", "steps", "whole")


def run(context: Context) -> None:
    """Check everything, the whole models last."""
    with context.device() as device:
        if context.small:  # under a tool that makes everything slow
            whole.check(context, device, (("llama", "Q8_0"),), tokens=20, output=6)
            return
        if context.plant:  # the fault is in the models
            whole.check(context, device)
            return
        for name, stage in (
            ("gemm", gemms),
            ("norms", norms),
            ("expand", expand),
            ("sampling", sampling),
            ("steps", steps.check),
            ("whole", whole.check),
        ):
            if context.enough(2, f"the checks '{name}'"):
                with context.guarded(name):
                    stage(context, device)


def modules(ring: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the kernel files that the checks load, with their definitions; one that is missing costs time only."""
    tiny = int(DEFINES["HEAD_DIM"])
    for kind, exact in (("F32", True), ("Q8_0", False)):  # whole models
        kv = "f32" if exact else "f16"
        step, shape = defines(kind, exact, kv, tiny, 1), {"KV": f"KV_{kv.upper()}", "HEAD_DIM": str(tiny)}
        yield "persistent", step | {"RING": ring}
        yield "decode", step
        yield f"flash_{kv}", shape
        yield "prefill", shape | {"WEIGHT": f"WEIGHT_{kind}"}
        yield "gemm_f32" if exact else "gemm_mma", shape | {"WEIGHT": f"WEIGHT_{kind}"}
    for case in steps.CASES:
        yield "decode", defines(case.kind, case.exact, case.kv, case.shape["head_dim"], case.batch)
    for kind in TENSOR_CORES:
        yield "gemm_mma", DEFINES | {"WEIGHT": f"WEIGHT_{kind}"}
    for kind in KINDS:
        yield "gemm_f32", DEFINES | {"WEIGHT": f"WEIGHT_{kind}"}
    yield "prefill", DEFINES | {"WEIGHT": "WEIGHT_F32"}
    for kind in ("Q8_0", "Q4_0", "F16"):
        yield "expand", {"WEIGHT": f"WEIGHT_{kind}"}


def gemms(context: Context, device: Device) -> None:
    """Check the prefill's products: every kind with float32 activations, and on tensor cores."""
    random = np.random.default_rng(1)
    kinds = ("Q8_0",) if context.dry else KINDS
    ways: list[tuple[str, Activation]] = [(kind, TENSOR_CORES[kind]) for kind in kinds if kind in TENSOR_CORES]
    ways += [(kind, "f32") for kind in (("F32",) if context.dry else KINDS)]
    for kind, activation in ways:
        with context.guarded(f"gemm {kind} {activation}"):
            for tokens, rows, columns in SIZES[:2] if context.dry else SIZES:
                gemm(context, device, random, kind, activation, (tokens, rows, columns))


def gemm(
    context: Context,
    device: Device,
    random: np.random.Generator,
    kind: str,
    activation: Activation,
    size: tuple[int, int, int],
) -> None:
    """Check one product, (T, columns) times (rows, columns)."""
    tokens, rows, columns = size
    lab = Lab(device)
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    weights = random.standard_normal((rows, columns)).astype(np.float32)
    raw = encode(weights, kind)
    finisher = build(device, "prefill", {**DEFINES, "WEIGHT": "WEIGHT_F32"})
    multiplier = TileMultiplier(device, kind, activation, DEFINES, finisher)
    stride = ceil_div(tokens, 4) * 4
    given = Activations(lab.put(x, np.float32), 0, stride, tokens)
    if activation != "f32":
        out = lab.room(tokens * columns * ACTIVATION_BYTES[activation])
        scales = lab.room(columns // 32 * stride * 4)
        params = Rows(given.address, 0, out, scales, 0.0, columns, stride)
        device.launch(finisher.kernel(f"quantize_{activation}"), tokens, 128, 0, params)
        given = Activations(out, scales, stride, tokens)
    result = lab.room(tokens * rows * 4)
    partial = lab.room(multiplier.partial_bytes(rows, columns, tokens))
    finish = Finish(kind=FinishKind.STORE, out=result)
    for launch in multiplier.launches(lab.matrix(weights, kind), given, finish, partial):
        launch.launch()
    found = device.download(result, (tokens, rows), np.float32)
    shape, splits = multiplier.plan(rows, columns, tokens)
    lab.close()
    if activation == "s8":
        expected = dp4a.multiply(dp4a.quantize(x), raw, kind).sums
    else:
        expected = reference.linear(rounded(x, activation), decode(raw, kind))
    setting = {"kind": kind, "activation": activation, "size": "x".join(map(str, size))}
    setting |= {"kernel": shape.kernel, "splits": str(splits)}
    close(context, "gemm", setting, found, expected)


def rounded(x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], activation: str) -> np.ndarray:
    """Return activations as a product reads them."""
    if activation == "f16":
        return x.astype(np.float16).astype(np.float64)
    if activation == "bf16":  # nearest, ties to even
        bits = x.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def norms(context: Context, device: Device) -> None:
    """Check norms, in float32 and rounded to 8 bits."""
    random = np.random.default_rng(2)
    tokens, columns, epsilon, stride = 5, 2048, 1e-5, 8
    lab = Lab(device)
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    weight = random.standard_normal(columns).astype(np.float32)
    module = build(device, "prefill", {**DEFINES, "WEIGHT": "WEIGHT_F32"})
    out, scales = lab.room(tokens * columns * 4), lab.room(columns // 32 * stride * 4)
    params = Rows(lab.put(x, np.float32), lab.put(weight, np.float32), out, scales, epsilon, columns, stride)
    expected = reference.rms_norm(x, weight, epsilon)
    device.launch(module.kernel("norm_f32"), tokens, 128, 0, params)
    close(context, "norm_f32", {}, device.download(out, (tokens, columns), np.float32), expected)
    device.launch(module.kernel("norm_s8"), tokens, 128, 0, params)
    values = device.download(out, (tokens, columns), np.int8)
    factors = device.download(scales, (columns // 32, stride), np.float32)[:, :tokens].T  # (T, blocks)
    lab.close()
    right = dp4a.quantize(expected)
    close(context, "norm_s8, scales", {}, factors, right.scales)
    off = np.abs(values.astype(int) - right.values.astype(int))
    share = float((off > 0).mean())
    context.check("norm_s8, values", {}, bool(off.max() <= 1 and share < 0.01), f"{share:.1e} of them beside")


def expand(context: Context, device: Device) -> None:
    """Check the 16-bit copy of weights that a library multiplies: to the bit where 16 bits hold the weights."""
    random = np.random.default_rng(3)
    for kind, name in (("Q8_0", "bf16"),) if context.dry else product(("Q8_0", "Q4_0", "F16"), ("bf16", "f16")):
        lab = Lab(device)
        weights = random.standard_normal((70, 544)).astype(np.float32)
        matrix = lab.matrix(weights, kind)
        out = lab.room(weights.size * 2)
        kernel = build(device, "expand", {"WEIGHT": f"WEIGHT_{kind}"}).kernel(f"expand_{name}")
        params = Expand(w=matrix_of(matrix), out=out)
        device.launch(kernel, ceil_div(weights.size // 16, 128), 128, 0, params)
        bits = device.download(out, weights.shape, np.uint16)
        lab.close()
        found = bits.view(np.float16) if name == "f16" else (bits.astype(np.uint32) << 16).view(np.float32)
        close(context, "expand", {"kind": kind, "to": name}, found, rounded(decode(encode(weights, kind), kind), name))


def sampling(context: Context, device: Device) -> None:
    """Check draws: each is the oracle's, or as good as it to rounding."""
    random = np.random.default_rng(4)
    rows, vocabulary = 3, 613 if context.dry else 20011
    logits = (2 * random.standard_normal((rows, vocabulary))).astype(np.float32)
    lab = Lab(device)
    count, best = lab.put(np.arange(rows), np.int32), lab.put(np.zeros(rows), np.uint64)
    places = {"logits": lab.put(logits, np.float32), "position": lab.put(np.zeros(rows), np.int32)}
    sampler = Sampler(device, largest=best, count=count, best=best, rows=rows, vocabulary=vocabulary, **places)
    greedy = Strategy(temperature=0)
    for strategy in (
        greedy,
        Strategy(temperature=0.8, top_k=40, seed=7),
        Strategy(temperature=1.0, top_p=0.9, seed=8),
        Strategy(temperature=0.7, top_k=100, top_p=0.8, seed=9),
    ):
        for each in (greedy, strategy):  # a draw begins with the largest logit, as a step's head leaves it
            for launch in sampler.launches(each):
                launch.launch()
        found = 0xFFFFFFFF - (device.download(best, rows, np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.int64)
        short = [shortfall(logits[row], int(found[row]), strategy, row) for row in range(rows)]
        setting = {"temperature": strategy.temperature, "top_k": strategy.top_k, "top_p": strategy.top_p}
        context.check("sampling", setting, max(short) <= 1e-4, f"off by {max(short):.1e}")
    sampler.close()
    lab.close()


def shortfall(logits: np.ndarray, found: int, strategy: Strategy, step: int) -> float:
    """Return by how much an id's score with its noise falls short of the best one's; infinite where it may not come."""
    if not 0 <= found < len(logits):
        return float("inf")
    if strategy.temperature == 0:
        return float(logits.max() - logits[found]) if found == drawing.greedy(logits) else float("inf")
    scores = logits / np.float32(strategy.temperature)
    noisy = scores + drawing.gumbel(drawing.uniforms(strategy.seed, step, len(scores)))
    kept = np.where(drawing.candidates(scores, strategy.top_k, strategy.top_p), noisy, -np.inf)
    return float(kept.max() - kept[found])


def close(
    context: Context,
    name: str,
    setting: dict[str, str],
    found: np.ndarray,
    expected: np.ndarray,
    tolerance: float = EXACT_TOLERANCE,
) -> None:
    """Check that an array is what is expected."""
    error = distance(found, expected)
    context.check(name, setting, error <= tolerance, f"error {error:.1e}")
