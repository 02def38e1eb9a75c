"""A piece of work that failed is done again: with less at once, or each of its trials without the others.

    out of memory            fewer chunks in a pass, then smaller ones; a single row that does not fit alone ends its trial
    another error, shared    each trial of the pass does its batch, or what is left of its evaluation, again without neighbours: the
                             one whose rows or weights are at fault fails alone, the others' numbers are what they would have been

Gradients of half a pass cannot be told from those before it, so a trial's batch begins anew; dropout masks are drawn by their
place, so they are the same again.
Does not know nets, depots or reports. Cost: nothing until it happens; then a batch of each trial in the pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sweeper.engine.memory import let_go
from sweeper.engine.scheduler import Schedule, Scheduler, Work
from sweeper.engine.trial import Running

log = logging.getLogger(__name__)


class Again:
    """`offer` hands the scheduler what a waiting trial does next, its batch cut anew."""

    def __init__(self, scheduler: Scheduler, offer: Callable[[Running], None]) -> None:
        self._scheduler = scheduler
        self._offer = offer

    def with_less(self, work: Schedule, trials: Sequence[Running]) -> list[Running]:
        """Has `work`, which ran out of memory, done again by its `trials` in smaller pieces; those for which there are none."""
        let_go()
        alone = len(work.chunks) == 1
        if not alone:
            self._scheduler.halve()
        stuck: list[Running] = []
        for running in trials:
            if alone and not _cut(running, work):
                stuck.append(running)
                continue
            log.warning(
                "trial %d ran out of memory in %s; what it was doing is done again with less at once",
                running.spec.number,
                "training" if work.work is Work.TRAIN else "an evaluation",
            )
            self._anew(running, work)
        return stuck

    def apart(self, work: Schedule, trials: Sequence[Running], error: Exception) -> None:
        """Has `work`, which failed with `error`, done again by each of its `trials` without neighbours."""
        numbers = ", ".join(str(running.spec.number) for running in trials)
        log.warning("a pass that trials %s shared failed; each does its part again alone (%r)", numbers, error)
        for running in trials:
            self._anew(running, work)
            self._scheduler.seclude(running.spec.number)

    def _anew(self, running: Running, work: Schedule) -> None:
        if work.work is Work.TRAIN:
            running.row.gradient.zero_()
        self._scheduler.withdraw(running.spec.number)
        self._offer(running)


def _cut(running: Running, work: Schedule) -> bool:
    """Halves the one chunk of `work`; False if it is a single row."""
    if work.work is not Work.TRAIN:
        return running.evaluation is not None and running.evaluation.halve()
    assert running.batch is not None
    cut = running.batches.halve(running.batch, work.chunks[0][1])
    if cut:
        running.progress.chunk_tokens = running.batches.chunk_tokens
    return cut
