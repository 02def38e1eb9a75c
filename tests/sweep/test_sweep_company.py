"""The engines that work beside a probed one: they train, and none outlives the probe, or the process that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.executors.base import trial_engine
from sweeper.sweep.forecast.company import company
from tests.engine.engine_world import PARAMS, World, write_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("company")
    return World(folder, write_model(folder / "model", "llama"))


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_seconds(process: int) -> float:
    """Of a process: its own time, user and system."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(what: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_they_train_until_the_probe_is_over(world: World) -> None:
    with company(world.setup(), PARAMS, 16, 2, trial_engine) as others:
        assert others.await_ready() == 2
        children = [child.pid for child in others._children]
        for child in children:
            begun = cpu_seconds(child)
            wait_until(lambda child=child, begun=begun: cpu_seconds(child) > begun + 0.3)
        assert all(map(is_there, children))
    assert not any(map(is_there, children))


def test_one_that_cannot_start_is_missed_by_nobody(world: World, tmp_path: Path) -> None:
    with company(world.setup(model=str(tmp_path / "nowhere")), PARAMS, 16, 1, trial_engine) as others:
        assert others.await_ready() == 0
    with company(world.setup(), PARAMS, 16, 0, trial_engine) as nobody:
        assert nobody.await_ready() == 0


def test_they_end_with_the_process_that_asked_for_them(world: World) -> None:
    script = f"""
import time
from pathlib import Path
from sweeper.executors.base import trial_engine
from sweeper.sweep.forecast.company import company
from tests.engine.engine_world import PARAMS, World
world = World(Path({str(world.root / "killed")!r}), Path({str(world.model)!r}))
with company(world.setup(), PARAMS, 16, 1, trial_engine) as others:
    others.await_ready()
    print(others._children[0].pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_there(child)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_there(child))
