"""`cmp plugin`: what it makes works at once, what it installs is found, what is wrong is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import unchanged
from conftest import CommandLine

from enginecmp.types import ModelInfo

pytestmark = unchanged.left_out_with()


@pytest.fixture
def made(cmp: CommandLine, tmp_path: Path) -> Path:
    """The folder of a new plugin for the engine `swift`."""
    done = cmp("plugin", "new", "swift")
    assert done.returncode == 0, done.stderr
    return tmp_path / "enginecmp-swift"


def test_a_new_plugin_is_a_whole_distribution_under_its_own_name(made: Path) -> None:
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    assert files == ["README.md", "enginecmp_swift.py", "pyproject.toml", "tests/test_swift.py"]
    assert [path for path in files if "my-engine" in (made / path).read_text().replace("_", "-")] == []


def test_a_new_plugin_passes_its_own_tests_and_the_conformance_suite(made: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=made,
        env={**os.environ, "PYTHONPATH": str(made), "CMP_PLUGINS": "enginecmp_swift"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 10


@pytest.mark.parametrize(("name", "expected"), [("Swift-2", "try 'swift_2'"), ("9", "lower case letters")])
def test_a_name_that_no_engine_can_have_is_refused(name: str, expected: str, cmp: CommandLine) -> None:
    done = cmp("plugin", "new", name)
    assert done.returncode == 2
    assert expected in done.stderr


def test_an_existing_folder_is_not_written_over(made: Path, cmp: CommandLine) -> None:
    done = cmp("plugin", "new", "swift")
    assert done.returncode == 2
    assert "already there" in done.stderr


def test_check_takes_a_folder_that_is_not_installed(made: Path, cmp: CommandLine) -> None:
    done = cmp("plugin", "check", made)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "swift" in done.stdout
    assert "passed" in done.stdout


def test_check_names_what_is_wrong(made: Path, cmp: CommandLine) -> None:
    module = made / "enginecmp_swift.py"
    text = module.read_text().replace('licence="BSD-3-Clause"', 'licence=""').replace('"Q8_0"', '"Q8"')
    module.write_text(text.replace("import numpy as np  # here", "import numpy as np; 1 / 0  # here"))
    done = cmp("plugin", "check", made)
    assert done.returncode == 1
    assert "EngineInfo.licence is empty" in done.stdout
    assert "'Q8' is no GGUF tensor type" in done.stdout
    assert "ZeroDivisionError" in done.stdout


def test_check_stops_where_the_engine_cannot_run(made: Path, cmp: CommandLine) -> None:
    module = made / "enginecmp_swift.py"
    text = module.read_text()
    probe = text[text.index("def cmp_probe") :].split("\n\n\n")[0]
    refusal = 'def cmp_probe(options):\n    return Probe(ok=False, reason="needs a GPU", fix="buy one")'
    module.write_text(text.replace(probe, refusal))
    done = cmp("plugin", "check", made)
    assert done.returncode == 1
    assert "it cannot run here: needs a GPU; the conformance suite was not run\n    buy one\n" in done.stdout
    assert "passed" not in done.stdout


def test_an_isolated_plugin_runs_in_an_environment_of_its_own(
    made: Path, cmp: CommandLine, tiny: ModelInfo, tmp_path: Path
) -> None:
    data = {"XDG_DATA_HOME": str(tmp_path / "data")}
    # The environment gets what it needs from the cache or the index, as `make setup` does.
    done = cmp("plugin", "install", "--yes", made, "--isolated", "swift", env=data, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "engine swift (enginecmp-swift 0.1.0)" in done.stdout
    listed = msgspec.json.decode(cmp("plugin", "list", "--json", env=data).stdout)["plugins"]
    swift = next(plugin for plugin in listed if plugin["name"] == "swift")
    assert swift["python"] == str(tmp_path / "data/enginecmp/environments/swift/bin/python")
    done = cmp(
        "run", "--engines", "swift,fake", "--baseline", "fake", "--scenario", "single", "--profile", "quick",
        "--blocks", "1", "--requests", "2", "--no-gate", "--model", tiny.path, env=data,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    assert cmp("plugin", "uninstall", "swift", env=data).returncode == 0
    assert not (tmp_path / "data/enginecmp/environments/swift").exists()
    assert "swift" not in cmp("plugin", "list", env=data).stdout


def test_a_failed_installation_leaves_nothing_behind(cmp: CommandLine, tmp_path: Path) -> None:
    data = {"XDG_DATA_HOME": str(tmp_path / "data")}
    done = cmp("plugin", "install", "--yes", "./nothing-here", "--isolated", "gone", env=data, timeout=300)
    assert done.returncode == 1
    assert "installation failed" in done.stderr
    assert list((tmp_path / "data/enginecmp/environments").iterdir()) == []


def test_install_shows_what_it_would_do(cmp: CommandLine, made: Path) -> None:
    done = cmp("plugin", "install", made, "--dry-run")
    assert done.returncode == 0
    assert sys.executable in done.stdout
    assert str(made) in done.stdout


def test_uninstalling_what_is_not_there_says_what_is_near(cmp: CommandLine) -> None:
    done = cmp("plugin", "uninstall", "llamacp")
    assert done.returncode == 2
    assert "did you mean 'llamacpp'" in done.stderr


def test_a_trace_shows_the_order_of_hooks(cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    done = cmp(
        "run", "--engines", "fake", "--baseline", "fake", "--scenario", "single", "--profile", "quick", "--blocks",
        "1", "--requests", "1", "--no-gate", "--model", tiny.path, env={"CMP_TRACE_PLUGINS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = next((tmp_path / "results").glob("*/logs/*.log")).read_text()
    calls = re.findall(r"> (cmp_\w+)\(", log)
    one_request = ["cmp_reset", "cmp_prepare", "cmp_prefill", "cmp_decode", "cmp_metrics"]
    assert calls[:3] == ["cmp_load", "cmp_metrics", "cmp_version"]
    assert calls[3:8] == one_request
    assert calls[-1] == "cmp_unload"
    assert re.search(r"< cmp_prefill \d+\.\d{3} ms", log)


def test_installing_is_agreed_to_first(cmp: CommandLine, made: Path, tmp_path: Path) -> None:
    for arguments in ([made], ["--isolated", "swift", made]):
        done = cmp("plugin", "install", *arguments, env={"XDG_DATA_HOME": str(tmp_path / "data")})
        assert done.returncode == 2
        assert "runs code of the plugin's author" in done.stderr
        advised = done.stderr.rpartition(": ")[2].split()
        assert advised == ["cmp", "plugin", "install", "--yes", *map(str, arguments)]
    assert not (tmp_path / "data").exists()


def test_modules_of_the_current_folder_are_not_run(
    cmp: CommandLine, made: Path, tmp_path: Path, tiny: ModelInfo
) -> None:
    mark = tmp_path / "ran"
    for name in ("pip", "uv", "pytest", "conftest", "sitecustomize", "usercustomize", "msgspec", "enginecmp", "venv"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write(__name__)\n")
    env = {"ENGINECMP_CACHE": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    # No index is asked: what is wanted is a folder that is not there, and a model that no address offers.
    env |= {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
    assert cmp("plugin", "install", "--yes", "./nothing-here", env=env).returncode == 1
    assert cmp("plugin", "install", "--yes", "--isolated", "x", "./nothing-here", env=env).returncode == 1
    assert cmp("plugin", "uninstall", "fake", env=env).returncode == 2
    assert cmp("model", "pull", "smollm2-135m-instruct", env=env).returncode == 1
    missing = cmp("plugin", "check", made, "--model", "nothing.gguf", env=env)
    assert missing.returncode == 1
    assert missing.stderr.endswith("nothing.gguf: expected a readable GGUF file, got: No such file or directory\n")
    assert " passed" in cmp("plugin", "check", made, "--model", tiny.path, env=env, timeout=300).stdout
    assert cmp("engines", env=env).returncode == 0
    assert not mark.exists()
