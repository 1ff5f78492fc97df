"""Regressions as JUnit XML, which every CI system can show."""

from __future__ import annotations

from xml.etree import ElementTree

from enginecmp.format.text import visible
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.render.regression_table import conclusion, words
from enginecmp_analysis.schema.regression import CompareReport, RegressionLine


def to_junit(report: CompareReport) -> str:
    """Return one test case an engine, cell and metric.

    A confirmed regression at or above the failing level is a failure, an inconclusive or withheld comparison is
    skipped, everything else passed. What could not be compared is in the output of the suite.
    """
    skipped = sum(line.confirmed == "INCONCLUSIVE" for line in report.lines)
    counts = {
        "name": "cmp compare",
        "tests": str(len(report.lines)),
        "failures": str(sum(line.failed for line in report.lines)),
        "errors": "0",
        "skipped": str(skipped),
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", counts)
    for line in report.lines:
        _case(suite, line)
    notes = [conclusion(report), *(f"changed: {text}" for text in report.changed)]
    notes += [f"not compared: {text}" for text in report.not_compared] + report.warnings
    ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(notes))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, line: RegressionLine) -> None:
    name = f"{line.engine}: {line.metric}, {cell_name(line.cell)}"
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": _clean(f"cmp.{line.scenario}"), "name": _clean(name)}
    )
    text = f"slowdown {line.slowdown:.3f} [{line.ci_low:.3f}, {line.ci_high:.3f}], {words(line)}"
    if line.failed:
        ElementTree.SubElement(case, "failure", {"type": line.confirmed, "message": _clean(text)})
    elif line.confirmed == "INCONCLUSIVE":
        ElementTree.SubElement(case, "skipped", {"message": _clean(text)})
    ElementTree.SubElement(case, "system-out").text = _clean(text)


def _clean(text: str) -> str:
    """Return text without what XML 1.0 cannot write, not even escaped, and without what a terminal acts on."""
    return "\n".join(visible(line) for line in text.split("\n"))
