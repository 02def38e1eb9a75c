"""Ctrl-C in a terminal, for executors that start processes: it reaches every process of the group, Ray's as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

DRIVER = """
import importlib, json, sys
from dataclasses import replace
from pathlib import Path
from sweeper.executors.replay import Replay
from sweeper.spec.models import ExecutorSpec
from tests.contracts.executor import Curves, Recorder, setup, trial

folder, (module, _, name), slots, trials = Path(sys.argv[1]), sys.argv[2].partition(":"), *map(int, sys.argv[3:])
Executor = getattr(importlib.import_module(module), name)

class Telling(Recorder):
    def on_report(self, report):
        print("report", report.trial, flush=True)
        return super().on_report(report)

endless = [replace(trial(n), evaluations=tuple(range(10, 5000, 10)), examples=4990) for n in range(trials)]
source = Telling(endless)
try:
    Executor(setup(folder, slots=slots), folder / "home", ExecutorSpec(workers=2), Replay(Curves(), 0.3)).run(source)
except KeyboardInterrupt:
    ends = {number: [str(outcome.ending), outcome.checkpoint] for number, outcome in source.ends}
    (folder / "said.json").write_text(json.dumps({"running": sorted(source.running), "ends": ends}))
    sys.exit(130)
"""


def check_ctrl_c(tmp_path: Path, executor: str, slots: int, trials: int) -> None:
    """Interrupts a driver of `executor` (module:class), two workers of `slots` slots, once each of `trials` trials has reported."""
    with (tmp_path / "driver.log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path), executor, str(slots), str(trials)],
            env={**os.environ, "SWEEPER_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 90
        wanted = {f"report {number}" for number in range(trials)}
        while time.monotonic() < until and not wanted <= set((tmp_path / "driver.log").read_text().split("\n")):
            assert driver.poll() is None, (tmp_path / "driver.log").read_text()
            time.sleep(0.2)
        os.killpg(driver.pid, signal.SIGINT)
        assert driver.wait(timeout=90) == 130, (tmp_path / "driver.log").read_text()
    finally:
        if driver.poll() is None:
            driver.kill()
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["running"] == []
    assert {number: end[0] for number, end in said["ends"].items()} == {str(n): "preempted" for n in range(trials)}
    for _, checkpoint in said["ends"].values():
        assert (tmp_path / "home" / checkpoint / "replay.json").is_file()
    assert "Traceback" not in (tmp_path / "driver.log").read_text()
