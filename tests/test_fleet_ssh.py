"""`cmp run --on ssh:hosts.toml` against real SSH servers on loopback, each with a cache of its own: two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CommandLine
from helpers import SCENARIO
from nodes import CMP, WORDS, variables

from enginecmp.errors import UsageError
from enginecmp.format.readers import read_manifest
from enginecmp.placement.ssh import SshPlacement, read_hosts, ssh_command
from enginecmp.types import ModelInfo

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("ssh-keygen")),
    reason="no SSH server here; install one, e.g. apt-get install openssh-server",
)


def test_options_of_a_user_come_before_ours_and_no_shell_sees_a_bare_word(tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text(
        '[[host]]\nname = "x"\naddress = "me@box"\nport = 2222\ncmp = ["env", "A=b c", "/opt/$x/cmp"]\n'
        'options = { ConnectTimeout = "3" }\n'
    )
    (host,) = read_hosts(tmp_path / "hosts.toml")
    words = ssh_command(host)
    assert words[:6] == ["ssh", "-T", "-p", "2222", "-o", "ConnectTimeout=3"]
    assert words[-3:] == ["--", "me@box", "env 'A=b c' '/opt/$x/cmp' fleet-node"]
    assert "BatchMode=yes" in words


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "at least one"),
        ("[[hosts]]", "did you mean 'host'"),
        ("[[host]]\nname = 'a'\nadress = 'b'", "did you mean 'address'"),
        ("[[host]]\nname = 'a'", "address"),
        ("[[host]]\nname = 'a'\naddress = '-oProxyCommand=x'", "expected an address"),
        ("[[host]]\nname = 'a'\naddress = \"b\\u001b\"", "expected an address"),
        ("[[host]]\nname = 'a'\naddress = 'b'\nport = 70000", "expected a port"),
        ("[[host]]\nname = 'a'\naddress = 'b'\nlabels = { gpu = [1] }", "labels"),
        ("host = 3", "at least one"),
        ("=", "not TOML"),
    ],
)
def test_a_wrong_hosts_file_is_refused_by_name(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text(text)
    with pytest.raises(UsageError, match=f"hosts.toml.*{told}"):
        SshPlacement(str(tmp_path / "hosts.toml"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with hosts.toml, which names two servers and one port where nobody listens."""
    folder = tmp_path_factory.mktemp("machines")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the server of root drops its rights
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    known, hosts, servers = [], [], []
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    try:
        for name in ("left", "right", "dead"):
            port = free_port()
            known.append(f"[127.0.0.1]:{port} {public}\n")
            (folder / f"{name}.conf").write_text(
                f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
                "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
            )
            words = json.dumps(["env", *(f"{k}={v}" for k, v in variables(folder / name).items()), CMP])
            hosts.append(
                f'[[host]]\nname = "{name}"\naddress = "127.0.0.1"\nport = {port}\ncmp = {words}\n'
                f'options = {{ IdentityFile = "{folder}/user", UserKnownHostsFile = "{folder}/known" }}\n'
                f'labels = {{ cpus = 2, alive = "{"no" if name == "dead" else "yes"}" }}\nprice_per_hour = 0.5\n'
            )
            if name != "dead":
                servers.append(
                    subprocess.Popen([str(SSHD), "-D", "-f", folder / f"{name}.conf", "-E", folder / f"{name}.log"])
                )
                wait_for(port)
        (folder / "known").write_text("".join(known))
        (folder / "hosts.toml").write_text("".join(hosts))
        yield folder
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the SSH server did not start")


def asked(machines: Path, tiny: ModelInfo, folder: Path) -> list[str | Path]:
    (folder / "mini.toml").write_text(SCENARIO)
    start = ["run", "--on", f"ssh:{machines}/hosts.toml", "--model", tiny.path, "--scenario", "mini.toml"]
    return [*start, *WORDS, "--blocks", "1"]


def states(fleet: Path) -> dict[str, str]:
    return {job["node"]: job["status"] for job in json.loads((fleet / "fleet.json").read_text())["jobs"]}


@needs_sshd
def test_a_run_is_made_on_two_machines_and_comes_home(
    machines: Path, tiny: ModelInfo, cmp: CommandLine, tmp_path: Path
) -> None:
    done = cmp(*asked(machines, tiny, tmp_path), "--require", "alive=yes,cpus=2", "--seed", "1")
    assert done.returncode == 0, done.stderr
    (fleet,) = (tmp_path / "results").glob("*-fleet-*")
    assert states(fleet) == {"left": "complete", "right": "complete"}
    manifests = [read_manifest(path.parent) for path in fleet.glob("*/manifest.json")]
    assert sorted(m.environment["node"] for m in manifests) == ["left", "right"]
    assert [m.environment["node_price_per_hour"] for m in manifests] == [0.5, 0.5]
    assert len({m.seed for m in manifests}) == 2
    assert "mini on left: complete" in done.stdout
    assert (fleet / "report.html").is_file()
    again = cmp("run", "--resume", fleet)
    assert (again.returncode, "is complete, nothing to resume" in again.stderr) == (0, True)


@needs_sshd
def test_a_machine_that_does_not_answer_is_told_and_the_others_go_on(
    machines: Path, tiny: ModelInfo, cmp: CommandLine, tmp_path: Path
) -> None:
    done = cmp(*asked(machines, tiny, tmp_path), "--engines", "a=fake")
    assert done.returncode == 1, done.stderr
    (fleet,) = (tmp_path / "results").glob("*-fleet-*")
    assert states(fleet) == {"left": "complete", "right": "complete", "dead": "failed"}
    assert "mini on dead: failed: dead: the connection ended (ssh: connect to host 127.0.0.1" in done.stdout
    assert f"cmp run --resume results/{fleet.name}" in done.stdout


@needs_sshd
def test_ctrl_c_ends_the_runs_on_all_machines_and_resume_finishes_them(
    machines: Path, tiny: ModelInfo, tmp_path: Path
) -> None:
    words = [*asked(machines, tiny, tmp_path), "--require", "alive=yes", "-o", "a.decode_us=200000", "--requests", "9"]
    process = subprocess.Popen([CMP, *map(str, words)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen: set[str] = set()
    for line in process.stderr:
        seen |= {name for name in ("left", "right") if line.startswith(f"{name}: mini: gate: skipped")}
        if len(seen) == 2:
            break
    process.send_signal(signal.SIGINT)
    told = process.stderr.read()
    assert process.wait(120) == 130, told
    process.stderr.close()
    (fleet,) = (tmp_path / "results").glob("*-fleet-*")
    assert f"interrupted; everything finished is kept: cmp run --resume results/{fleet.name}" in told
    assert states(fleet) == {"left": "waiting", "right": "waiting"}
    before = {path.parent.name: read_manifest(path.parent).status for path in fleet.glob("*/manifest.json")}
    assert list(before.values()) == ["interrupted"] * 2
    done = subprocess.run([CMP, "run", "--resume", fleet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert states(fleet) == {"left": "complete", "right": "complete"}
    assert {path.parent.name for path in fleet.glob("*/manifest.json")} == set(before)
