"""One operation of an engine by itself: tokenize, sampling, matmul. Many calls between two readings of the clock.

Every sample's answer is proven by the host: ids and text against the reference tokenizer, greedy choices against the
engine's own first token, products against numpy in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp import clock
from enginecmp.errors import UsageError
from enginecmp.launch import LaunchFailure
from enginecmp.scenarios.variants import Layer, Matmul, Sampling, Tokenize
from enginecmp.telemetry.contention import DISTURBED
from enginecmp.types import NO_ID

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from enginecmp.kinds.task import Task

LEAST_NS = 1_000_000
"""Calls between two readings of the clock go on for at least this long."""

MATMUL_TOLERANCE = 1e-3
"""Largest deviation of a product from float64, as a share of its largest element."""

Prove = Callable[[Any], tuple[str, str]]
"""Judges an answer: (flag, what is wrong), both empty when it is right; with a flag the sample is left out by rule,
without one it is an error."""


def matrices(rows: int, inner: int, columns: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two float32 matrices of standard normal values, (rows, inner) and (inner, columns).

    Args:
        rows: of the left one; tokens of a batch.
        inner: what is summed over.
        columns: of the right one; outputs of a layer.
        seed: the same one gives the same matrices, in every engine and on every machine.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    left = random.standard_normal((rows, inner), dtype=np.float32)
    return left, random.standard_normal((inner, columns), dtype=np.float32)


def measure(task: Task) -> None:
    """Prepare one variant of the operation, warm up, then measure it.

    An engine that does not offer the variant leaves one error sample; its launch goes on.

    Raises:
        LaunchFailure: the engine crashed or hung, or its answers were wrong several times in a row.
    """
    scenario, at, launch = task.scenario, task.at, task.launch
    at.enter(at.cell, "measure")
    at.start_ns = clock.now_ns()
    assert at.cell.variant
    parameters, amount, prove = _PREPARERS[scenario.operation](task, scenario.variants[at.cell.variant])
    prepared = launch.call(
        "prepare_operation",
        scenario.deadlines.prefill_seconds,
        kind=scenario.operation,
        parameters=parameters,
        least_ns=LEAST_NS,
    )
    if prepared is None:
        msg = f"{launch.label}: does not offer {scenario.operation} by itself with {at.cell.variant}"
        task.keep(at.sample(start_ns=at.start_ns, end_ns=clock.now_ns(), status="error", error=msg))
        return
    calls = prepared["calls"]
    at.enter(at.cell, "warmup")
    for _ in range(scenario.warmup_requests):
        _sample(task, calls, amount, prove)
        at.index += 1
    at.enter(at.cell, "measure")
    wanted, spare = scenario.requests_in(at.cell), scenario.spare_requests
    while at.index < wanted:
        flags = _sample(task, calls, amount, prove)
        at.index += 1
        if spare and not set(DISTURBED).isdisjoint(flags):
            spare -= 1
            wanted += 1


def _sample(task: Task, calls: int, amount: int, prove: Prove) -> list[str]:
    """Measure once, prove the answer, keep the sample and return its flags.

    Raises:
        LaunchFailure: the answer was wrong; every further one would be.
    """
    scenario, at, launch = task.scenario, task.at, task.launch
    at.start_ns = clock.now_ns()
    answer = launch.call("operation", scenario.deadlines.decode_seconds, calls=calls)
    start_ns, end_ns = answer["start_ns"], answer["end_ns"]
    metrics: dict[str, float] = answer["metrics"]
    flags = scenario.validity.flags(metrics, (end_ns - start_ns) / 1e9) + task.conditions(start_ns, end_ns)
    flag, wrong = prove(answer["result"])
    flags += [flag] if flag else []
    if wrong and not flag:
        msg = f"{launch.label}: {scenario.operation} ({at.cell.variant}): {wrong}"
        raise LaunchFailure(msg, status="error", phase=at.phase)
    task.keep(
        at.sample(
            start_ns=start_ns,
            end_ns=end_ns,
            status="ok",
            prompt_tokens=amount,
            flags=flags,
            metrics={"calls": float(calls), "operation_seconds": (end_ns - start_ns) / 1e9 / calls, **metrics},
        )
    )
    return flags


def _tokenize(task: Task, variant: Mapping[str, Any]) -> tuple[dict[str, Any], int, Prove]:
    """Return the parameters, tokens per call and proof of turning a prompt into ids, or back."""
    from enginecmp.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(task.model.path)
    token_ids = list(task.prompt(0))
    if tokenizer.bos_id is not None:
        token_ids = token_ids[1:]  # no special ids are asked for
    text = tokenizer.decode(token_ids)
    if msgspec.convert(variant, Tokenize).direction == "encode":
        parameters: dict[str, Any] = {"direction": "encode", "text": text}
        expected: Any = token_ids
    else:
        parameters = {"direction": "decode", "token_ids": token_ids}
        expected = text

    def prove(answer: Any) -> tuple[str, str]:
        return ("", "") if answer == expected else ("tokens_differ", "not what the reference tokenizer says")

    return parameters, len(token_ids), prove


def _sampling(task: Task, variant: Mapping[str, Any]) -> tuple[dict[str, Any], int, Prove]:
    """Return the parameters and proof of drawing one id after a prompt.

    The engine's own first token of the same prompt is what a greedy draw must give; where the engine hands out text
    only, a draw is held to the vocabulary.
    """
    token_ids = task.prompt(0)
    settings = msgspec.convert(variant, Sampling)
    expected = NO_ID
    if settings.temperature == 0 or settings.top_k == 1:
        answer = task.launch.request(token_ids, 1, task.scenario.deadlines)
        if answer["error"] is not None:
            msg = f"{task.launch.label}: {answer['error']['message']}"
            raise LaunchFailure(msg, status="error", phase="prepare")
        expected = answer["ids"][0]
    vocabulary = task.model.vocabulary

    def prove(answer: Any) -> tuple[str, str]:
        if not isinstance(answer, int) or not 0 <= answer < vocabulary:
            return "", f"expected an id in [0, {vocabulary}), came {answer!r}"
        if expected != NO_ID and answer != expected:
            return "", f"expected the most likely id {expected}, came {answer}"
        return "", ""

    return {"token_ids": list(token_ids), "seed": task.seed, **msgspec.to_builtins(settings)}, 1, prove


def _matmul(task: Task, variant: Mapping[str, Any]) -> tuple[dict[str, Any], int, Prove]:
    """Return the parameters, rows per call and proof of a product in one of the model's own shapes."""
    settings = msgspec.convert(variant, Matmul)
    inner, columns = matrix_shape(settings.layer, task.model.path)
    size = {"rows": settings.rows, "inner": inner, "columns": columns, "seed": task.seed}
    wanted = _exact_product(*matrices(**size))

    def prove(answer: Any) -> tuple[str, str]:
        import numpy as np

        if not isinstance(answer, dict) or tuple(answer["shape"]) != wanted.shape:
            return "", f"expected a product of shape {wanted.shape}"
        came = np.frombuffer(answer["data"], np.float32).reshape(wanted.shape)
        worst = float(np.abs(came - wanted).max() / np.abs(wanted).max())
        if not worst <= MATMUL_TOLERANCE:  # a NaN is worse than any number
            return "", f"the product is off by {worst:.2g} of its largest element, more than {MATMUL_TOLERANCE:g}"
        return "", ""

    return {**size, "method": settings.method}, settings.rows, prove


