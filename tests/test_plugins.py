from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CommandLine
from helpers import only_run, read_samples

from enginecmp.errors import UsageError
from enginecmp.plugins import asking, discovery
from enginecmp.plugins.discovery import discover, find, sensor_modules
from enginecmp.types import ModelInfo

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
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
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
        ("x = 1", "no cmp_engine hook"),
        (
            GOOD.format(name="typo") + "\n@hookimpl\ndef cmp_prefil(session):\n    return 1\n",
            "did you mean 'cmp_prefill'",
        ),
        (GOOD.format(name="args") + "\n@hookimpl\ndef cmp_prefill(session, tokens):\n    return 1\n", "tokens"),
        (
            "from enginecmp import hookimpl\n@hookimpl\ndef cmp_engine():\n    return 5",
            "expected enginecmp.EngineInfo, got int",
        ),
        ("import os; os._exit(7)", "exited with code 7 before it told its facts"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV before it told its facts"),
        ("import os; os.closerange(0, 256)", "exited with code 1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: no message"),
        ("def f():\n    f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("class E(Exception):\n    def __str__(self):\n        return 5\nraise E", "E: its message cannot be read"),
        ("import os\nwhile True:\n    os.write(1, bytes(1 << 20))", "File too large"),
        ("bytearray(20 << 30)", "MemoryError"),
        (r"raise RuntimeError('\x1b]0;title\x07\u202e\n|')", r"RuntimeError: \x1b]0;title\x07\u202e |"),
        ("raise RuntimeError('x' * (200 << 20))", "RuntimeError: " + 400 * "x"),
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


def test_a_plugin_that_hangs_is_broken_once_and_asked_once(
    develop: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "DEADLINE_SECONDS", 1.0)
    develop(cmp_test_hang="import time\ntime.sleep(3600)", cmp_test_fine=GOOD.format(name="fine"))
    began = [discover(), discover()]
    assert began[0] == began[1]
    broken = next(plugin for plugin in began[0] if plugin.module == "cmp_test_hang")
    assert broken.error == "importing it did not end within 1 s; import what is large inside cmp_load"


SIDE_EFFECTS = """
import atexit, os, resource, signal, sys, threading, time
os.chdir("/")
os.umask(0o777)
os.environ["CMP_SIDE_EFFECT"] = "1"
signal.signal(signal.SIGINT, signal.SIG_IGN)
threading.Thread(target=time.sleep, args=(3600,)).start()
atexit.register(time.sleep, 3600)
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
print("side effect")
sys.stderr.write("side effect")
"""


def test_what_a_module_does_when_it_is_imported_stays_in_a_child(
    develop: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    def state() -> list[object]:
        mask = os.umask(0)
        os.umask(mask)
        threads = [thread.name for thread in threading.enumerate()]
        return [os.getcwd(), mask, dict(os.environ), signal.getsignal(signal.SIGINT), threads, set(sys.modules)]

    develop(cmp_test_side=SIDE_EFFECTS + GOOD.format(name="side"))
    before = state()
    assert find("side", discover()).error is None
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_an_import_leaves_no_process_behind(develop: Callable[..., None], tmp_path: Path) -> None:
    develop(cmp_test_fork=f"import os, time\nif (pid := os.fork()) == 0:\n    time.sleep(3600)\n"
            f"open({str(tmp_path / 'pid')!r}, 'w').write(str(pid))\n" + GOOD.format(name="forks"))  # fmt: skip
    assert find("forks", discover()).error is None
    child = Path("/proc", (tmp_path / "pid").read_text())
    for _ in range(500):
        if not child.exists() or "Z" in (child / "stat").read_text().split()[2]:
            return
        time.sleep(0.01)
    pytest.fail("its child is still there")


FACTS = """
import types
from enginecmp import EngineInfo, hookimpl

@hookimpl
def cmp_engine():
    facts = dict(name="facts", version="1", licence="MIT", devices=("cpu",), architectures=(), quantizations=())
    return EngineInfo(**(facts | {changes}))
"""


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ("{'devices': ()}", "EngineInfo.devices: expected at least one device, e.g. ('cpu',), got none"),
        ("{'devices': 'cpu'}", "EngineInfo.devices: expected array, got str"),
        ("{'devices': (1,)}", "EngineInfo.devices[0]: expected str, got int"),
        ("{'version': None}", "EngineInfo.version: expected str, got None"),
        ("{'version': b'1'}", "EngineInfo.version: expected str, got bytes"),
        (r"{'version': '1\ud800'}", r"UnicodeEncodeError: 'utf-8' codec can't encode character '\ud800' in position 1"),
        (r"{'version': '\x1b[2J'}", r"EngineInfo.version: expected one line of printable text, got '\x1b[2J'"),
        (r"{'licence': 'a\nb'}", "EngineInfo.licence: expected one line of printable text, got 'a b'"),
        ("{'limits': 'text'}", "EngineInfo.limits: expected array, got str"),
        ("{'tuned': 'x' * 5000}", "EngineInfo.tuned: expected at most 2000 characters, got 5000"),
        ("{'version': 'x' * (2 << 20)}", "its facts: expected at most 1048576 bytes, got "),
        ("{'max_concurrency': True}", "EngineInfo.max_concurrency: expected int, got bool"),
        ("{'max_concurrency': 0}", "EngineInfo.max_concurrency: expected 1 or more, got 0"),
        ("{'max_concurrency': 2**70}", "OverflowError"),
        (r"{'environment': {'A': 'x\0y'}}", r"EngineInfo.environment['A']: expected printable text of at most 32768"),
        ("{'environment': {'A=B': '1'}}", "EngineInfo.environment: expected the name of an environment variable"),
        ("{'environment': {'': '1'}}", "EngineInfo.environment: expected the name of an environment variable, got ''"),
        ("{'environment': {'1A': '1'}}", "EngineInfo.environment: expected the name of an environment variable"),
        ("{'environment': {'A': 1}}", "EngineInfo.environment[...]: expected str, got int"),
        ("{'environment': {1: 'A'}}", "EngineInfo.environment: expected str, got int"),
        ("{'environment': 5}", "EngineInfo.environment: expected object, got int"),
        ("{'exact_environment': {'A B': '1'}}", "EngineInfo.exact_environment: expected the name of an environment"),
        ("{'tunables': {'threads': ()}}", "EngineInfo.tunables['threads']: expected at least one value, got none"),
        ("{'tunables': {'threads': (4,)}}", "EngineInfo.tunables[...][0]: expected str, got int"),
        ("{'quantizations': ('Q8 0',)}", "EngineInfo.quantizations: expected letters, digits and _ . : + -"),
        ("{'architectures': ('a',) * 2000}", "EngineInfo.architectures: expected at most 1000 entries, got 2000"),
        ("{'tuned': object()}", "EngineInfo: expected text, numbers, tuples and dicts, got object"),
        ("{'name': 'Bad Name'}", "EngineInfo.name: expected up to 64 lower case letters, digits and '_', got "),
        ("{'name': '../../x'}", "EngineInfo.name: expected up to 64 lower case letters, digits and '_', got "),
        ("{'name': 'x' * 65}", "EngineInfo.name: expected up to 64 lower case letters, digits and '_', got "),
    ],
)
def test_a_wrong_fact_makes_its_plugin_broken(develop: Callable[..., None], changes: str, error: str) -> None:
    develop(cmp_test_facts=FACTS.replace("{changes}", changes), cmp_test_fine=GOOD.format(name="fine"))
    plugins = discover()
    broken = next(plugin for plugin in plugins if plugin.module == "cmp_test_facts")
    assert broken.info is None
    assert (broken.error or "").startswith(error)
    assert find("fine", plugins).error is None


def test_a_run_goes_on_without_a_broken_engine(cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "cmp_test_bad.py").write_text(FACTS.replace("facts", "bad").replace("{changes}", "{'version': None}"))
    env = {"PYTHONPATH": str(tmp_path), "CMP_PLUGINS": "cmp_test_bad,enginecmp.testing.fake_engine"}
    line = ["run", "--scenario", "single", "--profile", "quick", "--no-gate", "--no-sensors", "--blocks", "1"]
    line += ["--requests", "1", "--model", tiny.path, "--engines"]
    why = "bad: its plugin is broken: EngineInfo.version: expected str, got None"
    done = cmp(*line, "good=fake,bad", env=env)
    assert done.returncode == 0, done.stderr
    assert f"left out: {why}\n" in done.stderr
    assert {s.engine for s in read_samples(only_run(tmp_path / "results"))} == {"good"}
    alone = cmp(*line, "bad", env=env)
    assert (alone.returncode, why in alone.stderr) == (1, True)


def test_a_broken_plugin_takes_no_name_from_one_that_works(develop: Callable[..., None]) -> None:
    develop(
        cmp_test_a=FACTS.replace("{changes}", "{'name': 'same', 'devices': ()}"), cmp_test_b=GOOD.format(name="same")
    )
    plugins = discover()
    assert find("same", plugins).module == "cmp_test_b"
    assert next(p for p in plugins if p.module == "cmp_test_a").name == "same (cmp_test_a)"


def test_read_only_mappings_are_facts_too(develop: Callable[..., None]) -> None:
    develop(cmp_test_facts=FACTS.replace("{changes}", "{'environment': types.MappingProxyType({'A': '{threads}'})}"))
    info = find("facts", discover()).info
    assert info is not None
    assert info.environment == {"A": "{threads}"}


SCENARIOS = (
    GOOD.format(name="brings")
    + """
@hookimpl
def cmp_scenarios():
    {body}
"""
)


def test_scenarios_are_named_by_the_child(develop: Callable[..., None]) -> None:
    develop(
        cmp_test_brings=SCENARIOS.replace("{body}", "import pathlib; return ['/a/b.toml', pathlib.Path('/c.toml')]")
    )
    assert find("brings", discover()).scenarios == ("/a/b.toml", "/c.toml")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise OSError('no folder')", "OSError: no folder"),
        ("return [5]", "TypeError"),
        (r"return ['/a\x1bb']", "cmp_scenarios: expected one line of printable text"),
    ],
)
def test_scenarios_that_cannot_be_named_make_their_plugin_broken(
    body: str, error: str, develop: Callable[..., None]
) -> None:
    develop(cmp_test_brings=SCENARIOS.replace("{body}", body), cmp_test_fine=GOOD.format(name="fine"))
    plugins = discover()
    broken = next(plugin for plugin in plugins if plugin.module == "cmp_test_brings")
    assert error in (broken.error or "")
    assert find("fine", plugins).error is None


