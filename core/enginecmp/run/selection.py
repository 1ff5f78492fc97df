"""Which engines a run compares: from `--engines`, `-o` and what can run here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from enginecmp.errors import CmpError, UsageError, did_you_mean, meant
from enginecmp.format.text import listed, plain
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.machine.environment import usable_cores
from enginecmp.plugins.discovery import named
from enginecmp.plugins.plugin import Plugin
from enginecmp.plugins.presets import Named, presets_of
from enginecmp.types import LoadOptions, ModelInfo, Probe

THREADS = "threads"
"""The option of every engine that is `LoadOptions.threads`: `-o ENGINE.threads=2` goes before `--threads`."""

SERVER_ENGINE = "openai_server"
"""The engine behind `--engines openai:URL`."""

_SERVER_PREFIX = "openai:"
_EXAMPLE = "http://127.0.0.1:8000/v1"
_SERVERS = {
    "vllm": (_EXAMPLE, "vllm-server"),
    "sglang": ("http://127.0.0.1:30000/v1", "sglang-server"),
    "tensorrt_llm": (_EXAMPLE, "tensorrt_llm-server"),
    "trtllm": (_EXAMPLE, "tensorrt_llm-server"),
    "tgi": ("http://127.0.0.1:8080/v1", "tgi"),
    "llama_server": ("http://127.0.0.1:8080/v1", "llama-server"),
    "ollama": ("http://127.0.0.1:11434/v1", "ollama"),
    "lmstudio": ("http://127.0.0.1:1234/v1", ""),
    "openai": (_EXAMPLE, ""),
}
"""Names of servers that people know: the address that each listens at where nothing else is said, and its preset."""
DECODING_WORDS = {
    "sampling": "sampled decoding (temperature, top-p)",
    "end_of_sequence": "ending at the end-of-sequence token",
    "json_schema": "output under a JSON Schema",
}
"""`EngineInfo.decoding` in words."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,-]{0,199}")
"""Labels become file names; those of `cmp tune` hold "=" and ","."""


def resolve_threads(asked: str) -> int:
    """Return the compute threads of a run: "auto" leaves the host a core where there is more than one.

    Raises:
        UsageError: not a number, less than one, or more than the machine has.
    """
    cores = usable_cores()
    if asked == "auto":
        return max(1, cores - 1)
    try:
        threads = int(asked)
    except ValueError as error:
        msg = f"--threads {asked}: expected a number or 'auto'"
        raise UsageError(msg) from error
    if not 1 <= threads <= cores:
        msg = f"--threads {asked}: expected 1 to {cores}, the cores of this machine; spinning threads need a core each"
        raise UsageError(msg)
    return threads


def is_label(text: str) -> bool:
    """Say whether a text can stand in a file's name: no path, no control character, not too long."""
    return _LABEL.fullmatch(text) is not None


def parse_engines(text: str, plugins: list[Plugin]) -> dict[str, Plugin]:
    """Return label → plugin for "all", "a,b", "label=engine,other=engine" or "openai:URL"; presets are engines.

    A plugin that is named may be broken: `choose` leaves it out, and says so.

    Raises:
        UsageError: unknown engine, a label twice, nothing named.
    """
    if text == "all":
        # A server is an engine only where somebody says at which address.
        return {p.name: p for p in plugins if p.error is None and p.name != SERVER_ENGINE}
    chosen: dict[str, Plugin] = {}
    presets = presets_of(plugins)
    for label, name, _ in _items(text):
        label, preset = _preset_meant(label, name, presets)
        if preset is not None:
            plugin = preset.plugin
        else:
            _suggest_server(label, name, plugins, presets)
            plugin = named(name, plugins)
            # Without a label of its own an engine is called by its name, however that was written.
            label = plugin.name if label == name and name != SERVER_ENGINE else label
        if not is_label(label):
            msg = f"--engines: label '{label}' may hold letters, digits and . _ + - only"
            raise UsageError(msg)
        if label in chosen:
            msg = f"--engines: '{label}' twice; give one of them another label: other={name}"
            raise UsageError(msg)
        chosen[label] = plugin
    if not chosen:
        msg = "--engines: no engine named; try 'all', or see `cmp engines`"
        raise UsageError(msg)
    return chosen


