"""The fake engine: deterministic tokens, a clock that only it moves, and scripted faults.

Use it with `CMP_PLUGINS=enginecmp.testing.fake_engine cmp run --engines a=fake,b=fake -o b.decode_us=900`.

Options (`-o LABEL.KEY=VALUE`):
    clock: "fake" (default) replaces the worker's clock by one that only this engine moves; "real" sleeps.
    load_ms, prefill_us, decode_us: time of a load, a prompt token and an output token.
    batch_us: what each further request in a step of continuous batching adds to `decode_us`.
    prefix_cache: "1" spends no time on the beginning of a prompt that it has had before, and tells how much that was.
    lookup, draft: guesses ahead, or says so: `tokens_per_step` is 2.
    misguess: number of ids after which guessing ahead makes it say 0.
    launch_sd, request_sd: standard deviations of lognormal factors per launch and per request.
    seed: of those factors.
    error: standard deviation of what is added to every logit: makes it another distribution.
    fault: KIND@PHASE[:TOKEN], KIND one of crash, hang, error, oom, exit, garbage, kill, illegal; PHASE one of probe,
        load, submit, prefill, decode, score; TOKEN the output token before which it happens in decode.
    once: path of a file; the fault happens only while it does not exist, and creates it.
    short, long: yield that many tokens fewer or more than asked.
    stray: in each step of continuous batching "unknown" answers for a request that never was, "twice" one twice.
    nan: logits at this position are NaN.
    exact: "0" refuses to compute with exact numerics.
    running: name and version of a server that it says it is, one that runs already.
    start_seconds: real seconds that loading takes.
    child: "1" starts a child process that never ends.
    journal: path of a file that gets a line at the end of every request, behind the host's back.
    operation_us: time of one call of a single operation (`cmp_operation`).
    wrong: name of an operation whose answers shall be wrong.
    lax: "1" takes ids that it does not have, and more of them than fit.
    sticky: "1" remembers the last request: what it says depends on it.
    slow: percent by which everything takes longer.
    gear: a setting to tune: with "2" everything takes a fifth less time, with "3" half as much again, "1" and "4" tie.
    lossy: another one: "1" takes 30 % less time and makes it another distribution.
    throttle_after: number of requests after which everything takes 30 % longer; 0 never.
    leak_kb: memory that every request leaves behind, really.
    disturbed: names of launches, joined by "+", whose process is stopped for a moment in every request; it
        takes the real clock.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from enginecmp import clock
from enginecmp.hookspecs import hookimpl
from enginecmp.testing.fake_batching import step, submit
from enginecmp.testing.fake_diffusion import denoised
from enginecmp.testing.fake_operations import SHARES, operation
from enginecmp.testing.fake_session import DEFAULTS, GEARS, FakeSession, Fault
from enginecmp.types import GREEDY, Decoding, EngineInfo, LoadOptions, ModelInfo, Probe, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@hookimpl
def cmp_engine() -> EngineInfo:
    """State what the fake engine is."""
    return EngineInfo(
        name="fake",
        version="1.0",
        licence="Apache-2.0",
        devices=("cpu", "emulated"),
        architectures=("llama", "qwen2", "phi3", "gpt2", "llada"),
        quantizations=("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
        max_concurrency=64,
        environment={"FAKE_THREADS": "{threads}"},
        exact_environment={"FAKE_EXACT": "1"},
        operations=("tokenize", "sampling", "matmul", "elementwise", "layer", "profile"),
        decoding=("sampling", "end_of_sequence"),
        tuned="gear 2, which is planted to be the fastest that computes the same",
        tunables={"gear": tuple(GEARS), "lossy": ("0", "1")},
        option_names=tuple(DEFAULTS),
        limits=("computes nothing: its tokens are hashes",),
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Always able, unless told otherwise."""
    Fault(options.extra.get("fault", "")).maybe("probe")
    version = options.extra.get("running", "")
    prove = "-o '{label}.start=serve {model}'" if version else ""
    return Probe(ok=True, running=bool(version), version=version, prove=prove)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> FakeSession:
    """Start a session."""
    import numpy  # noqa: F401  paid here, not in the first request

    session = FakeSession(model, options)
    time.sleep(session.number("start_seconds"))
    if session.settings["child"] == "1":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    session.fault.maybe("load")
    session.spend(session.number("load_ms") / 1e3)
    return session


