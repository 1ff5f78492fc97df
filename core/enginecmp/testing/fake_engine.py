"""The fake engine: deterministic tokens, a clock that only it moves, and scripted faults.

Use it with `CMP_PLUGINS=enginecmp.testing.fake_engine cmp run --engines a=fake,b=fake -o b.decode_us=900`.

Options (`-o LABEL.KEY=VALUE`):
    clock: "fake" (default) replaces the worker's clock by one that only this engine moves; "real" sleeps.
    load_ms, prefill_us, decode_us: time of a load, a prompt token and an output token.
    batch_us: what each further request in a step of continuous batching adds to `decode_us`.
    prefix_cache: "1" answers a prompt that it has had before without spending time on it.
    launch_sd, request_sd: standard deviations of lognormal factors per launch and per request.
    seed: of those factors.
    error: standard deviation of what is added to every logit: makes it another distribution.
    fault: KIND@PHASE[:TOKEN], KIND one of crash, hang, error, oom, exit, garbage, kill; PHASE one of probe,
        load, submit, prefill, decode, score; TOKEN the output token before which it happens in decode.
    once: path of a file; the fault happens only while it does not exist, and creates it.
    short, long: yield that many tokens fewer or more than asked.
    stray: in each step of continuous batching "unknown" answers for a request that never was, "twice" one twice.
    nan: logits at this position are NaN.
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
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginecmp import clock
from enginecmp.errors import EngineError, UnknownOption, did_you_mean
from enginecmp.hookspecs import hookimpl
from enginecmp.testing.fake_batching import FakeBatch, require
from enginecmp.types import EngineInfo, LoadOptions, ModelInfo, Probe, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DEFAULTS: Mapping[str, str] = {
    "clock": "fake",
    "load_ms": "100",
    "prefill_us": "100",
    "decode_us": "1000",
    "batch_us": "0",
    "prefix_cache": "0",
    "stray": "",
    "launch_sd": "0.01",
    "request_sd": "0.02",
    "seed": "0",
    "error": "0",
    "fault": "",
    "once": "",
    "short": "0",
    "long": "0",
    "nan": "-1",
    "start_seconds": "0",
    "child": "0",
    "journal": "",
    "operation_us": "50",
    "wrong": "",
    "lax": "0",
    "sticky": "0",
    "slow": "0",
    "gear": "1",
    "lossy": "0",
    "throttle_after": "0",
    "leak_kb": "0",
}
_GEARS = {"1": 1.0, "2": 0.8, "3": 1.5, "4": 1.0}
_FAULTS = ("crash", "hang", "error", "oom", "exit", "garbage", "kill")


class FakeClock:
    """A clock that stands still until somebody moves it.

    Args:
        start_ns: what it shows first.
    """

    def __init__(self, start_ns: int) -> None:
        self._ns = start_ns

    def now_ns(self) -> int:
        """Return what the clock shows."""
        return self._ns

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self._ns += round(seconds * 1e9)


class FakeSession:
    """A model that hashes its input instead of computing."""

    def __init__(self, model: ModelInfo, options: LoadOptions) -> None:
        unknown = sorted(set(options.extra) - set(_DEFAULTS))
        if unknown:
            msg = f"fake: unknown option '{unknown[0]}'{did_you_mean(unknown[0], _DEFAULTS)}"
            raise UnknownOption(msg)
        settings = {**_DEFAULTS, **options.extra}
        self.path = model.path
        self.vocabulary = model.vocabulary
        self.context_tokens = options.context_tokens
        self.max_sequences = options.max_sequences
        self.settings = settings
        self.fault = Fault(settings["fault"], settings["once"])
        self.prefix: list[int] = []
        self.batch = FakeBatch(self)
        self._cached: set[int] = set()
        self._requests = 0
        self._leaked: list[bytes] = []
        self._factor = 1.0
        self._clock: FakeClock | None = None
        if settings["clock"] == "fake":
            self._clock = FakeClock(clock.now_ns())
            clock.now_ns = self._clock.now_ns

    def number(self, key: str) -> float:
        """Return a numeric setting."""
        return float(self.settings[key])

    def spend(self, seconds: float) -> None:
        """Let time pass, by this request's random factor and by planted faults slower or faster."""
        seconds *= self._factor * (1 + self.number("slow") / 100) * _GEARS[self.settings["gear"]]
        if self.settings["lossy"] == "1":
            seconds *= 0.7
        if 0 < self.number("throttle_after") < self._requests:
            seconds *= 1.3
        if self._clock is not None:
            self._clock.advance(seconds)
        elif seconds > 0:
            time.sleep(seconds)

    def require(self, token_ids: Sequence[int], output_tokens: int) -> None:
        """Refuse a request that cannot be, unless told to be lax."""
        if self.settings["lax"] != "1":
            require(self.context_tokens, self.vocabulary, token_ids, output_tokens)

    def cached(self, token_ids: Sequence[int]) -> bool:
        """Say whether this prompt costs nothing, and remember it."""
        if self.settings["prefix_cache"] != "1":
            return False
        name = hash(tuple(token_ids))
        known = name in self._cached
        self._cached.add(name)
        return known

    def end_request(self) -> None:
        """Note the end of a request behind the host's back, where the options say so."""
        if self.settings["journal"]:
            with open(self.settings["journal"], "a", encoding="utf-8") as file:
                file.write(f"{os.environ.get('CMP_LAUNCH', '')}\n")

    def begin_request(self) -> None:
        """Count a request, and leave behind what the options say."""
        self._requests += 1
        # Written to, not only reserved: what is not touched is not resident.
        self._leaked.append(b"\xff" * int(self.number("leak_kb") * 1024))

    def draw_factor(self, token_ids: Sequence[int]) -> None:
        """Draw the speed of a request: the launch's factor times its own, both from the seed."""
        import numpy as np

        launch_name = os.environ.get("CMP_LAUNCH", "")
        launch = np.random.default_rng(_number(self.settings["seed"], launch_name))
        request = np.random.default_rng(_number(self.settings["seed"], launch_name, *token_ids))
        log = launch.normal(0, self.number("launch_sd")) + request.normal(0, self.number("request_sd"))
        self._factor = float(np.exp(log))

    def logits(self, position: int, token: int) -> NDArray[np.float32]:
        """Return the next-token logits after one token at one position, shape (vocabulary,), float32."""
        import numpy as np

        row = np.random.default_rng(_number("logits", position, token)).standard_normal(self.vocabulary)
        error = self.number("error") + (3.0 if self.settings["lossy"] == "1" else 0.0)
        if error:
            row += np.random.default_rng(_number("error", position)).normal(0, error, self.vocabulary)
        if position == int(self.settings["nan"]):
            row[0] = np.nan
        return (8 * row).astype(np.float32)

    def next_token(self, prefix: Sequence[int]) -> int:
        """Return the greedy continuation of a prefix."""
        return int(self.logits(len(prefix) - 1, prefix[-1]).argmax())


