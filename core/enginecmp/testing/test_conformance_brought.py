"""What a plugin brings beside engines: `pytest --pyargs enginecmp.testing --brings MODULE_OR_DISTRIBUTION`."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginecmp.measure.judged import JudgeError, JudgeProcess, check_variants
from enginecmp.models.known_files import info_of
from enginecmp.plugins.brought import brought
from enginecmp.plugins.brought_model import write_brought
from enginecmp.plugins.discovery import bringing
from enginecmp.plugins.plugin import Plugin
from enginecmp.scenarios import Scenario, load_scenario
from enginecmp.scenarios.loader import SHIPPED, profiles_of
from enginecmp.scenarios.variants import VARIANTS
from enginecmp.testing.tiny_models import tiny_model
from enginecmp.types import Given


@pytest.fixture(scope="session")
def bringers(pytestconfig: pytest.Config) -> list[Plugin]:
    """The plugins of the module or distribution that --brings names."""
    name = pytestconfig.getoption("--brings")
    if not name:
        pytest.skip("no plugin named; run with --brings MODULE_OR_DISTRIBUTION")
    found = [plugin for plugin in bringing() if name in (plugin.distribution, plugin.module.partition(":")[0])]
    assert found, f"expected a working plugin of the module or distribution {name}, see `cmp plugin list`"
    return found


@pytest.fixture(scope="session")
def scenarios(bringers: list[Plugin]) -> list[Scenario]:
    """Every scenario that they bring, with every profile."""
    measures = brought().measures
    paths = [path for plugin in bringers for path in plugin.scenarios]
    return [load_scenario(path, profile, measures=measures) for path in paths for profile in profiles_of(path)]


def test_its_names_are_its_own(bringers: list[Plugin]) -> None:
    names = [measure.name for plugin in bringers for measure in plugin.measures]
    assert not set(names) & set(VARIANTS), "a name that `cmp` has itself keeps its meaning"
    ours = {path.stem for path in SHIPPED.glob("*.toml")}
    assert not ours & {Path(path).stem for plugin in bringers for path in plugin.scenarios}
    known = brought().measures
    assert all(known[measure.name] == measure for plugin in bringers for measure in plugin.measures)


def test_its_judges_take_every_variant_of_its_scenarios(scenarios: list[Scenario]) -> None:
    for scenario in scenarios:
        assert scenario.description
        check_variants(scenario)  # raises UsageError with the judge's words


def test_its_judges_ask_and_refuse_what_is_no_answer(
    bringers: list[Plugin], scenarios: list[Scenario], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, "llama", "F32")
    for scenario in scenarios:
        if scenario.measure is None or scenario.measure not in [m for p in bringers for m in p.measures]:
            continue
        cell = scenario.cells[0]
        given = Given(
            seed=1,
            token_ids=tuple(range(1, 1 + cell.prompt_tokens)),
            output_tokens=cell.output_tokens,
            model=model if scenario.needs_model else None,
        )
        judge = JudgeProcess(scenario.measure, tmp_path / "judge.log")
        try:
            judge.question("0", scenario.variants[cell.variant or ""], given)
            judged = judge.judge("0", "no answer that an engine would give", 1.0, [])
            assert judged.judgement.wrong, "a judge raises ValueError for an answer that is none"
        except JudgeError as error:
            pytest.fail(str(error))
        finally:
            judge.close()


def test_its_models_come_out_twice_as_the_same_bytes(bringers: list[Plugin], tmp_path: Path) -> None:
    for name, place in (model for plugin in bringers for model in plugin.models):
        if not name.startswith("tiny-"):
            continue  # as large as the original
        first = write_brought(name, place, tmp_path / f"{name}.gguf", "F32", 3)
        again = write_brought(name, place, tmp_path / "again.gguf", "F32", 3)
        assert first.sha256 == again.sha256
        other = write_brought(name, place, tmp_path / "other.gguf", "F32", 4)
        assert info_of(tmp_path / "other.gguf").sha256 == other.sha256 != first.sha256
