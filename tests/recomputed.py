"""A second implementation of the numbers of `cmp stats`, from the lines of samples.jsonl alone.

Plain loops over dictionaries, numpy and scipy; nothing of `enginecmp_analysis`. It follows docs/METHODOLOGY.md and
docs/COST.md, so that a mistake must be made twice, and differently, to pass. No warm-up is cut here: its runs have
launches too short for one.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]
Block = tuple[int, int]
Key = tuple[str, str, str]
"""Engine, cell as JSON ("null" for a whole launch), metric."""

SLOWED = {"foreign_cpu", "cpu_pressure", "steal", "stalled", "cpu_throttled", "gpu_throttled", "gpu_foreign_process"}
HIGHER = {"prefill_tokens_per_second", "decode_tokens_per_second", "throughput_tokens_per_second"}
HIGHER |= {"requests_per_second", "goodput_requests_per_second", "goodput_tokens_per_second", "scaling_efficiency"}
HIGHER |= {"decode_bandwidth_bytes_per_second", "requests_per_device_hour", "requests_per_device_hour_at_slo"}
SIGNED = {"allocator_slack_bytes"}
NOT_COMPARED = {"allocator_slack_bytes", "kv_bytes_per_token"}
ONE_IS_ENOUGH = {"load_seconds", "peak_rss_above_empty_bytes", "allocator_slack_bytes", "kv_bytes_per_token"}
PER_REQUEST = {"ttft_seconds", "queue_seconds", "itl_seconds", "tpot_seconds", "e2e_seconds"}
PER_REQUEST |= {"prefill_tokens_per_second", "decode_tokens_per_second"}


class Launch:
    """One metric of one launch: its value, the single values behind it, and the requests behind it."""

    def __init__(self, value: float, values: Sequence[float] | None = None, requests: int = 1) -> None:
        self.value, self.requests = value, requests
        self.values = [value] if values is None else list(values)


Means = dict[Key, dict[Block, Launch]]


def cell_name(cell: Mapping[str, Any] | None) -> str:
    """Return a cell as text."""
    return json.dumps(cell, sort_keys=True)


def overlaps(cell: Mapping[str, Any]) -> bool:
    """Return whether several requests can be in flight."""
    return cell["concurrency"] != 1 or "arrival" in cell


def launch_values(folders: Iterable[Path]) -> Means:
    """Return every metric of every launch of the runs."""
    found: Means = defaultdict(dict)
    for number, folder in enumerate(folders):
        limits = json.loads((folder / "manifest.json").read_text())["scenario"].get("goodput") or {}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        waited = {cell_name(r["cell"]) for r in rows if r["start_ns"] != r["intended_ns"]}
        launches: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for row in rows:
            launches[row["engine"], row["block"]].append(row)
        for (engine, block), mine in launches.items():
            for cell, metric, launch in _of_launch(mine, limits, waited):
                found[engine, cell, metric][number, block] = launch
    for engine, cell, metric in list(found):
        one = json.loads(cell)
        if metric == "throughput_tokens_per_second" and one["concurrency"] > 1 and "arrival" not in one:
            alone = found.get((engine, cell_name(one | {"concurrency": 1}), metric), {})
            for block, launch in found[engine, cell, metric].items():
                if block in alone:
                    share = launch.value / (one["concurrency"] * alone[block].value)
                    found[engine, cell, "scaling_efficiency"][block] = Launch(share, requests=launch.requests)
    return dict(found)


def _of_launch(mine: list[Row], limits: Mapping[str, float], waited: set[str]) -> Iterable[tuple[str, str, Launch]]:
    load = [r for r in mine if r["phase"] == "load" and r["status"] == "ok"]
    for row in load if not (load and load[0]["flags"]) else []:
        yield "null", "load_seconds", Launch((row["end_ns"] - row["start_ns"]) / 1e9)
    told = load[0]["metrics"] if load else {}
    lengths: list[tuple[float, float]] = []
    cells: dict[str, list[Row]] = defaultdict(list)
    for row in mine:
        if row["phase"] != "load":
            cells[cell_name(row["cell"])].append(row)
    for cell, everyone in cells.items():
        measured = [r for r in everyone if r["phase"] == "measure"]
        kept = [r for r in measured if r["status"] == "ok" and not r["flags"]]
        if kept:
            yield from ((cell, name, launch) for name, launch in _times(kept, cell in waited))
            yield from ((cell, name, launch) for name, launch in _rates(kept, measured, everyone, limits, told))
        elif limits and measured and all(r["status"] != "ok" for r in measured):
            yield cell, "goodput_requests_per_second", Launch(0.0, requests=len(measured))
            yield cell, "goodput_tokens_per_second", Launch(0.0, requests=len(measured))
        held = [r for r in measured if r["status"] == "ok" and set(r["flags"]) <= SLOWED]
        if held and "peak_rss_bytes" in held[0]["metrics"]:
            peak = max(r["metrics"]["peak_rss_bytes"] for r in held) - told["empty_rss_bytes"]
            used = told["weights_bytes"] + max(r["metrics"]["kv_cache_bytes"] for r in held)
            yield cell, "peak_rss_above_empty_bytes", Launch(peak, requests=len(held))
            yield cell, "allocator_slack_bytes", Launch(peak - used, requests=len(held))
            lengths += [(r["prompt_tokens"] + r["output_tokens"], r["metrics"]["kv_cache_bytes"]) for r in held]
    if len({length for length, _ in lengths}) > 1:
        yield "null", "kv_bytes_per_token", Launch(float(np.polyfit(*np.array(lengths).T, 1)[0]))


def _times(kept: list[Row], waited: bool) -> Iterable[tuple[str, Launch]]:
    found: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for r in kept:
        stamps, n = r["token_ns"], r["output_tokens"]
        found["ttft_seconds"].append((stamps[0] - r["intended_ns"]) / 1e9)
        found["e2e_seconds"].append((r["end_ns"] - r["intended_ns"]) / 1e9)
        found["prefill_tokens_per_second"].append(r["prompt_tokens"] / ((stamps[0] - r["start_ns"]) / 1e9))
        if overlaps(r["cell"]) and waited:
            found["queue_seconds"].append((r["start_ns"] - r["intended_ns"]) / 1e9)
        if len(stamps) > 1:
            found["tpot_seconds"].append((stamps[-1] - stamps[0]) / 1e9 / (n - 1))
            found["decode_tokens_per_second"].append((n - 1) / ((stamps[-1] - stamps[0]) / 1e9))
        if len(stamps) == n > 1:
            found["itl_seconds"] += [(b - a) / 1e9 for a, b in itertools.pairwise(stamps)]
            counts["itl_seconds"] += 1
    for name, values in found.items():
        yield name, Launch(float(np.mean(values)), values, counts.get(name, len(values)))


def _rates(
    kept: list[Row], measured: list[Row], everyone: list[Row], limits: Mapping[str, float], told: Mapping[str, float]
) -> Iterable[tuple[str, Launch]]:
    cell = kept[0]["cell"]
    if "weights_bytes" in told and (read := _bandwidth(kept, measured, everyone, told["weights_bytes"])):
        yield "decode_bandwidth_bytes_per_second", Launch(read, requests=len(kept))
    if overlaps(cell) and any(r["flags"] and r["status"] == "ok" for r in measured):
        return
    window = _window_of_many(kept, measured, everyone)[2:] if overlaps(cell) else _window_of_one(kept, measured)
    seconds, tokens, served, sending = window
    yield "throughput_tokens_per_second", Launch(tokens / seconds, requests=len(kept))
    yield "requests_per_second", Launch(served / seconds, requests=len(kept))
    if limits:
        begin = min(r["intended_ns"] for r in kept)
        gone = [r for r in measured if r["status"] != "ok" and r["intended_ns"] >= begin]
        lost = 0 if overlaps(cell) and "arrival" not in cell else len(gone)
        rate = min(served / seconds, sending) if "arrival" in cell else served / seconds
        good = [r for r in kept if _keeps(r, limits)]
        share = rate / (len(kept) + lost)
        yield "goodput_requests_per_second", Launch(len(good) * share, requests=len(kept))
        that_count = sum(r["output_tokens"] for r in good)
        yield "goodput_tokens_per_second", Launch(that_count * share, requests=len(kept))


def _bandwidth(kept: list[Row], measured: list[Row], everyone: list[Row], weights: float) -> float:
    """Return the bytes a second that decoding reads; 0 where nothing tells."""
    read = spent = 0.0
    if not overlaps(kept[0]["cell"]):
        for r in kept:
            read += (r["output_tokens"] - 1) * (weights + _cache(r))
            spent += (r["token_ns"][-1] - r["token_ns"][0]) / 1e9
        return read / spent if spent else 0.0
    begin, end, *_ = _window_of_many(kept, measured, everyone)
    well = [r for r in everyone if r["status"] == "ok" and len(r["token_ns"]) == r["output_tokens"] > 1]
    inside = [(t, _cache(r)) for r in well for t in r["token_ns"] if begin < t <= end]
    moments = np.unique([t for t, _ in inside])
    step = float(np.median(np.diff(moments))) / 1e9
    return (weights + sum(cache for _, cache in inside) / len(moments)) / step


def _cache(r: Row) -> float:
    """Return the bytes of the KV cache in the middle of the output."""
    p, n = r["prompt_tokens"], r["output_tokens"]
    return r["metrics"].get("kv_cache_bytes", 0.0) * (p + n / 2) / (p + n)


def _keeps(r: Row, limits: Mapping[str, float]) -> bool:
    values = {name: launch.value for name, launch in _times([r], False)}
    return all(values[name] <= limit for name, limit in limits.items())


def _window_of_one(kept: list[Row], measured: list[Row]) -> tuple[float, float, float, float]:
    """Return seconds, tokens, requests and the rate of sending: the first start to the last end, less lost slots."""
    first, last = min(r["start_ns"] for r in kept), max(r["start_ns"] for r in kept)
    ordered = sorted(measured, key=lambda r: r["start_ns"])
    lost = sum(
        after["start_ns"] - r["start_ns"]
        for r, after in itertools.pairwise(ordered)
        if r not in kept and first < r["start_ns"] < last
    )
    seconds = (max(r["end_ns"] for r in kept) - first - lost) / 1e9
    return seconds, float(sum(r["output_tokens"] for r in kept)), float(len(kept)), len(kept) / seconds


def _window_of_many(
    kept: list[Row], measured: list[Row], everyone: list[Row]
) -> tuple[int, int, float, float, float, float]:
    """Return begin, end and the same, from the first sending to the last."""
    cell = kept[0]["cell"]
    begin = min(r["intended_ns"] for r in kept)
    sent = [r for r in measured if r["intended_ns"] >= begin]
    last = max(r["intended_ns"] for r in sent)
    well = [r for r in everyone if r["status"] == "ok"]
    end = min(last, max(r["end_ns"] for r in well))
    services = [r["end_ns"] - r["start_ns"] for r in sent if r["end_ns"] > r["start_ns"]]
    rounds = end - begin >= 2 * np.median(services) if "arrival" in cell else len(sent) >= 2 * cell["concurrency"]
    if end <= begin or not rounds or not any(r["intended_ns"] < begin for r in everyone):
        begin, end = min(r["start_ns"] for r in kept), max(r["end_ns"] for r in kept)
        return begin, end, (end - begin) / 1e9, float(sum(r["output_tokens"] for r in kept)), float(len(kept)), math.inf
    served = tokens = 0.0
    for r in well:
        served += max(0, min(r["end_ns"], end) - max(r["start_ns"], begin)) / (r["end_ns"] - r["start_ns"])
        tokens += sum(begin < t <= end for t in r["token_ns"]) * r["output_tokens"] / len(r["token_ns"])
    return begin, end, (end - begin) / 1e9, tokens, served, (len(sent) - 1) / ((last - begin) / 1e9)


def with_quantiles(means: Means) -> Means:
    """Return Harrell-Davis quantiles of the single values of each launch, for launches that are long enough."""
    found: Means = defaultdict(dict)
    for (engine, cell, metric), launches in means.items():
        for q in (0.5, 0.9, 0.95, 0.99) if metric in PER_REQUEST else ():
            for block, launch in launches.items():
                n = len(launch.values)
                if n >= max(6, math.ceil(round(3 / min(q, 1 - q), 9))):
                    edges = stats.beta.cdf(np.arange(n + 1) / n, (n + 1) * q, (n + 1) * (1 - q))
                    value = float(np.sort(launch.values) @ np.diff(edges))
                    found[engine, cell, f"{metric}_p{round(100 * q)}"][block] = Launch(value, requests=launch.requests)
    return {**means, **found}


def costs(means: Means, folders: Sequence[Path], hourly: float) -> Means:
    """Return what requests and tokens cost, launch by launch."""
    found: Means = defaultdict(dict)
    second = hourly / 3600
    sums: dict[tuple[str, str, Block], list[Row]] = defaultdict(list)
    for number, folder in enumerate(folders):
        for line in (folder / "samples.jsonl").read_text().splitlines():
            r = json.loads(line)
            if r["phase"] == "measure" and r["status"] == "ok" and not r["flags"]:
                sums[r["engine"], cell_name(r["cell"]), (number, r["block"])].append(r)
    for (engine, cell, block), rows in sums.items():
        n, prompts = len(rows), sum(r["prompt_tokens"] for r in rows)
        if overlaps(json.loads(cell)):
            launch = means.get((engine, cell, "requests_per_second"), {}).get(block)
            if launch is None:
                continue
            tokens = means[engine, cell, "throughput_tokens_per_second"][block].value
            values = second / launch.value, second / tokens, second / (launch.value * prompts / n)
        else:
            busy = sum(r["end_ns"] - r["start_ns"] for r in rows) / 1e9
            prefill = sum(r["token_ns"][0] - r["start_ns"] for r in rows) / 1e9
            outputs = sum(r["output_tokens"] for r in rows)
            values = second * busy / n, second * (busy - prefill) / outputs, second * prefill / prompts
        names = ("cost_per_thousand_requests", "cost_per_million_output_tokens", "cost_per_million_input_tokens")
        for name, value, unit in zip(names, values, (1e3, 1e6, 1e6), strict=True):
            found[engine, cell, name][block] = Launch(value * unit, requests=n)
    rates = {"requests_per_second": "requests_per_device_hour"}
    rates["goodput_requests_per_second"] = "requests_per_device_hour_at_slo"
    for (engine, cell, metric), launches in means.items():
        if metric in rates:
            for block, launch in launches.items():
                found[engine, cell, rates[metric]][block] = Launch(3600 * launch.value, requests=launch.requests)
    return dict(found)
