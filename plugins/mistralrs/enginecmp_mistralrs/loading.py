"""Load a GGUF file into mistral.rs: options, environment, the runner."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginecmp import (
    EngineError,
    LoadOptions,
    ModelError,
    ModelInfo,
    UnknownOption,
    UnsupportedModel,
    did_you_mean,
    hookimpl,
)
from enginecmp.plugin_tools.engine_options import check_thread_variables, nearest

from .facts import CHOICES, KV_F32_VARIABLE, THREAD_VARIABLES, cmp_probe
from .panics import Native

# A chat template that is the message itself: streaming and log-probabilities exist for chat requests only.
RAW_TEMPLATE = "{{ messages[0]['content'] }}"

_kv_of_process: list[str] = []
"""KV cache type of this process: mistral.rs reads it once, when the first model is loaded."""


@dataclass(slots=True)
class Active:
    """One request in flight.

    Attributes:
        stream: the engine's iterator over chunks; None once it is used up or dropped, which cancels the request.
        text: its prompt.
        prompt_tokens: ids in its prompt.
        output_tokens: tokens asked for in all.
        last: the latest chunk; the final one carries the usage.
        chunks: how many came.
    """

    stream: Any
    text: str
    prompt_tokens: int
    output_tokens: int
    last: Any = None
    chunks: int = 0


@dataclass(slots=True)
class Session:
    """A loaded model.

    Attributes:
        runner: `mistralrs.Runner`.
        chat_request: `mistralrs.ChatCompletionRequest`.
        vocabulary: number of token ids.
        context_tokens: prompt plus output tokens that a request may have.
        texts: text of every prompt whose round trip was proven.
        prepared: ids, output tokens, text and request object made by `cmp_prepare`.
        active: the request in flight.
        metrics: of the request that ended last.
    """

    runner: Any
    chat_request: Callable[..., Any]
    vocabulary: int
    context_tokens: int
    texts: dict[tuple[int, ...], str] = field(default_factory=dict)
    prepared: tuple[tuple[int, ...], int, str, Any] | None = None
    active: Active | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Load a GGUF file, offline, for one request at a time.

    Raises:
        UnsupportedModel: mistral.rs cannot load the file; its own reason is in the message.
        UnknownOption: an option, or a value of one, that does not exist on this device.
        EngineError: the wheel does not fit the device, or the process' environment does not say what the
            options say.
    """
    chosen = read_extra(options)
    probe = cmp_probe(options)
    if not probe.ok:
        msg = f"mistralrs: {probe.reason}; {probe.fix}"
        raise EngineError(msg)
    path = Path(model.path)
    if not path.is_file():
        msg = f"mistralrs: expected a GGUF file at {path}, found none; fetch or name another model"
        raise ModelError(msg)
    check_thread_variables("mistralrs", THREAD_VARIABLES, options.threads)
    if options.device == "cpu":
        fix_kv(chosen["kv"])

    with Native("import the wheel", next_step="; install it again"):
        import mistralrs
    dtypes = {
        "auto": mistralrs.ModelDType.Auto,
        "f32": mistralrs.ModelDType.F32,
        "f16": mistralrs.ModelDType.F16,
        "bf16": mistralrs.ModelDType.BF16,
    }
    refused = Native(
        f"load '{path.name}' ({model.architecture}, {model.quantization})",
        error=UnsupportedModel,
        next_step="; leave mistralrs out with --engines, or choose another model",
    )
    with tempfile.TemporaryDirectory(prefix="enginecmp-") as folder, refused:
        template = Path(folder) / "raw.jinja"
        template.write_text(RAW_TEMPLATE, encoding="utf-8")
        which: Any = mistralrs.Which.GGUF(
            quantized_model_id=str(path.parent),
            quantized_filename=[path.name],
            dtype=dtypes[chosen["dtype"]],
        )
        runner = mistralrs.Runner(
            which=which,
            max_seqs=1,
            # Prompts repeat and share prefixes: with a prefix cache the second request would prefill nothing.
            prefix_cache_n=0,
            jinja_explicit=str(template),
            no_paged_attn=chosen.get("paged_attn") == "off",
        )
        longest = runner.max_sequence_length()
    return Session(
        runner=runner,
        chat_request=mistralrs.ChatCompletionRequest,
        vocabulary=model.vocabulary,
        context_tokens=min(options.context_tokens, longest or options.context_tokens),
    )


@hookimpl
def cmp_unload(session: Session) -> None:
    """Drop the runner, and with it the engine's threads, weights and KV cache."""
    session.active = None
    session.prepared = None
    with Native("unload the model"):
        session.runner = None


def read_extra(options: LoadOptions) -> dict[str, str]:
    """Return every option of the device with the value to use; "exact" numerics decide for float32 everywhere.

    Raises:
        UnknownOption: a key or value that this device does not have.
    """
    known = CHOICES.get(options.device, {})
    for key, value in options.extra.items():
        if key not in known:
            elsewhere = [device for device, choices in CHOICES.items() if key in choices]
            where = f" (on {elsewhere[0]} only)" if elsewhere else did_you_mean(key, known)
            msg = f"mistralrs: no option '{key}' on device {options.device}{where}"
            raise UnknownOption(msg)
        if value not in known[key]:
            expected = f"one of {', '.join(known[key])}"
            msg = f"mistralrs: option {key} expects {expected}, got '{value}'{nearest(value, known[key])}"
            raise UnknownOption(msg)
    chosen = {key: options.extra.get(key, values[0]) for key, values in known.items()}
    if options.numerics == "exact":
        chosen |= {"dtype": "f32"} | ({"kv": "f32"} if "kv" in known else {"paged_attn": "off"})
    return chosen


def fix_kv(kv: str) -> None:
    """Set the KV cache's type for this process, before the engine reads it.

    Args:
        kv: "auto" (float16 where the CPU has AVX2 and F16C, as any user gets) or "f32".

    Raises:
        EngineError: the environment or an earlier load already decided otherwise.
    """
    wants_f32 = kv == "f32"
    if not wants_f32 and os.environ.get(KV_F32_VARIABLE, "0") != "0":
        msg = (
            f"mistralrs: expected the engine's own KV cache type, but {KV_F32_VARIABLE} asks for float32; "
            "unset it, or say so with -o mistralrs.kv=f32"
        )
        raise EngineError(msg)
    if _kv_of_process and _kv_of_process[0] != kv:
        msg = (
            f"mistralrs: this process already runs with KV cache '{_kv_of_process[0]}', '{kv}' was asked for; "
            "start a new process"
        )
        raise EngineError(msg)
    if wants_f32:
        os.environ[KV_F32_VARIABLE] = "1"
    _kv_of_process[:] = [kv]
