"""The analysis knows nothing of how samples were made, and its hot path imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import enginecmp_analysis

ALLOWED = {"enginecmp.types", "enginecmp.errors"}


def test_analysis_imports_only_types_and_errors_of_the_host() -> None:
    found = set()
    for path in Path(enginecmp_analysis.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name for name in names if name.split(".")[0] == "enginecmp"}
    assert found == ALLOWED


def test_the_way_to_a_table_imports_no_scipy() -> None:
    # scipy.special alone would take more than half of the second that `cmp stats` has.
    code = (
        "import sys, enginecmp.cli.stats, enginecmp_analysis.data.load, enginecmp_analysis.report, "
        "enginecmp_analysis.output.table, enginecmp_analysis.output.export; "
        "print([name for name in ('scipy', 'rich', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
