"""Results format, version 1: the structs that outside tools write and read too (docs/results-format.md)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA = "enginecmp/1"
"""Value of `Manifest.schema` that this version writes and reads."""

Arrival = Literal["constant", "poisson", "gamma", "trace"]
SamplePhase = Literal["load", "warmup", "measure"]
Status = Literal["ok", "error", "timeout", "crash"]
RunStatus = Literal["running", "complete", "interrupted"]

EQUIVALENT = "equivalent"
NOT_COMPARABLE = "not comparable"
REFERENCE = "reference"
NOT_CHECKED = "not checked"
TIMED_ONLY = "comparable on the timed file"
NOT_PROVEN = "not proven"
"""What the equivalence gate says of an engine: `Equivalence.verdict`.

`TIMED_ONLY` is near the reference on the timed file and could not answer the exact question, whose entry, where there
is one, is `NOT_PROVEN`.
"""

IDENTICAL = "identical"
IDENTICAL_TO_TIES = "identical up to ties"
DIFFERENT = "different"
"""What the gate of speculation says: `SpeculationCheck.verdict`, or `NOT_CHECKED`."""

COMPONENTS = ("embedding", "norm", "rope", "attention", "ffn", "lm_head", "sampling")
"""Parts of a model that `cmp_profile` may time, in the order of the forward pass."""

NOT_BEGUN = "not begun: "
"""How the `error` of a launch begins that never was one, because the machine could not be made ready for it."""

PROFILED = (*COMPONENTS, "other")
"""The components and what a profile leaves over, in the order in which tables show them."""


class Cell(msgspec.Struct, frozen=True, omit_defaults=False):
    """One point of a scenario's grid. What is UNSET is not written.

    Attributes:
        prompt_tokens: ids in the prompt; with `workload` in the longest one.
        output_tokens: ids to generate, the first included; 0 where nothing is generated; with `workload` the most.
        concurrency: requests in flight at once; 0 where an imported result does not tell. In an open loop the most
            that the engine is given at once; the others wait in front of it.
        arrival: how requests arrive in an open loop; absent in a closed loop, where `concurrency` users each send
            the next request when the last one is over.
        rate_per_second: mean rate of arrivals in an open loop, requests per second.
        variant: what else tells this cell from others: "cold" and "warm", a sampling strategy, a matrix shape.
        workload: name of the scenario's workload where requests of the cell are not all alike.
        decoding: name of the scenario's decoding where ids are not greedy, or requests may end before they have all
            `output_tokens`.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int = 1
    arrival: Arrival | msgspec.UnsetType = msgspec.UNSET
    rate_per_second: float | msgspec.UnsetType = msgspec.UNSET
    variant: str | msgspec.UnsetType = msgspec.UNSET
    workload: str | msgspec.UnsetType = msgspec.UNSET
    decoding: str | msgspec.UnsetType = msgspec.UNSET


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one request was meant to be where they are not all alike: the same for every engine of the block.

    Attributes:
        request: its number in the cell's plan, by which requests of two engines are paired.
        output_tokens: ids that were asked for; the most of them where `may_end`.
        conversation: number of the conversation that it belongs to.
        turn: its place in that, from 0.
        known_tokens: ids at the prompt's beginning that an earlier request of the cell has had: what a perfect prefix
            cache would not compute again.
        may_end: it may be over before it has all of them: with the model's end-of-sequence token, or its JSON complete.
    """

    request: int
    output_tokens: int
    conversation: int = 0
    turn: int = 0
    known_tokens: int = 0
    may_end: bool = False


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
        replaces: name of the disturbed launch of the same block that this launch repeats; absent elsewhere.
        asked: what the request was meant to be, in a cell with a workload or a decoding; absent elsewhere.
    """

    block: int
    order: int
    launch: str
    engine: str
    cell: Cell
    index: int
    phase: SamplePhase
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
    replaces: str | msgspec.UnsetType = msgspec.UNSET
    asked: Asked | msgspec.UnsetType = msgspec.UNSET


class RunModel(msgspec.Struct, kw_only=True):
    """The model as the manifest records it.

    `shape` holds layers, hidden, heads, kv_heads, head_dim, value_dim, feed_forward and vocabulary; it is empty
    where the weights are not known. `made_from` holds `hf_folder_sha256` where the user named a Hugging Face folder,
    and the GGUF file of `sha256` was made from it.
    """

    name: str
    sha256: str
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    bytes: int = 0
    shape: dict[str, int] = {}
    made_from: dict[str, str] = {}


class RunEngine(msgspec.Struct, kw_only=True):
    """One engine of a run as the manifest records it.

    Attributes:
        name: the label used in samples; the engine's own name unless the user gave another.
        version: version of the wrapped engine.
        device: device it ran on.
        options: everything it was loaded with: engine, plugin and plugin version, licence, threads, numerics, extra,
            environment, limits; `tuned` ("default" or "tuned"); `batching` ("continuous", or "queue" where requests in
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
        verdict: "equivalent", "not comparable", "reference" or "not checked"; "comparable on the timed file" where the
            exact question has no answer, whose own entry, if there is one, is then "not proven".
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
        proven_utc: when an earlier gate found this, where it was not asked again; absent elsewhere.
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
    proven_utc: str | msgspec.UnsetType = msgspec.UNSET


class SpeculationCheck(msgspec.Struct, kw_only=True):
    """Whether an engine that guesses ahead gives the greedy ids that it gives without guessing.

    Attributes:
        engine: label of the engine.
        verdict: "identical"; "identical up to ties" where ids part only where two are equally likely; "different",
            which is not comparable; "not checked".
        requests: answered both ways.
        output_tokens: of each.
        identical: requests all of whose ids are the same.
        note: where they part, or why there was no answer.
    """

    engine: str
    verdict: str = NOT_CHECKED
    requests: int = 0
    output_tokens: int = 0
    identical: int = 0
    note: str = ""


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
        speculation: one entry an engine that guesses ahead; absent where none does, or without a gate.
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
    speculation: list[SpeculationCheck] | msgspec.UnsetType = msgspec.UNSET


class CellAverages(msgspec.Struct, kw_only=True):
    """What another tool says of one launch in one cell as a whole, where its requests are not all told.

    Attributes:
        cell: point of the grid.
        metrics: name of a metric to the mean of the launch, above zero.
        requests: how many requests stand behind them, 0 where it is not told.
    """

    cell: Cell
    metrics: dict[str, float]
    requests: int = 0


class LaunchRecord(msgspec.Struct, kw_only=True):
    """One line of launches.jsonl: a launch that is over.

    Attributes:
        launch: its name in the samples.
        block: number of the block.
        engine: label.
        status: ok, error, timeout or crash.
        seconds: from spawn to the end of the process.
        error: what happened, else null.
        peak_rss_bytes: of the worker process; of a server that is the client's, and says nothing of the engine.
        cell: number of the cell that it was for, where cells have launches of their own.
        notes: what a reader should know of it, e.g. that the engine was overloaded.
        averages: of an imported launch, one entry a cell; what a launch has one value of is then taken from them alone.
        replaces: name of the disturbed launch of the same block that this one repeats; absent elsewhere.
    """

    launch: str
    block: int
    engine: str
    status: str
    seconds: float
    error: str | None = None
    peak_rss_bytes: int | None = None
    cell: int | None = None
    notes: list[str] = []
    averages: list[CellAverages] | msgspec.UnsetType = msgspec.UNSET
    replaces: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> tuple[int, str, int | None]:
        """What makes it the same launch as one that is planned."""
        return self.block, self.engine, self.cell