def _preset_meant(label: str, name: str, presets: Mapping[str, Named]) -> tuple[str, Named | None]:
    """Return the label and the preset of one part of `--engines`; None where it names none."""
    known = meant(name, presets)
    return (known if label == name else label), presets.get(known)


def _suggest_server(label: str, name: str, plugins: Iterable[Plugin], presets: Collection[str]) -> None:
    """Refuse an address without what says that a server is there, and the name of a server that is no engine.

    Raises:
        UsageError: with what to write instead.
    """
    address, preset = name if name.startswith(("http://", "https://")) else "", ""
    if label.startswith(("http://", "https://")):
        label, address = "", label if label == name else f"{label}={name}"  # cut at a "=" of its own
    if not address:
        address, preset = _SERVERS.get(re.sub(r"[-. ]", "_", name.lower()), ("", ""))
        if not address or any(plugin.name == name for plugin in plugins):
            return
    own = "" if label in ("", address, "openai") else f"{label}="
    msg = f"--engines {name}: a server is an engine by its address: --engines {own}{_SERVER_PREFIX}{address}"
    if preset in presets:
        msg += f", or started for each launch: --engines {preset}"
    raise UsageError(msg)


def implied_options(text: str, plugins: Iterable[Plugin] = ()) -> list[str]:
    """Return the "LABEL.KEY=VALUE" that `--engines` itself implies: a preset's options, the address behind "openai:".

    An option of the same name that follows takes the place of one of these.
    """
    presets = presets_of(plugins)
    implied = []
    for label, name, url in _items(text):
        label, preset = _preset_meant(label, name, presets)
        if url:
            implied.append(f"{label}.url={url}")
        elif preset is not None:
            implied += [f"{label}.{key}={value}" for key, value in preset.preset.options.items()]
    return implied


