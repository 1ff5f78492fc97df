from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from enginecmp.errors import CmpError, ResultsError
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.machine.environment import usable_cores
from enginecmp.machine.noise import machine_of
from enginecmp.plugins.plugin import Plugin
from enginecmp.tune import store
from enginecmp.tune.apply import with_tuned
from enginecmp.tune.candidates import Candidate, candidate, combined, sweep_of, values_of, with_changes
from enginecmp.types import EngineInfo, LoadOptions, ModelInfo


def info(**tunables: tuple[str, ...]) -> EngineInfo:
    return EngineInfo(
        name="e", version="1", licence="MIT", devices=("cpu",), architectures=("llama",), quantizations=("F32",),
        tunables={key.replace("__", ":"): values for key, values in tunables.items()},
    )  # fmt: skip


def test_few_combinations_are_all_tried_simpler_ones_first() -> None:
    sweep = sweep_of({"a": ("0", "1"), "b": ("x", "y", "z")})
    assert (sweep.kind, sweep.combinations) == ("grid", 6)
    assert [c.label for c in sweep.candidates] == ["default", "b=y", "b=z", "a=1", "a=1,b=y", "a=1,b=z"]
    assert sweep.candidates[4].changes == {"a": "1", "b": "y"}


def test_many_combinations_are_tried_one_change_at_a_time() -> None:
    sweep = sweep_of({"a": ("0", "1"), "b": ("x", "y", "z"), "c": ("0", "1", "2")})
    assert (sweep.kind, sweep.combinations) == ("one at a time", 18)
    assert [c.label for c in sweep.candidates] == ["default", "a=1", "b=y", "b=z", "c=1", "c=2"]


def test_this_machines_numbers_take_the_place_of_their_names() -> None:
    cores = usable_cores()
    found = values_of(info(threads=("auto", "1", "{cores}"), batch=("1", "{cores}00", "{half_cores}00")), "cpu")
    auto = str(max(1, cores - 1))
    assert set(found["threads"]) == {auto, "1", str(cores)}
    assert found["threads"][0] == auto
    assert len(found["threads"]) == len(set(found["threads"]))
    assert f"{cores}00" in found["batch"]
    assert f"{max(1, cores // 2)}00" in found["batch"]


def test_what_is_fixed_or_for_another_device_or_has_one_value_is_not_tried() -> None:
    known = info(kv=("a", "b"), cuda__paged=("auto", "off"), cpu__pack=("1", "0"), lone=("x",))
    assert values_of(known, "cpu") == {"kv": ("a", "b"), "pack": ("1", "0")}
    assert values_of(known, "cuda", fixed={"kv"}) == {"paged": ("auto", "off")}


def test_a_label_is_a_file_name() -> None:
    assert candidate({"path": "/a b"}).label == "path=_a_b"


def test_the_best_value_of_each_option_goes_into_the_combination() -> None:
    singles = [Candidate(f"{k}={v}", {k: v}) for k, v in (("a", "1"), ("a", "2"), ("b", "1"), ("c", "1"))]
    found = combined(singles, {"a=1": 1.1, "a=2": 1.3, "b=1": 1.2})
    assert found is not None
    assert found.changes == {"a": "2", "b": "1"}
    assert combined(singles, {"a=1": 1.1, "a=2": 1.3}) is None


def test_threads_are_a_field_and_the_rest_are_extra() -> None:
    options = with_changes(LoadOptions(threads=3, extra={"kept": "1"}), {"threads": "8", "kv": "q8_0"})
    assert options == LoadOptions(threads=8, extra={"kept": "1", "kv": "q8_0"})


# --- what is kept ------------------------------------------------------------------------------------------------

MACHINE = machine_of({"cpu": "x", "cores": 2})


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))