_PREPARERS = {"tokenize": _tokenize, "sampling": _sampling, "matmul": _matmul}


def matrix_shape(layer: Layer, path: str) -> tuple[int, int]:
    """Return (inner, columns) of one of a model's weight matrices.

    Args:
        layer: which one; keys and values count as one matrix.
        path: the weights file.

    Raises:
        UsageError: the file does not tell.
    """
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.models.info import shape_of, vocabulary_of

    file = read_gguf(path)
    shape = shape_of(file)
    inner, columns = {
        "attn_q": (shape.hidden, shape.heads * shape.head_dim),
        "attn_kv": (shape.hidden, shape.kv_heads * (shape.head_dim + shape.value_dim)),
        "attn_output": (shape.heads * shape.value_dim, shape.hidden),
        "ffn_up": (shape.hidden, shape.feed_forward),
        "ffn_down": (shape.feed_forward, shape.hidden),
        "lm_head": (shape.hidden, vocabulary_of(file)),
    }[layer]
    if not inner or not columns:
        msg = f"{path}: expected the shape of {layer} in the file's metadata, it does not tell; leave that variant out"
        raise UsageError(msg)
    return inner, columns


def _exact_product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the product in float64, a few columns at a time: a head's matrix would double its size at once."""
    import numpy as np

    parts = [
        left.astype(np.float64) @ right[:, start : start + 4096].astype(np.float64)
        for start in range(0, right.shape[1], 4096)
    ]
    return np.concatenate(parts, axis=1)
