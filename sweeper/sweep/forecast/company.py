"""Other engines at work beside the one that is probed: in a sweep every core trains, and all share the memory's bandwidth.

On a machine of two cores an engine took 1.12 times as long beside another one as alone, and forecasts from one probed alone were
as much too early. So each engine that the sweep will have besides stands in as a process of its own, which trains the default
configuration until it is told to end.

    parent: setup on the child's stdin -> "ready" -> probes -> kills           a child whose parent is gone ends by itself

Does not know what is measured. A child that cannot start (too little memory, say) is gone without a word: then the probe is alone.
Cost: an engine's memory for each; its start runs while the probed engine is built.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from sweeper.engine.base import EngineSetup
from sweeper.engine.depot import FolderDepot
from sweeper.executors.base import EngineFactory
from sweeper.records import ParamValue, TrialSpec

READY = b"ready\n"
BLOCKS = 1000
"""Evaluations of a companion's trial, after which another one begins."""


class Company:
    """`count` processes with an engine each; none where `count` is 0."""

    def __init__(
        self, setup: EngineSetup, params: Mapping[str, ParamValue], block: int, count: int, factory: EngineFactory
    ) -> None:
        # The pipe's other end is our own code in our own process: nobody else can hand it anything.
        work = pickle.dumps((setup, dict(params), block, factory))
        threads = {**os.environ, "OMP_NUM_THREADS": str(setup.threads)}
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=threads,
                start_new_session=True,  # Ctrl-C is the parent's to deal with
            )
            for _ in range(count)
        ]
        for child in self._children:
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.write(work)
                child.stdin.close()

    def await_ready(self) -> int:
        """How many train now; waits for those that are still starting."""
        return sum(child.stdout is not None and child.stdout.readline() == READY for child in self._children)

    def end(self) -> None:
        """Kills them."""
        for child in self._children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


@contextmanager
def company(
    setup: EngineSetup, params: Mapping[str, ParamValue], block: int, count: int, factory: EngineFactory
) -> Iterator[Company]:
    """While open, `count` engines like `setup`'s train `params`, evaluated every `block` examples."""
    found = Company(setup, params, block, count, factory)
    try:
        yield found
    finally:
        found.end()


def main() -> None:
    """A companion: trains what comes on stdin until its parent is gone."""
    parent = os.getppid()
    setup, params, block, factory = pickle.load(sys.stdin.buffer)
    with tempfile.TemporaryDirectory(prefix="sweeper-company-") as folder:
        engine = factory(replace(setup, study=f"{setup.study}-company"), FolderDepot(Path(folder)))
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        number = 0
        while os.getppid() == parent:
            if not engine.trials():
                number += 1
                clock = tuple(range(block, BLOCKS * block, block))
                engine.admit(TrialSpec(setup.study, number, params, seed=number, examples=clock[-1], evaluations=clock, rungs=()))
            engine.step()


if __name__ == "__main__":
    main()
