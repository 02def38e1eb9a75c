"""Hidden states on disk: what was written is read by all, and what was left half done is not there."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sweeper.engine.state_store import States, StateStore, make_room
from sweeper.errors import ResourceError

WIDTH, LIMIT = 8, 1 << 30


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def states(number: int) -> States:
    """1 to 5 tokens that only this row has."""
    return np.random.default_rng(number).normal(size=(number % 5 + 1, WIDTH)).astype(np.float32)


def rows(*numbers: int) -> list[tuple[bytes, States]]:
    return [(key(n), states(n)) for n in numbers]


def assert_holds(store: StateStore, *numbers: int) -> None:
    for n in numbers:
        found = store.get(key(n))
        assert found is not None
        np.testing.assert_array_equal(found, states(n))


def test_what_was_put_is_read_again_by_another_store(tmp_path: Path) -> None:
    first, second = (StateStore(tmp_path / "s", WIDTH, LIMIT) for _ in "ab")
    first.put(rows(1, 2, 3))
    assert_holds(first, 1, 2, 3)
    assert_holds(second, 1, 2, 3)
    second.put(rows(3, 4))
    assert_holds(first, 4)
    assert len(first) == len(second) == 4, "a row that was there was added again"
    assert_holds(StateStore(tmp_path / "s", WIDTH, LIMIT), 1, 2, 3, 4)
    assert first.get(key(5)) is None


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    """Three processes add overlapping rows in different orders; each row is there once, whole."""
    code = (
        "import sys, random; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from tests.engine.test_engine_state_store import LIMIT, WIDTH, StateStore, rows\n"
        "store = StateStore(Path(sys.argv[1]), WIDTH, LIMIT)\n"
        "numbers = list(range(60)); random.Random(int(sys.argv[2])).shuffle(numbers)\n"
        "for n in numbers: store.put(rows(n))\n"
    )
    root = Path(__file__).parents[2]
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s"), str(i)], cwd=root) for i in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    store = StateStore(tmp_path / "s", WIDTH, LIMIT)
    assert_holds(store, *range(60))
    assert (tmp_path / "s" / "states.bin").stat().st_size == sum(states(n).nbytes for n in range(60))


def test_what_a_kill_left_half_done_is_not_there_and_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    StateStore(folder, WIDTH, LIMIT).put(rows(1, 2))
    with (folder / "states.bin").open("ab") as file:
        file.write(b"states without a record")
    with (folder / "index.bin").open("ab") as file:
        file.write(b"half a record")
    store = StateStore(folder, WIDTH, LIMIT)
    assert len(store) == 2
    store.put(rows(3))
    assert_holds(store, 1, 2, 3)
    assert_holds(StateStore(folder, WIDTH, LIMIT), 1, 2, 3)


def test_states_that_a_power_cut_lost_are_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    StateStore(folder, WIDTH, LIMIT).put(rows(1, 2, 3))
    with (folder / "states.bin").open("r+b") as file:
        file.truncate(states(1).nbytes)
        file.truncate(states(1).nbytes + states(2).nbytes)  # 2 is zeros, 3 is cut off
    store = StateStore(folder, WIDTH, LIMIT)
    assert store.get(key(2)) is None
    assert store.get(key(3)) is None
    store.put(rows(2, 3))
    assert_holds(store, 1, 2, 3)
    assert_holds(StateStore(folder, WIDTH, LIMIT), 1, 2, 3)


def test_the_limit_is_kept(tmp_path: Path) -> None:
    limit = states(1).nbytes + states(2).nbytes + 8
    store = StateStore(tmp_path / "s", WIDTH, limit)
    store.put(rows(1, 2, 3, 4))
    assert store.full
    assert_holds(store, 1, 2)
    assert store.get(key(3)) is None
    assert (tmp_path / "s" / "states.bin").stat().st_size <= limit


def test_a_disk_that_takes_no_more_ends_the_writing_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = StateStore(tmp_path / "s", WIDTH, LIMIT)
    store.put(rows(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (states(1).nbytes + 40, before[1]))
    try:
        store.put(rows(2, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.full
    assert "no longer cached" in caplog.text
    assert_holds(store, 1)
    assert store.get(key(2)) is None
    assert_holds(StateStore(tmp_path / "s", WIDTH, LIMIT), 1)


def test_room_is_made_by_removing_the_oldest_that_nobody_uses(tmp_path: Path) -> None:
    used = StateStore(tmp_path / "used", WIDTH, LIMIT)
    used.put(rows(1, 2))
    for age, name in enumerate(("newer", "older")):
        store = StateStore(tmp_path / name, WIDTH, LIMIT)
        store.put(rows(1, 2, 3))
        store.close()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    size = {name: sum(f.stat().st_size for f in (tmp_path / name).iterdir()) for name in ("used", "newer", "older")}
    assert make_room(tmp_path, "own") > 0
    assert len(list(tmp_path.iterdir())) == 3, "there was room for all"

    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    share = 2 * (size["used"] + size["newer"] + 50) / (free + sum(size.values()))
    make_room(tmp_path, "own", share)
    assert {path.name for path in tmp_path.iterdir()} <= {"used", "newer"}
    make_room(tmp_path, "own", 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"used"}
    assert_holds(used, 1, 2)


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot be written \(.*\); set SWEEPER_CACHE"):
        StateStore(tmp_path / "file" / "s", WIDTH, LIMIT)
