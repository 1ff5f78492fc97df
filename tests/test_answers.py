"""What a worker answers is not believed: each wrong answer is named, and ends its own launch and nothing else."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginecmp.errors import EngineError, LaunchError
from enginecmp.format.phases import Phase
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.answers import (
    ANSWERS,
    HOST_METRICS,
    MOST_TOKENS,
    SMALL_BYTES,
    TEXT_CHARACTERS,
    WORKER_METRICS,
    most_bytes,
    phase_named,
    require,
)
from enginecmp.wire.deadlines import Deadlines
from enginecmp.wire.protocol import WrongMessage, decode, describe
from enginecmp.worker.results import engine_metrics, float32_matrix, numbers

REQUEST = {
    "start_ns": 10, "token_ns": [11, 12], "end_ns": 12, "ids": [3, 4], "output_tokens": 2,
    "metrics": {"x_seconds": 0.5}, "where": "decode", "error": None,
}  # fmt: skip
LOAD = {"start_ns": 1, "end_ns": 2, "metrics": {}}
OPERATED = {"start_ns": 1, "end_ns": 2, "result": 5, "metrics": {}}
ASKED: dict[str, dict[str, Any]] = {
    "request": {"token_ids": [1, 2], "output_tokens": 2},
    "score": {"token_ids": [1, 2]},
    "batch": {"requests": [{"id": "0", "token_ids": [1], "output_tokens": 2}]},
    "serve": {"prompts": [[1]]},
}


def refusal(operation: str, body: bytes) -> str:
    """Return why the host does not take an answer; empty when it does."""
    asked = ASKED.get(operation, {})
    try:
        message = decode(body, ANSWERS[operation])
        require(operation, message.ok, asked, 314, 5 if operation == "request" else 0)
    except (LaunchError, ValueError) as error:
        return str(error).removeprefix("broke the protocol: ")
    return ""


def answered(operation: str, ok: Any) -> str:
    return refusal(operation, msgspec.msgpack.encode({"ok": ok}))


@pytest.mark.parametrize(
    ("operation", "ok"),
    [
        ("start", 4711),
        ("probe", {"ok": True, "reason": "", "fix": ""}),
        ("probe", {"ok": False, "reason": "no GPU", "fix": "", "a key of later versions": 1}),
        ("load", LOAD),
        ("request", REQUEST),
        ("request", {**REQUEST, "token_ns": [], "ids": [], "output_tokens": 0}),
        ("request", {**REQUEST, "token_ns": [11], "ids": [-1], "output_tokens": 7}),
        ("request", {**REQUEST, "error": {"type": "EngineError", "message": "no", "traceback": ""}}),
        ("score", {"shape": [2, 3], "data": b"\0" * 24}),
        ("score", {"shape": None, "data": b""}),
        ("prepare_operation", {"calls": 1}),
        ("prepare_operation", None),
        ("operation", OPERATED),
        ("operation", {**OPERATED, "result": "text"}),
        ("operation", {**OPERATED, "result": [1, 2]}),
        ("operation", {**OPERATED, "result": {"shape": [1, 2], "data": b"\0" * 8}}),
        ("profile", {"start_ns": 1, "end_ns": 2, "seconds": {"ffn": 0.5}}),
        ("profile", None),
        ("serve", {"errors": {"0": "in decode: no"}, "window": {}, "metrics": {"weights_bytes": 5}}),
        ("batch", {"0": [1, 2]}),
        ("batch", None),
        ("unload", None),
        ("unload", True),
    ],
)
def test_a_right_answer_is_taken(operation: str, ok: Any) -> None:
    assert answered(operation, ok) == ""


@pytest.mark.parametrize("operation", sorted(set(ANSWERS) - {"start", "unload"}))
@pytest.mark.parametrize(
    "ok", [5, 1.5, "text", [], [1, 2], {"foo": 1}, {5: 1}, msgspec.msgpack.Ext(5, b"x")], ids=lambda ok: repr(ok)[:20]
)
def test_an_answer_of_another_shape_is_refused(operation: str, ok: Any) -> None:
    assert answered(operation, ok).startswith("expected ")


@pytest.mark.parametrize(
    ("operation", "ok", "says"),
    [
        ("start", "4711", "expected int, got str at ok"),
        ("probe", {"ok": 1, "reason": ""}, "expected bool, got int at ok.ok"),
        ("load", {"start_ns": 1, "end_ns": 2}, "expected an object with the field metrics at ok"),
        ("load", {**LOAD, "metrics": {"x": float("nan")}}, "expected finite numbers in metrics, got x = nan"),
        ("load", {**LOAD, "metrics": {"x": float("-inf")}}, "expected finite numbers in metrics, got x = -inf"),
        ("load", {**LOAD, "metrics": {"x": "1"}}, "expected float, got str at ok.metrics[...]"),
        ("load", {**LOAD, "metrics": {5: 1.0}}, "expected str, got int at key in ok.metrics"),
        ("load", {**LOAD, "metrics": {"": 1.0}}, "expected str of length >= 1 at key in ok.metrics"),
        ("load", {**LOAD, "metrics": {"\x1b[2J": 1.0}}, r"expected printable names in metrics, got '\x1b[2J'"),
        ("load", {**LOAD, "metrics": {"n" * 201: 1.0}}, "expected str of length <= 200 at key in ok.metrics"),
        ("load", {**LOAD, "metrics": {f"m{n}": 1.0 for n in range(1001)}},
         "expected object of length <= 1000 at ok.metrics"),
        ("load", {**LOAD, "metrics": {"rss_bytes": 1.0}},
         "expected metrics without names that the host writes, got rss_bytes"),
        ("serve", {"errors": {}, "window": {"dispatch_lag_seconds": 0.0}, "metrics": {}},
         "expected window without names that the host writes, got dispatch_lag_seconds"),
        ("load", {**LOAD, "end_ns": 0}, "expected start_ns <= token_ns (rising) <= end_ns, got 0 after 1"),
        ("load", {**LOAD, "start_ns": 1.0}, "expected int, got float at ok.start_ns"),
        ("load", {**LOAD, "start_ns": -1}, "expected int >= 0 at ok.start_ns"),
        ("load", {**LOAD, "end_ns": 2**64 - 1}, "expected int <= 4611686018427387903 at ok.end_ns"),
        ("request", {**REQUEST, "start_ns": 4}, "expected start_ns after the end of the answer before, 5, got 4"),
        ("request", {**REQUEST, "token_ns": [12, 11]},
         "expected start_ns <= token_ns (rising) <= end_ns, got 11 after 12"),
        ("request", {**REQUEST, "token_ns": [9, 12]},
         "expected start_ns <= token_ns (rising) <= end_ns, got 9 after 10"),
        ("request", {**REQUEST, "token_ns": [11, 13]},
         "expected start_ns <= token_ns (rising) <= end_ns, got 12 after 13"),
        ("request", {**REQUEST, "token_ns": [11, 2**63]}, "expected int <= 4611686018427387903 at ok.token_ns[1]"),
        ("request", {**REQUEST, "token_ns": "ab"}, "expected array, got str at ok.token_ns"),
        ("request", {**REQUEST, "ids": [3, 314]}, "expected ids in [0, 314), got 314"),
        ("request", {**REQUEST, "ids": [3, -2]}, "expected int >= -1 at ok.ids[1]"),
        ("request", {**REQUEST, "ids": [3, True]}, "expected int, got bool at ok.ids[1]"),
        ("request", {**REQUEST, "ids": [3, 4, 5]}, "expected at most 2 ids, one for each output token, got 3"),
        ("request", {**REQUEST, "output_tokens": 1}, "expected at most one stamp for each of 1 output tokens, got 2"),
        ("request", {**REQUEST, "output_tokens": -4}, "expected int >= 0 at ok.output_tokens"),
        ("request", {**REQUEST, "output_tokens": MOST_TOKENS + 1}, "expected int <= 1048576 at ok.output_tokens"),
        ("request", {**REQUEST, "error": "boo"}, "expected object | null, got str at ok.error"),
        ("request", {**REQUEST, "error": {"x": 1}}, "expected an object with the field type at ok.error"),
        ("score", {"shape": [3, 3], "data": b"\0" * 36},
         "expected a row of logits for each of 2 tokens, got shape (3, 3)"),
        ("score", {"shape": [2, 3], "data": b"\0" * 20}, "expected 24 bytes of float32 for shape (2, 3), got 20"),
        ("score", {"shape": [2, 2**31 - 1], "data": b""},
         "expected 17179869176 bytes of float32 for shape (2, 2147483647), got 0"),
        ("score", {"shape": [2, -3], "data": b""}, "expected int >= 1 at ok.shape[1]"),
        ("score", {"shape": [], "data": b"\0" * 4}, "expected array of length >= 2 at ok.shape"),
        ("score", {"shape": [2, 3, 1], "data": b"\0" * 24}, "expected array of length <= 2 at ok.shape"),
        ("score", {"shape": [2, 3], "data": "text"}, "expected bytes, got str at ok.data"),
        ("prepare_operation", {"calls": 0}, "expected int >= 1 at ok.calls"),
        ("operation", {**OPERATED, "result": {"shape": [1, 2], "data": b""}},
         "expected 8 bytes of float32 for shape (1, 2), got 0"),
        ("operation", {**OPERATED, "result": None}, "expected int | str | object | array, got None at ok.result"),
        ("profile", {"start_ns": 1, "end_ns": 2, "seconds": {"ffn": -1.0}}, "expected float >= 0.0 at ok.seconds[...]"),
        ("profile", {"start_ns": 1, "end_ns": 2, "seconds": {"ffn": float("inf")}},
         "expected finite numbers in seconds, got ffn = inf"),
        ("serve", {"errors": {0: "x"}, "window": {}, "metrics": {}}, "expected str, got int at key in ok.errors"),
        ("serve", {"errors": {}, "window": {"s": float("inf")}, "metrics": {}},
         "expected finite numbers in window, got s = inf"),
        ("batch", {"0": [1, 2, 3]}, "expected at most 2 ids for request 0, got 3"),
        ("batch", {"1": [1, 2]}, "expected ids for each of 1 requests, got 1"),
        ("batch", {"0": [2**31]}, "expected int <= 2147483647 at ok[...][0]"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(operation: str, ok: Any, says: str) -> None:
    assert answered(operation, ok) == says


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (msgspec.msgpack.encode([1, 2]), "expected object, got array"),
        (msgspec.msgpack.encode(None), "expected object, got None"),
        (msgspec.msgpack.encode({"error": "out of luck"}), "expected object, got str at error"),
        (msgspec.msgpack.encode({"error": 5}), "expected object, got int at error"),
        (msgspec.msgpack.encode({"error": {}}), "expected an object with the field type at error"),
        (msgspec.msgpack.encode({"error": {"type": 5, "message": 7}}), "expected str, got int at error.type"),
        (b"\x81\xa2ok" + b"\x91" * 100_000 + b"\xc0", "expected object, got array at ok"),
        (b"\x81\xa2zz" + b"\x91" * 100_000 + b"\xc0", "expected an answer, got one that is nested too deep"),
        (b"\x81\xa2ok\x81\xa7metrics\x81\xa3\xed\xa0\x80\x01", "expected text in UTF-8, got other bytes"),
        (b"\x81\xa2ok", r"expected msgpack, got bytes b'\x81\xa2ok'"),
        (b"\xc1\xc1", r"expected msgpack, got bytes b'\xc1\xc1'"),
        (b"", "expected msgpack, got bytes b''"),
    ],
)
def test_a_message_of_another_shape_is_refused(body: bytes, says: str) -> None:
    assert refusal("load", body) == says


def test_an_answer_may_be_as_long_as_what_was_asked_needs() -> None:
    assert most_bytes("load", {}, 0) == SMALL_BYTES
    assert most_bytes("request", {"output_tokens": 1000}, 0) == SMALL_BYTES + 64_000
    assert most_bytes("score", {"token_ids": [1] * 10}, 1000) == SMALL_BYTES + 80_000
    assert most_bytes("score", {"token_ids": [1] * 10_000}, 1_000_000) == 1 << 31


def test_a_phase_that_does_not_exist_is_unknown() -> None:
    assert phase_named("decode") is Phase.DECODE
    assert phase_named("Phase of the moon") is Phase.UNKNOWN
    assert Phase(-(2**62)) is Phase.UNKNOWN


class Mute(Exception):
    def __str__(self) -> str:
        msg = "no words"
        raise RuntimeError(msg)


def test_an_exception_is_described_in_one_short_line_whatever_it_is() -> None:
    assert describe(RuntimeError("\x1b]0;PWNED\x07\nred"))["message"] == r"RuntimeError: \x1b]0;PWNED\x07 red"
    assert describe(RuntimeError("bad \ud800"))["message"] == r"RuntimeError: bad \ud800"
    assert describe(Mute())["message"] == "Mute: it cannot say what is wrong"
    assert describe(MemoryError())["message"] == "out of memory"
    huge = describe(RuntimeError("E" * (8 << 20)))
    assert len(huge["message"]) <= TEXT_CHARACTERS + len("RuntimeError: ")
    assert len(huge["traceback"]) <= 21_000
    chain: BaseException = RuntimeError("0")
    for number in range(3000):
        later = RuntimeError(str(number))
        later.__cause__ = chain
        chain = later
    assert describe(chain)["message"] == "RuntimeError: 2999"
    assert len(msgspec.msgpack.encode(describe(chain))) < 30_000


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([1, 2], "cmp_metrics returned a list, expected a dict of names and numbers"),
        ({"x": "abc"}, "cmp_metrics returned a str for 'x', expected a number that a float can hold"),
        ({"x": 10**400}, "cmp_metrics returned a int for 'x', expected a number that a float can hold"),
        ({"\ud800": 1.0}, r"cmp_metrics returned a number named '\ud800', expected a short printable name"),
        ({5: 1.0}, "cmp_metrics returned a number named 5, expected a short printable name"),
    ],
)
def test_metrics_that_are_none_are_the_hooks_error(found: Any, says: str) -> None:
    with pytest.raises(EngineError) as error:
        numbers("cmp_metrics", found)
    assert str(error.value) == says
    assert numbers("cmp_metrics", None) == {}


@pytest.mark.parametrize("name", sorted(HOST_METRICS | WORKER_METRICS))
def test_no_engine_says_what_the_host_reads(name: str) -> None:
    with pytest.raises(EngineError) as error:
        engine_metrics({"weights_bytes": 1.0, name: 0.0})
    assert str(error.value) == f"cmp_metrics holds {name}, which the host reads itself; give it another name, " + (
        f"e.g. engine_{name}"
    )


def test_an_engine_cannot_charge_the_machine_with_its_own_time() -> None:
    assert engine_metrics({"engine_cpu_seconds": 0.5}) == {"engine_cpu_seconds": 0.5}
    with pytest.raises(EngineError, match=r"engine_cpu_seconds = -1.0, expected 0 or more"):
        engine_metrics({"engine_cpu_seconds": -1.0})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (5.0, "cmp_score returned shape (), expected a matrix (rows, columns)"),
        ([1.0, 2.0], "cmp_score returned shape (2,), expected a matrix (rows, columns)"),
        ([[]], "cmp_score returned shape (1, 0), expected a matrix (rows, columns)"),
        ("x", "cmp_score returned a str, expected a matrix of float32"),
    ],
)
def test_logits_that_are_no_matrix_are_the_hooks_error(values: Any, says: str) -> None:
    with pytest.raises(EngineError) as error:
        float32_matrix("cmp_score", values)
    assert str(error.value) == says


ENGINE = """
import os, struct, sys, time
import msgspec

