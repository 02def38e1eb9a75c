"""Memory: K trials on one resident base model against K processes with a PEFT trial each, and the forecast against the truth.

    python -m benchmarks.memory [--quick] [--json FILE]

On a CPU the peak is that of the proportional set size (a page that n processes share counts as 1/n for each), summed over the
processes at the same moment and sampled every 100 ms; interpreter and libraries are in it. On a GPU it is what torch's allocator
gave out at most, summed over processes. Every process trains batches of 8 rows and evaluates. PEFT processes that would not fit
are not started: their row is continued on the straight line through the measured ones, and says so. The forecast is that of a
sweep's engine at its start, made in a process of its own; the truth beside it is the engine's highest resident set (all its pages,
shared or not).
Runs without Optuna and Ray. Does not know speed: K processes on few cores take K times as long here.
Cost: about 8 minutes and up to 70 % of the free memory for 135 million parameters; `--quick` some seconds on a tiny model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Measurement, add_output, at_most, finish, numbers
from benchmarks.measured import Found, measure
from benchmarks.pool import Arrangement, Pool
from benchmarks.workload import MODELS, Workload, add_model, workload

BATCH = 8
ROW = 32
SAMPLE_SECONDS = 0.1
MB = 1e6


@dataclass(frozen=True)
class Sides:
    """What a process of either side is built from."""

    work: Workload
    train: Path
    validation: Path


@dataclass(frozen=True)
class Forecast:
    """A worker that measures as an engine does at its start, and trains nothing."""

    sides: Sides
    counts: tuple[int, ...]

    def __call__(self, threads: int) -> Forecaster:
        return Forecaster(self, threads)


class Forecaster:
    """Measures once."""

    def __init__(self, what: Forecast, threads: int) -> None:
        self._what, self._threads = what, threads

    def found(self) -> Found:
        """The knee, and the forecast for each number of trials."""
        sides = self._what.sides
        return measure(sides.work, sides.train, BATCH, self._threads, self._what.counts)


@dataclass(frozen=True)
class PackedBuild:
    """A worker with an engine of `slots` trials."""

    sides: Sides
    slots: int
    micro_tokens: int

    def __call__(self, threads: int) -> PackedWorker:
        return PackedWorker(self.sides, self.slots, threads, self.micro_tokens)


@dataclass(frozen=True)
class PeftBuild:
    """A worker with a PEFT trial."""

    sides: Sides

    def __call__(self, threads: int) -> PeftWorker:
        return PeftWorker(self.sides, threads)


class PackedWorker:
    """Trains and evaluates `slots` trials."""

    def __init__(self, sides: Sides, slots: int, threads: int, micro_tokens: int) -> None:
        from benchmarks.sides import Packed

        self._device, self._slots = sides.work.device, slots
        self._packed = Packed(sides.work, sides.train, sides.validation, slots, threads, micro_tokens)

    def work(self) -> int:
        """Bytes at most: on a GPU those of torch's allocator, on a CPU all that is in memory for the process, shared or not."""
        self._packed.train(self._slots, BATCH, 0.0)
        self._packed.evaluate(self._slots)
        return highest(self._device)


