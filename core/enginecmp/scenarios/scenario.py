"""What a scenario is: a grid of cells, how requests arrive, how much is measured, and which SLO objectives hold."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from enginecmp.format.measures import Measure
from enginecmp.format.records import Arrival, Cell
from enginecmp.scenarios.decoding import DecodingRule
from enginecmp.scenarios.workload import Workload
from enginecmp.telemetry.contention import Validity
from enginecmp.types import Decodes
from enginecmp.wire.deadlines import Deadlines

PRIMARY_METRICS = (
    "ttft_seconds",
    "itl_seconds",
    "tpot_seconds",
    "e2e_seconds",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "throughput_tokens_per_second",
    "requests_per_second",
    "goodput_requests_per_second",
    "goodput_tokens_per_second",
    "saturation_requests_per_second",
    "load_seconds",
    "first_token_from_start_seconds",
    "operation_seconds",
    "peak_rss_above_empty_bytes",
)

FindMax = Literal["", "concurrency", "rate"]

Kind = Literal["requests", "load", "operation", "profile"]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request must keep to count as good, in seconds; None sets no objective.

    Attributes:
        ttft_seconds: most time to the first token.
        tpot_seconds: most time per token after the first.
        e2e_seconds: most time in all.
    """

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    e2e_seconds: float | None = None