at, body, fd = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3])


def say(body):
    os.write(fd, b"CMP1" + struct.pack("<I", len(body)) + body)


def read(length):
    data = b""
    while len(data) < length:
        if not (more := os.read(fd, length - len(data))):
            sys.exit(0)
        data += more
    return data


if at == "start":
    say(body)
else:
    say(msgspec.msgpack.encode({"ok": os.getpid()}))
now = time.perf_counter_ns
while True:
    message = msgspec.msgpack.decode(read(struct.unpack("<4sI", read(8))[1]))
    if message["op"] == at and body == b"dribble":
        for byte in b"CMP1" + struct.pack("<I", 1000) + bytes(1000):
            os.write(fd, bytes([byte]))
            time.sleep(0.05)
    elif message["op"] == at and body == b"huge":
        os.write(fd, b"CMP1" + struct.pack("<I", (1 << 32) - 1))
    elif message["op"] == at:
        say(body)
    elif message["op"] == "load":
        say(msgspec.msgpack.encode({"ok": {"start_ns": now(), "end_ns": now(), "metrics": {}}}))
    else:
        say(msgspec.msgpack.encode({"ok": None}))
"""


def failure_of(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, at: str, body: bytes, seconds: float = 30
) -> LaunchFailure:
    """Return how a launch fails whose engine, an executable, answers one operation with these bytes."""
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    (tmp_path / "body").write_bytes(body)
    plugin = Plugin(name="other", command=(sys.executable, str(script), at, str(tmp_path / "body")), info=fake.info)
    deadlines = Deadlines(load_seconds=seconds, prefill_seconds=seconds, decode_seconds=seconds, score_seconds=seconds)
    with pytest.raises(LaunchFailure) as caught:
        drive(Launch("label", plugin, log=tmp_path / "log", options=LoadOptions()), tiny, deadlines)
    return caught.value


def drive(launch: Launch, model: ModelInfo, deadlines: Deadlines) -> None:
    with launch:
        launch.load(model, deadlines.load_seconds)
        launch.request((1, 2), 2, deadlines)


@pytest.mark.parametrize(
    ("at", "ok", "says"),
    [
        ("start", "x", "expected int, got str at ok, in the answer to start"),
        ("load", {"start_ns": "a"}, "expected int, got str at ok.start_ns, in the answer to load"),
        ("load", {**LOAD, "start_ns": 3}, "got 2 after 3, in the answer to load"),
        (
            "load",
            {**LOAD, "metrics": {"steal_seconds": 0.0}},
            "metrics holds steal_seconds, which the host reads itself",
        ),
        ("request", REQUEST, "expected start_ns after the end of the answer before"),
        ("request", None, "expected object, got None at ok, in the answer to request"),
    ],
)
def test_a_wrong_answer_ends_its_launch_and_is_named(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, at: str, ok: Any, says: str
) -> None:
    failure = failure_of(fake, tiny, tmp_path, at, msgspec.msgpack.encode({"ok": ok}))
    assert str(failure).startswith("label: broke the protocol: ")
    assert says in str(failure)
    assert (failure.status, failure.fatal) == ("error", True)


def test_an_error_without_end_is_kept_short(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    body = msgspec.msgpack.encode({"error": {"type": "E", "message": "\x1b[2J" + "m" * 900_000, "traceback": ""}})
    failure = failure_of(fake, tiny, tmp_path, "load", body)
    assert str(failure).startswith(r"label: \x1b[2Jmmm")
    assert len(str(failure)) < TEXT_CHARACTERS + 50


def test_an_answer_that_is_too_long_is_refused_before_it_is_read(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    failure = failure_of(fake, tiny, tmp_path, "load", b"huge")
    assert "expected an answer of at most 1048576 bytes, got one of 4294967295" in str(failure)


@pytest.mark.parametrize("at", ["load", "request"])
def test_an_answer_that_comes_byte_by_byte_has_one_deadline(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, at: str
) -> None:
    began = time.monotonic()
    failure = failure_of(fake, tiny, tmp_path, at, b"dribble", seconds=1.0)
    assert failure.status == "timeout"
    assert "no answer within 1 s" in str(failure)
    assert time.monotonic() - began < 45  # all of it would take 50 s


def test_a_message_that_nobody_takes_has_a_deadline_too(fake: Plugin, tmp_path: Path) -> None:
    plugin = Plugin(name="deaf", command=(sys.executable, "-c", DEAF), info=fake.info)
    with (
        pytest.raises(LaunchFailure, match=r"deaf: hung in start: no answer within 0.5 s") as failure,
        Launch("deaf", plugin, log=tmp_path / "log", options=LoadOptions()) as launch,
    ):
        launch.call("probe", 0.5, options={"extra": "x" * (8 << 20)})
    assert failure.value.status == "timeout"


DEAF = r"""
import os, sys, time
os.write(int(sys.argv[1]), b"CMP1\x05\0\0\0\x81\xa2ok\x07")
time.sleep(3600)
"""


def test_a_message_in_two_parts_is_read_in_two_calls() -> None:
    import socket

    from enginecmp.wire.protocol import Channel

    left, right = socket.socketpair()
    channel = Channel(left)
    whole = b"CMP1\x05\0\0\0\x81\xa2ok\x07"
    right.sendall(whole[:10])
    with pytest.raises(TimeoutError):
        channel.receive(0.05)
    right.sendall(whole[10:])
    assert channel.receive(5) == {"ok": 7}
    right.sendall(b"CMP1\xff\xff\0\0")
    with pytest.raises(WrongMessage, match="expected an answer of at most 100 bytes, got one of 65535"):
        channel.receive(5, most_bytes=100)
    channel.close()
    right.close()
