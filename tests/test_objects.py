"""Runs in object storage, against a real S3 server on loopback: whole or not at all, and no secret anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FAKE_MODULE, CommandLine, command_line
from helpers import SCENARIO, only_run

from enginecmp.errors import ObjectStoreError, UsageError
from enginecmp.format.files import SAMPLES
from enginecmp.objects.address import parse_address
from enginecmp.types import ModelInfo

SECRET = "a-secret-that-nobody-may-see"
MISSING = "not installed here; make store installs it and runs these tests"


@pytest.mark.parametrize(
    "text", ["s3://", "s3://A/b", "s3://bucket/../up", "s3://bucket/a//b", "s3://bucket/a?versions", "s3://b/x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected s3://BUCKET/PREFIX"):
        parse_address(text)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY") as caught:
        parse_address(f"s3://key:{SECRET}@bucket/prefix")
    assert SECRET not in str(caught.value)


def test_an_address_is_told_as_it_was_written() -> None:
    assert str(parse_address("s3://bucket/nightly/a/")) == "s3://bucket/nightly/a"
    assert str(parse_address("s3://bucket")) == "s3://bucket"
    assert parse_address("s3://bucket/a").below("b").prefix == "a/b"


class Server:
    """moto's S3 server in a process of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        self.open_requests: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        code = "import sys; from moto.server import main; main(sys.argv[1:])"
        env = dict(os.environ)
        if self.open_requests is not None:  # after so many of them every key is looked up, and none is known
            env["INITIAL_NO_AUTH_ACTION_COUNT"] = str(self.open_requests)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code, "-H", "127.0.0.1", "-p", str(self.port)],
                env=env,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 100
        while time.monotonic() < until and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.fail(f"the S3 server did not start: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for module in ("obstore", "moto", "flask", "boto3"):
        pytest.importorskip(module, reason=f"{module}: {MISSING}")
    found = Server(tmp_path / "server.log")
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.port}")
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found.start()
    make_bucket()
    yield found
    found.stop()


def make_bucket() -> None:
    client().create_bucket(Bucket="bench")


def client():  # type: ignore[no-untyped-def]  # noqa: ANN201 boto3 has no types
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")


def keys() -> list[str]:
    return sorted(found["Key"] for found in client().list_objects_v2(Bucket="bench").get("Contents", []))


def put(key: str, body: bytes) -> None:
    client().put_object(Bucket="bench", Key=key, Body=body)


def read(key: str) -> bytes:
    content: bytes = client().get_object(Bucket="bench", Key=key)["Body"].read()
    return content


def line(tmp_path: Path, model: ModelInfo, *more: str) -> list[str]:
    (tmp_path / "mini.toml").write_text(SCENARIO)
    chosen = ["--scenario", str(tmp_path / "mini.toml"), "--model", str(model.path), "--no-gate", "--seed", "5"]
    return ["run", *chosen, "--engines", "a=fake,b=fake", "--max-extra", "0", *more]


@pytest.fixture
def cmp(tmp_path: Path) -> CommandLine:
    return command_line(tmp_path)


def test_a_run_is_kept_there_and_read_from_there(
    tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine
) -> None:
    done = cmp(*line(tmp_path, tiny, "--out", "s3://bench/nightly"))
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path / "results")
    assert f"uploaded: s3://bench/nightly/{folder.name}" in done.stderr
    here = cmp("stats", str(folder), "--json")
    for address in (f"s3://bench/nightly/{folder.name}", "s3://bench/nightly", "s3://bench/nightly/"):
        there = cmp("stats", address, "--json")
        assert there.returncode == 0, there.stderr
        assert json.loads(there.stdout)["rankings"] == json.loads(here.stdout)["rankings"]
    for words in (["report", "s3://bench/nightly"], ["guide", "s3://bench/nightly"]):
        assert cmp(*words).returncode == 0
    assert "is on both sides" in cmp("compare", str(folder), "s3://bench/nightly").stderr  # both were read
    # What is kept in the cache is checked against the server's version, and fetched no more than once.
    (kept,) = (tmp_path / "cache").rglob(f"{folder.name}/{SAMPLES}")
    before = kept.stat().st_mtime_ns
    cmp("stats", "s3://bench/nightly")
    assert kept.stat().st_mtime_ns == before
    everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "server.log"]
    everything += [read(key) for key in keys()]
    assert not any(SECRET.encode() in content or b"key-of-the-test" in content for content in everything)


