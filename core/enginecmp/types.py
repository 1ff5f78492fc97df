"""What the host and an engine plugin hand to each other: hook arguments and results.

The results format, which outside tools write and read, is `enginecmp.format.records`. This module imports only
the standard library and msgspec, so an engine's worker process stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

NO_ID = -1
"""Yielded by an engine whose API hands out text, not token ids."""

ENDED = -2
"""From `cmp_step`, in a token's place: the request has all its tokens, but fewer pairs, as some held several."""

Device = Literal["cpu", "cuda", "metal", "vulkan", "rocm", "emulated"]
Numerics = Literal["default", "exact"]

Decodes = Literal["sampling", "end_of_sequence", "json_schema"]
"""What an engine may offer beyond the most likely id, again and again, for a fixed number of tokens."""

UNTIMED_DEVICES = frozenset({"emulated"})
"""Devices that prove what is computed and not how fast: their engines go through the gate and are never timed."""


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """An engine with options under a name of its own: `--engines NAME` is the engine with these options.

    Attributes:
        what: it is, in a few words.
        program: executable without which it cannot run, a name on PATH or a path that may begin with "~/".
        install: command that brings the program.
        options: of the engine, as `-o NAME.KEY=VALUE` would say them; those that a user says take their place.
        docs: page that tells more, relative to the project's root; may be empty.
    """

    what: str
    program: str = ""
    install: str = ""
    options: Mapping[str, str] = {}
    docs: str = ""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Static facts of one engine, answered without importing anything native.

    Attributes:
        name: how the engine is called on the command line: lower case, digits, `_`.
        version: version of the wrapped engine (not of the plugin), e.g. "0.3.36".
        licence: SPDX expression of the wrapped engine.
        devices: devices it can run on, its default first, e.g. ("cpu", "cuda").
        architectures: GGUF `general.architecture` values it can load.
        quantizations: GGUF tensor types it can load, e.g. ("F32", "Q8_0"); must name "F32" to be proven exact.
        max_concurrency: most requests it can hold in flight at once, through `cmp_submit` and `cmp_step`; 1 means one
            after the other, and that several wait for each other in front of it.
        environment: variables set before the worker's interpreter starts; "{threads}" is replaced by the
            thread count. Native libraries read these once, at import.
        exact_environment: variables added when numerics are "exact" (float32 KV cache and the like).
        tuned: what "tuned" means for this engine, in one sentence.
        tunables: option → values that `cmp tune` tries, the default first, e.g. {"flash_attn": ("auto", "off")}.
            The option "threads" is `LoadOptions.threads`, every other one a key of `LoadOptions.extra`;
            "DEVICE:OPTION" is for that device alone. "{cores}" is replaced by the number of usable cores,
            "{half_cores}" by half of it, and threads "auto" by what `cmp run` takes without `--threads`.
        operations: what it offers by itself: "tokenize", "sampling", "matmul", "elementwise", "layer"
            (`cmp_operation`), "profile" (`cmp_profile`). Scenarios of the others leave it out.
        limits: what its API gives less than the hooks ask, one sentence each; copied into every result.
        reads_split_models: it loads a model in several GGUF files, given the first; otherwise it gets a file that the
            host has merged.
        option_names: keys of `LoadOptions.extra` that it knows, so that a misspelt one is found before anything is
            started; empty where it does not tell.
        reads_hf_folders: it loads a Hugging Face folder and no GGUF file: `ModelInfo.hf_folder` is one, the user's or
            made by the host from the GGUF file.
        homepage: where the wrapped engine lives; may be empty.
        decoding: what it offers beyond greedy ids of a fixed number (`cmp_decoding`): "sampling" (temperature, top-k,
            top-p and seed of `Decoding`), "end_of_sequence" (`end_ids`), "json_schema". Scenarios of the others leave
            it out.
        remote: it computes elsewhere, in a server say, so that its files here do not tell what it is.
        presets: names, with `-` allowed, that stand for the engine with options.
    """

    name: str
    version: str
    licence: str
    devices: tuple[str, ...]
    architectures: tuple[str, ...]
    quantizations: tuple[str, ...]
    max_concurrency: int = 1
    environment: Mapping[str, str] = {}
    exact_environment: Mapping[str, str] = {}
    tuned: str = ""
    tunables: Mapping[str, tuple[str, ...]] = {}
    operations: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    reads_split_models: bool = False
    option_names: tuple[str, ...] = ()
    reads_hf_folders: bool = False
    homepage: str = ""
    decoding: tuple[Decodes, ...] = ()
    remote: bool = False
    presets: Mapping[str, Preset] = {}


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine can run here.

    Attributes:
        ok: it can.
        reason: why not, in one sentence; empty when ok.
        fix: the command or step that makes it run; empty when ok or when there is none.
        running: it runs already (a server that somebody else started), so that neither file nor numerics can be asked
            for, and neither its start nor its memory can be measured.
        version: what runs there, name and version, where only asking it tells; else empty.
        prove: the options, as on a command line and with "{label}" for the engine's label, with which the gate could
            ask the exact question of an engine that is `running`; empty where nothing could.
    """

    ok: bool
    reason: str = ""
    fix: str = ""
    running: bool = False
    version: str = ""
    prove: str = ""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model, known by the content of its weights file, or files where it is split.

    Attributes:
        name: how people call it, e.g. "smollm2-135m-instruct:q8_0".
        path: absolute path of the GGUF file; of a split model, its first part.
        sha256: hexadecimal SHA-256 of the file; of a split model, of its parts one after the other.
        architecture: GGUF `general.architecture`.
        parameters: number of weights in all tensors.
        quantization: the tensor type that holds most of the weights, e.g. "Q8_0".
        bytes: size of the file, or of all parts together.
        context_tokens: longest context the model was made for.
        vocabulary: number of token ids.
        parts: absolute paths of all files of a split model, in order; empty for one file.
        hf_folder: absolute path of a Hugging Face folder with the same weights, where the model was named by one or the
            engine asks for one; else empty.
        hf_sha256: hexadecimal SHA-256 of that folder: over SHA-256, size and name of each of its files, a line a file.
        derived: which of the two was made from the other: "gguf", "hf_folder", or "" where there is one only.
    """

    name: str
    path: str
    sha256: str
    architecture: str
    parameters: int
    quantization: str
    bytes: int
    context_tokens: int
    vocabulary: int
    parts: tuple[str, ...] = ()
    hf_folder: str = ""
    hf_sha256: str = ""
    derived: Literal["", "gguf", "hf_folder"] = ""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the host asks of an engine when it loads a model.

    Attributes:
        device: one of the engine's `EngineInfo.devices`.
        threads: compute threads to use, >= 1 (also present in the environment, see `EngineInfo.environment`).
        context_tokens: prompt plus output tokens that the longest request needs.
        max_sequences: most sequences in flight at once (`cmp_submit`).
        numerics: "default" is what a user of the engine gets; "exact" asks for float32 everywhere the engine
            offers it (KV cache, activations) and plain attention, for the equivalence gate on the F32 file.
        extra: engine-specific options from `cmp run -o ENGINE.KEY=VALUE`; unknown keys must be refused
            with `UnknownOption`.
    """

    device: str = "cpu"
    threads: int = 1
    context_tokens: int = 2048
    max_sequences: int = 1
    numerics: Numerics = "default"
    extra: Mapping[str, str] = {}


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """How the ids of one request are chosen, and what ends it. The defaults are what every engine does.

    The distribution is divided by the temperature first, then cut by top-k, then by top-p, then drawn from.

    Attributes:
        temperature: the logits are divided by it; 0 takes the most likely id, and nothing else counts.
        top_k: only that many of the most likely ids; 0 is off.
        top_p: only the fewest most likely ids that together have this probability (Holtzman et al. 2020, eq. 2); 1 is
            off.
        seed: of the draws of this request, in [0, 2^31): the same seed and prompt give the same ids in one engine.
        end_ids: ids that end the request: the first one that is chosen is its last token, handed out like any other.
            Empty ignores end-of-sequence.
        json_schema: JSON Schema, as JSON text, that the text of the request must follow; empty for free text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    end_ids: tuple[int, ...] = ()
    json_schema: str = ""

    @property
    def needs(self) -> frozenset[Decodes]:
        """What an engine must offer for it (`EngineInfo.decoding`)."""
        found: dict[Decodes, bool] = {
            "sampling": self.temperature > 0,
            "end_of_sequence": bool(self.end_ids),
            "json_schema": bool(self.json_schema),
        }
        return frozenset(what for what, needed in found.items() if needed)


GREEDY = Decoding()
"""The most likely id, again and again, for as many tokens as were asked for."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt in, a number of tokens out.

    Attributes:
        id: unique within the launch.
        token_ids: the prompt, T >= 1 ids in [0, vocabulary).
        output_tokens: tokens to generate, the first included; >= 1. With `Decoding.end_ids` the most.
        decoding: how they are chosen; other than `GREEDY` only where the engine says that it can.
    """

    id: str
    token_ids: Sequence[int]
    output_tokens: int
    decoding: Decoding = GREEDY


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge is told of one cell of a run beside the variant's own parameters.

    Attributes:
        seed: of the run; everything random comes from it.
        token_ids: a prompt of the cell's `prompt_tokens`, the same for every engine; empty before a run.
        output_tokens: of the cell.
        model: that is loaded; None before a run, and where the measurement needs none.
    """

    seed: int = 0
    token_ids: tuple[int, ...] = ()
    output_tokens: int = 0
    model: ModelInfo | None = None


