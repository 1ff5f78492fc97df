"""What is printed as a next step works as it is printed, in the folders and with the names in which it is printed."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import FAKE_MODULE

from enginecmp.cli import _MODULES, VERBS, _dispatch
from enginecmp.cli.conflicts import check_run, check_stats
from enginecmp.errors import CmpError
from enginecmp.format.text import command_line, operand
from enginecmp.types import ModelInfo

SOURCES = Path(__file__).parents[1]
FOLDERS = ("core/enginecmp", "analysis/enginecmp_analysis", *(f"plugins/{p}" for p in ("custom_cpu", "llamacpp")))
FOREIGN = re.compile(
    r"docker|nvidia-smi|numactl|\bps\b|\bpip\b|hf download|vllm|sglang|llama-server|start the container with"
)
"""Other programs, whose options may stand beside ours."""

SCENARIO = """
name = "mine"
primary_metric = "e2e_seconds"
[[cells]]
prompt_tokens = 8
output_tokens = 4
[profile.full]
blocks = 1
requests = 2
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""


def command(verb: str) -> click.Command:
    found: click.Command = importlib.import_module(f"enginecmp.cli.{_MODULES.get(verb, verb)}").command
    return found


def options_of(found: click.Command) -> set[str]:
    mine = {word for parameter in found.params for word in (*parameter.opts, *parameter.secondary_opts)}
    inner = found.commands.values() if isinstance(found, click.Group) else ()
    return mine.union(*map(options_of, inner), {"--help", "--version", "--debug"})


