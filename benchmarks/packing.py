"""How many trial-steps a second: K trials packed on one base model, against PEFT one trial after another.

    python -m benchmarks.packing [--quick] [--json FILE]
    python -m benchmarks.packing --device cuda --dtype bf16 --model 1b --tokens 32,64,128 --row-tokens 32

A step is forward, backward and optimizer of one trial's batch. K is the number of trials in an engine. Each side runs in its better
arrangement of threads: one process with all cores, or a process a core (then K trials in each engine); the rate is that of the
whole machine. Repeats are interleaved; the lower bound is the 5th percentile of 2,000 resamples of the mean logarithm of the paired
ratios, so 95 % one-sided. Evaluation is measured apart, by rows a second.
Runs without Optuna and Ray, on a CPU or a GPU. Does not know schedules, pruning or the cost of control.
Cost: about 25 minutes for 135 million parameters on two cores in fp32; `--quick` under a minute on a tiny model; 8 GB of memory.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Measurement, add_output, at_least, finish, interleaved, median, numbers
from benchmarks.pool import Arrangement, Pool, arrangements, parse_arrangement
from benchmarks.workload import Workload, add_model, workload

EVALUATED = 64
RESAMPLES = 2000
Rates = Mapping[Arrangement, Sequence[float]]


@dataclass(frozen=True)
class Sides:
    """Builds what a worker process holds: both sides on the same rows."""

    work: Workload
    train: Path
    validation: Path
    slots: int
    micro_tokens: int | None

    def __call__(self, threads: int) -> Both:
        return Both(self, threads)


class Both:
    """Both sides in one process, called in turns."""

    def __init__(self, sides: Sides, threads: int) -> None:
        import torch

        from benchmarks.measured import measure
        from benchmarks.sides import Packed, Sequential

        torch.set_num_threads(threads)
        self._tokens = sides.micro_tokens or measure(sides.work, sides.train, 1, threads).knee
        self._packed = Packed(sides.work, sides.train, sides.validation, sides.slots, threads, self._tokens)
        self._sequential = Sequential(sides.work, sides.train, sides.validation, threads)

    def micro_tokens(self) -> int:
        """Tokens of a pass."""
        return self._tokens

    def packed(self, trials: int, batch: int, seconds: float) -> float:
        """Trial-steps a second."""
        return self._packed.train(trials, batch, seconds).rate

    def sequential(self, batch: int, seconds: float) -> float:
        """Trial-steps a second."""
        return self._sequential.train(batch, seconds).rate

    def packed_evaluation(self, trials: int) -> float:
        """Rows a second."""
        return self._packed.evaluate(trials).rate

    def sequential_evaluation(self) -> float:
        """Rows a second."""
        return self._sequential.evaluate().rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        _quicken(options)
    bad = [n for n in options.tokens if n % options.row_tokens]
    if bad:
        print(f"--tokens {bad[0]} is not a multiple of --row-tokens {options.row_tokens}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="packing-") as scratch:
        work = workload(options, Path(scratch))
        sides = Sides(
            work,
            work.rows("train", [options.row_tokens] * max(256, max(options.tokens) // options.row_tokens)),
            work.rows("validation", [options.row_tokens] * EVALUATED),
            max(options.trials),
            options.micro_tokens,
        )
        ways = options.arrangement or arrangements(0 if options.device == "cpu" else 1)
        pools = {way: Pool(way, sides) for way in ways}
        for way, pool in pools.items():
            print(f"{way}: at most {max(pool.call('micro_tokens'))} tokens share a pass", flush=True)
        try:
            rows = [row for tokens in options.tokens for row in _shown(_training(pools, tokens, options))]
            rows += _shown(_evaluation(pools, options))
        finally:
            for pool in pools.values():
                pool.close()
    goals = [] if options.quick else _goals(rows, options)
    return finish(Measurement("packing", rows, goals), options.json)


def _training(pools: Mapping[Arrangement, Pool], tokens: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each K at so many tokens a step."""
    batch = tokens // options.row_tokens
    calls: dict[str, tuple[str, tuple[Any, ...]]] = {"peft": ("sequential", (batch, options.seconds))}
    calls |= {str(trials): ("packed", (trials, batch, options.seconds)) for trials in options.trials}
    return _compared("train", tokens, _measured(pools, calls, options.repeats), options.trials)


