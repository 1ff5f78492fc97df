"""What is said of a server, asked of it and kept from everybody else before anything is timed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from enginecmp import EngineError, LoadOptions, ModelInfo, UnknownOption, UnsupportedModel
from enginecmp_openai_server.facts import cmp_probe
from enginecmp_openai_server.options import read_settings

SECRET = "sk-very-secret-0123456789"


def load_options(**extra: str) -> LoadOptions:
    return LoadOptions(extra={"url": "http://127.0.0.1:1/v1", **extra})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"retrys": "1"}, "openai_server: unknown option 'retrys'; did you mean 'retries'?"),
        ({"retries": "-1"}, "option retries expects a whole number from 0 to 100, got '-1'"),
        ({"api": "completion"}, "option api expects one of completions, chat, got 'completion'"),
        ({"body": "[1]"}, "option body expects a JSON object"),
        ({"timeout_seconds": "soon"}, "option timeout_seconds expects seconds above 0, got 'soon'"),
        ({"url": ""}, "expected the server's address, got none; pass --engines openai:http://127.0.0.1:8000/v1"),
        ({"url": "127.0.0.1:8000"}, "expected an address such as url=http://127.0.0.1:8000/v1, got '127.0.0.1:8000'"),
        ({"url": "http://h:x/v1"}, "got one that cannot be read"),
        ({"server": "vlm"}, "option server expects one of auto, vllm, sglang"),
    ],
)
def test_a_wrong_option_is_refused_with_what_was_expected(extra: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError) as raised:
        read_settings(load_options(**extra))
    assert message in str(raised.value)
    if "unknown" in message:
        assert isinstance(raised.value, UnknownOption)


@pytest.mark.parametrize(
    ("url", "host", "base", "root"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", "/v1", ""),
        ("http://127.0.0.1:8000/v1/chat/completions", "127.0.0.1:8000", "/v1", ""),
        ("https://host/openai/v1/", "host", "/openai/v1", "/openai"),
        ("http://[::1]:80", "[::1]", "", ""),
    ],
)
def test_an_address_is_read_as_people_paste_it(url: str, host: str, base: str, root: str) -> None:
    address = read_settings(load_options(url=url)).address
    assert (address.authority, address.base, address.root) == (host, base, root)


@pytest.mark.parametrize("url", [f"http://user:{SECRET}@h/v1", f"http://h/v1?key={SECRET}", f"http://h/v1#{SECRET}"])
def test_a_secret_in_the_address_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(EngineError) as raised:
        read_settings(load_options(url=url))
    assert SECRET not in str(raised.value)
    assert "api_key_env" in str(raised.value)
    # Before a run is begun, and so before its manifest is written.
    found = cmp_probe(load_options(url=url))
    assert not found.ok
    assert SECRET not in found.reason


@pytest.mark.parametrize("value", [None, "", "sk-\x07bell", "sk-ž"])
def test_an_unusable_key_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("STUB_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("STUB_KEY", value)
    with pytest.raises(EngineError, match="STUB_KEY") as raised:
        read_settings(load_options(api_key_env="STUB_KEY"))
    assert not value or value not in str(raised.value)


def test_a_key_pasted_for_its_name_is_not_repeated() -> None:
    with pytest.raises(EngineError) as raised:
        read_settings(load_options(api_key_env=SECRET))
    assert SECRET not in str(raised.value)


def test_the_key_goes_into_one_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stub: Any, drive: Any
) -> None:
    monkeypatch.setenv("STUB_KEY", SECRET)
    driver = drive(api_key_env="STUB_KEY")
    _, _, metrics = driver.request([5, 6, 7], 3)
    assert all(head["authorization"] == f"Bearer {SECRET}" for head in stub.heads)
    stub.behaviours.append(lambda talk, body: talk.reply(401, {"error": {"message": f"Incorrect API key: {SECRET}"}}))
    with pytest.raises(EngineError, match=r"got 401: Incorrect API key: \*\*\*; name a variable") as raised:
        driver.request([5, 6, 7], 3)
    everything = f"{raised.value}{driver.session}{driver.session.server.settings}{metrics}{capfd.readouterr()}"
    assert SECRET not in everything
    assert SECRET not in json.dumps(stub.requests + stub.plain)


def test_ids_are_sent_where_they_are_taken_and_nothing_unknown_with_them(stub: Any, drive: Any) -> None:
    drive().request([5, 6, 7], 3)
    assert stub.requests[-1] == {
        "model": "stub",
        "prompt": [5, 6, 7],
        "max_tokens": 3,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_ids_that_are_counted_otherwise_are_not_sent(stub: Any, drive: Any, tiny: ModelInfo) -> None:
    from enginecmp import load_tokenizer

    tokenizer = load_tokenizer(tiny.path)
    stub.count = lambda text: len(tokenizer.encode(text))
    stub.refuse_ids = 500
    ids = tokenizer.encode("the river")
    driver = drive()
    assert driver.request(ids, 3)[1] == 3
    assert stub.requests[-1]["prompt"] == "the river"
    with pytest.raises(EngineError, match="prompt should be a string"):
        drive(prompt="ids")


def test_a_prompt_that_does_not_read_back_is_refused(stub: Any, drive: Any, tiny: ModelInfo) -> None:
    from enginecmp import RoundTripError, load_tokenizer

    tokenizer = load_tokenizer(tiny.path)
    stub.count = lambda text: len(tokenizer.encode(text))
    driver = drive(prompt="text")
    letters = [tokenizer.encode(letter)[0] for letter in "the"]
    with pytest.raises(RoundTripError, match="this prompt of 3 tokens reads back as"):
        driver.request(letters, 3)


@pytest.mark.parametrize(
    ("owner", "fields"),
    [
        ("vllm", {"ignore_eos": True, "min_tokens": 3, "repetition_penalty": 1.0, "return_token_ids": True}),
        ("sglang", {"ignore_eos": True, "min_tokens": 3, "repetition_penalty": 1.0}),
        ("tensorrt_llm", {"ignore_eos": True, "min_tokens": 3, "repetition_penalty": 1.0}),
        ("llamacpp", {"ignore_eos": True, "cache_prompt": False, "repeat_penalty": 1.0}),
        ("local", {}),
        ("somebody", {}),
    ],
)
def test_each_kind_of_server_is_told_what_it_knows(stub: Any, drive: Any, owner: str, fields: dict[str, Any]) -> None:
    stub.models = [{"id": "m", "owned_by": owner}]
    stub.routes["/flush_cache"] = {}
    drive().request([5, 6, 7], 3)
    sent = stub.requests[-1]
    salt = sent.pop("cache_salt", None)
    standard = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert {key: value for key, value in sent.items() if key not in standard} == fields
    assert (salt is not None) == (owner == "vllm")


def test_two_requests_to_a_server_with_a_salted_cache_share_no_salt(stub: Any, drive: Any) -> None:
    stub.models = [{"id": "m", "owned_by": "vllm"}]
    driver = drive()
    driver.request([5, 6, 7], 3)
    driver.request([5, 6, 7], 3)
    assert stub.requests[-1]["cache_salt"] != stub.requests[-2]["cache_salt"]


def test_ids_in_the_stream_are_handed_out_as_they_are(stub: Any, drive: Any) -> None:
    driver = drive(server="vllm")

    def with_ids(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for token in (7, 8, 9):
            talk.event({"choices": [{"text": "", "token_ids": [token]}]})
        talk.usage(3, 3)
        talk.done()
        talk.end()

    stub.behaviours.append(with_ids)
    assert driver.request([5, 6, 7], 3)[:2] == ([7, 8, 9], 3)


def test_further_fields_are_the_users_word(stub: Any, drive: Any) -> None:
    drive(body='{"ignore_eos": true, "temperature": 0.0}').request([5, 6, 7], 3)
    assert stub.requests[-1]["ignore_eos"] is True


def test_a_server_that_refuses_stream_options_is_not_sent_them(stub: Any, drive: Any) -> None:
    good = stub.always

    def strict(talk: Any, body: dict[str, Any]) -> None:
        if "stream_options" in body:
            talk.reply(422, {"detail": "extra fields not permitted"})
        else:
            good(talk, body)

    stub.always = strict
    assert drive().request([5, 6, 7], 3)[1] == 3
    assert "stream_options" not in stub.requests[-1]


def test_several_models_are_listed_and_one_is_chosen(stub: Any, drive: Any) -> None:
    stub.models = [{"id": "one"}, {"id": "two"}]
    with pytest.raises(EngineError, match=r"expected one served model, got 2 \(one, two\)"):
        drive()
    with pytest.raises(EngineError, match="no model 'tow'; did you mean 'two'"):
        drive(served_model="tow")
    assert drive(served_model="two").request([5, 6, 7], 3)[1] == 3
    assert stub.requests[-1]["model"] == "two"


def test_plainly_another_model_is_refused_unless_the_user_vouches(stub: Any, drive: Any) -> None:
    stub.models = [{"id": "/models/other.gguf", "owned_by": "me"}]
    with pytest.raises(UnsupportedModel, match=r"expected a server of tiny-llama\.gguf, it serves other\.gguf"):
        drive()
    assert drive(trust_model="yes").request([5, 6, 7], 3)[1] == 3
    stub.models = [{"id": "x", "owned_by": "llamacpp", "meta": {"n_vocab": 50257}}]
    with pytest.raises(UnsupportedModel, match="the server's has 50257"):
        drive()


def test_the_servers_own_context_is_kept(stub: Any, drive: Any) -> None:
    stub.models = [{"id": "m", "max_model_len": 8}]
    with pytest.raises(EngineError, match="the context holds 8"):
        drive().request([5, 6, 7], 7)


def test_nobody_at_the_address_is_said_with_what_to_do(drive: Any, stub: Any) -> None:
    stub.url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EngineError, match=r"expected a server at http://127\.0\.0\.1:\d+/v1, got: connection refused"):
        drive()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def started_stub(port: int) -> str:
    return f"{sys.executable} {Path(__file__).with_name('openai_stub.py')} {{port}}"


def test_a_started_server_is_stopped_with_its_children(
    drive: Callable[..., Any], stub: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    stub.url = f"http://127.0.0.1:{port}/v1"
    driver = drive(start=started_stub(port))
    assert driver.request([5, 6, 7], 3)[1] == 3
    server = driver.session.process.pid
    child = int(capfd.readouterr().out.split("child ")[1].split()[0])
    assert psutil.pid_exists(server)
    assert psutil.pid_exists(child)
    driver.close()
    assert not psutil.pid_exists(server)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Say whether a process runs; one whose parent is gone may wait for init to reap it."""
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.01)
    return True


