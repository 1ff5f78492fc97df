"""What the manifest says of a run that is about to start, and what a run that goes on reads back from it."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.errors import ModelError
from enginecmp.format.records import SCHEMA, Manifest, RunEngine, RunModel
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.model_file import file_for
from enginecmp.launch.process import engine_environment
from enginecmp.machine.environment import describe_environment
from enginecmp.models.info import recorded_shape
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions, ModelInfo, Probe

if TYPE_CHECKING:
    from enginecmp.run.request import RunRequest


def new_run_id(scenario: str) -> str:
    """Return a name for a run's folder: when, what, and four random digits."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", scenario)[:100]
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{name}-{secrets.token_hex(2)}"


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
            made_from={"hf_folder_sha256": model.hf_sha256} if model.derived == "gguf" else {},
        ),
        baseline=request.baseline,
        engines=[_describe_engine(config, model) for config in request.everybody],
        environment=describe_environment(tuple(c.plugin.distribution for c in request.everybody)),
    )


def _describe_engine(config: EngineConfig, model: ModelInfo) -> RunEngine:
    plugin = config.plugin
    assert plugin.info is not None
    file = model
    with contextlib.suppress(ModelError):  # told when the run began
        file = file_for(plugin, model, extra=config.options.extra)
    options: dict[str, Any] = {
        "engine": plugin.name,
        "plugin": plugin.distribution or plugin.origin,
        "plugin_version": plugin.version,
        "licence": plugin.info.licence,
        **msgspec.to_builtins(config.options),
        "tuned": config.tuned,
        "batching": "continuous" if plugin.batches else "queue",
        **({} if config.timed else {"timed": False}),
        **({"running": True} if config.probed.running else {}),
        **({"merged_file_sha256": file.sha256} if file.sha256 != model.sha256 else {}),
        **({"hf_folder_sha256": file.hf_sha256} if file.hf_folder else {}),
        "environment": engine_environment(plugin, config.options),
        "limits": list(plugin.info.limits),
    }
    return RunEngine(
        name=config.label,
        version=config.engine_version,
        device=config.options.device,
        options=options,
    )


def stored_config(engine: RunEngine, plugin: Plugin, probed: Probe | None = None) -> EngineConfig:
    """Return an engine of a run as its manifest recorded it, so that the run can go on.

    Args:
        engine: its entry.
        plugin: where it lives now.
        probed: what it says now of whether it can run; None takes its version from the manifest.
    """
    known = {key: value for key, value in engine.options.items() if key in LoadOptions.__struct_fields__}
    options = msgspec.convert(known, LoadOptions)
    tuned = engine.options.get("tuned", "default")
    return EngineConfig(engine.name, plugin, options, tuned, probed or Probe(ok=True, version=engine.version))
