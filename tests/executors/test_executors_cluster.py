"""What a user reads when the cluster cannot be used, and the copies that nodes keep."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper.errors import ResourceError
from sweeper.executors.cache import Manifest, cached, manifest
from sweeper.executors.cluster import cluster, room
from sweeper.executors.porter import module_source
from sweeper.spec.models import ExecutorSpec


def node(cpus: float, gpus: float = 0) -> dict:
    return {"Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def test_room_counts_whole_trials_per_node() -> None:
    assert room(ExecutorSpec(cpus=2), [node(5), node(3)]).workers == 3
    assert room(ExecutorSpec(cpus=2, workers=2), [node(5), node(3)]).workers == 2
    assert room(ExecutorSpec(cpus=2, workers=9), [node(5), node(3)]).workers == 3


def test_a_gpu_is_taken_where_there_is_one_and_shared_where_asked() -> None:
    assert room(ExecutorSpec(), [node(8), node(8, 2)]).gpus == 1
    assert room(ExecutorSpec(), [node(8), node(8, 2)]).workers == 2
    assert room(ExecutorSpec(gpus=0), [node(8, 2)]).gpus == 0
    assert room(ExecutorSpec(gpus=0.3), [node(8, 0.9)]).workers == 3


def test_a_trial_that_no_node_can_hold_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        ResourceError, match=r"cpus 4 and gpus 1, but the nodes of the cluster have 16 CPUs and 0 GPUs, 2 CPUs and 1"
    ):
        room(ExecutorSpec(cpus=4, gpus=1), [node(16), node(2, 1)])


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:9", "nobody answers at executor.address 127.0.0.1:9"),
        ("ray://somewhere:10001", "run sweeper on a node of the cluster"),
        ("head:port", "write auto, or host:port"),
    ],
)
def test_an_address_that_cannot_be_used_gets_a_sentence_at_once(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    began = time.monotonic()
    with pytest.raises(ResourceError, match=sentence), cluster(ExecutorSpec(address=address)):
        pass
    assert time.monotonic() - began < 8


def folder_of(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "a.bin").write_bytes(b"a" * 100)
    (path / "deep" / "b.txt").write_text("b")
    (path / "empty").write_text("")
    return path


def reader(source: Path, log: Path):
    def read(name: str, offset: int, count: int) -> bytes:
        with log.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(0.2)
        return (source / name).read_bytes()[offset : offset + count]

    return read


def test_a_manifest_names_content_not_place(tmp_path: Path) -> None:
    one, two = manifest(folder_of(tmp_path / "one")), manifest(folder_of(tmp_path / "two"))
    assert one == two
    assert dict(one.files) == {"a.bin": 100, "deep/b.txt": 1, "empty": 0}
    (tmp_path / "two" / "deep" / "b.txt").write_text("c")
    assert manifest(tmp_path / "two").key != one.key
    assert dict(manifest(tmp_path / "one", skip={".bin"}).files) == {"deep/b.txt": 1, "empty": 0}


def test_a_folder_is_read_once_for_its_name_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sweeper.executors.cache._WORTH_KEEPING", 0)
    source = folder_of(tmp_path / "source")
    at_once = manifest(source)
    assert not (tmp_path / "cache").exists(), "a file written a moment ago may be written again within its time"
    monkeypatch.setattr("sweeper.executors.cache._SETTLED_SECONDS", 0.0)
    assert manifest(source) == at_once
    monkeypatch.setattr("sweeper.executors.cache._content", lambda *_: "read again")
    assert manifest(source) == at_once
    (source / "a.bin").write_bytes(b"b" * 100)
    assert manifest(source).key == "read again"


def _fetch(source: Path, log: Path) -> None:
    cached("train", manifest(source), reader(source, log))


def test_workers_of_a_node_fetch_a_folder_once_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    source, log = folder_of(tmp_path / "source"), tmp_path / "log"
    what = manifest(source)
    left_by_a_killed_worker = tmp_path / "cache" / "train" / f"{what.key}.aside"
    left_by_a_killed_worker.mkdir(parents=True)
    (left_by_a_killed_worker / "half").write_text("half")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fetch, args=(source, log)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(log.read_text().split()) == ["a.bin", "deep/b.txt"]
    assert manifest(cached("train", what, reader(source, log))) == what


def test_a_node_without_room_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))

    def full(name: str, offset: int, count: int) -> bytes:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        ResourceError, match=r"5 MB below .*cache \(No space left on device\); make room there, or set SWEEPER_CACHE"
    ):
        cached("model", Manifest("key", {"weights": 5_000_000}), full)


def test_a_user_s_module_is_found_and_an_installed_one_is_not_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loose.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert module_source("loose") == tmp_path / "loose.py"
    assert module_source("package") == tmp_path / "package"
    assert module_source("json") is None
    assert module_source("pytest") is None
    with pytest.raises(ResourceError, match="module nowhere_to_be_found of a metric"):
        module_source("nowhere_to_be_found")


def test_the_token_of_a_local_cluster_is_its_owner_s_alone(tmp_path: Path) -> None:
    code = (
        "import os; os.umask(0o022)\n"
        "from sweeper.executors.cluster import cluster\n"
        "from sweeper.spec.models import ExecutorSpec\n"
        "with cluster(ExecutorSpec()): pass\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    subprocess.run([sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True, timeout=120)
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_cluster_that_was_begun_goes_to_another_executor_and_then_makes_room_for_the_next(tmp_path: Path) -> None:
    code = (
        "import ray\n"
        "from sweeper.executors.begun import begin_cluster\n"
        "from sweeper.executors.cluster import cluster\n"
        "from sweeper.spec.models import ExecutorSpec\n"
        "spec = ExecutorSpec(workers=1)\n"
        "begun = begin_cluster(spec)\n"
        "begun.forgo()\n"
        "with cluster(spec) as room:\n"
        "    assert room.workers == 1\n"
        "    assert ray.get(ray.remote(lambda: 7).options(num_cpus=1).remote(), timeout=30) == 7, 'no actor holds the CPU'\n"
        "assert ray.is_initialized() and begin_cluster(spec) is None\n"
        "begun.end()\n"
        "with cluster(ExecutorSpec(workers=3)) as room:\n"
        "    assert room.workers == 3, 'a cluster of its own'\n"
        "assert not ray.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, check=True, timeout=120)
