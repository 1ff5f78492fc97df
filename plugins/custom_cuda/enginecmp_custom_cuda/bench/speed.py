"""The part "engine": tokens a second of the whole engine, at contexts and batches, beside what the bytes allow.

Two clocks. On the device: steps replayed without a break, by events; contexts are made of random keys and values, which
cost the same as a prompt's. On the host: sessions as the hooks drive them, from the prompt's ids to the last id.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from enginecmp import LoadOptions, ModelInfo, Request

from ..engine.building import prefill_of
from ..engine.decode import DecodeSettings, DecodeStep
from ..engine.pages import Cache
from ..engine.session import Session
from ..options import read_settings
from .context import Context, Skip
from .lab import Lab
from .measurement import Measurement

CONTEXTS = (16, 512, 2048, 8192)
BATCHES = (1, 2, 4, 8)
WIDE = (16, 32, 64)
WIDE_CONTEXT = 512

STEPS, SAMPLES = 32, 9
"""Of a sample; of a measurement, after one that is not counted."""

PROMPTS = (128, 512, 2048)
PROMPT_WAYS = (("own", 512), ("own", 2048), ("cublaslt", 512), ("cublaslt", 2048))
"""What multiplies, and tokens of a chunk; the defaults are among them and are not measured twice."""

AHEAD = (1, 2, 8, 32)
HOST_TOKENS = 128
ROOM = STEPS * (SAMPLES + 1) + 1

DRY = {"CONTEXTS": (16,), "BATCHES": (1, 2), "WIDE": (9,), "PROMPTS": (20,), "AHEAD": (2,)}


class Sizes:
    """How much of everything; little in a rehearsal."""

    def __init__(self, dry: bool) -> None:
        self.contexts: tuple[int, ...] = DRY["CONTEXTS"] if dry else CONTEXTS
        self.batches: tuple[int, ...] = DRY["BATCHES"] if dry else BATCHES
        self.wide: tuple[int, ...] = DRY["WIDE"] if dry else WIDE
        self.prompts: tuple[int, ...] = DRY["PROMPTS"] if dry else PROMPTS
        self.ahead: tuple[int, ...] = DRY["AHEAD"] if dry else AHEAD
        self.prompt_ways = PROMPT_WAYS
        self.wide_context = 8 if dry else WIDE_CONTEXT
        self.steps, self.samples = (2, 1) if dry else (STEPS, SAMPLES)
        self.host_tokens = 4 if dry else HOST_TOKENS
        self.room = self.steps * (self.samples + 1) + 1


def run(context: Context) -> None:
    """Measure batch 1 first, then prompts, batches, and what options change."""
    sizes, info = Sizes(context.dry), context.model()
    session = load(context, info, max(*sizes.contexts, *sizes.prompts) + sizes.room, max(sizes.batches), "load_seconds")
    try:
        speed = Speed(context, session, sizes)
        for what in (speed.steps, speed.prompts, speed.host_loop, speed.without_overlap):
            if context.enough(2, what.__name__):
                with context.guarded(what.__name__):
                    what()
    finally:
        session.close()
    if context.enough(10 if context.device_timed else 1, "batches beyond 8"):
        session = load(context, info, sizes.wide_context + sizes.room, max(sizes.wide), "load_seconds_again")
        try:
            with context.guarded("wide batches"):
                wide_batches(context, session, sizes)
        finally:
            session.close()


def load(context: Context, info: ModelInfo, tokens: int, sequences: int, fact: str) -> Session:
    """Return a session, and write down how long it took."""
    options = LoadOptions(device=context.device_kind, context_tokens=tokens, max_sequences=sequences)
    begin = time.perf_counter()
    session = Session(info, options, read_settings(options))
    context.fact(fact, round(time.perf_counter() - begin, 2))
    context.fact(f"bytes after {fact}", {name: int(value) for name, value in session.metrics().items()})
    return session


class Speed:
    """What is measured of one session."""

    def __init__(self, context: Context, session: Session, sizes: Sizes) -> None:
        self.context, self.session, self.sizes = context, session, sizes
        self.decoding = DecodeSettings(
            positions=session.context_tokens,
            kv=session.settings.kv,
            exact=session.settings.precise,
            overlap=session.settings.overlap,
        )
        fill(session)

    def steps(self) -> None:
        """Time graphs of a step: every context with batch 1, then with larger ones."""
        for batch in self.sizes.batches:
            for tokens in self.sizes.contexts:
                if self.context.enough(0.5, f"batch {batch} at {tokens}"):
                    graph = self.session.steps[batch].graph()
                    self._time_steps("graph", self.session.steps[batch], graph.launch, tokens)

    def without_overlap(self) -> None:
        """Time graphs whose kernels wait for one another's end, and many steps in one graph."""
        session = self.session
        apart = replace(self.decoding, overlap=False)
        step = DecodeStep(session.device, session.model, 1, apart, session.cache, session.buffers)
        for tokens in self.sizes.contexts:
            self._time_steps("graph, no overlap", step, step.graph().launch, tokens)
        step.close()
        one, several = session.steps[1], min(8, self.sizes.steps)
        graph = one.graph(several)
        self._time_steps(f"graph of {several} steps", one, graph.launch, self.sizes.contexts[-1], several)

    def prompts(self) -> None:
        """Time prompts by both clocks, in chunks of other lengths too, and through the library."""
        session = self.session
        usual, default = session.prefiller, (session.settings.gemm, session.settings.prefill_chunk)
        self._time_prompts(f", {default[0]}")
        for gemm, chunk in self.sizes.prompt_ways if session.device.timed else ():
            what = f", {gemm}, chunks of {chunk}"
            if (gemm, chunk) != default and self.context.enough(2, f"prompts{what}"):
                with self.context.guarded(f"prompts{what}"):
                    settings = msgspec.structs.replace(session.settings, gemm=gemm, prefill_chunk=chunk)
                    session.prefiller = prefill_of(session.device, session.model, session.cache, settings, chunk)
                    self._time_prompts(what)
                    session.device.synchronize()
                    session.prefiller.close()
        session.prefiller = usual

    def _time_prompts(self, what: str) -> None:
        session = self.session
        for tokens in self.sizes.prompts:
            ids = prompt(session, tokens)
            wall, device = [], []
            for _ in range(self.sizes.samples + 1):
                begin = time.perf_counter()
                first = session.prefill(ids, 1)
                wall.append(time.perf_counter() - begin)
                device.append(session.metrics().get("device_prefill_seconds", 0.0))
            session.reset()
            for clock, seconds in ((f"device{what}", device), (f"to the first id{what}", wall)):
                kept = tuple(seconds[1:]) if session.device.timed else ()
                setting: dict[str, int | str] = {"tokens": tokens, "clock": clock}
                self.context.measured(Measurement("prefill", setting, kept, self.exists([first])))

    def host_loop(self) -> None:
        """Time ids as they reach Python, at every context, and with other numbers of steps in flight."""
        session, settings = self.session, self.session.settings
        for tokens in self.sizes.contexts:
            self._time_ids("ids in Python", prompt(session, tokens))
        for ahead in self.sizes.ahead:
            session.settings = msgspec.structs.replace(settings, ahead=ahead)
            self._time_ids(
                f"ids in Python, {ahead} ahead", prompt(session, self.sizes.contexts[-1 if self.context.dry else 1])
            )
        session.settings = settings

    # Parts

    def _time_ids(self, path: str, ids: Sequence[int]) -> None:
        session, count = self.session, self.sizes.host_tokens
        seconds = []
        found: list[int] = []
        for _ in range(3 if session.device.timed else 1):
            session.prefill(ids, count + 1)
            begin = time.perf_counter()
            found = list(session.decode(count))
            seconds.append((time.perf_counter() - begin) / count)
        session.reset()
        kept = tuple(seconds) if session.device.timed else ()
        self.measured(path, 1, len(ids), kept, session.step.nbytes, self.exists(found), mean_more=count // 2)

    def _time_steps(
        self, path: str, step: DecodeStep, launch: Callable[[], None], tokens: int, steps_a_launch: int = 1
    ) -> None:
        session, sizes = self.session, self.sizes
        session.reset()
        for slot in range(step.batch):
            session.cache.pages.promise(slot, tokens + sizes.room)
            session.cache.grow(slot, tokens + sizes.room)
            step.seat(slot, tokens, 1 + slot)

        def act() -> None:
            for _ in range(sizes.steps // steps_a_launch):
                launch()

        seconds = self.sampled(act, sizes.steps)
        chosen = session.device.download(step.buffers.token, step.batch, np.int32)
        for slot in range(step.batch):
            step.end(slot)
        session.reset()
        self.measured(path, step.batch, tokens, seconds, step.nbytes, self.exists(chosen.tolist()))

    def sampled(self, act: Callable[[], None], units: int) -> tuple[float, ...]:
        """Return the device's seconds of a unit of work, a value a sample; none where nothing is timed."""
        device = self.session.device
        act()
        first, second = device.event(), device.event()
        found = []
        for _ in range(self.sizes.samples):
            first.record()
            act()
            second.record()
            found.append(device.elapsed_seconds(first, second) / units)
        first.close()
        second.close()
        return tuple(found) if device.timed else ()

    def measured(
        self,
        path: str,
        batch: int,
        tokens: int,
        seconds: tuple[float, ...],
        weights: int,
        verified: bool,
        mean_more: int | None = None,
    ) -> None:
        """Write down the time of a step; its bytes are the weights, and keys and values at the mean position."""
        more = self.sizes.room // 2 if mean_more is None else mean_more
        nbytes = weights + batch * (tokens + more) * self.session.cache.token_bytes
        setting: dict[str, int | str] = {"path": path, "context": tokens, "batch": batch}
        self.context.measured(Measurement("decode", setting, seconds, verified, nbytes))

    def exists(self, ids: Sequence[int]) -> bool:
        """Return whether ids are of the vocabulary."""
        return len(ids) > 0 and all(0 <= int(each) < self.session.config.vocabulary for each in ids)


def wide_batches(context: Context, session: Session, sizes: Sizes) -> None:
    """Time steps of more sequences than the kernels of steps take, by the host's clock."""
    for batch in sizes.wide:
        session.reset()
        ids = prompt(session, sizes.wide_context)
        output = sizes.steps + 4
        for number in range(batch):
            request = Request(id=str(number), token_ids=ids[number % 7 :], output_tokens=output)
            if not session.batching.submit(request):
                msg = f"no room for {batch} sequences of {sizes.wide_context} tokens"
                raise Skip(msg)
        seconds = []
        found: dict[str, int] = {}
        whole = 0
        while whole <= sizes.steps and context.left() > 1:
            begin = time.perf_counter()
            pairs = session.batching.step()
            took = time.perf_counter() - begin
            if not pairs:
                break
            found.update(pairs)
            if len(pairs) == batch:  # all are generating
                whole += 1
                seconds.append(took)
        verified = len(found) == batch and all(0 <= each < session.config.vocabulary for each in found.values())
        kept = tuple(seconds[1:]) if session.device.timed else ()
        tokens = sizes.wide_context + sizes.steps // 2
        nbytes = session.step.nbytes + batch * tokens * session.cache.token_bytes
        setting: dict[str, int | str] = {
            "path": "batching, host",
            "context": sizes.wide_context,
            "batch": batch,
        }
        context.measured(Measurement("decode", setting, kept, verified, nbytes))
        if kept:
            context.fact(f"slowest over median step of {batch}", round(max(kept) / statistics.median(kept), 2))
    session.reset()


def prompt(session: Session, tokens: int) -> list[int]:
    """Return random ids."""
    return [int(each) for each in np.random.default_rng(tokens).integers(0, session.config.vocabulary, tokens)]


def fill(session: Session) -> None:
    """Fill the cache with random keys and values, so that any position can be decoded from."""
    cache: Cache = session.cache
    dtype = np.float16 if cache.kind == "f16" else np.float32
    values = np.random.default_rng(13).standard_normal(1 << 16).astype(dtype).view(np.uint8)
    Lab(session.device).fill(cache.layer_address(0), values, cache.nbytes - cache.pages.table.nbytes)