class Overload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an open loop ends early, because its engine will never catch up.

    Attributes:
        queue_requests: more requests than that wait in front of the engine.
        queue_seconds: one of them has waited for longer than that.
    """

    queue_requests: int = 10_000
    queue_seconds: float = 60.0


class Expectation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody claims of an engine, to be held against the data.

    Attributes:
        engine: label.
        metric: name of a metric, or "ratio" of the primary metric to the baseline's.
        low: smallest value that agrees with the claim; None for no lower end.
        high: largest value likewise.
        source: who claims it, of which machine.
        cell: key → value that picks cells, e.g. {prompt_tokens = 50}; empty means all.
        scenario: name of the scenario that it is about; empty means any.
    """

    engine: str
    metric: str
    low: float | None = None
    high: float | None = None
    source: str = ""
    cell: dict[str, Any] = {}
    scenario: str = ""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a scenario is run.

    Attributes:
        blocks: launches per engine.
        requests: measured requests per launch and cell; with `seconds` the least of them. In a closed loop of
            several users, the least of them in all.
        seconds: measure each cell of a launch for that long; None counts requests alone.
        warmup_requests: unmeasured requests before each cell; at least 1; in a closed loop of several users as
            many for each of them.
        replacement_requests: most further requests in place of disturbed ones; None is half of `requests`.
        requests_of: variant → measured requests, where one variant takes another number.
        output_tokens: replaces every cell's output tokens.
        offered_load: replaces the rates of a sweep.
        cells: replaces the grid.
    """

    blocks: int
    requests: int
    seconds: float | None = None
    warmup_requests: int = 1
    replacement_requests: int | None = None
    requests_of: dict[str, int] = {}
    output_tokens: int | None = None
    offered_load: tuple[float, ...] = ()
    cells: list[Cell] = []


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario with one profile applied: what a run executes, and what its manifest holds.

    Attributes:
        name: of the scenario.
        profile: name of the profile.
        description: one sentence.
        primary_metric: the metric that its verdicts are about.
        kind: "requests": prompts in, tokens out; "load": loading and the first token from process start;
            "operation": one operation of the engine by itself; "profile": seconds per component.
        operation: with kind "operation" which one: "tokenize", "sampling", "matmul", "elementwise", "layer", or one
            that a plugin brings.
        measure: that one, as the plugin described it; None for those of `cmp`.
        variants: variant → parameters of the operation.
        workloads: name → requests of the cells that name it.
        decodings: name → how the ids of requests in the cells that name it are chosen, and what ends them.
        cells: the grid.
        launch_per_cell: a launch of its own for every cell, so that memory and page cache belong to that cell.
        blocks: launches per engine (and cell, with `launch_per_cell`).
        requests: measured requests per launch and cell; with `seconds` the least of them.
        seconds: measuring time per launch and cell, or None.
        warmup_requests: unmeasured requests before each cell.
        replacement_requests: most further requests per launch and cell in place of those that the rest of the machine
            disturbed; decided by flags alone, never by a value.
        requests_of: variant → measured requests, where one variant takes another number.
        offered_load: rates of a sweep, as multiples of what the engines were found to do before the first block;
            empty without a sweep. The cells that came of it stand in `cells`.
        arrival: how requests of a sweep arrive.
        burstiness: shape of gamma arrivals: 1 is Poisson, smaller comes in bursts (as vLLM's `--burstiness`).
        offered_limit: no engine of a sweep is offered more than this multiple of what it was found to do.
        calibration: label → requests per second in a closed loop before the first block of a sweep; set when a run
            starts. An engine that is missing here is offered every rate.
        offered_cells: label → numbers of the cells that it is measured in, where that was decided before or while the
            run goes on; a label that is missing is measured in all of them, as far as `calibration` allows.
        overload: when an open loop ends early.
        trace_seconds: recorded arrival times for cells with arrival "trace", from 0, rising.
        goodput: what a request must keep to count as good.
        expect: claims to be held against the data.
        deadlines: when an engine counts as hung.
        validity: when a sample is left out.
        find_max: which load is raised to the largest that keeps `slo`; empty in all other runs. The cells are then
            those that the search came by, and `blocks` is the most launches of an engine.
        slo: objectives of that search, as `cmp stats --slo` writes them.
        give_up_after: failed launches in a row after which an engine is no longer launched.
        max_extra: most time for replacement launches and further blocks, as a share of the planned time; 0 for none.
        precision: relative half-width of the primary metric's interval at which an adaptive run stops; 0 runs all
            blocks. With it `blocks` is the most that will run.
        gate: whether equivalence is checked before anything is timed.
        score_positions: positions of the bundled text that the gate and the quality columns rest on.
        copy_bandwidth: whether the machine's copy bandwidth is measured before the first block.
        max_kl: largest mean KL to the reference, in nats, at which an engine still counts as equivalent on the file
            being timed.
        max_nll_increase: largest mean increase of the negative log-likelihood of the bundled text, in nats a token,
            at which it still does; None sets no objective.
        prompts_sha256: hash of the texts that the prompts were cut from; set when a run starts.
        left_out: cells that this model cannot hold, with the reason; set when a run starts.
    """

    name: str
    profile: str
    description: str = ""
    primary_metric: str
    kind: Kind = "requests"
    operation: str = ""
    measure: Measure | None = None
    variants: dict[str, dict[str, Any]] = {}
    workloads: dict[str, Workload] = {}
    decodings: dict[str, DecodingRule] = {}
    cells: tuple[Cell, ...]
    launch_per_cell: bool = False
    blocks: int
    requests: int
    seconds: float | None = None
    warmup_requests: int = 1
    replacement_requests: int = 0
    requests_of: dict[str, int] = {}
    offered_load: tuple[float, ...] = ()
    arrival: Arrival = "poisson"
    burstiness: float = 1.0
    offered_limit: float = 1.5
    calibration: dict[str, float] = {}
    offered_cells: dict[str, tuple[int, ...]] = {}
    overload: Overload = Overload()
    trace_seconds: tuple[float, ...] = ()
    goodput: Limits = Limits()
    expect: tuple[Expectation, ...] = ()
    deadlines: Deadlines = Deadlines()
    validity: Validity = Validity()
    find_max: FindMax = ""
    slo: tuple[str, ...] = ()
    give_up_after: int = 3
    max_extra: float = 0.0
    precision: float = 0.0
    gate: bool = True
    score_positions: int = 64
    copy_bandwidth: bool = False
    max_kl: float = 2e-2
    max_nll_increase: float | None = None
    prompts_sha256: str = ""
    left_out: dict[str, str] = {}

    @property
    def context_tokens(self) -> int:
        """Tokens that the longest request needs."""
        return max(cell.prompt_tokens + cell.output_tokens for cell in self.cells)

    @property
    def concurrency(self) -> int:
        """Most requests that an engine is given at once."""
        return max(cell.concurrency for cell in self.cells)

    def sequences(self, cell: Cell) -> int:
        """Return how many sequences an engine may be given at once in a cell."""
        name = self.measure.sequences if self.measure is not None else ""
        found = self.variants.get(cell.variant or "", {}).get(name, 1) if name else cell.concurrency
        return found if isinstance(found, int) and found > 0 else 1  # the judge refuses any other

    @property
    def needs(self) -> str:
        """What an engine must offer by itself (`EngineInfo.operations`); empty for requests and loads."""
        if self.measure is not None and self.measure.of_every_engine:
            return ""
        return self.operation or ("profile" if self.kind == "profile" else "")

    @property
    def needs_model(self) -> bool:
        """Whether engines load a model for it, which is then held against the reference."""
        return self.measure is None or self.measure.needs_model

    def offered(self, cell: Cell, label: str) -> bool:
        """Return whether an engine is measured in a cell: a sweep spares it rates far beyond what it can do."""
        if label in self.offered_cells:
            return self.cells.index(cell) in self.offered_cells[label]
        found = self.calibration.get(label)
        # Rates are rounded to three digits: the limit itself must not fall out by that.
        return found is None or not cell.rate_per_second or cell.rate_per_second <= 1.005 * self.offered_limit * found

    def workload(self, cell: Cell) -> Workload | None:
        """Return what the requests of a cell are made of, None where they are all alike."""
        return self.workloads[cell.workload] if cell.workload else None

    def rule(self, cell: Cell) -> DecodingRule:
        """Return how the ids of a cell's requests are chosen, and what ends them."""
        return self.decodings[cell.decoding] if cell.decoding else DecodingRule()

    @property
    def needs_decoding(self) -> frozenset[Decodes]:
        """What an engine must offer beyond greedy ids of a fixed number (`EngineInfo.decoding`)."""
        return frozenset().union(*(self.rule(cell).needs for cell in self.cells))

    def prompt_cell(self, cell: Cell) -> int:
        """Return the number of the cell whose prompts a cell has: its own, as a rule.

        With launches of their own, cells that differ in decoding alone share them; in one launch the second of them
        would find its prompts in a cache.
        """
        if not self.launch_per_cell:
            return self.cells.index(cell)
        plain = msgspec.structs.replace(cell, decoding=msgspec.UNSET)
        return next(
            number
            for number, other in enumerate(self.cells)
            if msgspec.structs.replace(other, decoding=msgspec.UNSET) == plain
        )

    def requests_in(self, cell: Cell) -> int:
        """Return how many requests a launch measures in a cell."""
        return self.requests_of.get(cell.variant, self.requests) if cell.variant else self.requests

    def warmups_in(self, cell: Cell) -> int:
        """Return how many requests warm up a cell: users of a closed loop do so each for itself."""
        return self.warmup_requests * (1 if cell.arrival else cell.concurrency)
