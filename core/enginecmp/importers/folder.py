"""Imported launches to a run folder: what may stand in one run, and how it is written."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import ResultsError, UsageError, did_you_mean
from enginecmp.format.records import (
    SCHEMA,
    Cell,
    CellAverages,
    LaunchRecord,
    Manifest,
    RunEngine,
    RunModel,
    Sample,
)
from enginecmp.format.text import command_line, plain
from enginecmp.importers.parts import ImportedRequest, Launch, Part
from enginecmp.results.writer import ResultsFolder, RunWriter

SCENARIO = "imported"
"""Name of the scenario of every imported run."""

UNKNOWN = "unknown"
"""Version and device of an engine whose file does not tell."""


@dataclass(slots=True)
class Source:
    """One file and the label it was given.

    Attributes:
        label: of the engine.
        path: the file.
        tool: that wrote it.
        launches: it holds.
    """

    label: str
    path: Path
    tool: str
    launches: list[Launch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the user decides about a run.

    Attributes:
        only: keep only parts whose condition or option of that name has that value.
        model: name of the model for files that do not tell it or call it differently.
        cell: put every request into this cell; None keeps those of the files.
        baseline: label that others are compared with; None takes the first.
        paired: the i-th launches of all labels were measured side by side.
    """

    only: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    cell: Cell | None = None
    baseline: str | None = None
    paired: bool = False


_MOST_TOLD = 12
"""Values that a message offers."""


def select(sources: Iterable[Source], choices: Choices) -> list[Source]:
    """Return the sources with the parts that were chosen.

    Raises:
        UsageError: nothing of a file is left, or it holds several models and none was chosen.
    """
    chosen = []
    for source in sources:
        kept = [[part for part in launch if _matches(part, choices.only)] for launch in source.launches]
        kept = [launch for launch in kept if launch]
        if not kept:
            held = [part for launch in source.launches for part in launch]
            known = {key for part in held for key in _choices_of(part)}
            for key in choices.only:
                if key not in known:
                    msg = f"{source.path}: --only {key}: no test has such a setting{did_you_mean(key, known)}"
                    raise UsageError(msg)
            told = ", ".join(
                f"{key}={' or '.join(dict.fromkeys(_told(part, key) for part in held))}" for key in choices.only
            )
            msg = f"{source.path}: --only leaves nothing; it holds {told}"
            raise UsageError(msg)
        kept = _one_model(source, kept, choices.model)
        if choices.cell is not None:
            kept = [[replace(part, cell=choices.cell) for part in launch] for launch in kept]
        chosen.append(Source(source.label, source.path, source.tool, kept))
    return chosen


def _one_model(source: Source, launches: list[Launch], name: str | None) -> list[Launch]:
    """Return the parts of one model: a file's models are never pooled, whatever name they are given.

    Raises:
        UsageError: there are several and the name is none of theirs, or that of two.
    """
    models = dict.fromkeys(_model_of(part) for launch in launches for part in launch)
    if len(models) < 2:
        return launches
    named = [model for model in models if name is not None and name in (model[0], *model[1])]
    if len(named) == 1:
        kept = [[part for part in launch if _model_of(part) == named[0]] for launch in launches]
        return [launch for launch in kept if launch]
    files = [dict(model[2]).get("model_filename") for model in models]
    key = "model_filename" if all(files) and len(set(files)) == len(files) else "model"
    values = [file if key != "model" else model[0] for file, model in zip(files, models, strict=True)]
    msg = f"{source.path}: holds several models, which are never pooled; choose one with {_only(key, values)}"
    raise UsageError(msg)


def _only(key: str, values: Iterable[object]) -> str:
    """Return the options that choose one of the values: "--only n_depth=0 or --only n_depth=512"."""
    return " or ".join(command_line(["--only", f"{key}={value}"]) for value in values)


def _model_of(part: Part) -> tuple[str, tuple[str, ...], tuple[tuple[str, Any], ...]]:
    return part.model, tuple(part.choices.values()), (*part.choices.items(), *part.weights.items())