def _evaluation(pools: Mapping[Arrangement, Pool], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each K: every trial reads all validation rows."""
    calls: dict[str, tuple[str, tuple[Any, ...]]] = {"peft": ("sequential_evaluation", ())}
    calls |= {str(trials): ("packed_evaluation", (trials,)) for trials in options.trials}
    return _compared("evaluate", options.row_tokens, _measured(pools, calls, options.repeats), options.trials)


def _measured(
    pools: Mapping[Arrangement, Pool], calls: Mapping[str, tuple[str, tuple[Any, ...]]], repeats: int
) -> dict[str, Rates]:
    """Rates of the whole machine by call and arrangement, a number a repeat."""
    found: dict[str, dict[Arrangement, Sequence[float]]] = {name: {} for name in calls}
    for way, pool in pools.items():
        sides = {name: partial(_rate, pool, method, given) for name, (method, given) in calls.items()}
        for name, values in interleaved(sides, repeats).items():
            found[name][way] = values
    return dict(found)


def _rate(pool: Pool, method: str, given: tuple[Any, ...]) -> float:
    return float(sum(pool.call(method, *given)))


def _compared(part: str, tokens: int, found: Mapping[str, Rates], counts: Sequence[int]) -> list[dict[str, Any]]:
    peft_way, peft = best(found["peft"])
    rows = []
    for trials in counts:
        way, ours = best(found[str(trials)])
        low, high = bounds([a / b for a, b in zip(ours, peft, strict=True)])
        rows.append(
            {
                "part": part,
                "tokens": tokens,
                "K": trials,
                "peft_rate": median(peft),
                "peft_way": str(peft_way),
                "packed_rate": median(ours),
                "packed_way": str(way),
                "ratio": median(ours) / median(peft),
                "low": low,
                "high": high,
            }
        )
    return rows


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, said as they come: a whole run is long."""
    for row in rows:
        print(
            f"{row['part']} {row['tokens']} tokens, K {row['K']}: {row['packed_rate']:.3g}/s packed ({row['packed_way']}), "
            f"{row['peft_rate']:.3g}/s peft ({row['peft_way']}), ratio {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            flush=True,
        )
    return rows


def best(rates: Rates) -> tuple[Arrangement, Sequence[float]]:
    """The arrangement with the best median."""
    return max(rates.items(), key=lambda item: median(item[1]))


def bounds(ratios: Sequence[float], share: float = 0.05) -> tuple[float, float]:
    """Percentiles `share` and 1 - `share` of the resampled geometric mean of paired ratios; the ratio itself where there is one."""
    chance = random.Random(0)
    logs = [math.log(ratio) for ratio in ratios]
    means = sorted(sum(chance.choices(logs, k=len(logs))) / len(logs) for _ in range(RESAMPLES))
    at = int(share * RESAMPLES)
    return math.exp(means[at]), math.exp(means[-1 - at])


def _goals(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> list[Goal]:
    trained = [row for row in rows if row["part"] == "train"]
    lowest = min(trained, key=lambda row: float(row["low"]))
    where = f"K {lowest['K']}, {lowest['tokens']} tokens"
    goals = [at_least(f"lower bound of the ratio everywhere (lowest: {where})", 0.95, float(lowest["low"]), "x")]
    if options.device == "cpu":
        wanted = [(tokens, goal, f"best K >= 4 at {tokens} tokens a step") for tokens, goal in ((16, 2.5), (32, 1.7))]
    else:  # batches of one to four rows
        most, goal = {"135m": (4, 8.0), "1b": (1, 2.0)}.get(options.model, (0, 0.0))
        sizes = [tokens for tokens in options.tokens if tokens <= most * options.row_tokens]
        wanted = [(tokens, goal, f"best K >= 4 at batch {tokens // options.row_tokens}") for tokens in sizes]
    for tokens, goal, what in wanted:
        ratios = [float(row["ratio"]) for row in trained if row["tokens"] == tokens and row["K"] >= 4]
        if ratios:
            goals.append(at_least(what, goal, max(ratios), "x"))
    return goals


def _quicken(options: argparse.Namespace) -> None:
    options.model, options.tokens, options.trials = "tiny", [16, 64], [1, 4]
    options.repeats, options.seconds = 2, 0.1
    options.micro_tokens = options.micro_tokens or 256
    options.arrangement = options.arrangement or [Arrangement(1, 1)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description="Packed trials against sequential PEFT.")
    add_model(parser)
    parser.add_argument("--tokens", type=numbers, default=[16, 32, 64, 128, 512], help="tokens of a trial's step")
    parser.add_argument("--trials", type=numbers, default=[1, 2, 4, 8, 16], help="K: trials in an engine")
    parser.add_argument("--row-tokens", type=int, default=16, help="tokens of a row; a step has tokens / row-tokens rows")
    parser.add_argument("--micro-tokens", type=int, help="tokens at most that share one pass (default: the measured knee)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, two passes at least")
    parser.add_argument("--arrangement", action="append", type=parse_arrangement, metavar="PxT", help="processes x threads")
    parser.add_argument("--quick", action="store_true", help="a tiny model, few sizes, no goals")
    add_output(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
