"""What the fake engine's hooks share: its settings, its clock, its model that hashes, and its scripted faults."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp import clock
from enginecmp.errors import ContextOverflow, EngineError, UnknownOption, UnsupportedModel, did_you_mean
from enginecmp.models.diffusion import AUTOREGRESSIVE
from enginecmp.types import GREEDY, Decoding, LoadOptions, ModelInfo, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULTS: Mapping[str, str] = {
    "clock": "fake",
    "load_ms": "100",
    "prefill_us": "100",
    "decode_us": "1000",
    "batch_us": "0",
    "prefix_cache": "0",
    "lookup": "0",
    "draft": "",
    "misguess": "0",
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
    "exact": "1",
    "running": "",
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
    "disturbed": "",
}
GEARS = {"1": 1.0, "2": 0.8, "3": 1.5, "4": 1.0}
_FAULTS = ("crash", "hang", "error", "oom", "exit", "garbage", "kill", "illegal")


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


class Running(msgspec.Struct):
    """One request in flight: its ids so far, the prompt's tokens still to be paid for, and how many it will give."""

    request: Request
    ids: list[int]
    unpaid: int
    gives: int
    given: int = 0
    draws: Any = None


class FakeSession:
    """A model that hashes its input instead of computing; `running` are the requests that are in flight."""

    def __init__(self, model: ModelInfo, options: LoadOptions) -> None:
        unknown = sorted(set(options.extra) - set(DEFAULTS))
        if unknown:
            msg = f"fake: unknown option '{unknown[0]}'{did_you_mean(unknown[0], DEFAULTS)}"
            raise UnknownOption(msg)
        settings = {**DEFAULTS, **options.extra}
        if settings["exact"] == "0" and options.numerics == "exact":
            msg = "fake: expected default numerics, got exact ones; it has no others"
            raise UnsupportedModel(msg)
        self.path = model.path
        self.vocabulary = model.vocabulary
        self.diffuses = model.architecture in AUTOREGRESSIVE
        self.context_tokens = options.context_tokens
        self.max_sequences = options.max_sequences
        self.settings = settings
        self.fault = Fault(settings["fault"], settings["once"])
        self.prefix: list[int] = []
        self.running: dict[str, Running] = {}
        self.decoding = GREEDY
        self.draws: Any = None
        self.hit_tokens = 0
        self._cached: dict[int, Any] = {}
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
        seconds *= self._factor * (1 + self.number("slow") / 100) * GEARS[self.settings["gear"]]
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

    def cached(self, token_ids: Sequence[int]) -> int:
        """Return how many of a prompt's first tokens cost nothing, and remember all of them."""
        if self.settings["prefix_cache"] != "1":
            return 0
        known, node = 0, self._cached
        for token in token_ids:
            known += token in node
            node = node.setdefault(token, {})
        self.hit_tokens += known
        return known

    def end_request(self) -> None:
        """Note the end of a request behind the host's back, where the options say so."""
        if self.settings["journal"]:
            with open(self.settings["journal"], "a", encoding="utf-8") as file:
                file.write(f"{os.environ.get('CMP_LAUNCH', '')}\n")

    def stand_still(self) -> None:
        """Be stopped as by a debugger, in the launches that the options name; another process lets this one go on."""
        if os.environ.get("CMP_LAUNCH") in self.settings["disturbed"].split("+"):
            subprocess.Popen(["/bin/sh", "-c", f"sleep 0.1; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)

    def begin_request(self) -> None:
        """Count a request, and leave behind what the options say."""
        self._requests += 1
        # Written to, not only reserved: what is not touched is not resident.
        self._leaked.append(b"\xff" * int(self.number("leak_kb") * 1024))

    def draw_factor(self, token_ids: Sequence[int]) -> None:
        """Draw the speed of a request: the launch's factor times its own, both from the seed."""
        import numpy as np

        launch_name = os.environ.get("CMP_LAUNCH", "")
        launch = np.random.default_rng(number_of(self.settings["seed"], launch_name))
        request = np.random.default_rng(number_of(self.settings["seed"], launch_name, *token_ids))
        log = launch.normal(0, self.number("launch_sd")) + request.normal(0, self.number("request_sd"))
        self._factor = float(np.exp(log))

    def logits(self, position: int, token: int) -> NDArray[np.float32]:
        """Return the next-token logits after one token at one position, shape (vocabulary,), float32."""
        import numpy as np

        row = np.random.default_rng(number_of("logits", position, token)).standard_normal(self.vocabulary)
        error = self.number("error") + (3.0 if self.settings["lossy"] == "1" else 0.0)
        if error:
            row += np.random.default_rng(number_of("error", position)).normal(0, error, self.vocabulary)
        if position == int(self.settings["nan"]):
            row[0] = np.nan
        return (8 * row).astype(np.float32)

    def logits_among(self, position: int, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits of what is at a position, which depend on every id of the text."""
        return self.logits(position, number_of(*token_ids))

    def next_token(self, prefix: Sequence[int], decoding: Decoding = GREEDY, draws: Any = None) -> int:
        """Return the continuation of a prefix, unless told to guess wrong."""
        if decoding.temperature and self.settings["wrong"] != "sampling":
            from enginecmp.testing.fake_sampling import draw

            return draw(self.logits(len(prefix) - 1, prefix[-1]), msgspec.structs.asdict(decoding), draws)
        if self.guesses and self.settings["misguess"] == str(len(prefix)):
            return 0
        return int(self.logits(len(prefix) - 1, prefix[-1]).argmax())

    @property
    def guesses(self) -> bool:
        """Whether it says that it guesses ahead."""
        return self.settings["lookup"] != "0" or self.settings["draft"] != ""


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
            case "illegal":
                os.kill(os.getpid(), signal.SIGILL)
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


def number_of(*parts: Any) -> int:
    """Return a 64-bit number that depends on every part, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def require(context_tokens: int, vocabulary: int, token_ids: Sequence[int], output_tokens: int) -> None:
    """Refuse a request that cannot be.

    Raises:
        ContextOverflow: it does not fit.
        EngineError: the prompt is empty, or has ids outside the vocabulary.
    """
    if not token_ids:
        msg = "fake: expected a prompt of at least one token, got none"
        raise EngineError(msg)
    if outside := [token for token in token_ids if not 0 <= token < vocabulary]:
        msg = f"fake: expected ids in [0, {vocabulary}), got {outside[0]} at position {token_ids.index(outside[0])}"
        raise EngineError(msg)
    needed = len(token_ids) + output_tokens - 1
    if needed > context_tokens:
        msg = f"fake: request needs {needed} tokens, the context holds {context_tokens}; load with more"
        raise ContextOverflow(msg)
