"""A run as one terse table: what was found right or wrong, and every measurement beside the machine's own limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Record = dict[str, Any]
Key = tuple[str, ...]

MOST_WRONG = 12
"""Wrong answers that are shown; all are in the JSON."""

WORDS = {"overlap": "overlapped", "reading": "beside reads"}
"""How a limit was measured, by the setting that says so."""

ENGINE = {
    "token": "steps",
    "persistent token": "persistent",
    "prompt token": "prompt",
    "token of a batch": "batch",
}
"""Measurements of one token's seconds."""

NOT_A_TIME = "emulated: not a time"


def render(report: dict[str, Any]) -> str:
    """Return the table of a report, complete or not."""
    table = Table(report)
    sections = (
        table.heading(),
        table.limits(),
        table.engine(),
        table.kernels(),
        table.prefill_kernels(),
        table.answers(),
        table.parts(),
    )
    return "\n".join(line for section in sections for line in section)


class Table:
    """The sections, each an iterator of lines; one without records has none.

    Args:
        report: as bench_gpu.py tells.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report
        self._records: list[Record] = [record for part in report["parts"] for record in part["records"]]
        self._facts = {record["name"]: record["value"] for record in self._records if record["record"] == "fact"}
        reads = [one["bytes_per_second"] for one in self._measured("read") if one["bytes_per_second"]]
        self._bandwidth: float = max(reads, default=0.0)

    def heading(self) -> Iterator[str]:
        """Yield what was measured, where, and with what."""
        facts, smi = self._facts, self._facts.get("nvidia-smi") or {}
        device = [str(facts.get("device", self._report["device"])), str(facts.get("architecture", ""))]
        if "multiprocessors" in facts:
            device.append(f"{facts['multiprocessors']} multiprocessors")
        device += [
            f"{text} {smi[name]}"
            for name, text in (("driver_version", "driver"), ("clocks.max.sm", "SM up to"))
            if name in smi
        ]
        device += [f"NVRTC {facts['nvrtc']}"] if "nvrtc" in facts else []
        yield "custom_cuda on " + ", ".join(filter(None, device))
        model = [str(facts.get("model", self._report["model"]))]
        if "commit" in facts:
            model.append(f"source {facts['commit']}")
        yield "model " + ", ".join(model)
        clocks = [part["clocks"].get("clocks.sm", "") for part in self._report["parts"] if part.get("clocks")]
        if clocks:
            yield "SM clock after each part: " + ", ".join(clocks)
        if not self._report["timed"]:
            yield NOT_A_TIME

    def limits(self) -> Iterator[str]:
        """Yield what the machine can do at most."""
        cells = [f"read {self._bandwidth / 1e9:.0f} GB/s"] if self._bandwidth else []
        for name, text in (
            ("launch in a stream", "launch"),
            ("node of a graph", "node"),
            ("barrier of the grid", "barrier"),
        ):
            times = {}
            for one in self._measured(name):
                if one["median"]:
                    how = "".join(f", {word}" for key, word in WORDS.items() if one["setting"].get(key) == 1)
                    times[f"grid {one['setting']['grid']}{how}"] = one["median"]
            if times:
                cells.append(f"{text} " + ", ".join(f"{time * 1e6:.2f} us ({how})" for how, time in times.items()))
        if cells:
            yield "limits: " + "; ".join(cells)

    def engine(self) -> Iterator[str]:
        """Yield tokens a second of steps and prompts, and the share of the bandwidth that a step's weights take."""
        for name, text in ENGINE.items():
            for one in self._measured(name):
                how = ", ".join(f"{key} {value}" for key, value in one["setting"].items())
                if seconds := one["median"]:
                    yield f"{text}, {how}: {1 / seconds:.0f} tok/s, {seconds * 1e6:.1f} us{self._share(one)}"

    def kernels(self) -> Iterator[str]:
        """Yield each decode kernel: microseconds, GB/s, share of the bandwidth."""
        yield from self._grid(
            "decode kernels, us GB/s (% of the measured bandwidth)",
            "batch",
            self._measured("kernel"),
            lambda one: (one["setting"]["kernel"], *positions(one)),
            lambda one: str(one["setting"]["batch"]),
            lambda one: f"{one['median'] * 1e6:.2f}{rate(one)}{self._share(one)}",
        )

    def prefill_kernels(self) -> Iterator[str]:
        """Yield each kernel of prompts: microseconds and TFLOP/s."""
        yield from self._grid(
            "prompt kernels, us TFLOP/s",
            "tokens",
            self._measured("prompt kernel"),
            lambda one: (one["setting"]["kernel"],),
            lambda one: str(one["setting"]["tokens"]),
            lambda one: (
                f"{one['median'] * 1e6:.1f}" + (f" {one['flop'] / one['median'] / 1e12:.1f}" if one.get("flop") else "")
            ),
        )

    def answers(self) -> Iterator[str]:
        """Yield how many measurements left the right answer behind, and the wrong ones in capitals."""
        judged = [one for one in self._records if "verified" in one]
        wrong = [one for one in judged if not one["verified"]]
        if judged:
            yield f"answers: {len(judged)} checked, {f'{len(wrong)} WRONG' if wrong else 'all right'}"
        for one in wrong[:MOST_WRONG]:
            setting = " ".join(f"{key}={value}" for key, value in one["setting"].items())
            yield f"  WRONG ANSWER: {one['name'].upper()} {setting.upper()}"[:220]
        if len(wrong) > MOST_WRONG:
            yield f"  and {len(wrong) - MOST_WRONG} more, in report.json"
        if wrong:
            yield "  ALL TIMES ABOVE ARE OF AN ENGINE THAT COMPUTES SOMETHING ELSE"

    def parts(self) -> Iterator[str]:
        """Yield each part's end, what was left out, and the verdict."""
        parts = self._report["parts"]
        yield "parts: " + ", ".join(f"{part['name']} {part['state']} {part['seconds']:.0f} s" for part in parts)
        for part in parts:
            if part["error"]:
                yield f"  {part['name']}: {part['state']}: {part['error']}"[:220]
            notes = [record["text"] for record in part["records"] if record["record"] == "note"]
            if notes:
                yield f"  {part['name']}: left out: {'; '.join(notes)}"[:220]
        if self._report.get("interrupted"):
            yield "  interrupted"
        yield f"verdict: {self._report['verdict']}"

    # Parts

    def _measured(self, name: str) -> list[Record]:
        return [one for one in self._records if one["record"] == "measurement" and one["name"] == name]

    def _share(self, one: Record) -> str:
        if not self._bandwidth or not one["bytes_per_second"]:
            return ""
        return f" ({100 * one['bytes_per_second'] / self._bandwidth:.0f}%)"

    def _grid(
        self,
        title: str,
        columns_title: str,
        records: Sequence[Record],
        row: Callable[[Record], Key],
        column: Callable[[Record], str],
        shown: Callable[[Record], str],
    ) -> Iterator[str]:
        """Yield records as rows and columns, in the order in which either comes."""
        if not records:
            return
        rows = list(dict.fromkeys(map(row, records)))
        columns = list(dict.fromkeys(map(column, records)))
        cells = {(row(one), column(one)): shown(one) if one["median"] else "not timed" for one in records}
        head = [f"{columns_title} {name}".strip() for name in columns]
        lines = [["  " + " ".join(name), *(cells.get((name, each), "-") for each in columns)] for name in rows]
        yield title
        yield from aligned([["", *head], *lines])


def positions(one: Record) -> Key:
    """Return the part of a row's name that says how far back attention looks; nothing for other kernels."""
    return (f"at {one['setting']['position']}",) if "position" in one["setting"] else ()


def rate(one: Record) -> str:
    """Return the achieved bandwidth."""
    return f" {one['bytes_per_second'] / 1e9:.0f}" if one["bytes_per_second"] else ""


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Return rows of cells as lines, the first column to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