def strings(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module but for docstrings, "X" where a value is put in."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | parts:
            yield node.value


def texts() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in sorted((SOURCES / folder).rglob("*.py")):
            if not {"tests", "testing", "plugin_tools"} & {*path.relative_to(SOURCES).parts}:
                yield from ((path.name, text) for text in strings(ast.parse(path.read_text())))


def test_every_option_that_a_message_names_exists() -> None:
    known = set().union(*(options_of(command(verb)) for verb in VERBS))
    option = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
    passed_on = {"fetch.py", "environment.py", "calibrate.py", "folder.py"}  # to pip, git, argparse and hf
    wrong = [
        (name, word)
        for name, text in texts()
        for word in option.findall(text)
        if word not in known and name not in passed_on and not FOREIGN.search(text)
    ]
    assert not wrong


def test_every_option_behind_a_command_is_one_of_that_command() -> None:
    wrong = [
        (name, match[0])
        for name, text in texts()
        for match in re.finditer(r"\bcmp ([a-z]+)((?: [^`;':]+)?)", text)
        if match[1] in VERBS
        for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", match[2])
        if name != "__init__.py" and word not in options_of(command(match[1]))
    ]
    assert not wrong


@pytest.fixture
def place(tmp_path: Path, tiny: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with names that a careless command would split, or take for options."""
    folder = tmp_path / "it's a place"
    folder.mkdir()
    (folder / "-my scenario.toml").write_text(SCENARIO)
    (folder / "-tiny model.gguf").write_bytes(Path(tiny.path).read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CMP_PLUGINS", FAKE_MODULE)
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "60")
    return folder


class Session:
    """Calls commands as a user would, and keeps every command that is printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def says(self, *words: str | Path) -> str:
        """Return everything that a command says, its error included."""
        failed = ""
        self._capsys.readouterr()
        try:
            _dispatch([str(word) for word in words])
        except CmpError as error:
            failed = f"cmp: {error}\n"
        said = self._capsys.readouterr()
        return said.out + said.err + failed

    def advises(self, *words: str | Path) -> list[str]:
        """Return the commands among that, each proven to be taken as it stands."""
        found = [*printed_commands(self.says(*words))]
        for one in found:
            require_takeable(one)
        return found


@pytest.fixture
def session(capsys: pytest.CaptureFixture[str]) -> Session:
    return Session(capsys)


def printed_commands(text: str) -> Iterator[str]:
    """Yield what can be pasted: in backquotes, on a line of its own, in a table of commands, or behind a colon."""
    verbs = "|".join(VERBS)
    for line in text.splitlines():
        yield from re.findall(rf"`(cmp (?:{verbs})\b[^`]*)`", line)
        if match := re.search(rf"(?:^\s*|: |; run |then )(cmp (?:{verbs})\b[^`]*?)(?:\s{{3,}}.*| \|)?$", line):
            yield match[1]


def require_takeable(printed: str) -> None:
    """Refuse a command that the command line would not take, or that names what is not there."""
    program, verb, *words = shlex.split(printed)
    assert program == "cmp"
    found = command(verb)
    while isinstance(found, click.Group) and words:
        found = found.commands[words.pop(0)]
    context = found.make_context(verb, words)
    if verb == "run":
        check_run(context)
        for name in ("resume", "extend"):
            assert context.params[name] is None or (context.params[name] / "manifest.json").is_file()
        assert Path(context.params["scenario"]).exists() or "/" not in context.params["scenario"]
    if verb == "stats":
        check_stats(context)
        assert all(Path(path).is_dir() for path in context.params["paths"])
    if "model" in context.params and verb in ("run", "tune") and context.params["model"]:
        assert Path(context.params["model"]).is_file()


RUN = ("run", "--no-gate", "--no-sensors", "--scenario", "./-my scenario.toml", "--model", "./-tiny model.gguf")
TWO = (*RUN, "--engines", "a=fake,b=fake", "-o", "b.decode_us=900")


def test_what_a_run_and_its_readers_advise_can_be_pasted(place: Path, session: Session) -> None:
    told = session.advises(*TWO, "--out", "-d", "--blocks", "2")
    (run,) = Path("-d").glob("2*")
    assert told[0] == f"cmp stats ./{run}"
    new_run = next(one for one in told if one.startswith("cmp run"))
    assert "--scenario" in new_run
    assert new_run.endswith("--blocks 10 --requests 10")
    assert f"cmp stats ./{run}" in session.advises("stats", f"./{run}")
    assert any("--requests" in one for one in session.advises("stats", f"./{run}", "--plan"))
    guide = session.advises("guide", f"./{run}")
    # Requests are missing: for this metric, launches of the same length would never do.
    assert any("--requests 10" in one and "my scenario.toml" in one for one in guide)
    assert any(one.startswith("cmp tune fake") for one in guide)
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"interrupted"'))
    assert f"cmp run --resume {run}" in session.advises("stats", f"./{run}")
    assert session.advises("run", "--resume", f"./{run}", "--model", "./-tiny model.gguf")


def test_launches_that_are_missing_are_added_to_the_run(place: Path, session: Session) -> None:
    told = session.advises(*TWO, "--out", "my results", "--requests", "10")
    (run,) = Path("my results").glob("2*")
    extend = command_line(["cmp", "run", "--extend", str(run), "--blocks", "+9"])
    assert extend in told
    assert extend in session.advises("guide", run)


def test_a_command_kept_beside_a_run_of_somebody_else_is_no_second_command(place: Path, session: Session) -> None:
    session.says(*TWO, "--out", "d", "--blocks", "2")
    (run,) = Path("d").glob("2*")
    kept = run / "resume.json"
    for text, shown in (("cmp run --seed 1; touch x `y`", ["--seed", "1;", "touch", "x", "`y`"]), ("touch x", None)):
        kept.write_text(re.sub(r'"command": ".*"', f'"command": "{text}"', kept.read_text()))
        said = session.says("stats", run, "--plan")
        if shown is None:
            assert "touch" not in said
        else:
            (line,) = [line for line in said.splitlines() if "touch" in line]
            assert shlex.split(line.partition(": ")[2])[2:7] == shown


@pytest.mark.parametrize(
    ("words", "advised"),
    [
        (("model", "info", "smollm2-135m-instruct:q5_0"), "cmp model pull smollm2-135m-instruct:q5_0"),
        ((*RUN, "--engines", "fake", "--tuned", "tuned"), "cmp tune fake --model"),
        ((*RUN, "--engines", "fak"), ""),
        (("run", "--engines", "no-such"), ""),
        (("stats", "nothing here"), "cmp run"),
        (("compare", "no-such", "results"), "cmp run --save-baseline NAME"),
        (("plugin", "install", "-e", "./my plugin"), "cmp plugin install --yes -e './my plugin'"),
        (("plugin", "new", "swift", "--in", "./-here"), "cmp plugin check ./-here"),
        (("import", "a b.json"), ""),
        (("plugin", "uninstall", "fake"), ""),
        (("scenario", "check", "./-my scenario.toml"), ""),
        (("engines",), ""),
        (("doctor",), ""),
    ],
)
def test_an_error_and_a_report_advise_what_is_taken(
    words: tuple[str, ...], advised: str, place: Path, session: Session
) -> None:
    Path("-here").mkdir()
    told = session.advises(*words)
    assert not advised or any(one.startswith(advised) for one in told)


@pytest.mark.parametrize("path", ["-d", "--all", "-"])
def test_a_path_that_reads_as_an_option_is_printed_as_one_that_does_not(path: str) -> None:
    assert operand(path) == f"./{path}"
    assert operand(Path("a b")) == "a b"
