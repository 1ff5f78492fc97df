"""The values that cross a boundary: hook arguments and results, and the results format.

Two groups, and nothing else, live here:

* what the host and an engine plugin hand to each other (`EngineInfo`, `Probe`, `ModelInfo`, `LoadOptions`,
  `Request`);
* results format version 1 (`Manifest`, `Sample` and their parts), which outside tools write and read too
  (docs/results-format.md).

This module imports only the standard library and msgspec, so an engine's worker process stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

SCHEMA = "enginecmp/1"
"""Value of `Manifest.schema` that this version writes and reads."""

NO_ID = -1
"""Yielded by an engine whose API hands out text, not token ids."""

ENDED = -2
"""From `cmp_step`, in a token's place: the request has all its tokens, but fewer pairs, as some held several."""

Device = Literal["cpu", "cuda", "metal", "vulkan", "rocm", "emulated"]
Numerics = Literal["default", "exact"]

UNTIMED_DEVICES = frozenset({"emulated"})
"""Devices that prove what is computed and not how fast: their engines go through the gate and are never timed."""

Arrival = Literal["constant", "poisson", "gamma", "trace"]
Phase = Literal["load", "warmup", "measure"]
Status = Literal["ok", "error", "timeout", "crash"]
RunStatus = Literal["running", "complete", "interrupted"]


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Static facts of one engine, answered without importing anything native.

    Attributes:
        name: how the engine is called on the command line: lower case, digits, `_`.
        version: version of the wrapped engine (not of the plugin), e.g. "0.3.36".
        licence: SPDX expression of the wrapped engine.
        devices: devices it can run on, its default first, e.g. ("cpu", "cuda").
        architectures: GGUF `general.architecture` values it can load.
        quantizations: GGUF tensor types it can load, e.g. ("F32", "Q8_0"); must name "F32" to be proven exact.
        max_concurrency: most requests it can hold in flight at once, through `cmp_submit` and `cmp_step`; 1 means one
            after the other, and that several wait for each other in front of it.
        environment: variables set before the worker's interpreter starts; "{threads}" is replaced by the
            thread count. Native libraries read these once, at import.
        exact_environment: variables added when numerics are "exact" (float32 KV cache and the like).
        tuned: what "tuned" means for this engine, in one sentence.
        tunables: option → values that `cmp tune` tries, the default first, e.g. {"flash_attn": ("auto", "off")}.
            The option "threads" is `LoadOptions.threads`, every other one a key of `LoadOptions.extra`;
            "DEVICE:OPTION" is for that device alone. "{cores}" is replaced by the number of usable cores,
            "{half_cores}" by half of it, and threads "auto" by what `cmp run` takes without `--threads`.
        operations: what it offers by itself: "tokenize", "sampling", "matmul" (`cmp_operation`), "profile"
            (`cmp_profile`). Scenarios of the others leave it out.
        limits: what its API gives less than the hooks ask, one sentence each; copied into every result.
        homepage: where the wrapped engine lives; may be empty.
    """

    name: str
    version: str
    licence: str
    devices: tuple[str, ...]
    architectures: tuple[str, ...]
    quantizations: tuple[str, ...]
    max_concurrency: int = 1
    environment: Mapping[str, str] = {}
    exact_environment: Mapping[str, str] = {}
    tuned: str = ""
    tunables: Mapping[str, tuple[str, ...]] = {}
    operations: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    homepage: str = ""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine can run here.

    Attributes:
        ok: it can.
        reason: why not, in one sentence; empty when ok.
        mend: the command or step that makes it run; empty when ok or when there is none.
    """

    ok: bool
    reason: str = ""
    mend: str = ""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One weights file, known by its content.

    Attributes:
        name: how people call it, e.g. "smollm2-135m-instruct:q8_0".
        path: absolute path of the GGUF file.
        sha256: hexadecimal SHA-256 of the file.
        architecture: GGUF `general.architecture`.
        parameters: number of weights in all tensors.
        quantization: the tensor type that holds most of the weights, e.g. "Q8_0".
        bytes: size of the file.
        context_tokens: longest context the model was made for.
        vocabulary: number of token ids.
    """

    name: str
    path: str
    sha256: str
    architecture: str
    parameters: int
    quantization: str
    bytes: int
    context_tokens: int
    vocabulary: int


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the host asks of an engine when it loads a model.

    Attributes:
        device: one of the engine's `EngineInfo.devices`.
        threads: compute threads to use, >= 1 (also present in the environment, see `EngineInfo.environment`).
        context_tokens: prompt plus output tokens that the longest request needs.
        max_sequences: most sequences in flight at once (`cmp_submit`).
        numerics: "default" is what a user of the engine gets; "exact" asks for float32 everywhere the engine
            offers it (KV cache, activations) and plain attention, for the equivalence gate on the F32 file.
        extra: engine-specific options from `cmp run -o ENGINE.KEY=VALUE`; unknown keys must be refused
            with `UnknownOption`.
    """

    device: str = "cpu"
    threads: int = 1
    context_tokens: int = 2048
    max_sequences: int = 1
    numerics: Numerics = "default"
    extra: Mapping[str, str] = {}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt in, a fixed number of tokens out.

    Attributes:
        id: unique within the launch.
        token_ids: the prompt, T >= 1 ids in [0, vocabulary).
        output_tokens: greedy tokens to generate, the first included, end-of-sequence ignored; >= 1.
    """

    id: str
    token_ids: Sequence[int]
    output_tokens: int


# --- results format, version 1 -------------------------------------------------------------------------------


class Cell(msgspec.Struct, frozen=True, omit_defaults=False):
    """One point of a scenario's grid. The last three are not written where they are absent.

    Attributes:
        prompt_tokens: ids in the prompt.
        output_tokens: ids to generate, the first included; 0 where nothing is generated.
        concurrency: requests in flight at once; 0 where an imported result does not tell. In an open loop the most
            that the engine is given at once; the others wait in front of it.
        arrival: how requests arrive in an open loop; absent in a closed loop, where `concurrency` users each send
            the next request when the last one is over.
        rate_per_second: mean rate of arrivals in an open loop, requests per second.
        variant: what else tells this cell from others: "cold" and "warm", a sampling strategy, a matrix shape.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int = 1
    arrival: Arrival | msgspec.UnsetType = msgspec.UNSET
    rate_per_second: float | msgspec.UnsetType = msgspec.UNSET
    variant: str | msgspec.UnsetType = msgspec.UNSET


