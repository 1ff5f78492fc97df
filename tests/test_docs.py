"""The documents say what the code does."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

from enginecmp import errors, hookspecs, types
from enginecmp.cli import _MODULES, VERBS
from enginecmp.cli.run import GROUPS, command
from enginecmp.format import records
from enginecmp.format.flags import Flag
from enginecmp.scenarios import loader
from enginecmp.scenarios.decoding import DecodingRule
from enginecmp.scenarios.scenario import Expectation, Limits, Overload, Profile
from enginecmp.scenarios.variants import VARIANTS
from enginecmp.scenarios.workload import Workload
from enginecmp.telemetry.contention import Validity
from enginecmp.wire.deadlines import Deadlines

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("workloads/*.md"), DOCS.parent / "README.md"])
ELSEWHERE = {
    *("--append-result", "--output-details", "--save-detailed"),
    *("--engine-device", "--engine-model", "--engine-option"),
    "--api-key",
}
"""Options of other programs that the documents name: benchmarks, pytest with our conformance suite, servers."""


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_hooks_md_has_every_signature_and_no_other() -> None:
    headings = re.findall(r"^### (cmp_\w+\(.*\))$", read("hooks.md"), re.MULTILINE)
    signatures = [
        f"{name}({', '.join(inspect.signature(function).parameters)})"
        for name, function in vars(hookspecs).items()
        if name.startswith("cmp_")
    ]
    assert sorted(headings) == sorted(signatures)


@pytest.mark.parametrize("kind", [types.EngineInfo, types.LoadOptions])
def test_hooks_md_names_every_field(kind: type) -> None:
    text = read("hooks.md")
    assert [field for field in kind.__struct_fields__ if f"| `{field}` |" not in text] == []


@pytest.mark.parametrize("kind", [records.Manifest, records.Sample, records.TelemetryReading])
def test_results_format_names_every_key(kind: type) -> None:
    text = read("results-format.md")
    assert [field for field in kind.__struct_fields__ if f"`{field}`" not in text and f'"{field}"' not in text] == []


def test_results_format_names_every_flag() -> None:
    text = read("results-format.md")
    assert [flag for flag in Flag if f"`{flag}`" not in text] == []


def test_the_tree_of_errors_in_the_docstring_is_complete() -> None:
    classes = [
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert errors.__doc__ is not None
    assert [name for name in classes if name not in errors.__doc__] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def commands_in(text: str) -> list[list[str]]:
    """Return the words after `cmp` of every command in code, inline or fenced; placeholders stay as they are."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    # An option may be mentioned without its value.
    inline = [f"{span} VALUE" if re.search(r" --?[a-z-]+$", span) else span for span in inline]
    found = []
    for line in [*lines, *(" ".join(span.split()) for span in inline)]:
        command = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?cmp( .+)", line)
        if command is not None:
            words = shlex.shlex(command[1], posix=True, punctuation_chars="|&;<>")
            words.whitespace_split = True
            found.append(list(itertools.takewhile(lambda word: not set(word) <= set("|&;<>"), words)))
    return found


def loaded(verb: str) -> click.Command:
    if verb == "quality":  # handed over as it is: the plugin knows the options
        handed_over: click.Command = importlib.import_module("enginecmp_text_quality.__main__").command
        return handed_over
    command: click.Command = importlib.import_module(f"enginecmp.cli.{_MODULES.get(verb, verb)}").command
    return command


def fault_of(words: list[str]) -> str | None:
    """Return why a command line does not parse, or None; values are not looked at, since many are placeholders."""
    if words[0] in ("--help", "--version", "--debug") or (not words[0].startswith("-") and words[0] not in VERBS):
        known = words[0].startswith("-") or words == ["a", "b"]  # two files, as the POSIX tool compares them
        return None if known else f"no command {words[0]}"
    command, rest = loaded(words[0]), words[1:]
    try:
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            context = click.Context(command)
            inner = command.get_command(context, rest[0])
            if inner is None:
                return f"no command {words[0]} {rest[0]}"
            command, rest = inner, rest[1:]
        context = click.Context(command, ignore_unknown_options=False, help_option_names=["-h", "--help"])
        command.make_parser(context).parse_args(list(rest))
    except click.UsageError as error:
        return error.format_message()
    return None


def options_of(command: click.Command) -> set[str]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options_of, inner))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_in_documents_parse(path: Path) -> None:
    found = commands_in(path.read_text(encoding="utf-8"))
    assert [f"cmp {' '.join(words)}: {fault}" for words in found if (fault := fault_of(words))] == []


def test_documents_show_every_command() -> None:
    shown = {words[0] for page in PAGES for words in commands_in(page.read_text(encoding="utf-8"))}
    assert set(VERBS) <= shown


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_options_that_documents_name_exist(path: Path) -> None:
    known = {"--help", "--version", "--debug"}.union(*(options_of(loaded(verb)) for verb in VERBS))
    named = re.findall(r"`(--[a-z][a-z-]*)[^`]*`", path.read_text(encoding="utf-8"))
    assert sorted(set(named) - known - ELSEWHERE) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("`cmp run --no-such`", "No such option"),
        ("`cmp run --resume`", "None"),
        ("```\ncmp stats results/ --jsn\n```", "No such option"),
        ("```sh\nA=1 cmp model pul x\n```", "no command model pul"),
        ("`.venv/bin/cmp rum --engines all`", "no command rum"),
        ("```\ncmp run \\\n  --scenario\n```", "requires an argument"),
    ],
)
def test_wrong_command_in_a_document_is_found(line: str, fault: str) -> None:
    (words,) = commands_in(line)
    assert fault in str(fault_of(words))


def documented_keys(heading: str) -> set[str]:
    """Return the keys in the tables under one heading of scenario-format.md."""
    (section,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", read("scenario-format.md"), re.M | re.S)
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("`[profile.NAME]`", [Profile]),
        ("`[[cells]]`", [records.Cell]),
        ("`[decodings.NAME]`", [DecodingRule]),
        ("`[goodput]`, `[overload]`", [Limits, Overload]),
        ("`[[expect]]`", [Expectation]),
        ("`[deadlines]`, `[validity]`", [Deadlines, Validity]),
        *((f'`operation = "{name}"`', [kind]) for name, kind in VARIANTS.items()),
    ],
)
def test_scenario_format_has_every_key_of_a_table_and_no_other(heading: str, kinds: list[type]) -> None:
    assert documented_keys(heading) == {field for kind in kinds for field in kind.__struct_fields__}


def test_scenario_format_has_every_key_of_the_file_and_no_other() -> None:
    assert documented_keys("The file") == set(loader._TOP_KEYS)


def test_workloads_md_names_every_key_of_a_workload() -> None:
    assert [field for field in Workload.__struct_fields__ if field not in read("workloads.md")] == []


def test_the_example_of_scenario_format_is_a_scenario(tmp_path: Path) -> None:
    example, *_ = re.findall(r"^```toml\n(.*?)^```", read("scenario-format.md"), re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(example)
    assert len(loader.load_scenario(str(tmp_path / "mine.toml"), None).cells) == 2


def test_the_help_of_run_has_every_option_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {param.name for param in command.params}
    told = command.get_help(click.Context(command, info_name="cmp run"))
    at = [told.index(f"\n{title}:\n") for title in GROUPS]
    assert at == sorted(at)
    for param in command.params:
        assert param.opts[0] in told