class Fault:
    """A scripted misbehaviour.

    Args:
        script: "" or KIND@PHASE[:TOKEN].
        once: path of the file that remembers that it happened; "" repeats it always.
    """

    def __init__(self, script: str, once: str = "") -> None:
        self._kind, _, rest = script.partition("@")
        self._phase, _, token = rest.partition(":")
        self._token = int(token or 0)
        self._once = Path(once) if once else None
        if script and self._kind not in _FAULTS:
            msg = f"fake: unknown fault '{self._kind}'{did_you_mean(self._kind, _FAULTS)}"
            raise UnknownOption(msg)

    def maybe(self, phase: str, token: int = 0) -> None:
        """Misbehave if the script says so for this moment."""
        if phase != self._phase or token != self._token or (self._once and self._once.exists()):
            return
        if self._once:
            self._once.touch()
        match self._kind:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "hang":
                time.sleep(3600)
            case "oom":
                raise MemoryError
            case "garbage":
                os.write(int(sys.argv[1]), b"this is not a message of the protocol")
            case "error":
                msg = f"fake: scripted error in {phase}"
                raise EngineError(msg)


def _number(*parts: Any) -> int:
    """Return a 64-bit number that depends on every part, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@hookimpl
def cmp_engine() -> EngineInfo:
    """State what the fake engine is."""
    return EngineInfo(
        name="fake",
        version="1.0",
        licence="Apache-2.0",
        devices=("cpu", "emulated"),
        architectures=("llama", "qwen2", "phi3", "gpt2"),
        quantizations=("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
        max_concurrency=64,
        environment={"FAKE_THREADS": "{threads}"},
        exact_environment={"FAKE_EXACT": "1"},
        operations=("tokenize", "sampling", "matmul", "profile"),
        tuned="gear 2, which is planted to be the fastest that computes the same",
        tunables={"gear": tuple(_GEARS), "lossy": ("0", "1")},
        limits=("computes nothing: its tokens are hashes",),
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Always able, unless told otherwise."""
    Fault(options.extra.get("fault", "")).maybe("probe")
    return Probe(ok=True)


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
def cmp_prefill(session: FakeSession, token_ids: Sequence[int], output_tokens: int) -> int:
    """Hash the prompt."""
    session.require(token_ids, output_tokens)
    session.begin_request()
    session.draw_factor(token_ids)
    session.fault.maybe("prefill")
    if not session.cached(token_ids):
        session.spend(len(token_ids) * session.number("prefill_us") / 1e6)
    session.prefix = [*session.prefix[-1:], *token_ids] if session.settings["sticky"] == "1" else list(token_ids)
    session.prefix.append(session.next_token(session.prefix))
    return session.prefix[-1]