class Sample(msgspec.Struct, kw_only=True):
    """One request: one line of samples.jsonl.

    All `_ns` values are `perf_counter_ns` of the worker, which on Linux is one clock for the whole machine.

    Attributes:
        block: number of the block, from 0.
        order: position of the launch inside its block, from 0.
        launch: name of the launch, unique in the run.
        engine: label of the engine in the manifest.
        cell: the point of the grid; for phase "load" the launch's first cell.
        index: number of the request inside launch, cell and phase, from 0.
        phase: load, warmup or measure; only "measure" is compared.
        intended_ns: when the request should have started; equals `start_ns` in a closed loop.
        start_ns: when the prompt was handed to the engine.
        token_ns: when each output token could be used by the caller. Fewer entries than `output_tokens` mean
            that the engine hands out several tokens at once: per-token gaps are then absent, not invented.
        end_ns: when the request was over.
        prompt_tokens: ids handed to the engine.
        output_tokens: tokens that the engine generated.
        status: ok, error, timeout or crash.
        error: what happened, else null.
        flags: reasons, declared before the run, to leave this sample out (docs/results-format.md lists them).
        metrics: numbers with their unit in the name, e.g. "foreign_cpu_seconds".
    """

    block: int
    order: int
    launch: str
    engine: str
    cell: Cell
    index: int
    phase: Phase
    intended_ns: int
    start_ns: int
    token_ns: list[int]
    end_ns: int
    prompt_tokens: int
    output_tokens: int
    status: Status
    error: str | None = None
    flags: list[str] = []
    metrics: dict[str, float] = {}


