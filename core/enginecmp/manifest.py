"""What the manifest says of a run that is about to start, and what a run that goes on reads back from it."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.contender import Contender
from enginecmp.environment import describe_environment
from enginecmp.models.info import recorded_shape
from enginecmp.plugins import Plugin
from enginecmp.process import engine_environment
from enginecmp.types import SCHEMA, LoadOptions, Manifest, RunEngine, RunModel

if TYPE_CHECKING:
    from enginecmp.run_request import RunRequest


def new_run_id(scenario: str) -> str:
    """Return a name for a run's folder: when, what, and four random digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{scenario}-{secrets.token_hex(2)}"


def new_manifest(request: RunRequest, run_id: str) -> Manifest:
    """Return the manifest of a run that is about to start."""
    model = request.model
    return Manifest(
        schema=SCHEMA,
        run_id=run_id,
        created_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        status="running",
        seed=request.seed,
        scenario=msgspec.to_builtins(request.scenario),
        model=RunModel(
            name=model.name,
            sha256=model.sha256,
            architecture=model.architecture,
            parameters=model.parameters,
            quantization=model.quantization,
            bytes=model.bytes,
            shape=recorded_shape(model),
        ),
        baseline=request.baseline,
        engines=[_describe_engine(contender) for contender in request.everybody],
        environment=describe_environment(tuple(c.plugin.distribution for c in request.everybody)),
    )


def _describe_engine(contender: Contender) -> RunEngine:
    plugin = contender.plugin
    assert plugin.info is not None
    options: dict[str, Any] = {
        "engine": plugin.name,
        "plugin": plugin.distribution or plugin.origin,
        "plugin_version": plugin.version,
        **msgspec.to_builtins(contender.options),
        "tuned": contender.tuned,
        "batching": "own" if plugin.batches else "queue",
        **({} if contender.timed else {"timed": False}),
        "environment": engine_environment(plugin, contender.options),
        "limits": list(plugin.info.limits),
    }
    return RunEngine(
        name=contender.label,
        version=contender.engine_version,
        device=contender.options.device,
        options=options,
    )


def stored_contender(engine: RunEngine, plugin: Plugin) -> Contender:
    """Return an engine of a run as its manifest recorded it, so that the run can go on.

    Args:
        engine: its entry.
        plugin: where it lives now.
    """
    known = {key: value for key, value in engine.options.items() if key in LoadOptions.__struct_fields__}
    options = msgspec.convert(known, LoadOptions)
    return Contender(engine.name, plugin, options, engine.options.get("tuned", "default"))