@hookimpl
def cmp_version(session: FakeSession) -> str:
    """Return what it says it is; nothing where it says nothing."""
    return session.settings["running"]


@hookimpl
def cmp_decoding(session: FakeSession, decoding: Decoding) -> None:
    """Draw from now on."""
    import numpy as np

    session.decoding, session.draws = decoding, np.random.default_rng(decoding.seed)


@hookimpl
def cmp_prefill(session: FakeSession, token_ids: Sequence[int], output_tokens: int) -> int:
    """Hash the prompt."""
    session.require(token_ids, output_tokens)
    session.begin_request()
    session.draw_factor(token_ids)
    session.fault.maybe("prefill")
    session.stand_still()
    session.spend((len(token_ids) - session.cached(token_ids)) * session.number("prefill_us") / 1e6)
    session.prefix = [*session.prefix[-1:], *token_ids] if session.settings["sticky"] == "1" else list(token_ids)
    session.prefix.append(session.next_token(session.prefix, session.decoding, session.draws))
    return session.prefix[-1]


@hookimpl
def cmp_decode(session: FakeSession, n_tokens: int) -> Iterator[int]:
    """Hash on."""
    for number in range(n_tokens - int(session.settings["short"]) + int(session.settings["long"])):
        session.fault.maybe("decode", number)
        session.spend(session.number("decode_us") / 1e6)
        session.prefix.append(session.next_token(session.prefix, session.decoding, session.draws))
        yield session.prefix[-1]
    session.end_request()


@hookimpl
def cmp_submit(session: FakeSession, request: Request) -> bool:
    """Queue a request."""
    return submit(session, request)


@hookimpl
def cmp_step(session: FakeSession) -> list[tuple[str, int]]:
    """Give every request one more token."""
    return step(session)


@hookimpl
def cmp_score(session: FakeSession, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the hashed logits at every position."""
    import numpy as np

    session.require(token_ids, 1)
    session.fault.maybe("score")
    if session.diffuses:
        return np.stack([session.logits_among(position, token_ids) for position in range(len(token_ids))])
    return np.stack([session.logits(position, token) for position, token in enumerate(token_ids)])


@hookimpl
def cmp_denoise(
    session: FakeSession, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Hash all ids at every step, `decode_us` a step; `short` and `long` change how many steps there are."""
    return denoised(session, token_ids, output_tokens, steps, block_tokens)


@hookimpl
def cmp_operation(session: FakeSession, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a single operation that takes `operation_us`; see `fake_operations`."""
    return operation(session, kind, parameters)


@hookimpl
def cmp_profile(session: FakeSession, token_ids: Sequence[int], n_tokens: int) -> dict[str, float]:
    """Share the time of prompt and tokens out among the components, always alike."""
    session.draw_factor(token_ids)
    start_ns = clock.now_ns()
    session.spend((len(token_ids) * session.number("prefill_us") + n_tokens * session.number("decode_us")) / 1e6)
    seconds = (clock.now_ns() - start_ns) / 1e9
    return {component: share * seconds for component, share in SHARES.items()}


@hookimpl
def cmp_metrics(session: FakeSession) -> dict[str, float]:
    """Return made-up but exact sizes."""
    found = {"weights_bytes": 1000.0, "kv_cache_bytes": 8.0 * len(session.prefix)}
    if session.guesses:
        found["tokens_per_step"] = 2.0
    return found | ({"prefix_cache_hit_tokens": session.hit_tokens} if session.settings["prefix_cache"] == "1" else {})


@hookimpl
def cmp_reset(session: FakeSession) -> None:
    """Forget the prompt."""
    if session.settings["sticky"] != "1":
        session.prefix = []
    session.running.clear()
    session.decoding = GREEDY
    session.hit_tokens = 0


@hookimpl
def cmp_unload(session: FakeSession) -> None:
    """Nothing to free."""