class RunModel(msgspec.Struct, kw_only=True):
    """The model as the manifest records it.

    `shape` holds layers, hidden, heads, kv_heads, head_dim, value_dim, feed_forward and vocabulary; it is empty
    where the weights are not known.
    """

    name: str
    sha256: str
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    bytes: int = 0
    shape: dict[str, int] = {}


class RunEngine(msgspec.Struct, kw_only=True):
    """One engine of a run as the manifest records it.

    Attributes:
        name: the label used in samples; the engine's own name unless the user gave another.
        version: version of the wrapped engine.
        device: device it ran on.
        options: everything it was loaded with: engine, plugin and plugin version, threads, numerics, extra,
            environment, limits; `tuned` ("default" or "tuned"); `batching` ("own", or "queue" where requests in
            flight wait for each other first-in-first-out).
    """

    name: str
    version: str
    device: str = "cpu"
    options: dict[str, Any] = {}


class Equivalence(msgspec.Struct, kw_only=True):
    """How close one engine computes to the reference, on one file.

    Attributes:
        engine: label of the engine.
        mean_kl: mean over positions of KL(reference || engine) in nats; null when it could not be had.
        max_kl: the largest of them.
        top1: share of positions at which both name the same most likely token.
        verdict: "equivalent", "not comparable", "reference" or "not checked".
        quantization: which file was scored, e.g. "F32" or "Q8_0".
        positions: number of positions scored.
        threshold: largest mean_kl that passes, in nats.
        note: reason of a "not checked" or "not comparable" without numbers.
        perplexity: exp of the mean negative log-likelihood of the bundled text; null without numbers.
        reference_perplexity: the same of the reference on the same positions.
        nll_difference: mean over positions of the engine's negative log-likelihood minus the reference's, nats.
        nll_difference_low: lower 95 % limit of it.
        nll_difference_high: upper 95 % limit of it.
        greedy_agreement_tokens: greedy tokens until the engine first parts from the reference; information only.
    """

    engine: str
    mean_kl: float | None
    max_kl: float | None
    top1: float | None
    verdict: str
    quantization: str = ""
    positions: int = 0
    threshold: float | None = None
    note: str = ""
    perplexity: float | None = None
    reference_perplexity: float | None = None
    nll_difference: float | None = None
    nll_difference_low: float | None = None
    nll_difference_high: float | None = None
    greedy_agreement_tokens: int | None = None


class TelemetryReading(msgspec.Struct, kw_only=True):
    """One reading of one sensor: one line of telemetry.jsonl.

    Attributes:
        time_ns: when, on the clock of the samples.
        sensor: its name, e.g. "cpu", "process", "rapl", "nvml".
        launch: the launch under way; empty between launches.
        values: numbers with their unit in the name (docs/results-format.md lists them). Counters of energy and
            faults are cumulative since an arbitrary origin, everything else is since the last reading or now.
        conditions: what was the matter at that moment, e.g. "gpu_throttled"; each is a flag of samples too.
    """

    time_ns: int
    sensor: str
    launch: str
    values: dict[str, float]
    conditions: list[str] = []


class Manifest(msgspec.Struct, kw_only=True):
    """manifest.json: what was run, on what, and how it ended.

    Attributes:
        schema: "enginecmp/1".
        run_id: name of the run's folder.
        created_utc: ISO 8601 with seconds and "Z".
        status: running, complete or interrupted. "running" in a run that nobody writes means it was killed.
        seed: everything random in the run comes from it.
        scenario: the fully resolved scenario, profile applied, with keys name, profile, primary_metric, cells,
            blocks, requests, and the rules (deadlines, validity) that were in force.
        model: the weights file.
        baseline: label of the engine that others are compared with.
        engines: one entry a label.
        environment: CPU, cores, memory, GPU, driver, OS, governor, library versions.
        equivalence: one entry an engine and file; empty when nothing was checked.
    """

    schema: str
    run_id: str
    created_utc: str
    status: RunStatus
    seed: int
    scenario: dict[str, Any]
    model: RunModel
    baseline: str
    engines: list[RunEngine]
    environment: dict[str, Any] = {}
    equivalence: list[Equivalence] = []
