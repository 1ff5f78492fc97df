"""The real servers of llama.cpp on loopback: llama-cpp-python's, and llama-server where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import unchanged

from enginecmp import NO_ID, Decoding, EngineError, LoadOptions, ModelInfo, Request
from enginecmp.models.end_tokens import end_tokens
from enginecmp.models.store import resolve
from enginecmp.prompts import PromptSet
from enginecmp.scenarios.json_schema import follows_schema
from enginecmp.worker.generate import choose, generate

pytestmark = unchanged.left_out_with("plugins/openai_server", "plugins/llamacpp")

NEEDED = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_server = pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}: pip install 'enginecmp-openai-server[server-test]'"
)
LLAMA_SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")

# What a server cannot give makes no engine of it wrong; it is why the gate calls it not comparable.
WITHOUT_SCORES = "not logits and not decoded_tokens and not score and not own_distributions"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Served:
    """A llama-cpp-python server of one file, and what it says."""

    def __init__(self, model: ModelInfo, log: Path, context_tokens: int) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log = log
        command = [sys.executable, "-m", "llama_cpp.server", "--model", model.path, "--port", str(port)]
        command += ["--n_ctx", str(context_tokens), "--n_threads", "1", "--n_threads_batch", "1"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        until = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def model() -> ModelInfo:
    return resolve("smollm2-135m-instruct:q8_0", fetch=True)


@pytest.fixture(scope="module")
def served(model: ModelInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(model, tmp_path_factory.mktemp("served") / "server.log", 256)
    yield server
    server.stop()


@pytest.fixture
def on(drive_on: Callable[..., Any], model: ModelInfo, served: Served) -> Any:
    return drive_on(model, LoadOptions(context_tokens=256, max_sequences=4, extra={"url": served.url}))


@pytest.fixture(scope="module")
def prompt(model: ModelInfo) -> tuple[int, ...]:
    return PromptSet(model).take(30, key=3, seed=1)


@needs_server
@pytest.mark.model
def test_a_request_has_the_tokens_that_were_asked_for(on: Any, prompt: tuple[int, ...]) -> None:
    yielded, total, metrics = on.request(prompt, 9)
    assert total == 9
    assert set(yielded) == {NO_ID}
    assert metrics["stream_chunk_count"] == len(yielded) <= 9
    assert (metrics["retry_count"], metrics["reconnect_count"]) == (0.0, 0.0)
    assert on.request(prompt, 1)[1] == 1


@needs_server
@pytest.mark.model
def test_the_server_generates_what_the_library_generates(on: Any, prompt: tuple[int, ...], model: ModelInfo) -> None:
    import llama_cpp

    library = llama_cpp.Llama(model.path, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    wanted: Any = library.create_completion(list(prompt), max_tokens=40, temperature=0, repeat_penalty=1.0)
    library.close()
    text = on.session.reader.text_of(prompt)
    answer = on.session.server.client.ask("POST", "/completions", on.session.server.request(text, 40, stream=False))
    # With the server's own default, a repeat penalty of 1.1, the two part ways within these tokens.
    assert answer["choices"][0]["text"] == wanted["choices"][0]["text"]
    penalized = on.session.server.client.ask(
        "POST", "/completions", on.session.server.request(text, 40, stream=False) | {"repeat_penalty": 1.1}
    )
    assert penalized["choices"][0]["text"] != wanted["choices"][0]["text"]


@needs_server
@pytest.mark.model
def test_a_repeated_prompt_is_computed_again(on: Any, served: Served, prompt: tuple[int, ...]) -> None:
    for _ in range(2):
        before = len(served.log.read_text())
        on.request(prompt, 2)
        said = served.log.read_text()[before:]
        evaluated = [int(number) for number in re.findall(r"prompt eval time =.*/ +(\d+) tokens", said)]
        assert evaluated[-1] == len(prompt), said[-1500:]


@needs_server
@pytest.mark.model
def test_one_request_at_a_time_because_a_second_would_cut_the_first(on: Any, prompt: tuple[int, ...]) -> None:
    hook, session = on.hook, on.session
    first, second = (Request(id=name, token_ids=prompt, output_tokens=4) for name in "ab")
    assert hook.cmp_submit(session=session, request=first)
    assert not hook.cmp_submit(session=session, request=second)
    pairs: list[tuple[str, int]] = []
    until = time.monotonic() + 60
    while len(pairs) < 4 and time.monotonic() < until:
        pairs += hook.cmp_step(session=session, wake=-1)
    assert pairs == [("a", NO_ID)] * 4
    assert hook.cmp_submit(session=session, request=second)
    hook.cmp_reset(session=session)


@needs_server
@pytest.mark.model
def test_an_answer_under_a_schema_follows_it_and_its_chunks_are_proven(
    on: Any, model: ModelInfo, prompt: tuple[int, ...]
) -> None:
    schema = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    hook, session = on.hook, on.session
    hook.cmp_reset(session=session)
    choose(hook, session, Decoding(end_ids=end_tokens(model.path), json_schema=schema))
    hook.cmp_prepare(session=session, token_ids=prompt, output_tokens=60)
    yielded: list[int] = []
    total = generate(hook, session, prompt, 60, yielded.append)
    hook.cmp_metrics(session=session)  # raises where the server counts others
    assert total == len(yielded) < 60
    assert follows_schema(hook.cmp_text(session=session), schema)


@needs_server
@pytest.mark.model
def test_why_it_is_not_comparable_is_said(on: Any, prompt: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="llama-cpp-python names the most likely ones only, by text that several ids"):
        on.hook.cmp_score(session=on.session, token_ids=prompt)


@needs_server
def test_a_server_that_generates_more_than_asked_is_refused(
    drive_on: Callable[..., Any], tiny: ModelInfo, tmp_path: Path
) -> None:
    # llama-cpp-python goes past max_tokens while the last character is not whole, which random weights bring about.
    server = Served(tiny, tmp_path / "server.log", 128)
    try:
        driver = drive_on(tiny, LoadOptions(context_tokens=128, extra={"url": server.url}))
        prompts = [PromptSet(tiny).take(17, key=key, seed=1) for key in range(12)]
        said = []
        for ids in prompts:
            try:
                assert driver.request(ids, 6)[1] == 6
            except EngineError as error:
                said.append(str(error))
    finally:
        server.stop()
    assert said
    assert all(re.search(r"expected 6 tokens, (the stream ended after|the server counted) \d+", line) for line in said)


def conformance(*options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--tb=short"]
    command += ["--pyargs", "enginecmp.testing", "--engine", "openai_server", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@needs_server
@pytest.mark.model
def test_conformance_of_llama_cpp_python_but_for_scores(served: Served, model: ModelInfo) -> None:
    said = conformance(*("--engine-model", model.path, "--engine-option", f"url={served.url}", "-k", WITHOUT_SCORES))
    assert " passed" in said


@pytest.mark.skipif(not LLAMA_SERVER, reason="no llama-server: put one on PATH or name it in LLAMA_SERVER")
def test_conformance_of_llama_server_scores_included() -> None:
    port = free_port()
    start = f"{LLAMA_SERVER} -m {{model}} -c {{all_contexts}} -np {{sequences}} -t {{threads}} --port {port}"
    said = conformance(
        *("--engine-option", f"url=http://127.0.0.1:{port}/v1", "--engine-option", f"start={start}"),
        *("--engine-option", f"start_exact={start} -ctk f32 -ctv f32 -fa off"),
    )
    assert int(re.findall(r"(\d+) passed", said)[0]) >= 19
