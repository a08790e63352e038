"""What the runtime promises without a cluster: stores, checks before the start, kinds of failures."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import exceptions as rx
from ray._private.utils import check_version_info

from astrolabe_ray.config.memory import object_store_need
from astrolabe_ray.config.plan import Need, make_plan
from astrolabe_ray.config.schema import (
    ClusterConfig,
    EvaluationConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
)
from astrolabe_ray.errors import AstrolabeError, ConfigError, DataFailure, InfraFailure, WeightMismatch
from astrolabe_ray.runtime import cluster
from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.runtime.placement import bundle
from astrolabe_ray.runtime.preflight import (
    GIB,
    PACKAGES,
    Room,
    require_one_checkout,
    require_room,
)

ROOT = Path(__file__).parents[2]
NEEDS = (
    Need("learner rank", 2, 1.0, 1.0),
    Need("rollout actor", 4, 0.5, 0.25),
    Need("reward server any", 1, 0.1, 0.0, reward="any"),
)  # together 4.1 CPU, 3 GPU
LARGE = Room(cpus=64, gpus=8, object_store_bytes=100 * GIB)


# Stores


def test_the_local_store_hands_out_the_array_itself() -> None:
    """A copy of every video of a run in one process."""
    array = np.arange(3)
    assert LocalBlobStore().get(array) is array


def test_the_local_store_needs_no_ray() -> None:
    """Whoever tries one role alone would wait for Ray to load."""
    code = "import sys, astrolabe_ray.runtime.local_store; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_the_store_of_a_cluster_takes_references_only() -> None:
    """An array in a message is a payload that travels through the controller."""
    with pytest.raises(AssertionError, match="a Ray reference is expected, got ndarray"):
        RayBlobStore().get(np.zeros(2))


# Room


def test_a_run_that_fits_exactly_may_start() -> None:
    """Sums of tenths: 4.1 wanted must fit 4.1, whatever the order of adding up."""
    tenths = (Need("rollout actor", 3, 0.1, 0.0),)
    exactly = Room(cpus=0.3, gpus=0, object_store_bytes=7)
    assert exactly.cpus < 3 * 0.1
    require_room(tenths, 7, exactly, exactly)
    require_room(NEEDS, GIB, LARGE, Room(4.1, 3, GIB))


@pytest.mark.parametrize(
    ("free", "store_gib", "short"),
    [
        (Room(4.0, 8, 100 * GIB), 1, "CPU"),
        (Room(64, 2.5, 100 * GIB), 1, "GPU"),
        (Room(64, 8, 2 * GIB), 3, "object store GiB"),
        (Room(4.0, 2.5, 100 * GIB), 1, "CPU and GPU"),
    ],
)
def test_a_cluster_that_is_too_small_is_told_with_all_numbers(free: Room, store_gib: int, short: str) -> None:
    """A run that waits for ever for its second learner rank, holding all the rollout actors."""
    with pytest.raises(ConfigError) as caught:
        require_room(NEEDS, store_gib * GIB, LARGE, free)
    first, *table, last = str(caught.value).splitlines()
    assert first == f"the cluster has too little {short} for this run:"
    rows = {" ".join(words[:-3]): [float(word) for word in words[-3:]] for words in map(str.split, table[1:])}
    assert table[0].split() == ["wanted", "total", "free"]
    assert rows == {
        "CPU": [4.1, 64, free.cpus],
        "GPU": [3, 8, free.gpus],
        "object store GiB": [store_gib, 100, free.object_store_bytes / GIB],
    }
    assert "2 x learner rank (1 CPU + 1 GPU), 4 x rollout actor (0.5 CPU + 0.25 GPU), 1 x reward" in last
    assert "Lower rollout.min_actors" in last


def test_what_is_free_counts_and_not_what_there_is() -> None:
    """Two runs that start together on one cluster and block each other half-way."""
    with pytest.raises(ConfigError, match="too little CPU"):
        require_room(NEEDS, 0, LARGE, Room(4, 8, 100 * GIB))


def test_the_object_store_must_hold_all_slots_unscored_and_the_held_out_prompts_in_flight() -> None:
    """An object store that is too small spills every video to disk, when scoring or an evaluation is slow."""
    config = RunConfig(
        name="any",
        model=ModelConfig(num_latent_frames=21, chunk_frames=3, height=480, width=832, dtype="bfloat16"),
        rollout=RolloutConfig(
            num_groups=3, group_size=4, batch_size=2, min_actors=2, max_actors=2, max_policy_age=1
        ),
        rewards=(RewardConfig(key="any"),),
        evaluation=EvaluationConfig(num_prompts=50, rollouts_per_prompt=5),
    )
    video = 81 * 3 * 480 * 832  # 97 MB
    latents = 21 * 16 * 60 * 104 * 2  # 4 MB
    slots = (1 + 1) * 3 * 4
    held_out = (1 + 2) * 5  # 3 requests a prompt keep both actors busy; two prompts more
    assert object_store_need(config, make_plan(config)) == (slots + held_out) * (video + latents)


def test_a_bundle_is_never_empty() -> None:
    """Ray refuses a placement group with an empty bundle, and a reservation of 0 CPUs is one."""
    assert bundle(1, 0) == {"CPU": 1}
    assert bundle(0, 0.5) == {"GPU": 0.5}
    assert list(bundle(0, 0)) == ["CPU"]
    assert 0 < bundle(0, 0)["CPU"] < 0.01


# Installation


def test_all_packages_of_this_checkout_come_from_one_folder() -> None:
    """The check must not refuse what everybody has."""
    assert require_one_checkout() == ROOT


def preflight(*folders: Path) -> subprocess.CompletedProcess[str]:
    """`require_one_checkout` in a process that finds packages in `folders`, in this order, only."""
    code = (
        "from astrolabe_ray.errors import ConfigError\n"
        "from astrolabe_ray.runtime.preflight import require_one_checkout\n"
        "try: require_one_checkout()\n"
        "except ConfigError as error: print(error)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folders[0], env=env, capture_output=True, text=True, timeout=60
    )


def test_packages_of_two_copies_are_refused_with_both_folders(tmp_path: Path) -> None:
    """Actors of last month's wheel under the learner of this checkout."""
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").touch()
    said = preflight(tmp_path, ROOT)
    assert said.returncode == 0, said.stderr
    first, *listed, last = said.stdout.splitlines()
    assert first == "the packages of Astrolabe-Ray come from different folders:"
    folders = dict(line.split() for line in listed)
    assert folders == {name: str(tmp_path if name == "actors" else ROOT) for name in PACKAGES}
    assert "Uninstall all but one copy" in last


