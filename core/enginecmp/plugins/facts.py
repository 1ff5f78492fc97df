"""What a plugin may say of itself, and what is wrong with it where it says something else.

The facts of a plugin end up on terminals, in manifests, in file names and in the environment of its workers. They come
from code that nobody has read, so each is held against the same rules, wherever it came from: a child process that
imported the plugin, an engines.toml, or the file of an isolated environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sized

import msgspec

from enginecmp.format.measures import Measure
from enginecmp.format.text import plain
from enginecmp.types import EngineInfo, Preset
from enginecmp.wire.answers import HOST_METRICS, WORKER_METRICS

MAX_ANSWER_BYTES = 1 << 20

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Of an engine: it names options, labels, logs and folders."""

PRESET_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""Of a preset: it becomes a label."""

PLACE = re.compile(r"[A-Za-z_][\w.]{0,199}:[A-Za-z_]\w{0,99}")
"""Of a function or class in a module."""

_TAKEN = ("all", "openai")
"""What `--engines` means by itself: every engine, and a server (`openai:URL`)."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,63}")
_MOST = 1000
_LINE, _SENTENCE, _VALUE = 200, 2000, 1 << 15


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one plugin says of itself.

    Attributes:
        hooks: names of the hooks that it implements.
        info: of its engine; None where it brings none.
        scenarios: paths of the scenario files that it brings.
        measures: kinds of measurement that it brings.
        models: synthetic models that it brings, and what writes each.
    """

    hooks: tuple[str, ...]
    info: EngineInfo | None = None
    scenarios: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    models: Mapping[str, str] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of asking a plugin: its facts, or why there are none.

    Attributes:
        facts: None where the plugin is broken.
        error: why it is broken, in one line.
        name: of the engine of a broken plugin, where that much was said.
    """

    facts: Facts | None = None
    error: str | None = None
    name: str = ""