class PeftWorker:
    """Trains and evaluates one trial."""

    def __init__(self, sides: Sides, threads: int) -> None:
        from benchmarks.sides import Sequential

        self._device = sides.work.device
        self._sequential = Sequential(sides.work, sides.train, sides.validation, threads)

    def work(self) -> int:
        """As PackedWorker's."""
        self._sequential.train(BATCH, 0.0)
        self._sequential.evaluate(BATCH)
        return highest(self._device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.model, options.trials = "tiny" if options.model in MODELS else options.model, [2]
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        work = workload(options, Path(scratch))
        sides = Sides(work, work.rows("train", [ROW] * 256), work.rows("validation", [ROW] * 32))
        with Pool(Arrangement(1, 1), Forecast(sides, tuple(options.trials))) as pool:
            (found,) = pool.call("found")
        packed = {count: peak(1, PackedBuild(sides, count, found.knee), work.device) for count in options.trials}
        peft = _peft(sides, options.trials, max(most for most, _ in packed.values()))
    rows = [_row(count, packed[count], found.forecast[count], *peft[count]) for count in options.trials]
    return finish(Measurement("memory", rows, [] if options.quick else _goals(rows)), options.json)


def peak(processes: int, build: Callable[[int], Any], device: str) -> tuple[float, float]:
    """Bytes at most of `processes` workers that build and work at the same time, and of the largest one by its own account."""
    watch = Watch()
    with Pool(Arrangement(processes, 1), build, watch.begin) as pool:
        found = pool.call("work")
        watch.stop()
    return float(sum(found)) if device != "cpu" else watch.most, float(max(found))


class Watch:
    """Samples the proportional set size of processes, in a thread."""

    def __init__(self) -> None:
        self.most = 0.0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, pids: Sequence[int]) -> None:
        """From now on, until `stop`."""
        self._thread = threading.Thread(target=self._look, args=(list(pids),), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, pids: list[int]) -> None:
        while not self._done.is_set():
            self.most = max(self.most, sum(proportional(pid) for pid in pids))
            time.sleep(SAMPLE_SECONDS)


def proportional(pid: int) -> int:
    """Bytes of the process's proportional set size; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def available() -> int:
    """Bytes that may be taken without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def highest(device: str) -> int:
    """This process's highest memory so far: its resident set, or what torch's allocator gave out on a GPU."""
    if device == "cpu":
        # getrusage would also count what the parent had when it forked this process.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def _peft(sides: Sides, counts: Sequence[int], least: float) -> dict[int, tuple[float, bool]]:
    """Peak bytes of so many processes, and whether it was measured; stops before memory would run out."""
    found: dict[int, tuple[float, bool]] = {}
    for count in sorted(counts):
        each = max((bytes_ / n for n, (bytes_, _) in found.items()), default=least)
        fits = count == 1 or count * each < 0.7 * free_bytes(sides.work.device)
        found[count] = (peak(count, PeftBuild(sides), sides.work.device)[0], True) if fits else (_continued(found, count), False)
        print(f"{count} PEFT processes: {found[count][0] / MB:,.0f} MB{'' if fits else ' (continued)'}", flush=True)
    return found


def free_bytes(device: str) -> int:
    """Of the device."""
    if device == "cpu":
        return available()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _continued(found: dict[int, tuple[float, bool]], count: int) -> float:
    """On the line through the smallest and the largest measured number of processes."""
    measured = sorted(n for n, (_, true) in found.items() if true)
    first, last = measured[0], measured[-1]
    if first == last:
        return found[first][0] * count / first
    slope = (found[last][0] - found[first][0]) / (last - first)
    return found[last][0] + slope * (count - last)


def _row(count: int, packed: tuple[float, float], forecast: int, peft: float, measured: bool) -> dict[str, Any]:
    shared, own = packed
    return {
        "K": count,
        "packed_mb": round(shared / MB),
        "peft_mb": round(peft / MB),
        "peft": "measured" if measured else "continued",
        "share": shared / peft,
        "packed_own_mb": round(own / MB),
        "forecast_mb": round(forecast / MB),
        "off": forecast / own - 1,
    }


def _goals(rows: Sequence[dict[str, Any]]) -> list[Goal]:
    thirds = [at_most("packed over K PEFT processes at K = 8", 0.333, float(row["share"])) for row in rows if row["K"] == 8]
    off = max(abs(float(row["off"])) for row in rows)
    return [*thirds, at_most("forecast off the truth, at any K", 10.0, 100 * off, " %")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Memory of packed trials and its forecast.")
    add_model(parser)
    parser.add_argument("--trials", type=numbers, default=[1, 2, 4, 8, 16], help="K: trials in an engine, and PEFT processes")
    parser.add_argument("--quick", action="store_true", help="a tiny model (or a folder's), no goals")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
