"""Conversations: turns that follow their answers, beginnings that are shared, and what a prefix cache makes of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import FAKE_MODULE, CommandLine, command_line
from helpers import only_run, read_samples

from enginecmp import clock
from enginecmp.errors import UsageError
from enginecmp.format.records import Asked, Sample
from enginecmp.loadgen.client import Generator
from enginecmp.prompts import PromptSet
from enginecmp.prompts.lengths import Exponential, draw_seconds
from enginecmp.scenarios import load_scenario
from enginecmp.types import ModelInfo
from enginecmp.wire.request_table import Field, Header, RequestTable, State, new_request_table

TALK = """
name = "talk"
primary_metric = "ttft_seconds"
[workloads.talk]
prompt_tokens = { distribution = "uniform", least = 3, most = 6 }
output_tokens = 4
turns = { distribution = "uniform", least = 2, most = 4 }
think_seconds = 0.02
shared_prefix_tokens = 12
shared_prefixes = 2
[[cells]]
workload = "talk"
[[cells]]
workload = "talk"
concurrency = 3
[[cells]]
workload = "talk"
concurrency = 3
arrival = "poisson"
rate_per_second = 100
[profile.full]
blocks = 2
requests = 12
warmup_requests = 1
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory, tiny: ModelInfo) -> Path:
    """A run of one engine with its prefix cache on and off."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "talk.toml").write_text(TALK)
    options = ["clock=real", "decode_us=200", "prefill_us=500"]
    real = [part for label in ("on", "off") for option in options for part in ("-o", f"{label}.{option}")]
    done = command_line(folder)(
        "run", "--scenario", "talk.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--seed", "3",
        "--engines", "on=fake,off=fake", "--baseline", "off", "-o", "on.prefix_cache=1", *real,
        env={"CMP_PLUGINS": FAKE_MODULE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return only_run(folder / "results")


def asked(sample: Sample) -> Asked:
    assert isinstance(sample.asked, Asked)
    return sample.asked


def turns_of(talk: Path) -> dict[tuple[object, ...], list[Sample]]:
    """Return the measured turns of each conversation of each launch."""
    found: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for sample in read_samples(talk):
        if sample.phase == "measure":
            assert sample.status == "ok"
            found[sample.launch, sample.cell, asked(sample).conversation].append(sample)
    return found


def test_a_turn_is_sent_after_its_answer_and_think_time(talk: Path) -> None:
    conversations = turns_of(talk)
    for (_, cell, _), turns in conversations.items():
        assert [asked(turn).turn for turn in turns] == list(range(len(turns)))
        for before, turn in itertools.pairwise(turns):
            thought = (turn.intended_ns - before.end_ns) / 1e9
            assert thought == pytest.approx(0.02, abs=2e-5) if cell.arrival else thought >= 0.02
    assert max(map(len, conversations.values())) == 4
    by_cell = defaultdict(int)
    for (launch, cell, _), turns in conversations.items():
        by_cell[launch, cell] += len(turns)
    assert set(by_cell.values()) == {12}


def test_a_prompt_is_all_that_was_said_before_it(talk: Path) -> None:
    for turns in turns_of(talk).values():
        assert 12 + 3 <= turns[0].prompt_tokens <= 12 + 6
        for before, turn in itertools.pairwise(turns):
            new = turn.prompt_tokens - before.prompt_tokens - before.output_tokens
            assert 3 <= new <= 6
            assert asked(turn).known_tokens == before.prompt_tokens
    firsts = [turns[0] for turns in turns_of(talk).values()]
    assert {asked(first).known_tokens for first in firsts} == {0, 12}


def test_in_a_closed_loop_no_more_talk_at_once_than_there_are_users(talk: Path) -> None:
    spans: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for (launch, cell, _), turns in turns_of(talk).items():
        if not cell.arrival:
            spans[launch, cell].append((turns[0].start_ns, turns[-1].end_ns))
    for (_, cell), some in spans.items():
        at_once = [sum(begin <= moment < end for begin, end in some) for moment, _ in some]
        assert max(at_once) == cell.concurrency


def test_hits_stand_beside_what_there_was_to_find(talk: Path, cmp: CommandLine) -> None:
    found = msgspec.json.decode(cmp("stats", talk, "--json").stdout)
    shares = {
        (s["engine"], s["metric"], s["cell"]["concurrency"], "arrival" in s["cell"]): s
        for s in found["summaries"]
        if s["metric"] in ("prefix_cache_hit_share", "known_prompt_share")
    }
    assert {engine for engine, metric, *_ in shares if metric == "prefix_cache_hit_share"} == {"on"}
    for load in ((1, False), (3, False), (3, True)):
        hit, known = shares["on", "prefix_cache_hit_share", *load], shares["on", "known_prompt_share", *load]
        # Further conversations keep users busy, and how many is the engine's doing.
        assert known["mean"] == pytest.approx(shares["off", "known_prompt_share", *load]["mean"], abs=0.1)
        assert known["mean"] > 0.4
        # Windows may begin alike by chance, no more.
        assert hit["mean"] == pytest.approx(known["mean"], abs=0.15)
    single = [s for s in read_samples(talk) if s.engine == "on" and s.phase == "measure" and s.cell.concurrency == 1]
    assert all(s.metrics["prefix_cache_hit_tokens"] >= asked(s).known_tokens for s in single)
    shown = cmp("stats", "--all", talk).stdout
    assert "prefix_cache_hit_share" in shown
    (judged,) = [c for c in found["comparisons"] if c["primary"] and c["cell"]["concurrency"] == 1]
    assert judged["ratio"] < 0.8


def test_a_conversation_reads_back_at_every_turn(tiny: ModelInfo) -> None:
    prompts = PromptSet(tiny)
    prefix = prompts.take(12, key=5, seed=1)
    whole = prompts.take_turns((15, 24, 40), key=3, seed=1, after=prefix)
    assert len(whole) == 40
    assert whole[:12] == prefix
    tokenizer = prompts.tokenizer
    for end in (15, 24, 40):
        assert tokenizer.encode(tokenizer.decode(whole[:end])) == list(whole[:end])
    assert prompts.take_turns((40,), key=3, seed=1) == prompts.take(40, key=3, seed=1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("requests = 12", "requests = 12\nseconds = 1"), "seconds"),
        (("think_seconds = 0.02", "think_seconds = -1"), "think_seconds from 0 to 3600, got -1"),
        (("shared_prefixes = 2", "shared_prefix_share = 1.5"), "shared_prefix_share from 0 to 1"),
        (("shared_prefixes = 2", "shared_prefixes = 0"), "shared_prefixes >= 1"),
        (("most = 4 }", "most = 5000 }"), "turns: at most 1000"),
    ],
)
def test_a_conversation_that_cannot_be_is_refused(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    path = tmp_path / "talk.toml"
    assert change[0] in TALK
    path.write_text(TALK.replace(*change))
    with pytest.raises(UsageError) as raised:
        load_scenario(str(path), None)
    assert expected in str(raised.value)


def test_the_longest_turn_has_room(tmp_path: Path) -> None:
    (tmp_path / "talk.toml").write_text(TALK)
    cell = load_scenario(str(tmp_path / "talk.toml"), None).cells[0]
    assert cell.prompt_tokens == 12 + 4 * 6 + 3 * 4


def test_think_times_have_their_mean() -> None:
    drawn = draw_seconds(Exponential(2.0), 500, "a")
    assert np.mean(drawn) == pytest.approx(2.0, rel=0.02)
    assert np.std(drawn) == pytest.approx(2.0, rel=0.1)
    assert draw_seconds(1, 2, "a") == [1.0, 1.0]


def test_a_generator_that_sleeps_through_a_turn_is_seen() -> None:
    with Generator(3, 4, Path("/dev/null")) as generator:
        words, table = generator.table.words, generator.table
        now_ns = clock.now_ns()
        words[Header.USERS], words[Header.CHAINED], words[Header.GO_NS] = 1, 1, now_ns - int(60e9)
        words[table.row(1) + Field.AFTER] = 1
        words[table.row(1) + Field.THINK_NS] = int(20e9)
        table.send(0)
        words[table.row(0) + Field.SENT_NS] = now_ns - int(60e9)
        assert generator._silence_seconds() == 0, "it waits for an answer"
        table.finish(0, State.OK, now_ns - int(30e9), 4)
        assert generator._silence_seconds() == pytest.approx(10, abs=1), "the user has thought long enough"
        table.send(1)
        words[table.row(1) + Field.SENT_NS] = now_ns - int(10e9)
        assert generator._silence_seconds() == 0
        table.finish(1, State.OK, now_ns - int(5e9), 4)
        assert generator._silence_seconds() == pytest.approx(5, abs=1), "the user has another conversation to begin"


def test_a_table_keeps_who_was_sent_in_which_order() -> None:
    table = RequestTable(new_request_table(4, 2))
    for number in (2, 0, 3):
        table.send(number)
    assert table.words[Header.SENT] == 3
    assert table.sent(0, 3) == [2, 0, 3]
    table.close()