def _choices_of(part: Part) -> dict[str, Any]:
    return {**part.options, **part.conditions, **part.choices, "model": part.model}


def _told(part: Part, key: str) -> str:
    return str(_choices_of(part).get(key, "none"))


def _matches(part: Part, only: Mapping[str, str]) -> bool:
    # True as Python writes it, true as the file does.
    return all(value in (_told(part, key), json.dumps(_choices_of(part).get(key))) for key, value in only.items())


def build_manifest(sources: Sequence[Source], choices: Choices) -> Manifest:
    """Return the manifest of a run, refusing what cannot stand in one.

    All parts must share model and conditions; the launches of one label must share version, device and options.

    Raises:
        UsageError: they do not, or the baseline is no label; says what differs and what to do.
    """
    parts = [(source, part) for source in sources for launch in source.launches for part in launch]
    labels = list(dict.fromkeys(source.label for source in sources))
    baseline = choices.baseline or labels[0]
    if baseline not in labels:
        msg = f"unknown baseline '{baseline}'{did_you_mean(baseline, labels)}"
        raise UsageError(msg)
    model = _model(parts, choices.model)
    conditions = _shared(parts, lambda part: part.conditions, "make a run of each")
    engines = []
    for label in labels:
        mine = [(source, part) for source, part in parts if source.label == label]
        build = _shared(mine, _build, "give them different labels")
        build.pop("weights")
        version, device = build.pop("version") or UNKNOWN, build.pop("device") or UNKNOWN
        engines.append(RunEngine(name=label, version=version, device=device, options=build))
    tools = sorted({source.tool for source in sources})
    versions = sorted({part.tool_version for _, part in parts if part.tool_version})
    cells = list(dict.fromkeys(part.cell for _, part in parts))
    return Manifest(
        schema=SCHEMA,
        run_id=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{SCENARIO}-{secrets.token_hex(2)}",
        created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        status="complete",
        seed=0,
        scenario={
            "name": SCENARIO,
            # Free text that two runs may differ in and still be pooled.
            "description": ", ".join(f"{source.label}={plain(str(source.path))}" for source in sources),
            # No weights hash is known, so the name alone keeps runs of different models apart.
            "model": model.name,
            "source_tool": "+".join(tools),
            "source_version": "+".join(versions) or None,
            "conditions": conditions,
            "cells": [msgspec.to_builtins(cell) for cell in cells],
            "blocks": 1 + max(block for _, block, _ in numbered(sources, choices.paired)),
        },
        model=model,
        baseline=baseline,
        engines=engines,
        environment=_common(part.machine for _, part in parts),
    )


def _build(part: Part) -> dict[str, Any]:
    about = {"machine": dict(part.machine), "weights": dict(part.weights)}
    return {**part.options, "version": part.version, "device": part.device, **about}


def _model(parts: Sequence[tuple[Source, Part]], given: str | None) -> RunModel:
    names = {part.model: source.path for source, part in parts}
    sizes = {part.weights["bytes"]: source.path for source, part in parts if part.weights.get("bytes")}
    if given is None and len(names) == 1 and len(sizes) > 1:
        told = ", ".join(f"{size} bytes in {path}" for size, path in sizes.items())
        msg = f"one run has one model, '{next(iter(names))}' has {told}; if it is the same, say so with --model"
        raise UsageError(msg)
    if given is None and len(names) > 1:
        told = ", ".join(f"'{name}' in {path}" if name else f"none in {path}" for name, path in names.items())
        msg = f"one run has one model, these files name {told}; if it is the same, give it one name with --model"
        raise UsageError(msg)
    name = plain(given or next(iter(names)))
    if not name:
        msg = f"{next(iter(names.values()))}: does not tell its model; name it with --model"
        raise UsageError(msg)
    weights = _common(part.weights for _, part in parts)
    return RunModel(name=name, sha256="", parameters=weights.get("parameters", 0), bytes=weights.get("bytes", 0))


