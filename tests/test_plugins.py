from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginecmp.errors import UsageError
from enginecmp.plugins import discover, find, sensor_modules

GOOD = """
from enginecmp import EngineInfo, hookimpl

@hookimpl
def cmp_engine():
    return EngineInfo(name="{name}", version="1", licence="MIT", devices=("cpu",), architectures=("llama",),
                      quantizations=("F32",))
"""


@pytest.fixture
def develop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make modules importable and name them in CMP_PLUGINS."""

    def make(**modules: str) -> None:
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("CMP_PLUGINS", ",".join(modules))

    return make


def test_installed_engines_are_found() -> None:
    names = {plugin.name for plugin in discover() if plugin.error is None}
    assert {"pytorch_baseline", "llamacpp", "mistralrs"} <= names


def test_a_module_under_development_is_found(develop: Callable[..., None]) -> None:
    develop(cmp_test_good=GOOD.format(name="good"))
    assert find("good", discover()).module == "cmp_test_good"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def x(:", "SyntaxError"),
        ("1/0", "ZeroDivisionError"),
        (GOOD.format(name="Bad Name"), "engine name 'Bad Name'"),
        ("x = 1", "no cmp_engine hook"),
        (
            GOOD.format(name="typo") + "\n@hookimpl\ndef cmp_prefil(session):\n    return 1\n",
            "did you mean 'cmp_prefill'",
        ),
        (GOOD.format(name="args") + "\n@hookimpl\ndef cmp_prefill(session, tokens):\n    return 1\n", "tokens"),
        ("from enginecmp import hookimpl\n@hookimpl\ndef cmp_engine():\n    return 5", "expected enginecmp.EngineInfo"),
    ],
)
def test_a_broken_plugin_carries_its_error_and_harms_nobody(
    develop: Callable[..., None], source: str, error: str
) -> None:
    develop(cmp_test_broken=source, cmp_test_fine=GOOD.format(name="fine"))
    plugins = discover()
    broken = next(plugin for plugin in plugins if plugin.module == "cmp_test_broken")
    assert broken.error is not None
    assert error in broken.error
    assert "\n" not in broken.error
    assert find("fine", plugins).error is None
    with pytest.raises(UsageError, match="its plugin is broken"):
        find(broken.name, plugins)


def test_two_plugins_cannot_share_a_name(develop: Callable[..., None]) -> None:
    develop(cmp_test_one=GOOD.format(name="same"), cmp_test_two=GOOD.format(name="same"))
    mine = [plugin for plugin in discover() if plugin.module.startswith("cmp_test_")]
    assert [plugin.error is None for plugin in mine] == [True, False]
    assert "already taken by cmp_test_one" in (mine[1].error or "")


def test_an_unknown_engine_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'llamacpp'"):
        find("lamacpp", discover())


SENSORS_ALONE = """
from enginecmp import hookimpl

@hookimpl
def cmp_telemetry():
    raise AssertionError("called in the sensors' process only")
"""


def test_a_plugin_of_sensors_alone_is_found_and_is_no_engine(develop: Callable[..., None]) -> None:
    develop(cmp_test_meter=SENSORS_ALONE, cmp_test_fine=GOOD.format(name="fine"))
    assert sensor_modules() == ["cmp_test_meter"]
    assert [plugin for plugin in discover() if plugin.module == "cmp_test_meter"] == []
    with pytest.raises(UsageError, match="unknown engine 'cmp_test_meter'"):
        find("cmp_test_meter", discover())