def _items(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (label, engine, server's address or "") for each part of `--engines`."""
    for item in listed(text):
        # An address may hold "=" itself, so that of a server is looked for before a label's.
        head, marked, url = item.partition(_SERVER_PREFIX)
        if marked and (not head or head.endswith("=")):
            yield head.removesuffix("=") or _SERVER_PREFIX.removesuffix(":"), SERVER_ENGINE, url
        else:
            label, _, name = item.partition("=")
            yield label, name or label, ""


def parse_options(items: Iterable[str], labels: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return label → {key: value} for each "LABEL.KEY=VALUE".

    Raises:
        UsageError: not of that form, or of an engine that is not in the run.
    """
    known = list(labels)
    options: dict[str, dict[str, str]] = {label: {} for label in known}
    for item in items:
        target, equals, value = item.partition("=")
        label, dot, key = target.rpartition(".")
        label = meant(label, known)
        if not (equals and dot and label and key):
            msg = f"-o {item}: expected ENGINE.KEY=VALUE"
            raise UsageError(msg)
        if label not in options:
            msg = f"-o {item}: no engine '{label}' in this run{did_you_mean(label, known)}"
            raise UsageError(msg)
        try:
            item.encode()
        except UnicodeEncodeError:
            msg = f"-o {plain(item, 80)}: expected text in UTF-8, got other bytes"
            raise UsageError(msg) from None
        options[label][key] = value
    return options


def check_options(options: Mapping[str, Mapping[str, str]], chosen: Mapping[str, Plugin]) -> dict[str, dict[str, str]]:
    """Return the options of each label under the names that its engine knows them by.

    Raises:
        UsageError: an engine that tells its options has none of that name.
    """
    checked: dict[str, dict[str, str]] = {}
    for label, given in options.items():
        info = chosen[label].info
        known = info.option_names if info is not None else ()
        checked[label] = {meant(key, known): value for key, value in given.items()}
        for key in checked[label]:
            if known and key not in known and key != THREADS:
                msg = f"-o {label}.{key}: {chosen[label].name} has no option '{key}'{did_you_mean(key, known)}"
                raise UsageError(msg)
    return checked


def parse_devices(text: str | None, labels: Iterable[str]) -> dict[str, str]:
    """Return label → device for "cuda" (every engine), "label=cuda,other=cpu" or both mixed; {} without a text.

    Raises:
        UsageError: an engine that is not in the run.
    """
    known = list(labels)
    devices: dict[str, str] = {}
    for item in listed(text or ""):
        label, equals, device = item.rpartition("=")
        label = meant(label, known)
        if not equals:
            devices = dict.fromkeys(known, device) | devices
        elif label in known and device:
            devices[label] = device
        else:
            msg = f"--device {item}: expected ENGINE=DEVICE of an engine in this run{did_you_mean(label, known)}"
            raise UsageError(msg)
    return devices


def unfit(plugin: Plugin, model: ModelInfo) -> str:
    """Return why an engine cannot load a model, by its own static facts; empty when it can."""
    if plugin.info is None:
        return f"its plugin is broken: {plugin.error}"
    if not plugin.info.architectures:
        return "loads no models: name a scenario of what it offers"
    if model.architecture not in plugin.info.architectures:
        return f"loads {', '.join(plugin.info.architectures)}, not architecture '{model.architecture}'"
    if model.quantization not in plugin.info.quantizations:
        return f"loads {', '.join(plugin.info.quantizations)}, not quantization {model.quantization}"
    return ""


def choose(
    chosen: Mapping[str, Plugin],
    model: ModelInfo,
    *,
    everything: bool,
    devices: Mapping[str, str],
    threads: int,
    context_tokens: int,
    concurrency: int = 1,
    extra: Mapping[str, Mapping[str, str]],
    probe: Callable[[Plugin, str | None, Mapping[str, str]], Probe],
    say: Callable[[str], None],
    needs: str = "",
    needs_model: bool = True,
    decoding: Collection[str] = (),
) -> list[EngineConfig]:
    """Return the engines that will run.

    Args:
        chosen: label → plugin.
        model: the file to be loaded.
        everything: "all" was asked: engines that cannot run are told and left out. Otherwise they are errors.
        devices: by label; each engine's default where there is none.
        threads: compute threads.
        context_tokens: longest request.
        concurrency: most requests in flight at once.
        extra: engine options by label.
        probe: asks a plugin whether it can run here, on a device and with options.
        say: told who is left out and why.
        needs: what every engine must offer by itself, e.g. "sampling"; empty for what they all do.
        needs_model: engines must be able to load the model.
        decoding: what every engine must offer beyond greedy ids of a fixed number.

    Raises:
        CmpError: an engine that was named cannot run, or none can.
    """
    configs: list[EngineConfig] = []
    refused: list[str] = []
    for label, plugin in chosen.items():
        if plugin.info is None:
            # Not a reason to stop: one bad plugin takes nothing from the others.
            refused.append(f"{label}: {unfit(plugin, model)}")
            say(f"left out: {refused[-1]}")
            continue
        if everything and needs_model and not plugin.info.architectures:
            continue  # a part, an index say, that never loads a model: nobody misses it here
        reason, fix, device = unfit(plugin, model) if needs_model else "", "", devices.get(label)
        found = Probe(ok=True)
        if not reason and needs and needs not in plugin.info.operations:
            # Not a reason to stop: the others were asked for too, and their launches can go on.
            refused.append(f"{label}: does not offer {needs} by itself")
            say(f"left out: {refused[-1]}")
            continue
        if not reason and (lacking := sorted(set(decoding).difference(plugin.info.decoding))):
            words = " and ".join(DECODING_WORDS[what] for what in lacking)
            refused.append(f"{label}: {plugin.name} does not offer {words} here, which the scenario asks for")
            say(f"left out: {refused[-1]}")
            continue
        if not reason:
            found = probe(plugin, device, extra.get(label, {}))
            reason, fix = ("", "") if found.ok else (found.reason, found.fix)
        if reason:
            line = f"{label}: cannot run here: {reason}{f'; fix: {fix}' if fix else ''}"
            if not everything:
                raise CmpError(line)
            refused.append(line)
            say(f"left out: {line}")
            continue
        own = dict(extra.get(label, {}))
        if THREADS in own and THREADS not in plugin.info.option_names:
            threads_of = resolve_threads(own.pop(THREADS))
        else:
            threads_of = threads
        options = LoadOptions(
            device=device or plugin.info.devices[0],
            threads=threads_of,
            context_tokens=context_tokens,
            max_sequences=min(plugin.info.max_concurrency, concurrency) if plugin.batches else 1,
            extra=own,
        )
        configs.append(EngineConfig(label, plugin, options, probed=found))
    if not configs:
        msg = f"no engine can run: {'; '.join(refused) or 'no engine plugin is installed'}; see `cmp engines`"
        raise CmpError(msg)
    return configs