class Judge(Protocol):
    """What asks the question of one cell and judges every answer to it. Lives in a process of its own, not in a worker.

    Args:
        parameters: a variant as the scenario file has it.
        given: see `Given`.

    Raises:
        ValueError: a parameter is wrong; the message says what was expected and what it got. Raised before a run, so
            whatever takes long belongs into `question`.
    """

    def __init__(self, parameters: Mapping[str, Any], given: Given) -> None: ...

    def question(self) -> tuple[Mapping[str, Any], int]:
        """Return what engine or driver is given (numbers, text, bytes, lists, dicts), and tokens or rows of a call."""
        ...

    def judge(self, answer: Any, seconds: float, marks: Sequence[float]) -> Mapping[str, float]:
        """Return the metrics of one sample, by their names in `Measure.metrics`. Called after every sample.

        Args:
            answer: of the last call: an int, text, a list of ints, or of lists of ints; a float32 matrix where the
                engine returned one. Of an operation that yields, the list of what it yielded.
            seconds: of one call.
            marks: seconds from the call's start to each thing that it yielded; empty where it returned.

        Raises:
            ValueError: the answer is wrong: the launch ends in an error with this message.
        """
        ...


class Sensor(Protocol):
    """One family of readings of the machine, ten times a second at most. Lives in the sensors' process.

    Attributes:
        name: lower case, unique, e.g. "nvml".
        period_seconds: wanted time between two readings; never less than 0.1.
    """

    name: str
    period_seconds: float

    def start(self) -> Mapping[str, object]:
        """Open what is needed and return facts for the manifest (device names, limits, units).

        Raises:
            SensorAbsent: it cannot be read here; the reason goes into the manifest, and no value is invented.
        """
        ...

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return values (unit in the name) and conditions (flags for the requests under way).

        Args:
            pids: the processes of the launch under way; empty between launches. Others are foreign.

        Raises:
            SensorAbsent: it is lost (a GPU fell off the bus); told once, then no longer read.
        """
        ...

    def close(self) -> None:
        """Let everything go."""
        ...