def winner(tiny: ModelInfo, **changes: object) -> store.Tuned:
    fields: dict[str, object] = {
        "machine": MACHINE, "engine": "fake", "version": "1.0", "model": tiny.name, "model_sha256": tiny.sha256,
        "device": "cpu", "changes": {"gear": "2", "threads": "2"}, "metric": "m", "scenario": "s/quick",
    }  # fmt: skip
    return store.Tuned(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def plain(fake: Plugin) -> EngineConfig:
    return EngineConfig("f", fake, LoadOptions(extra={"decode_us": "5"}))


def test_a_winner_belongs_to_machine_version_model_and_device(tiny: ModelInfo, plain: EngineConfig) -> None:
    environment = {"cpu": "x", "cores": 2, "python": "any"}
    store.publish(winner(tiny))
    store.publish(winner(tiny, changes={"gear": "4"}))
    store.publish(winner(tiny, version="0.9"))
    found, _ = store.find(plain, tiny, environment)
    assert found is not None
    assert found.changes == {"gear": "4"}  # the newer one took the place of the older
    assert len(store.known()) == 2
    for other in ({"cpu": "y", "cores": 2}, {"cpu": "x", "cores": 4}):
        missing, why = store.find(plain, tiny, other)
        assert missing is None
        assert "another machine" in why
    assert store.find(plain, msgspec.structs.replace(tiny, sha256="0"), environment) == (None, "")
    assert len(store.forget("fake", None)) == 2
    assert store.find(plain, tiny, environment) == (None, "")


def test_another_version_is_named(tiny: ModelInfo, plain: EngineConfig) -> None:
    store.publish(winner(tiny, version="0.9"))
    assert store.find(plain, tiny, {"cpu": "x", "cores": 2}) == (None, "tuned was version 0.9, installed is 1.0")


def test_a_file_that_is_not_ours_is_refused_and_kept(tiny: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tuned.json").write_text("{")
    with pytest.raises(ResultsError, match="fix or remove it"):
        store.publish(winner(tiny))
    assert (tmp_path / "cache" / "tuned.json").read_text() == "{"


def apply(plain: EngineConfig, tiny: ModelInfo, said: list[str], **changes: object) -> list[EngineConfig]:
    fields: dict[str, object] = {"both": False, "everything": False, "threads_given": False, "say": said.append}
    return with_tuned([plain], tiny, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def _stored(tiny: ModelInfo) -> None:
    from enginecmp.machine.environment import describe_environment

    store.publish(winner(tiny, machine=machine_of(describe_environment())))


@pytest.mark.usefixtures("_stored")
def test_tuned_settings_take_the_place_of_the_defaults_or_stand_beside_them(
    plain: EngineConfig, tiny: ModelInfo
) -> None:
    (alone,) = apply(plain, tiny, [])
    assert (alone.label, alone.tuned) == ("f", "tuned")
    assert alone.options == LoadOptions(threads=2, extra={"decode_us": "5", "gear": "2"})
    default, tuned = apply(plain, tiny, [], both=True)
    assert default == plain
    assert (tuned.label, tuned.tuned, tuned.options) == ("f+tuned", "tuned", alone.options)


@pytest.mark.usefixtures("_stored")
def test_what_the_user_sets_wins_and_is_told(fake: Plugin, tiny: ModelInfo) -> None:
    said: list[str] = []
    given = EngineConfig("f", fake, LoadOptions(threads=1, extra={"gear": "3"}))
    (found,) = apply(given, tiny, said)
    assert found.options == LoadOptions(threads=2, extra={"gear": "3"})
    assert said == ["f: gear=3 as given, not 2 as tuned"]


@pytest.mark.usefixtures("_stored")
def test_a_default_that_is_the_best_runs_once(plain: EngineConfig, tiny: ModelInfo) -> None:
    (stored,) = store.known()
    store.publish(msgspec.structs.replace(stored, changes={}))
    said: list[str] = []
    assert apply(plain, tiny, said, both=True) == [plain]
    assert "runs once" in said[0]


def test_without_a_winner_the_error_names_the_command(plain: EngineConfig, tiny: ModelInfo) -> None:
    with pytest.raises(CmpError, match=re.escape(f"run: cmp tune fake --model {shlex.quote(tiny.path)}")):
        apply(plain, tiny, [])


def test_of_all_engines_those_without_a_winner_are_told(plain: EngineConfig, tiny: ModelInfo) -> None:
    said: list[str] = []
    with pytest.raises(CmpError, match="no engine has tuned settings"):
        apply(plain, tiny, said, everything=True, both=True)
    assert said[0].startswith("default only: fake: ")
