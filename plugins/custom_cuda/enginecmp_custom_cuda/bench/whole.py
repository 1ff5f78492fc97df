"""Whole tiny models on the device: logits against the float64 oracle, and the same ids by every way of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from enginecmp import GGUFFile, LoadOptions, ModelInfo, read_gguf

from ..device import Device
from ..engine.decode import DecodeSettings
from ..engine.session import SLOT, Session
from ..options import read_settings
from ..oracle import dp4a, reference
from .context import Context, Skip
from .lab import mean_kl, tiny_model

MODELS = tuple((architecture, kind) for architecture in ("llama", "qwen2", "phi3") for kind in ("F32", "Q8_0"))
DRY_MODELS = (("llama", "F32"), ("llama", "Q8_0"))

CONTEXT = 256
EXACT_KL = 1e-8
"""Of the gate that every engine passes with float32 weights."""

ROUNDED_KL = 2e-3
"""Activations in 8 bits, keys and values in 16, against the same arithmetic in float64, where neighbours differ."""

LIBRARY_KL = 1e-2
"""Weights and activations of prompts in bfloat16, against float64 with nothing rounded."""

NEAR = {True: 1e-3, False: 0.05}
"""Two ids whose logits are as close may come in either order; exact numerics and default ones."""


def check(
    context: Context,
    device: Device,
    models: Sequence[tuple[str, str]] | None = None,
    tokens: int = 90,
    output: int = 24,
) -> None:
    """Check every model.

    Args:
        context: of the part.
        device: open already; sessions open it once more.
        models: architectures and kinds; all when not given.
        tokens: of the prompt.
        output: ids to generate.
    """
    if context.dry:
        tokens, output = 20, 6
    chosen = models or (DRY_MODELS if context.dry else MODELS)
    for architecture, kind in chosen:
        what = f"{architecture} {kind}"
        if context.enough(3, f"the whole model {what}"):
            with context.guarded(f"whole {what}"):
                one_model(context, device.kind, architecture, kind, tokens, output)
    # Last, because its blocks wait for one another: a fault in it may cost the device.
    for architecture, kind in chosen:
        if context.enough(2, f"the resident kernel, {architecture} {kind}"):
            with context.guarded(f"resident kernel, {architecture} {kind}"):
                resident_kernel(context, device.kind, architecture, kind, tokens, output)


def one_model(context: Context, device: str, architecture: str, kind: str, tokens: int, output: int) -> None:
    """Check one model; float32 files with exact numerics, others with the defaults."""
    info = tiny_model(context.folder, architecture, kind)
    file = read_gguf(info.path)
    # A test of the checks: the device gets other weights than the oracle.
    given = tiny_model(context.folder, architecture, kind, seed=1) if context.plant == "wrong" else info
    exact = kind == "F32"
    what = {"model": f"{architecture} {kind}"}
    session = load(given, device, exact, gemm="own")
    try:
        ids = prompt(session, tokens)
        logits = session.score(ids)
        kl = mean_kl(oracle(file, ids, exact), logits)
        limit = EXACT_KL if exact else ROUNDED_KL
        context.check("logits", what, kl <= limit, f"mean KL {kl:.1e}, at most {limit:.0e}")
        same = np.array_equal(logits, session.score(ids))
        context.check("logits again, to the bit", what, same)
        compare_ways(context, session, file, ids, output, exact, what)
    finally:
        session.close()
    if device == "cuda" and not exact:
        with context.guarded(f"cuBLASLt, {what['model']}"):
            library_prompts(context, given, file, ids, what)


def library_prompts(context: Context, model: ModelInfo, file: GGUFFile, ids: list[int], what: dict[str, str]) -> None:
    """Check a prompt whose products the library computes in bfloat16."""
    session = load(model, "cuda", False, gemm="cublaslt")
    try:
        kl = mean_kl(reference.logits(file, ids, CONTEXT), session.score(ids))
        context.check("logits, cuBLASLt", what, kl <= LIBRARY_KL, f"mean KL {kl:.1e}, at most {LIBRARY_KL:.0e}")
    finally:
        session.close()


def compare_ways(
    context: Context,
    session: Session,
    file: GGUFFile,
    ids: list[int],
    output: int,
    exact: bool,
    what: dict[str, str],
) -> None:
    """Check that every way of decoding hands out the same greedy ids, and again the same."""
    steps = generate(session, ids, output)
    expected = [int(np.argmax(oracle(file, ids, exact)[-1]))]
    detail = differ(file, ids, steps[:1], expected, exact)
    context.check("first id", what, not detail, detail)
    context.check("ids again", what, generate(session, ids, output) == steps)
    detail = differ(file, ids, by_prompt_kernels(session, ids, output), steps, exact)
    context.check("ids, prompt kernels token by token", what, not detail, detail)


def resident_kernel(context: Context, device: str, architecture: str, kind: str, tokens: int, output: int) -> None:
    """Check that the resident kernel hands out the ids of steps, and again the same.

    Raises:
        Skip: the model and the device do not suit it.
    """
    info, exact = tiny_model(context.folder, architecture, kind), kind == "F32"
    what = {"model": f"{architecture} {kind}"}
    session = load(info, device, exact)
    try:
        ids = prompt(session, tokens)
        found = by_resident_kernel(session, ids, output)
        detail = differ(read_gguf(info.path), ids, found, generate(session, ids, output), exact)
        context.check("ids, resident kernel", what, not detail, detail)
        context.check("ids again, resident kernel", what, by_resident_kernel(session, ids, output) == found)
    finally:
        session.close()


def prompt(session: Session, tokens: int) -> list[int]:
    """Return the ids that a model is asked with."""
    return [int(each) for each in np.random.default_rng(6).integers(0, session.config.vocabulary, tokens)]


def load(model: ModelInfo, device: str, exact: bool, **extra: str) -> Session:
    """Return a session."""
    numerics: Literal["exact", "default"] = "exact" if exact else "default"
    options = LoadOptions(device=device, context_tokens=CONTEXT, numerics=numerics, extra=extra)
    return Session(model, options, read_settings(options))


def oracle(file: GGUFFile, ids: list[int], exact: bool) -> NDArray[np.float64]:
    """Return the logits that the session should compute, (T, vocabulary)."""
    if exact:
        return reference.logits(file, ids, CONTEXT)
    return reference.forward(file, ids, CONTEXT, dp4a.linear, reference.as_float16).logits


def generate(session: Session, ids: list[int], output: int) -> list[int]:
    """Return greedy ids by steps, as the engine hands them out."""
    first = session.prefill(ids, output)
    found = [first, *session.decode(output - 1)]
    session.reset()
    return found


def by_prompt_kernels(session: Session, ids: list[int], output: int) -> list[int]:
    """Return greedy ids where every token goes through the kernels of prompts, alone."""
    session.begin_alone(len(ids) + output)
    found = [int(session.prefiller.score(ids, SLOT)[-1].argmax())]
    for position in range(len(ids), len(ids) + output - 1):
        found.append(int(session.prefiller.score([found[-1]], SLOT, position)[-1].argmax()))
    session.reset()
    return found


def by_resident_kernel(session: Session, ids: list[int], output: int) -> list[int]:
    """Return greedy ids by the resident kernel.

    Raises:
        Skip: the model and the device do not suit it.
    """
    from ..persistent.plan import misfit
    from ..persistent.run import PersistentDecoder

    settings = session.settings
    decoding = DecodeSettings(positions=CONTEXT, kv=settings.kv, exact=settings.precise, overlap=settings.overlap)
    if reason := misfit(session.device, session.model, decoding):
        raise Skip(reason)
    decoder = PersistentDecoder(session.device, session.model, decoding, session.cache)
    try:
        session.begin_alone(len(ids) + output)
        decoder.begin(len(ids) - 1, session.run_prompt(ids))
        found = [decoder.buffers.ring.wait(0)]
        while len(found) < output:
            found += decoder.run(min(8, output - len(found)))
        return found
    finally:
        session.reset()
        decoder.close()


def differ(file: GGUFFile, ids: list[int], found: list[int], expected: list[int], exact: bool) -> str:
    """Return how two lists of ids differ, "" where they do not.

    Where they part, both ids may be right: if the oracle finds their logits as good as equal.
    """
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one == other:
            continue
        logits: Any = oracle(file, [*ids, *expected[:place]], exact)[-1]
        if not (0 <= one < len(logits) and 0 <= other < len(logits)):
            return f"id {place} is {one}, expected {other}"
        margin = abs(float(logits[one] - logits[other]))
        return "" if margin <= NEAR[exact] else f"id {place} is {one}, expected {other}, logits {margin:.2g} apart"
    return ""
