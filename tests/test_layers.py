"""Imports run one way: no circle, no arrow that runs back up, between packages as between modules.

Read from the source text, so that imports inside functions and those for type checkers count as well.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CORE = (
    "__main__",
    "cli",
    "plugin_tools",
    "testing",
    "tune",
    "run",
    "importers",
    "gate",
    "measure",
    "scenarios",
    "prompts",
    "loadgen",
    "launch",
    "doctor",
    "placement",
    "machine",
    "objects",
    "results",
    "worker",
    "telemetry",
    "plugins",
    "",  # enginecmp itself: the public names
    "models",
    "hookspecs",
    "wire",
    "operands",
    "denoising",
    "types",
    "format",
    "errors",
    "clock",
)
"""Packages and lone modules of the host: each may import those below it, the format among them."""

ANALYSIS = ("calibrate", "guide", "render", "decisions", "analyse", "findings", "judge", "data", "schema", "statistics")
"""The same for the analysis."""

FOR_ANALYSIS = {"errors", "format", "types"}
"""What the analysis may know of the host."""

FOR_PLUGINS = {"enginecmp", "enginecmp_analysis"}


def roots() -> Iterator[Path]:
    yield ROOT / "core"
    yield ROOT / "analysis"
    yield from (path.parent for path in sorted((ROOT / "plugins").glob("*/pyproject.toml")))


@cache
def arrows() -> Mapping[str, frozenset[str]]:
    """Return module → modules of this project that it imports anywhere in its text."""
    texts: dict[str, tuple[str, str]] = {}
    for root in roots():
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0].startswith("enginecmp"):
                name = ".".join(parts).removesuffix(".__init__")
                texts[name] = ".".join(parts[:-1]), path.read_text(encoding="utf-8")
    return {name: frozenset(imported(name, *text, texts)) for name, text in texts.items()}


def imported(name: str, folder: str, text: str, known: Collection[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: len(folder.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import module` means the module, `from module import name` the module it stands in.
            found = [f"{source}.{alias.name}" for alias in node.names]
            found = [whole if whole in known else source for whole in found]
        yield from (module for module in found if module in known and module != name)


def package(module: str) -> tuple[str, str]:
    """Return the distribution's root package and what of it a module belongs to."""
    root, _, rest = module.partition(".")
    return root, rest.partition(".")[0]


def between_packages() -> set[tuple[tuple[str, str], tuple[str, str]]]:
    found = {(package(module), package(target)) for module, targets in arrows().items() for target in targets}
    return {(here, there) for here, there in found if here != there}


def between_siblings(arrows: Mapping[str, Collection[str]]) -> dict[str, dict[str, set[str]]]:
    """Return package → what stands directly in it → what of the same package that imports, at every depth."""
    found: dict[str, dict[str, set[str]]] = {}
    for module, targets in arrows.items():
        for target in targets:
            here, there = module.split("."), target.split(".")
            shared = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False))
            )
            if 0 < shared < min(len(here), len(there)):
                inside = found.setdefault(".".join(here[:shared]), {})
                inside.setdefault(here[shared], set()).add(there[shared])
    return found


def test_no_package_imports_a_sibling_that_imports_it() -> None:
    for parent, inside in between_siblings(arrows()).items():
        try:
            graphlib.TopologicalSorter(inside).prepare()
        except graphlib.CycleError as error:
            pytest.fail(f"{parent}: {' -> '.join(error.args[1])}")


def test_a_circle_deep_in_a_plugin_is_seen() -> None:
    circle = {"p.a.b.x": {"p.a.c.y"}, "p.a.c.z": {"p.a.b.w", "p.d"}, "p.d": {"p"}}
    assert between_siblings(circle) == {"p.a": {"b": {"c"}, "c": {"b"}}, "p": {"a": {"d"}}}


def test_modules_have_no_circle() -> None:
    try:
        graphlib.TopologicalSorter(arrows()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(("root", "layers"), [("enginecmp", CORE), ("enginecmp_analysis", ANALYSIS)])
def test_no_arrow_runs_back_up(root: str, layers: tuple[str, ...]) -> None:
    inside = [(here[1], there[1]) for here, there in between_packages() if here[0] == there[0] == root]
    assert {part for arrow in inside for part in arrow} <= {*layers}, "a package without a layer"
    assert [arrow for arrow in inside if layers.index(arrow[0]) > layers.index(arrow[1])] == []


def test_the_host_imports_the_analysis_inside_verbs_alone() -> None:
    found = {
        here[1] for here, there in between_packages() if here[0] == "enginecmp" and there[0] == "enginecmp_analysis"
    }
    assert found == {"cli"}


def test_the_analysis_knows_the_format_of_the_host_alone() -> None:
    found = {
        there[1] for here, there in between_packages() if here[0] == "enginecmp_analysis" and there[0] == "enginecmp"
    }
    assert found == FOR_ANALYSIS


def test_nothing_imports_a_plugin() -> None:
    plugins = {root for (root, _) in map(package, arrows())} - FOR_PLUGINS
    assert plugins >= {"enginecmp_llamacpp", "enginecmp_openai_server"}
    assert [(here, there) for here, there in between_packages() if there[0] in plugins and here[0] != there[0]] == []


def test_what_stands_in_a_text_is_found() -> None:
    text = "import a.b\ndef f():\n    from a import c\n    from a.b import name\n    import os\n"
    assert set(imported("x", "", text, {"a", "a.b", "a.c"})) == {"a.b", "a.c"}
    assert set(imported("a.b.c", "a.b", "from . import d\nfrom ..e import x\n", {"a.b.d", "a.e"})) == {"a.b.d", "a.e"}