def read_answer(data: bytes) -> Answer:
    """Return what a child process wrote, or what is wrong with it as the answer's error."""
    try:
        answer = msgspec.msgpack.decode(data, type=Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return Answer(error=words(error), name=_name_in(data))
    if answer.facts is None:
        return Answer(error=plain(answer.error or "", 500) or "it said nothing", name=usable_name(answer.name))
    if wrong := next(wrong_facts(answer.facts), None):
        return Answer(error=wrong, name=usable_name(answer.facts.info.name if answer.facts.info else ""))
    return answer


def usable_name(name: object) -> str:
    """Return the name where it is one that an engine can have, else ""."""
    return name if isinstance(name, str) and NAME.fullmatch(name) else ""


def _name_in(data: bytes) -> str:
    """Return the engine's name in an answer whose other fields may have the wrong types."""
    try:
        return usable_name(msgspec.msgpack.decode(data)["facts"]["info"]["name"])
    except (msgspec.MsgspecError, ValueError, RecursionError, KeyError, TypeError):
        return ""


def words(error: Exception) -> str:
    """Return a message of msgspec as ours are: which field, what was expected, what it got."""
    text, _, path = str(error).replace("`", "").partition(" - at ")
    field = path.removeprefix("key in ").removeprefix("$").removeprefix(".facts").removeprefix(".info")
    return plain(f"EngineInfo{field}: {text[:1].lower()}{text[1:]}" if path else text, 500)


def wrong_facts(facts: Facts) -> Iterator[str]:
    """Yield what is wrong with facts whose types are right, in one line each."""
    if facts.info is not None:
        yield from wrong_info(facts.info)
    yield from _wrong_words("hooks", facts.hooks, _WORD)
    yield from _wrong_texts("cmp_scenarios", facts.scenarios, _SENTENCE)
    yield from _too_many("cmp_measures", facts.measures)
    for measure in facts.measures:
        yield from _wrong_measure(measure)
    yield from _wrong_words("cmp_models", tuple(facts.models), _WORD)
    yield from _wrong_places("cmp_models", facts.models.values())


def _wrong_measure(measure: Measure) -> Iterator[str]:
    """Yield what is wrong with a measurement whose types are right, in one line each."""
    field = f"cmp_measures[{plain(measure.name, 40)!r}]"
    if not NAME.fullmatch(measure.name):
        yield f"{field}: expected a name of up to 64 lower case letters, digits and '_'"
    yield from _wrong_places(field, filter(None, (measure.judge, measure.driver)))
    names = [metric.name for metric in measure.metrics]
    yield from _too_many(field, measure.metrics)
    for metric in measure.metrics:
        if not NAME.fullmatch(metric.name) or names.count(metric.name) > 1:
            shown = plain(metric.name, 80)
            yield f"{field}: expected metrics named once, by lower case letters, digits and '_', got '{shown}'"
        elif metric.name in HOST_METRICS | WORKER_METRICS:
            yield f"{field}: expected another name than {metric.name}, which the host writes itself"
        yield from _wrong_texts(f"{field}.{metric.name}", (metric.what, *metric.words), _LINE)


def _wrong_places(field: str, places: Iterable[str]) -> Iterator[str]:
    for place in places:
        if not PLACE.fullmatch(place):
            yield f"{field}: expected 'package.module:name', got '{plain(place, 80)}'"


def wrong_info(info: EngineInfo) -> Iterator[str]:
    """Yield what is wrong with an engine's facts whose types are right, in one line each."""
    if not NAME.fullmatch(info.name):
        shown = plain(info.name, 80)
        yield f"EngineInfo.name: expected up to 64 lower case letters, digits and '_', got engine name '{shown}'"
    if info.name in _TAKEN:
        yield f"EngineInfo.name: expected another name than '{info.name}', which `--engines` takes for something else"
    if not info.devices:
        yield "EngineInfo.devices: expected at least one device, e.g. ('cpu',), got none"
    for field in ("devices", "architectures", "quantizations", "operations", "option_names"):
        yield from _wrong_words(field, getattr(info, field), _WORD)
    for field in ("version", "licence", "homepage"):
        yield from _wrong_texts(field, (getattr(info, field),), _LINE)
    yield from _wrong_texts("tuned", (info.tuned,), _SENTENCE)
    yield from _wrong_texts("limits", info.limits, _SENTENCE)
    if not 1 <= info.max_concurrency <= 1 << 31:
        yield f"EngineInfo.max_concurrency: expected 1 or more, got {info.max_concurrency}"
    yield from _wrong_variables("environment", info.environment)
    yield from _wrong_variables("exact_environment", info.exact_environment)
    yield from _wrong_words("tunables", tuple(info.tunables), _WORD)
    for option, values in info.tunables.items():
        field = f"tunables[{plain(option, 40)!r}]"
        if not values:
            yield f"EngineInfo.{field}: expected at least one value, got none"
        yield from _wrong_texts(field, values, _LINE)
    yield from _wrong_words("presets", tuple(info.presets), PRESET_NAME)
    for name, preset in info.presets.items():
        yield from wrong_preset(f"presets[{plain(name, 40)!r}]", preset)


def wrong_preset(field: str, preset: Preset) -> Iterator[str]:
    """Yield what is wrong with a preset whose types are right, in one line each.

    Args:
        field: where it stands.
        preset: itself.
    """
    yield from _wrong_texts(field, (preset.what, preset.program, preset.docs), _LINE)
    yield from _wrong_texts(field, (preset.install, *preset.options.values()), _SENTENCE)
    yield from _wrong_words(field, tuple(preset.options), _WORD)


def _wrong_words(field: str, values: tuple[str, ...], allowed: re.Pattern[str]) -> Iterator[str]:
    yield from _too_many(field, values)
    for value in values:
        if not allowed.fullmatch(value):
            yield f"EngineInfo.{field}: expected letters, digits and _ . : + -, at most 64, got '{plain(value, 80)}'"


def _wrong_texts(field: str, values: tuple[str, ...], limit: int) -> Iterator[str]:
    yield from _too_many(field, values)
    for value in values:
        if len(value) > limit:
            yield f"EngineInfo.{field}: expected at most {limit} characters, got {len(value)}"
        elif not value.isprintable():
            yield f"EngineInfo.{field}: expected one line of printable text, got '{plain(value, 80)}'"


def _wrong_variables(field: str, values: Mapping[str, str]) -> Iterator[str]:
    yield from _too_many(field, values)
    for name, value in values.items():
        if not _VARIABLE.fullmatch(name):
            yield f"EngineInfo.{field}: expected the name of an environment variable, got '{plain(name, 80)}'"
        elif len(value) > _VALUE or not value.isprintable():
            shown = plain(value, 80)
            yield f"EngineInfo.{field}[{name!r}]: expected printable text of at most {_VALUE} characters, got '{shown}'"


def _too_many(field: str, values: Sized) -> Iterator[str]:
    if len(values) > _MOST:
        yield f"EngineInfo.{field}: expected at most {_MOST} entries, got {len(values)}"
