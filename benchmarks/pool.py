"""Processes that measure: a machine's cores as one process with all of them, or one process each.

A worker builds its object once (`build`, a picklable callable), then answers calls of its methods. The workers of one arrangement
run a call at the same time: each waits for the others before it begins.
Does not know what is measured. Cost: a process start and its imports, a few seconds each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from sweeper.engine.node import cores

Build = Callable[[int], Any]
"""Makes a worker's object, given its number of threads; picklable."""


@dataclass(frozen=True)
class Arrangement:
    """How the machine's cores are shared."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes}x{self.threads}"


def arrangements(gpus: int) -> list[Arrangement]:
    """The ways to share this machine: a process for each GPU; without one, all cores in one process, or one in each."""
    here = cores()
    if gpus > 0:
        return [Arrangement(gpus, max(1, here // gpus))]
    return [Arrangement(1, here), Arrangement(here, 1)] if here > 1 else [Arrangement(1, 1)]


def parse_arrangement(text: str) -> Arrangement:
    """`2x1`, for argparse."""
    processes, _, threads = text.partition("x")
    if not (processes.isdigit() and threads.isdigit() and int(processes) and int(threads)):
        raise argparse.ArgumentTypeError(f"{text!r} is not PROCESSESxTHREADS, e.g. 2x1")
    return Arrangement(int(processes), int(threads))


class Pool:
    """The workers of one arrangement; a context manager. Raises RuntimeError with the worker's own words if it fails."""

    def __init__(self, way: Arrangement, build: Build, started: Callable[[list[int]], None] = lambda _: None) -> None:
        """`started` is told the process ids as soon as there are any, before the workers build."""
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(way.processes)
        self._pipes: list[Connection] = []
        self._workers = []
        for _ in range(way.processes):
            mine, other = context.Pipe()
            worker = context.Process(target=_serve, args=(other, barrier, build, way.threads), daemon=True)
            worker.start()
            other.close()
            self._pipes.append(mine)
            self._workers.append(worker)
        started([worker.pid for worker in self._workers if worker.pid is not None])
        self._answers()

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """What `method` returned in each worker."""
        for pipe in self._pipes:
            pipe.send((method, arguments))
        return self._answers()

    def close(self) -> None:
        """Ends the workers."""
        for pipe in self._pipes:
            pipe.close()
        for worker in self._workers:
            worker.join(30)
            if worker.is_alive():
                worker.kill()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> list[Any]:
        found: list[Any] = []
        problems: list[str] = []
        for pipe in self._pipes:
            try:
                fine, answer = pipe.recv()
            except EOFError:
                fine, answer = False, "a worker died; the machine may be out of memory"
            (found if fine else problems).append(answer)
        if problems:
            self.close()
            raise RuntimeError(problems[0])
        return found


def _serve(pipe: Connection, barrier: Any, build: Build, threads: int) -> None:
    made: Any = None

    def answer(call: Callable[[], Any]) -> None:
        try:
            pipe.send((True, call()))
        except BrokenPipeError:
            raise
        except Exception:
            pipe.send((False, traceback.format_exc()))

    def make() -> None:
        nonlocal made
        made = build(threads)

    try:
        answer(make)
        while True:
            method, arguments = pipe.recv()
            barrier.wait(600)
            answer(partial(getattr(made, method), *arguments))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # taking torch's modules apart costs over a second, and nothing is left to be said