def installed(folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch, metadata: str = "") -> None:
    """Put a distribution with one plugin where the interpreter finds it."""
    (folder / f"{name}.py").write_text(source)
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(metadata or f"[enginecmp]\n{name} = {name}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))


def counting(folder: Path, source: str) -> str:
    """Return source that leaves a mark in a file each time that it is imported."""
    return f"open({str(folder / 'imports')!r}, 'a').write('x')\n{source}"


def test_an_installed_plugin_is_imported_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    installed(tmp_path, "cmp_test_kept", counting(tmp_path, GOOD.format(name="kept")), monkeypatch)
    for _ in range(3):
        monkeypatch.setattr(discovery, "_answers", {})
        assert find("kept", discover()).version == "1.0"
    assert (tmp_path / "imports").read_text() == "x"
    installed(tmp_path, "cmp_test_kept", counting(tmp_path, GOOD.format(name="renamed")), monkeypatch)
    assert find("renamed", discover()).error is None
    assert (tmp_path / "imports").read_text() == "xx"


def test_facts_are_asked_anew_when_a_distribution_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    installed(tmp_path, "cmp_test_kept", counting(tmp_path, GOOD.format(name="kept")), monkeypatch)
    discover()
    (tmp_path / "wrapped-2.0.dist-info").mkdir()
    discover()
    assert (tmp_path / "imports").read_text() == "xx"


@pytest.mark.parametrize("content", [b"", b"\xff", b"\x81\xa5facts\xc0", bytes(2 << 20)])
def test_a_damaged_cache_is_no_answer(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    installed(tmp_path, "cmp_test_kept", counting(tmp_path, GOOD.format(name="kept")), monkeypatch)
    discover()
    for file in (tmp_path / "cache/enginecmp/plugin-facts").iterdir():
        file.write_bytes(content)
    monkeypatch.setattr(discovery, "_answers", {})
    assert find("kept", discover()).error is None
    assert (tmp_path / "imports").read_text() == "xx"


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ("[enginecmp]\ncmp_test_meta = os:system('x')\n", "expected the name of a module"),
        ("[enginecmp]\ncmp_test_meta = -m\n", "expected the name of a module"),
        ("[enginecmp\ncmp_test_meta\n", ""),
    ],
)
def test_metadata_of_one_distribution_harms_no_other(
    metadata: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "cmp_test_meta", GOOD.format(name="meta"), monkeypatch, metadata)
    plugins = discover()
    assert {"llamacpp", "mistralrs"} <= {plugin.name for plugin in plugins if plugin.error is None}
    assert [error in (p.error or "") for p in plugins if "cmp_test_meta" in p.distribution + p.name] == [True] * bool(
        error
    )


def test_reading_results_imports_no_plugin(tmp_path: Path, cmp: CommandLine) -> None:
    (tmp_path / "cmp_test_mark.py").write_text(counting(tmp_path, GOOD.format(name="mark")))
    env = {"PYTHONPATH": str(tmp_path), "CMP_PLUGINS": "cmp_test_mark"}
    for line in (["stats", "nowhere"], ["report", "nowhere"], ["doctor"], ["model", "list"], ["--help"]):
        cmp(*line, env=env)
    assert not (tmp_path / "imports").exists()
    assert "mark" in cmp("plugin", "list", env=env).stdout
    assert (tmp_path / "imports").read_text() == "x"


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
    assert sensor_modules(()) == ["cmp_test_meter"]
    # A server's sensor reads servers: it starts where one is measured.
    assert sorted(sensor_modules({"enginecmp_openai_server"})) == ["cmp_test_meter", "enginecmp_openai_server"]
    assert sorted(sensor_modules()) == ["cmp_test_meter", "enginecmp_openai_server"]
    assert [plugin for plugin in discover() if plugin.module == "cmp_test_meter"] == []
    with pytest.raises(UsageError, match="unknown engine 'cmp_test_meter'"):
        find("cmp_test_meter", discover())
