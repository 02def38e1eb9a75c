"""What of a machine an engine may use: memory and cores, as control groups limit them, and a GPU's share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sweeper.engine import groups, room
from sweeper.engine.node import cores

V1, V2 = 1, 2


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The folder of this process's own group, /a/b, in a file system of the version asked for."""
    version, controller = request.param
    root = tmp_path / "cgroup"
    (tmp_path / "own").write_text("0::/a/b\n" if version == V2 else f"3:pids:/elsewhere\n2:{controller},other:/a/b\n")
    monkeypatch.setattr(groups, "ROOT", root)
    monkeypatch.setattr(groups, "OWN", tmp_path / "own")
    folder = root / ("" if version == V2 else controller) / "a" / "b"
    folder.mkdir(parents=True)
    return folder


def _write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize("own", [(V2, "memory")], indirect=True)
def test_room_is_what_the_tightest_group_has_left(own: Path) -> None:
    _write(own, memory__max="max", memory__current="70")
    _write(own.parent, memory__max="1000", memory__current="300", memory__stat="anon 12\ninactive_file 40")
    assert list(room._group()) == [740]
    assert room.free_bytes("cpu") == 740


@pytest.mark.parametrize("own", [(V1, "memory")], indirect=True)
def test_room_in_groups_of_the_first_version(own: Path) -> None:
    _write(own, memory__limit_in_bytes=str((1 << 63) - 4096), memory__usage_in_bytes="70")
    _write(own.parent, memory__limit_in_bytes="1000", memory__usage_in_bytes="300", memory__stat="total_inactive_file 50")
    assert list(room._group()) == [750]


@pytest.mark.parametrize("own", [(V2, "cpu")], indirect=True)
def test_cores_are_those_that_a_container_was_given(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cores() == 64
    _write(own, cpu__max="max 100000")
    assert cores() == 64
    _write(own.parent, cpu__max="250000 100000")
    assert cores() == 2
    _write(own, cpu__max="50000 100000")
    assert cores() == 1, "half a core is one engine"


@pytest.mark.parametrize("own", [(V1, "cpu")], indirect=True)
def test_cores_in_groups_of_the_first_version(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    _write(own, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cores() == 64
    _write(own, cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert cores() == 3


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product says `cuda`; torch's fraction takes a device with its number alone."""

    def fraction(device: torch.device) -> float:
        torch.cuda._utils._get_device_index(device)  # raises as the true one does
        return 0.5

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", fraction, raising=False)
    assert room.free_bytes("cuda") == 480
