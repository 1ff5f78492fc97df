"""The fake engine: deterministic tokens, a clock that only it moves, and scripted faults.

Use it with `CMP_PLUGINS=enginecmp.testing.fake_engine cmp run --engines a=fake,b=fake -o b.decode_us=900`.

Options (`-o LABEL.KEY=VALUE`):
    clock: "fake" (default) replaces the worker's clock by one that only this engine moves; "real" sleeps.
    load_ms, prefill_us, decode_us: time of a load, a prompt token and an output token.
    launch_sd, request_sd: standard deviations of lognormal factors per launch and per request.
    seed: of those factors.
    error: standard deviation of what is added to every logit: makes it another distribution.
    fault: KIND@PHASE[:TOKEN], KIND one of crash, hang, error, oom, exit, garbage, kill; PHASE one of probe,
        load, prefill, decode, score; TOKEN the output token before which it happens in decode.
    once: path of a file; the fault happens only while it does not exist, and creates it.
    short, long: yield that many tokens fewer or more than asked.
    nan: logits at this position are NaN.
    start_seconds: real seconds that loading takes.
    child: "1" starts a child process that never ends.
    journal: path of a file that gets a line at the end of every request, behind the host's back.
    operation_us: time of one call of a single operation (`cmp_operation`).
    wrong: name of an operation whose answers shall be wrong.
    slow: percent by which everything takes longer.
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
from enginecmp.errors import ContextOverflow, EngineError, UnknownOption, did_you_mean
from enginecmp.hookspecs import hookimpl
from enginecmp.types import EngineInfo, LoadOptions, ModelInfo, Probe, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DEFAULTS: Mapping[str, str] = {
    "clock": "fake",
    "load_ms": "100",
    "prefill_us": "100",
    "decode_us": "1000",
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
    "slow": "0",
    "throttle_after": "0",
    "leak_kb": "0",
}
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
        self.waiting: list[Request] = []
        self.running: dict[str, tuple[Request, list[int]]] = {}
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
        seconds *= self._factor * (1 + self.number("slow") / 100)
        if 0 < self.number("throttle_after") < self._requests:
            seconds *= 1.3
        if self._clock is not None:
            self._clock.advance(seconds)
        else:
            time.sleep(seconds)

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
        if self.number("error"):
            row += np.random.default_rng(_number("error", position)).normal(0, self.number("error"), self.vocabulary)
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
        devices=("cpu",),
        architectures=("llama", "qwen2", "phi3", "gpt2"),
        quantizations=("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
        max_concurrency=64,
        environment={"FAKE_THREADS": "{threads}"},
        exact_environment={"FAKE_EXACT": "1"},
        operations=("tokenize", "sampling", "matmul", "profile"),
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
    needed = len(token_ids) + output_tokens - 1
    if needed > session.context_tokens:
        msg = f"fake: request needs {needed} tokens, the context holds {session.context_tokens}; load with more"
        raise ContextOverflow(msg)
    session.begin_request()
    session.draw_factor(token_ids)
    session.fault.maybe("prefill")
    session.spend(len(token_ids) * session.number("prefill_us") / 1e6)
    session.prefix = list(token_ids)
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
    if session.settings["journal"]:
        with open(session.settings["journal"], "a", encoding="utf-8") as file:
            file.write(f"{os.environ.get('CMP_LAUNCH', '')}\n")


@hookimpl
def cmp_submit(session: FakeSession, request: Request) -> bool:
    """Queue a request."""
    if len(session.running) >= session.max_sequences:
        return False
    session.running[request.id] = (request, list(request.token_ids))
    return True


@hookimpl
def cmp_step(session: FakeSession) -> list[tuple[str, int]]:
    """Give every request one more token."""
    session.spend(session.number("decode_us") / 1e6)
    pairs = []
    for name, (request, prefix) in list(session.running.items()):
        prefix.append(session.next_token(prefix))
        pairs.append((name, prefix[-1]))
        if len(prefix) - len(request.token_ids) == request.output_tokens:
            del session.running[name]
    return pairs


@hookimpl
def cmp_score(session: FakeSession, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the hashed logits at every position."""
    import numpy as np

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
    session.prefix = []
    session.running = {}


@hookimpl
def cmp_unload(session: FakeSession) -> None:
    """Nothing to free."""