# Failures


class FaultOfTheProgram(RuntimeError):
    pass


def raised_in_a_task(cause: Exception) -> BaseException:
    """What `ray.get` raises for `cause`: an exception that is both Ray's and of the cause's class."""
    error = rx.RayTaskError("generate", "Traceback ...", cause)
    return error.as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        rx.RayActorError(),
        rx.ActorDiedError(),
        rx.ActorUnavailableError("for a moment", None),
        rx.WorkerCrashedError(),
        rx.NodeDiedError("rollout"),
        rx.OutOfMemoryError("the node ran out of memory"),
        rx.ObjectLostError("a1b2", None, ""),  # type: ignore[arg-type]
        rx.OwnerDiedError("a1b2", None, ""),  # type: ignore[arg-type]
        rx.ObjectFetchTimedOutError("a1b2", None, ""),  # type: ignore[arg-type]
        rx.ObjectStoreFullError("full"),
        rx.ActorUnschedulableError("no node"),
        rx.GetTimeoutError("in 3 s"),
        asyncio.TimeoutError(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_cluster_breaks_may_be_tried_elsewhere(error: Exception) -> None:
    """A run that ends because one node of many died."""
    failure = as_failure(error, "rollout-3 generating train-0-1")
    assert type(failure) is InfraFailure
    assert str(failure).startswith(f"rollout-3 generating train-0-1: {type(error).__name__}: ")
    assert "\n" not in str(failure)
    assert len(str(failure).rstrip().rpartition(": ")[2]) > 1
    in_task = as_failure(raised_in_a_task(error), "reading")
    assert type(in_task) is InfraFailure, "an argument that was lost is raised inside the task"


@pytest.mark.parametrize("kind", [ConfigError, DataFailure, WeightMismatch, InfraFailure])
def test_our_own_errors_come_out_of_a_task_as_they_were_raised(kind: type[Exception]) -> None:
    """A group that should be dropped, or a mistake of the user, is tried again and again."""
    error = raised_in_a_task(kind("latents are not finite"))
    failure = as_failure(error, "generating")
    assert type(failure) is kind
    assert str(failure) == "latents are not finite"
    assert type(pickle.loads(pickle.dumps(failure))) is kind


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_fault_of_a_gpu_may_be_tried_elsewhere(error: Exception) -> None:
    """One broken GPU of many would end the run."""
    failure = as_failure(raised_in_a_task(error), "rollout-3 generating")
    assert type(failure) is InfraFailure
    assert str(failure) == f"rollout-3 generating: {type(error).__name__}: {error}"


def test_a_fault_of_the_program_stays_what_it_is() -> None:
    """A bug that is tried thirty times on new actors before anyone sees its traceback."""
    error = raised_in_a_task(FaultOfTheProgram("x"))
    assert as_failure(error, "generating") is error
    shape = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    assert as_failure(shape, "generating") is shape
    plain = FaultOfTheProgram("y")
    assert as_failure(plain, "generating") is plain


# Joining a cluster


@pytest.fixture
def no_cluster_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No RAY_ADDRESS and no note of a running cluster; returns the folder where Ray notes one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray"


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as once:
        once.bind(("127.0.0.1", 0))
        return once.getsockname()[1]


def test_a_cluster_that_does_not_answer_is_named_within_seconds(
    no_cluster_noted: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray tries for minutes and ends in a page of traceback. An address may come from either place."""
    address = f"127.0.0.1:{closed_port}"
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"can't join the Ray cluster at '{address}': nobody listens there"):
        cluster.connect(ClusterConfig(address=address))
    monkeypatch.setenv("RAY_ADDRESS", f"ray://{address}")
    with pytest.raises(ConfigError, match=f"at 'ray://{address}': .* or unset RAY_ADDRESS"):
        cluster.connect(ClusterConfig())
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:gcs"])
def test_an_address_without_host_or_port_is_a_mistake_of_the_user(
    no_cluster_noted: Path, address: str
) -> None:
    """`int()` on the rest of a string is a traceback."""
    with pytest.raises(ConfigError, match=r"host:port or ray://host:port"):
        cluster.connect(ClusterConfig(address=address))


def test_the_address_of_the_job_server_is_not_the_address_of_the_cluster(
    no_cluster_noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray job submit` wants RAY_ADDRESS=http://...; left in the environment, it must not be a traceback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(ConfigError, match="HTTP address"):
            cluster.connect(ClusterConfig())


@pytest.mark.parametrize("address", ["auto", ""])
def test_ray_address_auto_means_what_no_ray_address_means(
    no_cluster_noted: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own word for "the one that runs here": with none running, a cluster starts."""
    joined: list[str | None] = []
    monkeypatch.setattr(cluster, "_init", lambda config, address, num_cpus=None: joined.append(address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    cluster.connect(ClusterConfig())
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        (no_cluster_noted / "ray_current_cluster").write_text(f"127.0.0.1:{head.getsockname()[1]}")
        cluster.connect(ClusterConfig())
    assert joined == ["local", None]


def test_a_cluster_of_other_versions_is_named_in_one_line(
    no_cluster_noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray raises a RuntimeError over six lines, which looked like a fault of the program."""

    def init(config: ClusterConfig, address: str, num_cpus: int | None = None) -> None:
        check_version_info({"ray_version": "1.0", "python_version": "3.6.1"}, "node 10.0.0.7:6379")

    monkeypatch.setattr(cluster, "_init", init)
    monkeypatch.setattr(cluster, "_require_listening", lambda address: None)
    with pytest.raises(AstrolabeError, match=r"at '10.0.0.7:6379': Version mismatch: .*Ray: 1.0") as caught:
        cluster.connect(ClusterConfig(address="10.0.0.7:6379"))
    assert "\n" not in str(caught.value)


def test_a_stale_note_of_a_cluster_is_not_taken_for_one(no_cluster_noted: Path, closed_port: int) -> None:
    """After a power cut no run would start until somebody deletes a file under /tmp."""
    assert not cluster._is_one_running()
    (no_cluster_noted / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port}\n")
    assert not cluster._is_one_running()
    (no_cluster_noted / "ray_current_cluster").write_text("")
    assert not cluster._is_one_running()
