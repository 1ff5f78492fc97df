"""One operation of an engine by itself, from a tokenizer to a whole layer. Many calls between two clock readings.

Every sample's answer is proven by the host: ids and text against the reference tokenizer, greedy choices against the
engine's own first token, what is computed against numpy in float64, and what a plugin brought by the judge that it
brought.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from enginecmp import clock
from enginecmp.format.flags import DISTURBED, Flag
from enginecmp.format.phases import Phase
from enginecmp.format.records import Sample
from enginecmp.launch.launch import LaunchFailure
from enginecmp.measure import exact
from enginecmp.measure.judged import JudgeError
from enginecmp.measure.operand_sizes import LEAST_NS, matrix_shape
from enginecmp.operands import matrices
from enginecmp.scenarios.variants import Elementwise, Matmul, Sampling, Tokenize, TransformerLayer
from enginecmp.telemetry.contention import CellWindow
from enginecmp.types import NO_ID, Given

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from enginecmp.measure.task import Task

MATMUL_TOLERANCE = 1e-3
"""Largest deviation of a product from float64, as a share of its largest element."""

ELEMENTWISE_TOLERANCE = 1e-4
"""The same of an element-wise function, which has no long sums."""

LAYER_TOLERANCE = 1e-3
"""The same of a layer. A cache in float16 stays inside it: it rounds keys and values by 2^-11 at most."""

Prove = Callable[[Any], tuple[str, str]]
"""Judges an answer: (flag, what is wrong), both empty when it is right; with a flag the sample is left out by rule,
without one it is an error."""


class Found(NamedTuple):
    """What came of proving an answer.

    Attributes:
        flag: see `Prove`.
        wrong: likewise.
        metrics: that a judge tells of the sample.
        cpu_seconds: that the judge took.
    """

    flag: str
    wrong: str
    metrics: Mapping[str, float] = {}
    cpu_seconds: float = 0.0


Judging = Callable[[Mapping[str, Any], float], Found]
"""Judges the worker's answer to `operation`, given the seconds of one call."""


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
    parameters, amount, judging = _prepared(task, scenario.variants[at.cell.variant])
    prepared = launch.call(
        "prepare_operation",
        scenario.deadlines.prefill_seconds,
        kind=scenario.operation,
        parameters=parameters,
        least_ns=LEAST_NS,
        driver=scenario.measure.driver if scenario.measure else "",
    )
    if prepared is None:
        msg = f"{launch.label}: does not offer {scenario.operation} by itself with {at.cell.variant}"
        task.keep(at.sample(start_ns=at.start_ns, end_ns=clock.now_ns(), status="error", error=msg))
        return
    calls = prepared["calls"]
    at.enter(at.cell, "warmup")
    for _ in range(scenario.warmup_requests):
        task.keep(_sample(task, calls, amount, judging)[0])
        at.index += 1
    at.enter(at.cell, "measure")
    began_ns, window = clock.now_ns(), CellWindow()
    samples: list[Sample] = []
    judge_seconds = 0.0
    wanted, replacements = scenario.requests_in(at.cell), scenario.replacement_requests
    try:
        while at.index < wanted:
            sample, spent = _sample(task, calls, amount, judging)
            samples.append(sample)
            judge_seconds += spent
            at.index += 1
            if replacements and not set(DISTURBED).isdisjoint(samples[-1].flags):
                replacements -= 1
                wanted += 1
    finally:
        # A sample of a millisecond is too short for the counters: what disturbed the cell is told of all of it.
        engines = ("process_cpu_seconds", "engine_cpu_seconds")
        own = judge_seconds + sum(sample.metrics.get(name, 0.0) for sample in samples for name in engines)
        found = window.metrics(own)
        flags = scenario.validity.flags(found, (clock.now_ns() - began_ns) / 1e9)
        for sample in samples:
            sample.flags = list(dict.fromkeys([*sample.flags, *flags]))
            sample.metrics |= found
            task.keep(sample)


def _sample(task: Task, calls: int, amount: int, judging: Judging) -> tuple[Sample, float]:
    """Measure once, prove the answer and return the sample, and the processor time that a judge took.

    Raises:
        LaunchFailure: the answer was wrong; every further one would be.
    """
    scenario, at, launch = task.scenario, task.at, task.launch
    at.start_ns = clock.now_ns()
    answer = launch.call("operation", scenario.deadlines.decode_seconds, calls=calls)
    start_ns, end_ns = answer["start_ns"], answer["end_ns"]
    metrics: dict[str, float] = answer["metrics"]
    flags = scenario.validity.flags(metrics, (end_ns - start_ns) / 1e9) + task.conditions(start_ns, end_ns)
    seconds = (end_ns - start_ns) / 1e9 / calls
    found = judging(answer, seconds)
    flags += [found.flag] if found.flag else []
    if found.wrong and not found.flag:
        msg = f"{launch.label}: {scenario.operation} ({at.cell.variant}): {found.wrong}"
        raise LaunchFailure(msg, status="error", phase=Phase.DECODE)
    sample = at.sample(
        start_ns=start_ns,
        end_ns=end_ns,
        status="ok",
        prompt_tokens=amount,
        flags=flags,
        metrics={"calls": float(calls), "operation_seconds": seconds, **metrics, **found.metrics},
    )
    return sample, found.cpu_seconds


