"""The documents say what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from enginecmp import errors, hookspecs, types
from enginecmp.cli import VERBS
from enginecmp.telemetry.contention import Validity

DOCS = Path(__file__).parent.parent / "docs"


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


@pytest.mark.parametrize("kind", [types.Manifest, types.Sample, types.TelemetryReading])
def test_results_format_names_every_key(kind: type) -> None:
    text = read("results-format.md")
    assert [field for field in kind.__struct_fields__ if f"`{field}`" not in text and f'"{field}"' not in text] == []


def test_results_format_names_every_flag() -> None:
    text = read("results-format.md")
    rules = Validity(foreign_cpu_share=0, cpu_pressure_share=0, steal_share=0, floor_seconds=0)
    keys = ("foreign_cpu_seconds", "cpu_pressure_seconds", "steal_seconds")
    for flag in rules.flags(dict.fromkeys(keys, 1.0), 1.0):
        assert f"`{flag}`" in text


def test_the_tree_of_errors_in_the_docstring_is_complete() -> None:
    classes = [
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert errors.__doc__ is not None
    assert [name for name in classes if name not in errors.__doc__] == []


@pytest.mark.parametrize("path", sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"]), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"]), ids=lambda path: path.name)
def test_commands_in_documents_exist(path: Path) -> None:
    verbs = set(re.findall(r"`(?:[A-Z_]+=\S+ )*cmp ([a-z]+)[ `]", path.read_text(encoding="utf-8")))
    assert verbs <= {*VERBS, "a"}
