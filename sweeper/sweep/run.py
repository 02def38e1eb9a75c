"""The sweep itself: spec -> data -> study -> engines -> tracking -> result. The one loop closes here, through the records.

Purpose: wire the layers together and leave nothing RUNNING, however it ends.
Does not know how a trial trains, how a trial is chosen, or what a tracker does with an event.
Cost: its own part is under a second; a finished sweep is shown again without loading a model or Ray.

How a run ends:
    every trial finished      winner and comparison written, outbox drained, parent run finished
    Ctrl-C or SIGTERM         executor checkpoints; trials WAITING; parent run stays running; raises Interrupted
    search.budget used up     running trials saved and WAITING; winner chosen all the same, parent run finished
    executor lost (Ray gone)  trials WAITING from their last checkpoint; ResourceError says so
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.errors import SweeperError, UserError
from sweeper.spec.load import load_spec
from sweeper.spec.models import SweepSpec
from sweeper.study.gateway import Gateway
from sweeper.study.read import StudyReader
from sweeper.sweep.ahead import begin_ahead
from sweeper.sweep.depot import DriverDepot
from sweeper.sweep.home import Home
from sweeper.sweep.listen import Listener, Silent
from sweeper.sweep.prepare import Prepared, held_device, prepare
from sweeper.sweep.result import SweepResult, sweep_result
from sweeper.sweep.sharing import SharingLog
from sweeper.sweep.signals import sigterm_interrupts
from sweeper.sweep.source import SweepSource
from sweeper.tracking.privacy import quiet

if TYPE_CHECKING:
    from sweeper.executors.begun import Begun
    from sweeper.sweep.outbox import Outbox

DRAIN_SECONDS = 60.0
"""How long the end of a sweep waits for its trackers; what they have not taken by then goes out with the next run."""


class Interrupted(SweeperError):  # noqa: N818  a state of the sweep, no mistake
    """The sweep was stopped by a person or a signal. Nothing is lost; the same command goes on."""

    def __init__(self, study: str, waiting: Sequence[int], result: SweepResult) -> None:
        self.study = study
        self.waiting = tuple(waiting)
        self.result = result
        trials = ", ".join(str(n) for n in self.waiting) or "none"
        super().__init__(f"interrupted; trials that go on from their last checkpoint: {trials}")


def run(
    spec: SweepSpec | Mapping[str, object] | Path | str,
    *,
    home: Path | str | None = None,
    overrides: Sequence[str] = (),
    listener: Listener | None = None,
) -> SweepResult:
    """Runs a sweep to its end, or goes on with one that was interrupted; a finished one is only read again.

    `spec` is a SweepSpec, a mapping, or the path of a YAML file; `overrides` are `training.rank=4` as for `--set`.
    Raises SpecError, DataError, ModelError, StudyError, BusyError or ResourceError for what the user can mend, and
    Interrupted after Ctrl-C or SIGTERM, when every running trial waits with its last checkpoint.
    """
    quiet()
    started = time.monotonic()
    asked = load_spec(_as_source(spec), overrides)
    watch = listener or Silent()
    place = Home.at(home)
    begun = begin_ahead(asked, place)
    try:
        ready = prepare(asked, place, watch.progress, watch.notice)
        with sigterm_interrupts():
            result = _run(ready, watch, started, begun)
    finally:
        if begun is not None:
            begun.end()
        watch.finish()
    if begun is not None:
        begun.left()
    return result


def _as_source(spec: SweepSpec | Mapping[str, object] | Path | str) -> Mapping[str, object] | Path | str:
    return spec.model_dump(mode="json", by_alias=True, exclude_unset=True) if isinstance(spec, SweepSpec) else spec


def _run(ready: Prepared, watch: Listener, started: float, begun: Begun | None) -> SweepResult:
    name = ready.spec.name
    who = f"{socket.gethostname()}:{os.getpid()}"
    gateway = Gateway.open(ready.storage, ready.plan, driver=who, device=held_device(ready.spec))
    try:
        ready.home.remember(name, ready.storage, _mlflow_uri(ready.spec))
        finished = sum(state.is_finished() for state in gateway.states().values())
        best = StudyReader(ready.storage).best(name)
        watch.begin(ready.plan, finished, None if best is None or best.value is None else (best.number, best.value))
        outbox = _open_outbox(ready, gateway, watch)
        try:
            if not gateway.finished():
                _train(ready, gateway, watch, outbox, started, begun)
            return _conclude(ready, gateway, watch, outbox, started)
        finally:
            outbox.stop()
    finally:
        gateway.close()


def _mlflow_uri(spec: SweepSpec) -> str | None:
    return next((tracker.uri for tracker in spec.tracking if tracker.kind == "mlflow"), None)


def _train(ready: Prepared, gateway: Gateway, watch: Listener, outbox: Outbox, started: float, begun: Begun | None) -> None:
    from sweeper.executors.factory import build_executor
    from sweeper.sweep.expect import Expecting

    log = SharingLog(gateway.ledger, gateway.term, ready.choice.kind, watch)
    expecting = Expecting(ready, gateway, watch, log)
    source = SweepSource(gateway, expecting, DriverDepot(ready.home, ready.spec.executor))
    try:
        executor = build_executor(
            ready.arranged(), ready.engine_setup(), ready.home.depot, watch=expecting, choice=ready.choice, begun=begun
        )
        expecting.train()
        executor.run(source)
        expecting.trained()
    except KeyboardInterrupt:
        gateway.interrupt()
        _say_ended(gateway, finished=False, reason="interrupted")
        outbox.drain(DRAIN_SECONDS / 6)
        waiting = [number for number, state in gateway.states().items() if not state.is_finished()]
        raise Interrupted(ready.spec.name, waiting, _result(ready, outbox, started, finished=False)) from None
    except BaseException as error:
        gateway.interrupt()
        _say_ended(gateway, finished=False, reason=str(error) if isinstance(error, UserError) else type(error).__name__)
        outbox.drain(DRAIN_SECONDS / 6)
        raise


def _conclude(ready: Prepared, gateway: Gateway, watch: Listener, outbox: Outbox, started: float) -> SweepResult:
    drained = gateway.drained() or ""
    result = _result(ready, outbox, started, finished=True, drained=drained)
    if result.best is not None:
        gateway.ledger.add_event(
            "winner",
            result.best.number,
            {
                "trial": result.best.number,
                "params": dict(result.best.params),
                "metrics": dict(result.best.metrics),
                "adapter": result.best.adapter,
                "comparison": asdict(result.comparison) if result.comparison is not None else None,
                "verdict": result.verdict(),
            },
            key=f"winner:{result.best.number}:{len(result.trials)}{f':{gateway.term}' if drained else ''}",
        )
    _say_ended(gateway, finished=True, reason=drained)
    if not outbox.drain(DRAIN_SECONDS):
        watch.notice("a tracker has not taken everything yet; what is left goes out with the next `sweeper run` of this sweep")
    return replace(result, seconds=time.monotonic() - started, tracked=outbox.url())


def _say_ended(gateway: Gateway, *, finished: bool, reason: str) -> None:
    trials = len(gateway.states())
    whole = finished and not reason
    key = f"sweep_ended:{trials}:finished" if whole else f"sweep_ended:{gateway.term}:interrupted"
    gateway.ledger.add_event("sweep_ended", None, {"finished": finished, "reason": reason, "trials": trials}, key=key)


def _result(ready: Prepared, outbox: Outbox, started: float, *, finished: bool, drained: str = "") -> SweepResult:
    return sweep_result(
        ready.spec.name,
        ready.home,
        ready.storage,
        finished=finished,
        seconds=time.monotonic() - started,
        tracked=outbox.url(),
        drained=drained,
    )


def _open_outbox(ready: Prepared, gateway: Gateway, watch: Listener) -> Outbox:
    from sweeper.sweep.outbox import Outbox
    from sweeper.tracking.factory import build_trackers

    spec, bundle = ready.spec, ready.bundle
    trackers = build_trackers(spec.tracking, ready.home.root, spec.name)
    gateway.ledger.add_event(
        "sweep_started",
        None,
        {
            "spec": dict(ready.plan.spec),
            "tags": {"sweeper.study": spec.name, "sweeper.identity": ready.identity.hash, "sweeper.task": spec.data.task},
            "dataset": {
                "name": spec.name,
                "digest": bundle.rows_fingerprint,
                "source": bundle.source,
                "context": "training",
                "profile": dict(bundle.counts),
            },
            "versions": dict(ready.plan.versions),
        },
        key="sweep_started",
    )
    outbox = Outbox(gateway.ledger, trackers, ready.home.depot, notice=watch.notice)
    outbox.start()
    return outbox