def _prepared(task: Task, variant: Mapping[str, Any]) -> tuple[Mapping[str, Any], int, Judging]:
    """Return the parameters, tokens or rows per call, and what judges an answer.

    Raises:
        LaunchFailure: a plugin's judge does not ask.
    """
    if task.judge is None:
        parameters, amount, prove = _PREPARERS[task.scenario.operation](task, variant)
        return parameters, amount, lambda answer, _seconds: Found(*prove(answer["result"]))
    judge, cell = task.judge, task.at.cell
    key = f"{task.scenario.cells.index(cell)}"
    given = Given(
        seed=task.seed,
        token_ids=task.prompts.take(cell.prompt_tokens, key=task.scenario.cells.index(cell), seed=task.seed),
        output_tokens=cell.output_tokens,
        model=task.model if task.scenario.needs_model else None,
    )

    def judging(answer: Mapping[str, Any], seconds: float) -> Found:
        start_ns = answer["start_ns"]
        marks = [(mark - start_ns) / 1e9 for mark in answer.get("marks_ns", ())]
        try:
            judgement, cpu_seconds = judge.judge(key, answer["result"], seconds, marks)
        except JudgeError as error:
            return Found("", str(error))
        return Found("", judgement.wrong, judgement.metrics, cpu_seconds)

    try:
        question = judge.question(key, variant, given)
    except JudgeError as error:
        msg = f"{task.launch.label}: {error}"
        raise LaunchFailure(msg, status="error", phase=Phase.PREPARE) from error
    return question.parameters, question.amount, judging


def _tokenize(task: Task, variant: Mapping[str, Any]) -> tuple[dict[str, Any], int, Prove]:
    """Return the parameters, tokens per call and proof of turning a prompt into ids, or back."""
    tokenizer = task.prompts.tokenizer
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
        return ("", "") if answer == expected else (Flag.TOKENS_DIFFER, "not what the reference tokenizer says")

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
        elif not answer["ids"]:
            msg = f"{task.launch.label}: expected the first token of a prompt, got none"
        else:
            msg = ""
        if msg:
            raise LaunchFailure(msg, status="error", phase=Phase.PREPARE)
        expected = answer["ids"][0]
    vocabulary = task.model.vocabulary

    def prove(answer: Any) -> tuple[str, str]:
        if not isinstance(answer, int) or not 0 <= answer < vocabulary:
            return "", f"expected an id in [0, {vocabulary}), got {answer!r}"
        if expected != NO_ID and answer != expected:
            return "", f"expected the most likely id {expected}, got {answer}"
        return "", ""

    return {"token_ids": list(token_ids), "seed": task.seed, **msgspec.to_builtins(settings)}, 1, prove


def _matmul(task: Task, variant: Mapping[str, Any]) -> tuple[dict[str, Any], int, Prove]:
    """Return the parameters, rows per call and proof of a product in one of the model's own shapes."""
    settings = msgspec.convert(variant, Matmul)
    inner, columns = matrix_shape(settings.layer, task.model.path)
    size = {"rows": settings.rows, "inner": inner, "columns": columns, "seed": task.seed}
    prove = _near("product", exact.product(*matrices(**size)), MATMUL_TOLERANCE)
    return {**size, "method": settings.method}, settings.rows, prove


def _elementwise(task: Task, variant: Mapping[str, Any]) -> tuple[dict[str, Any], int, Prove]:
    """Return the parameters, rows per call and proof of one of the functions between the products."""
    settings = msgspec.convert(variant, Elementwise)
    parameters = {**msgspec.to_builtins(settings), "seed": task.seed}
    prove = _near(settings.function, exact.elementwise(parameters), ELEMENTWISE_TOLERANCE)
    return parameters, settings.rows, prove


def _layer(task: Task, variant: Mapping[str, Any]) -> tuple[dict[str, Any], int, Prove]:
    """Return the parameters, rows per call and proof of a transformer layer."""
    settings = msgspec.convert(variant, TransformerLayer)
    parameters = {**msgspec.to_builtins(settings), "seed": task.seed}
    return parameters, settings.rows, _near("layer's output", exact.layer(parameters), LAYER_TOLERANCE)


def _near(what: str, wanted: NDArray[np.float64], tolerance: float) -> Prove:
    """Return a proof that an array is the wanted one, to a share of that one's largest element."""

    def prove(answer: Any) -> tuple[str, str]:
        import numpy as np

        if not isinstance(answer, dict) or tuple(answer["shape"] or ()) != wanted.shape:
            return "", f"expected the {what} in shape {wanted.shape}"
        got = np.frombuffer(answer["data"], np.float32).reshape(wanted.shape)
        worst = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        if not worst <= tolerance:  # a NaN is worse than any number
            return "", f"the {what} is off by {worst:.2g} of its largest element, more than {tolerance:g}"
        return "", ""

    return prove


_PREPARERS = {
    "tokenize": _tokenize,
    "sampling": _sampling,
    "matmul": _matmul,
    "elementwise": _elementwise,
    "layer": _layer,
}