def _shared(parts: Sequence[tuple[Source, Part]], of: Any, advice: str) -> dict[str, Any]:
    """Return a mapping that all parts must have in common."""
    first_source, first = parts[0]
    shared: dict[str, Any] = dict(of(first))
    for source, part in parts[1:]:
        other = of(part)
        for key in {**shared, **other}:
            if shared.get(key) != other.get(key):
                known = key in _choices_of(part) | _choices_of(first)
                values = dict.fromkeys(_told(each, key) for _, each in parts)
                by = _only(key, [*values][:_MOST_TOLD])
                choice = f"choose with {by}, or " if known else ""
                told = ("none" if value is None else repr(value) for value in (shared.get(key), other.get(key)))
                msg = (
                    f"{key} is {next(told)} in {first_source.path}, {next(told)} in {source.path}: "
                    f"they do not belong together; {choice}{advice}"
                )
                raise UsageError(msg)
    return shared


def _common(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries on which all mappings agree."""
    several = list(mappings)
    first = several[0]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in several)}


def numbered(sources: Sequence[Source], paired: bool) -> list[tuple[str, int, Launch]]:
    """Return label, block and launch of everything.

    Launches of one block are taken for measured side by side, which no file says. So every launch has a block of
    its own, unless the user knows that the i-th launches of all labels belong together.
    """
    found: list[tuple[str, int, Launch]] = []
    count: dict[str, int] = {}
    for source in sources:
        for launch in source.launches:
            block = count.get(source.label, 0) if paired else len(found)
            count[source.label] = count.get(source.label, 0) + 1
            found.append((source.label, block, launch))
    return found


def write_run(sources: Sequence[Source], choices: Choices, out: Path) -> tuple[Path, Manifest]:
    """Write one run folder below `out`.

    Returns:
        The folder, and its manifest.

    Raises:
        UsageError: the files do not belong into one run.
        ResultsError: nothing in them was measured, or the folder cannot be written.
    """
    manifest = build_manifest(sources, choices)
    parts = [part for source in sources for launch in source.launches for part in launch]
    if not any(part.averages or any(_counts(request) for request in part.requests) for part in parts):
        failed = Counter(request.error or request.phase for part in parts for request in part.requests)
        why = ", ".join(f"{count} {what}" for what, count in failed.most_common(3))
        msg = f"{sources[0].path}: no request that was measured succeeded ({why}), so there is nothing to import"
        raise ResultsError(msg)
    folder = out / manifest.run_id
    order = {engine.name: position for position, engine in enumerate(manifest.engines)}
    with ResultsFolder(out):
        writer = RunWriter(folder, manifest)
        try:
            for label, block, launch in numbered(sources, choices.paired):
                position = order[label] if choices.paired else 0
                for sample in _samples(label, block, position, launch):
                    writer.append(sample)
                if averages := _averages(launch):
                    writer.end_launch(
                        LaunchRecord(
                            launch=f"b{block}-{label}",
                            block=block,
                            engine=label,
                            status="ok",
                            # Not told.
                            seconds=0.0,
                            averages=averages,
                        )
                    )
        finally:
            writer.close()
    return folder, manifest


def _counts(request: ImportedRequest) -> bool:
    return request.status == "ok" and request.phase == "measure"


def _averages(launch: Launch) -> list[CellAverages]:
    return [
        CellAverages(cell=part.cell, metrics=dict(part.averages.metrics), requests=part.averages.requests)
        for part in launch
        if part.averages is not None
    ]


def _samples(label: str, block: int, order: int, launch: Launch) -> Iterable[Sample]:
    index: dict[tuple[Cell, str], int] = {}
    for part in launch:
        for request in part.requests:
            place = (part.cell, request.phase)
            yield Sample(
                block=block,
                order=order,
                launch=f"b{block}-{label}",
                engine=label,
                cell=part.cell,
                index=index.setdefault(place, 0),
                phase=request.phase,
                intended_ns=request.start_ns if request.intended_ns is None else request.intended_ns,
                start_ns=request.start_ns,
                token_ns=list(request.token_ns),
                end_ns=request.end_ns,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                status=request.status,
                error=request.error,
            )
            index[place] += 1