def test_no_server_is_started_where_another_one_answers(stub: Any, drive: Any, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with pytest.raises(EngineError, match=f"expected nothing at {stub.url} before the server is started"):
        drive(start=f"touch {begun}")
    assert not begun.exists()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            "/no/such/server --port {port}",
            "expected a command that starts the server, got '/no/such/server': No such file",
        ),
        ("false", "expected the started server to run, it ended with code 1; see the launch's log"),
        ("sleep 60", r"expected the started server to answer within 0.3 s, it did not"),
        ("sh -c 'oops", "expected a command, got"),
    ],
)
def test_a_start_that_fails_says_how(stub: Any, drive: Any, start: str, message: str) -> None:
    stub.url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EngineError, match=message):
        drive(start=start, start_seconds="0.3")


def test_the_start_command_gets_the_file_and_the_options(
    stub: Any, drive: Any, tiny: ModelInfo, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    command = f"{sys.executable} -c \"open('{said}', 'w').write('{{model}} {{threads}} {{context}} {{sequences}}')\""
    stub.url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EngineError, match="it ended with code 0"):
        drive(start=command, max_sequences=3)
    assert said.read_text() == f"{tiny.path} 1 66 3"


def test_the_stop_command_runs_at_the_end(stub: Any, drive: Any, tmp_path: Path) -> None:
    mark = tmp_path / "stopped"
    driver = drive(stop=f"touch {mark}")
    assert not mark.exists()
    driver.close()
    assert mark.exists()
    driver.session.server.client.settings = read_settings(load_options())


def test_without_an_address_it_is_left_out_and_says_what_to_write() -> None:
    found = cmp_probe(LoadOptions())
    assert not found.ok
    assert found.fix == "--engines openai:http://127.0.0.1:8000/v1"


def test_discovery_imports_neither_sockets_nor_parsers() -> None:
    code = (
        "import sys; from enginecmp.plugins.manager import load_object, manager_with;"
        "manager_with(load_object('enginecmp_openai_server')).hook.cmp_engine();"
        "print([name for name in ('h11', 'psutil', 'ssl', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
