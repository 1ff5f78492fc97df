"""The worker: one process, one plugin, one engine, driven by messages and timed by one clock.

Started by `enginecmp.launch.process` as `python -P -m enginecmp.worker FD PROGRESS_FD MODULE`, in a session of its own,
with the engine's environment variables already set. It ends when the host closes the socket; the guardian above it
(`enginecmp.wire.guardian`) leaves nothing of it behind, children included.

A request is measured here and nowhere else: the clock is read before `cmp_prefill`, after it, and at every
token that `cmp_decode` yields. Stamps are kept and sent after the request is over.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from enginecmp import clock
from enginecmp.errors import CmpError, EngineError
from enginecmp.format.phases import Phase
from enginecmp.telemetry.contention import ContentionSensor, between, without_engine
from enginecmp.types import GREEDY, NO_ID, Decoding, LoadOptions, ModelInfo, Probe
from enginecmp.wire.answers import MOST_TOKENS
from enginecmp.wire.protocol import Progress, describe
from enginecmp.worker.generate import choose, generate
from enginecmp.worker.operations import Operations, profile
from enginecmp.worker.results import engine_metrics, float32_matrix


class Worker:
    """Answers the host's messages with one engine.

    Args:
        hook: hook relay of a plugin manager that holds exactly one plugin.
        progress: shared memory that says where this worker is.
    """

    def __init__(self, hook: Any, progress: Progress) -> None:
        self._hook = hook
        self._progress = progress
        self._session: Any = None
        self._sensor: ContentionSensor | None = None
        self._operations = Operations(hook, progress)
        self.operations: dict[str, Callable[[dict[str, Any]], Any]] = {
            "probe": self.probe,
            "load": self.load,
            "request": self.request,
            "score": self.score,
            "prepare_operation": lambda message: self._operations.prepare(self._session, message),
            "operation": self._operations.run,
            "profile": self.profile,
            "serve": self.serve,
            "batch": self.batch,
            "unload": self.unload,
        }

    def probe(self, message: dict[str, Any]) -> Any:
        """Ask the engine whether it can run here."""
        self._progress.set(Phase.PROBE)
        found = self._hook.cmp_probe(options=msgspec.convert(message["options"], LoadOptions))
        if found is not None and not isinstance(found, Probe):
            msg = f"cmp_probe returned a {type(found).__name__}, expected enginecmp.Probe"
            raise EngineError(msg)
        return msgspec.to_builtins(found or Probe(ok=True))

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        """Load the model and time it."""
        model = msgspec.convert(message["model"], ModelInfo)
        options = msgspec.convert(message["options"], LoadOptions)
        self._progress.set(Phase.LOAD)
        self._sensor = ContentionSensor()
        before = self._sensor.read()
        start_ns = clock.now_ns()
        self._session = self._hook.cmp_load(model=model, options=options)
        end_ns = clock.now_ns()
        disturbed = between(before, self._sensor.read())
        if self._session is None:
            msg = "cmp_load returned nothing, expected a session"
            raise CmpError(msg)
        self._progress.set(Phase.IDLE)
        # What loading left behind is permanent: keep the collector from walking it between requests.
        gc.collect()
        gc.freeze()
        answer = {"start_ns": start_ns, "end_ns": end_ns, "metrics": disturbed | self._metrics()}
        version = self._hook.cmp_version(session=self._session)
        if version is not None and not isinstance(version, str):
            msg = f"cmp_version returned a {type(version).__name__}, expected text"
            raise EngineError(msg)
        return answer | ({"version": version} if version else {})

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run one request and time it: the measured window is between the two sensor readings."""
        hook, session, progress, sensor = self._hook, self._session, self._progress, self._sensor
        assert sensor is not None
        token_ids: list[int] = message["token_ids"]
        n_tokens: int = message["output_tokens"]
        decoding = msgspec.convert(message["decoding"], Decoding) if "decoding" in message else GREEDY
        decode = Phase.DECODE

        progress.set(Phase.PREPARE)
        hook.cmp_reset(session=session)
        choose(hook, session, decoding)
        hook.cmp_prepare(session=session, token_ids=token_ids, output_tokens=n_tokens)
        now_ns = clock.now_ns
        token_ns: list[int] = []
        ids: list[int] = []
        total: int | None = None
        error: dict[str, str] | None = None

        def mark(token: int) -> None:
            token_ns.append(now_ns())
            ids.append(token)
            progress.set(decode, len(token_ns))

        gc.disable()
        before = sensor.read()
        progress.set(Phase.PREFILL)
        start_ns = now_ns()
        try:
            total = generate(hook, session, token_ids, n_tokens, mark, decoding.end_ids)
        except BaseException as raised:  # a Rust panic arrives as a BaseException
            error = describe(raised)
        end_ns = now_ns()
        after = sensor.read()
        gc.enable()

        where = str(Phase.DECODE if token_ns else Phase.PREFILL)
        if error is None and (wrong := _wrong_tokens(ids, total)):
            error, ids, total = describe(EngineError(wrong)), [], None
        progress.set(Phase.METRICS, len(token_ns))
        metrics = between(before, after)
        if error is None:
            metrics = without_engine(metrics | self._metrics())
        text = _text(hook.cmp_text(session=session)) if decoding.json_schema and error is None else None
        progress.set(Phase.IDLE)
        return ({} if text is None else {"text": text}) | {
            "start_ns": start_ns,
            "token_ns": token_ns,
            "end_ns": end_ns,
            "ids": ids,
            "output_tokens": len(token_ns) if total is None else total,
            "metrics": metrics,
            "where": where,
            "error": error,
        }

    def score(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return teacher-forced logits as raw float32 bytes."""
        self._progress.set(Phase.SCORE)
        self._hook.cmp_reset(session=self._session)
        logits = self._hook.cmp_score(session=self._session, token_ids=message["token_ids"])
        self._progress.set(Phase.IDLE)
        if logits is None:
            return {"shape": None, "data": b""}
        return float32_matrix("cmp_score", logits)

    def profile(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Return seconds per component; None where the engine cannot tell."""
        assert self._sensor is not None
        return profile(self._hook, self._session, self._progress, self._sensor, message)

    def serve(self, message: dict[str, Any]) -> dict[str, Any]:
        """Serve requests as the load generator sends them."""
        from enginecmp.worker.serve import serve

        assert self._sensor is not None
        answer = serve(self._hook, self._session, self._progress, self._sensor, message)
        self._progress.set(Phase.IDLE)
        return answer

    def batch(self, message: dict[str, Any]) -> Any:
        """Run several requests through the engine's own batching; None where it has none."""
        from enginecmp.worker.serve import batch

        self._progress.set(Phase.DECODE)
        ids = batch(self._hook, self._session, message)
        self._progress.set(Phase.IDLE)
        return ids

    def unload(self, message: dict[str, Any]) -> bool:
        """Free the engine."""
        self._progress.set(Phase.UNLOAD)
        if self._session is not None:
            self._hook.cmp_unload(session=self._session)
            self._session = None
        return True

    def _metrics(self) -> dict[str, float]:
        return engine_metrics(self._hook.cmp_metrics(session=self._session))


def _wrong_tokens(ids: Sequence[Any], total: Any) -> str:
    """Return what is wrong with the token ids that an engine handed out; empty when nothing is."""
    for token in ids:
        if type(token) is not int or not NO_ID <= token < 1 << 31:
            hook = "cmp_prefill returned" if token is ids[0] else "cmp_decode yielded"
            return f"{hook} {_brief(token)}, expected a token id"
    if total is not None and not len(ids) <= total <= MOST_TOKENS:
        return f"cmp_decode returned {_brief(total - 1)} as its number of tokens, it yielded {len(ids) - 1} times"
    return ""


def _text(found: Any) -> str | None:
    """Return the text that an engine says it generated.

    Raises:
        EngineError: it is none.
    """
    if found is not None and not isinstance(found, str):
        msg = f"cmp_text returned a {type(found).__name__}, expected text"
        raise EngineError(msg)
    return found


def _brief(value: Any) -> str:
    return str(value) if isinstance(value, int | float) and abs(value) < 1e12 else f"a {type(value).__name__}"
