"""The way to a table imports nothing heavy; tests/test_layers.py holds who may import whom."""

from __future__ import annotations

import subprocess
import sys


def test_the_way_to_a_table_imports_no_scipy() -> None:
    # scipy.special alone would take more than half of the second that `cmp stats` has.
    code = (
        "import sys, enginecmp.cli.stats, enginecmp_analysis.data.load, enginecmp_analysis.analyse, "
        "enginecmp_analysis.render.table, enginecmp_analysis.render.export; "
        "print([name for name in ('scipy', 'rich', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
