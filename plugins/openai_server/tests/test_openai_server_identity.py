"""Which server answers is asked before a run begins: its kind, its version, or why there is none."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import Any

import pytest

from enginecmp import EngineError, LoadOptions
from enginecmp_openai_server.facts import cmp_probe
from enginecmp_openai_server.kinds import KINDS


def probe(url: str, **extra: str) -> Any:
    return cmp_probe(LoadOptions(extra={"url": url, **extra}))


# Answers as the servers' own documentation and sources have them: vLLM and TensorRT-LLM /version, SGLang
# /get_server_info, TGI /info, llama-server /props, FastAPI's /openapi.json of llama-cpp-python, Ollama /api/version.
SERVERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "vllm": ({"owned_by": "vllm"}, {"/version": {"version": "0.32.0"}}, "vLLM 0.32.0"),
    "sglang": ({"owned_by": "sglang"}, {"/get_server_info": {"version": "0.5.9", "tp_size": 1}}, "SGLang 0.5.9"),
    "tensorrt_llm": ({"owned_by": "tensorrt_llm"}, {"/version": {"version": "1.2.0"}}, "TensorRT-LLM 1.2.0"),
    "tgi": (
        {"owned_by": "x"},
        {"/info": {"model_id": "m", "router": "text-generation-router", "version": "3.3.6"}},
        "Text Generation Inference 3.3.6",
    ),
    "llama_server": ({"owned_by": "llamacpp"}, {"/props": {"build_info": "b6123-abc"}}, "llama-server b6123-abc"),
    "llama_cpp_python": (
        {"owned_by": "me"},
        {"/openapi.json": {"info": {"title": "🦙 llama.cpp Python API", "version": "0.3.16"}}},
        "llama-cpp-python 0.3.16",
    ),
    "ollama": ({"owned_by": "library"}, {"/api/version": {"version": "0.12.3"}}, "Ollama 0.12.3"),
    "mistralrs": ({"owned_by": "local"}, {}, "mistral.rs"),
    "openai": ({"owned_by": "me"}, {}, "an OpenAI-compatible server"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kind_and_version_are_told_before_a_run_and_by_every_load(stub: Any, drive: Any, name: str) -> None:
    entry, routes, expected = SERVERS[name]
    stub.models = [{"id": "m", **entry}]
    stub.routes |= routes
    found = probe(stub.url)
    assert (found.ok, found.running, found.version) == (True, True, expected)
    # Only what can be scored can be proven, whoever starts it.
    assert bool(found.prove) == bool(KINDS[name].score)
    driver = drive()
    assert driver.hook.cmp_version(session=driver.session) == expected


@pytest.mark.parametrize("answer", [{"version": 3}, {"version": ["x"]}, {}, "0.32", None])
def test_a_version_that_is_none_leaves_the_kind(stub: Any, answer: Any) -> None:
    stub.models = [{"id": "m", "owned_by": "vllm"}]
    stub.routes["/version"] = answer
    assert probe(stub.url).version == "vLLM"


def test_what_would_prove_vllm_starts_it_with_the_file_and_all_log_probabilities(stub: Any) -> None:
    stub.models = [{"id": "m", "owned_by": "vllm"}]
    assert probe(stub.url).prove == (
        "-o '{label}.start=vllm serve {hf_model} --host {host} --port {port} --max-model-len {context} "
        "--max-num-seqs {sequences} --max-logprobs -1' -o '{label}.exact_flags=--dtype float32'"
    )


def test_a_server_that_is_not_there_is_said_before_a_run() -> None:
    found = probe("http://127.0.0.1:9/v1")
    assert not found.ok
    assert found.reason.startswith("expected a server at http://127.0.0.1:9/v1, got: connection refused; start it")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + b" " * 9_000_000,
    ],
)
def test_a_server_that_answers_nonsense_fails_its_own_launches_and_not_the_run(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = probe(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
        thread.join()
    assert (found.ok, found.running, found.version) == (True, True, "")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"retrys": "1"}, "unknown option 'retrys'; did you mean 'retries'?"),
        ({"api": "completion"}, "option api expects one of completions, chat, got 'completion'"),
        ({"served_model": "other"}, "the server has no model 'other'"),
        ({"api_key_env": "NO_SUCH_KEY"}, "expected an API key in the environment variable NO_SUCH_KEY"),
        ({"start": "no-such-program {model}"}, "expected option start to begin with a program, got 'no-such-program'"),
        ({"start": "'"}, "expected a command, got ''' (No closing quotation)"),
        ({"start": f"{sys.executable} x", "stop": "no-such-program"}, "expected option stop to begin with a program"),
        ({"start": sys.executable}, "something listens there already; stop it"),
    ],
)
def test_wrong_options_are_said_before_a_run(stub: Any, extra: dict[str, str], reason: str) -> None:
    found = probe(stub.url, **extra)
    assert not found.ok
    assert reason in found.reason


def test_a_server_that_is_still_to_be_started_is_taken_at_its_word() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        found = probe(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", start=f"{sys.executable} -m server")
    assert (found.ok, found.running, found.version) == (True, False, "")


def test_vllm_that_gives_too_few_log_probabilities_names_the_flag(stub: Any, drive: Any) -> None:
    stub.models = [{"id": "m", "owned_by": "vllm"}]
    driver = drive()
    # The words of vLLM's 400.
    words = "Requested prompt logprobs of 314, which is greater than max allowed: 20"
    stub.routes["/v1/completions"] = lambda talk, body: talk.reply(400, {"error": {"message": words}})
    with pytest.raises(EngineError, match=r"gives fewer; start vLLM with --max-logprobs -1"):
        driver.hook.cmp_score(session=driver.session, token_ids=[1, 2, 3])