@hookimpl
def cmp_decode(session: FakeSession, n_tokens: int) -> Iterator[int]:
    """Hash on."""
    for number in range(n_tokens - int(session.settings["short"]) + int(session.settings["long"])):
        session.fault.maybe("decode", number)
        session.spend(session.number("decode_us") / 1e6)
        session.prefix.append(session.next_token(session.prefix))
        yield session.prefix[-1]
    session.end_request()


@hookimpl
def cmp_submit(session: FakeSession, request: Request) -> bool:
    """Queue a request."""
    return session.batch.submit(request)


@hookimpl
def cmp_step(session: FakeSession) -> list[tuple[str, int]]:
    """Give every request one more token."""
    return session.batch.step()


@hookimpl
def cmp_score(session: FakeSession, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the hashed logits at every position."""
    import numpy as np

    session.require(token_ids, 1)
    session.fault.maybe("score")
    return np.stack([session.logits(position, token) for position, token in enumerate(token_ids)])


@hookimpl
def cmp_operation(session: FakeSession, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a single operation that takes `operation_us`; see `fake_operations`."""
    from enginecmp.testing.fake_operations import operation

    return operation(session, kind, parameters)


@hookimpl
def cmp_profile(session: FakeSession, token_ids: Sequence[int], n_tokens: int) -> dict[str, float]:
    """Share the time of prompt and tokens out among the components, always alike."""
    from enginecmp.testing.fake_operations import SHARES

    session.draw_factor(token_ids)
    start_ns = clock.now_ns()
    session.spend((len(token_ids) * session.number("prefill_us") + n_tokens * session.number("decode_us")) / 1e6)
    seconds = (clock.now_ns() - start_ns) / 1e9
    return {component: share * seconds for component, share in SHARES.items()}


@hookimpl
def cmp_metrics(session: FakeSession) -> dict[str, float]:
    """Return made-up but exact sizes."""
    return {"weights_bytes": 1000.0, "kv_cache_bytes": 8.0 * len(session.prefix)}


@hookimpl
def cmp_reset(session: FakeSession) -> None:
    """Forget the prompt."""
    if session.settings["sticky"] != "1":
        session.prefix = []
    session.batch.clear()


@hookimpl
def cmp_unload(session: FakeSession) -> None:
    """Nothing to free."""
