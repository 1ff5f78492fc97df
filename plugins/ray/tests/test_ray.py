"""Runs on two simulated nodes of a real Ray cluster: `make ray`, in an environment that has Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed here; make ray runs these tests")

from conftest import CommandLine, command_line  # noqa: E402
from helpers import SCENARIO  # noqa: E402
from nodes import WORDS, variables  # noqa: E402

from enginecmp.format.readers import read_manifest  # noqa: E402
from enginecmp.models.synth import write_synth  # noqa: E402
from enginecmp.placement.schedule import Job, Schedule  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def test_resources_become_labels() -> None:
    from enginecmp_ray import labels_of

    resources = {
        "CPU": 16.0,
        "accelerator_type:H200": 1.0,
        "GPU": 2.0,
        "memory": 2.0**31,
        "node:1.2.3.4": 1.0,
        "nvme": 3.0,
    }
    assert labels_of(resources, {"zone": "b"}) == {
        **{"cpus": 16.0, "gpu": "H200", "gpus": 2.0, "memory_gib": 2.0},
        **{"nvme": 3.0, "zone": "b"},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster: a head that only places, and two nodes with caches of their own."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("ray")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for name in ("left", "right"):
        cluster.add_node(
            num_cpus=1,
            labels={"enginecmp-name": name, "price_per_hour": "0.5"},
            env_vars=variables(folder / name),
        )
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def cmp(tmp_path: Path) -> CommandLine:
    return command_line(tmp_path)


def asked(folder: Path) -> list[str]:
    model = write_synth(folder / "tiny.gguf", like="tiny-llama", quantization="F32", seed=0)
    (folder / "mini.toml").write_text(SCENARIO)
    return ["--model", model.path, "--scenario", str(folder / "mini.toml"), *WORDS, "--blocks", "1"]


def test_a_run_is_made_on_two_nodes_and_comes_home(cluster: str, cmp: CommandLine, tmp_path: Path) -> None:
    done = cmp("run", "--on", "ray", *asked(tmp_path), "--require", "cpus=1", env={"RAY_ADDRESS": cluster}, timeout=280)
    assert done.returncode == 0, done.stderr
    (fleet,) = (tmp_path / "results").glob("*-fleet-*")
    jobs = json.loads((fleet / "fleet.json").read_text())["jobs"]
    assert {job["node"]: job["status"] for job in jobs} == {"left": "complete", "right": "complete"}
    found = {read_manifest(path.parent).environment["node"] for path in fleet.glob("*/manifest.json")}
    assert found == {"left", "right"}


def test_a_killed_worker_moves_its_run_to_the_other_node(cluster: str, tmp_path: Path) -> None:
    from enginecmp_ray import RayPlacement

    model = write_synth(tmp_path / "tiny.gguf", like="tiny-llama", quantization="F32", seed=0)
    (tmp_path / "mini.toml").write_text(SCENARIO)
    words = [*WORDS, "--model", model.path, "--scenario", str(tmp_path / "mini.toml"), "--blocks", "2"]
    job = Job(name="killed", part="p", words=words, sha256=model.sha256)
    placement = RayPlacement(cluster)
    try:
        killed: list[str] = []

        def said(job: Job, line: str) -> None:
            if "block 1/2" in line and not killed:
                killed.append(job.node)
                ray.kill(schedule._visits[job.name]._channel._actor)  # type: ignore[attr-defined]

        schedule = Schedule(placement, placement.nodes(), [job], tmp_path, lambda _: None, said)
        schedule.run()
        assert (job.status, job.error.partition(":")[0]) == ("complete", killed[0])
        assert {job.node, *killed} == {"left", "right"}
    finally:
        placement.close()


def test_no_cluster_is_a_usage_error(cmp: CommandLine, tmp_path: Path) -> None:
    done = cmp("run", "--on", "ray:127.0.0.1:1", *asked(tmp_path), timeout=280)
    assert done.returncode == 2, done.stderr
    assert "--on ray: no cluster at 127.0.0.1:1" in done.stderr