def test_a_wrong_bucket_is_refused_before_anything_is_measured(
    tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine
) -> None:
    done = cmp(*line(tmp_path, tiny, "--out", "s3://other/nightly"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "s3://other/nightly: there is no such bucket" in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_server_that_is_not_there_is_refused_before_anything_is_measured(
    tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine
) -> None:
    server.stop()
    done = cmp(*line(tmp_path, tiny, "--out", "s3://bench/nightly"))
    assert done.returncode == 1
    assert "check AWS_ENDPOINT_URL" in done.stderr
    assert SECRET not in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_key_that_is_not_known_is_refused_before_anything_is_measured(
    tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine
) -> None:
    server.stop()
    server.open_requests = 1
    server.start()
    make_bucket()
    done = cmp(*line(tmp_path, tiny, "--out", "s3://bench/nightly"))
    assert done.returncode == 1
    assert "check AWS_ACCESS_KEY_ID" in done.stderr
    assert SECRET not in done.stderr
    assert not (tmp_path / "results").exists()


def test_parts_without_an_index_are_no_run(tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine) -> None:
    cmp(*line(tmp_path, tiny, "--out", "s3://bench/nightly"))
    folder = only_run(tmp_path / "results")
    whole = read(f"nightly/{folder.name}/run.json")
    client().delete_object(Bucket="bench", Key=f"nightly/{folder.name}/run.json")
    done = cmp("stats", "s3://bench/nightly")
    assert done.returncode == 1
    assert "expected a run or runs below it, found none" in done.stderr
    # A part that is cut off is seen, whatever the server says of its length.
    put(f"nightly/{folder.name}/run.json", whole)
    part = json.loads(whole)["files"][SAMPLES][0]["sha256"]
    put(f"nightly/{folder.name}/parts/{part}", read(f"nightly/{folder.name}/parts/{part}")[:-10])
    done = cmp("stats", "s3://bench/nightly")
    assert done.returncode == 1
    assert "is not what its hash says" in done.stderr


def test_an_index_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine
) -> None:
    part = {"sha256": "0" * 64, "bytes": 3}
    index = {"schema": "enginecmp-objects/1", "run_id": "evil", "files": {"../../../evil.json": [part]}}
    put("nightly/evil/run.json", json.dumps(index).encode())
    done = cmp("stats", "s3://bench/nightly")
    assert done.returncode == 1
    assert "expected names of a run's files" in done.stderr


def start(tmp_path: Path, words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), "cmp"), *words],
        cwd=tmp_path,
        env={**os.environ, "CMP_PLUGINS": FAKE_MODULE, "NO_COLOR": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_server_gone_in_mid_run_costs_nothing_and_the_upload_is_made_up_for(
    tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine
) -> None:
    told = []
    with start(tmp_path, line(tmp_path, tiny, "--out", "s3://bench/nightly", "--blocks", "4")) as run:
        for text in run.stderr or ():
            told.append(text)
            if text.startswith("block 2/4") and server.process:
                server.stop()  # while the run goes on
    assert run.returncode == 1
    assert sum("the run goes on and is kept" in text for text in told) == 1
    folder = only_run(tmp_path / "results")
    assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"
    assert told[-1].strip().endswith(f"cmp run --resume results/{folder.name} --out s3://bench/nightly")
    server.start()
    make_bucket()  # its memory was all it had
    done = cmp("run", "--resume", f"results/{folder.name}", "--out", "s3://bench/nightly")
    assert done.returncode == 0, done.stderr
    assert cmp("stats", "s3://bench/nightly").returncode == 0


def test_an_interrupted_run_goes_on_from_there_on_another_machine(
    tmp_path: Path, tiny: ModelInfo, server: Server, cmp: CommandLine
) -> None:
    asked = False
    with start(tmp_path, line(tmp_path, tiny, "--out", "s3://bench/nightly", "--blocks", "8")) as run:
        for text in run.stderr or ():
            if text.startswith("block 3/8") and not asked:
                run.send_signal(signal.SIGINT)
                asked = True
    assert run.returncode == 130
    folder = only_run(tmp_path / "results")
    index = json.loads(read(f"nightly/{folder.name}/run.json"))
    manifest = json.loads(read(f"nightly/{folder.name}/parts/{index['files']['manifest.json'][0]['sha256']}"))
    assert manifest["status"] == "interrupted"
    launches = b"".join(
        read(f"nightly/{folder.name}/parts/{part['sha256']}") for part in index["files"]["launches.jsonl"]
    )
    blocks = [json.loads(text)["block"] for text in launches.splitlines()]
    assert len(blocks) < 2 * 8
    assert blocks == [block for block in range(len(blocks) // 2) for _ in "ab"]  # finished ones alone
    shutil.rmtree(tmp_path / "results")
    done = cmp("run", "--resume", f"s3://bench/nightly/{folder.name}")
    assert done.returncode == 0, done.stderr
    assert f"results/{folder.name}: brought from s3://bench/nightly/{folder.name}" in done.stderr
    told = json.loads(cmp("stats", "s3://bench/nightly", "--json").stdout)
    assert {row["n_launches"] for row in told["rankings"][0]["rows"]} == {8}


def test_a_bucket_without_obstore_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from enginecmp.objects.bucket import Bucket

    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"pip install 'enginecmp\[s3\]'"):
        Bucket(parse_address("s3://bench/nightly"))


def test_secrets_are_taken_out_of_what_a_server_says(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    from enginecmp.objects.bucket import Bucket

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}/{SECRET}")
    server.stop()
    with pytest.raises(ObjectStoreError) as caught:
        Bucket(parse_address("s3://bench/nightly")).check()
    assert SECRET not in str(caught.value)
