"""The outbox: tells trackers what the ledger holds, beside the training and never in its way.

Purpose: one thread for each tracker reads events behind that tracker's cursor, tells them in order, and moves the cursor. A
tracker that fails is asked again with growing pauses; events wait in the ledger meanwhile, also over the end of the process.
What a tracker will never take is passed over, with a notice. A tracker whose store was deleted is told everything again.
    each thread:  pending -> tell, tell, tell ... -> cursor, run ids -> nothing left: wait for `poke`, or half a second
Does not know: what an event means (telling.py), or how the ledger stores it. Cost: one query of the ledger per half second and
tracker, when nothing happens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_when_event_set, wait_exponential

from sweeper.errors import FencedError
from sweeper.spec.mask import mask
from sweeper.sweep.telling import EventRow, OutboxLedger, Teller
from sweeper.tracking.base import Tracker, TrackerRefusedError

POLL_SECONDS = 0.5
BATCH = 50
"""Events between two moves of the cursor: at most so many are told twice after a kill, which changes nothing."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0

_NEVER = (TrackerRefusedError, TypeError, ValueError, KeyError, AttributeError, IndexError)


class Outbox:
    """The pumps of all trackers.

    Args:
        ledger: the outbox's side of the ledger; called from the pumps' threads.
        trackers: closed by `stop`.
        depot_root: folder that names of adapters are relative to.
        notice: takes one sentence for people, from any thread.
    """

    def __init__(
        self,
        ledger: OutboxLedger,
        trackers: Sequence[Tracker],
        depot_root: Path,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._trackers = tuple(trackers)
        self._pumps = [_Pump(ledger, tracker, depot_root, notice) for tracker in trackers]

    def start(self) -> None:
        """Starts the threads."""
        for pump in self._pumps:
            pump.start()

    def poke(self) -> None:
        """Says that there is something to tell; optional, since the ledger is looked at every half second."""
        for pump in self._pumps:
            pump.poke()

    def drain(self, timeout: float) -> bool:
        """Waits until every tracker has been told all that the ledger held at the call; False if that took over `timeout` s."""
        asked = time.monotonic()
        self.poke()
        return all(pump.wait_told(asked, max(0.0, asked + timeout - time.monotonic())) for pump in self._pumps)

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the threads and closes the trackers; what was not told is told by the next run."""
        for pump in self._pumps:
            pump.ask_to_stop()
        for pump in self._pumps:
            pump.join(timeout)

    def url(self) -> str | None:
        """Where a person looks at the sweep: MLflow if it is among the trackers, else the first; None before it is known there."""
        for tracker in sorted(self._trackers, key=lambda tracker: tracker.kind != "mlflow"):
            run = self._ledger.tracker_run(tracker.key, None)
            if run is not None:
                return tracker.url(run)
        return None


class _Pump:
    """One tracker's thread."""

    def __init__(self, ledger: OutboxLedger, tracker: Tracker, depot_root: Path, notice: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._tracker = tracker
        self._teller = Teller(ledger, tracker, depot_root)
        self._notice = notice
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._told = threading.Condition()
        self._told_at = -1.0  # when a look at the ledger began that found nothing left
        self._silent = False
        self._refused: set[str] = set()
        self._checked = False
        self._thread = threading.Thread(target=self._work, name=f"outbox-{tracker.kind}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def poke(self) -> None:
        self._wake.set()

    def ask_to_stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def join(self, timeout: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout)

    def wait_told(self, since: float, timeout: float) -> bool:
        with self._told:
            return self._told.wait_for(lambda: self._told_at >= since or not self._thread.is_alive(), timeout) and (
                self._told_at >= since
            )

    def _work(self) -> None:
        tries = Retrying(
            retry=retry_if_exception(lambda error: not isinstance(error, FencedError)),
            stop=stop_when_event_set(self._stop),
            wait=wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
            sleep=self._pause,
            before_sleep=self._say_silent,
            reraise=True,
        )
        try:
            while not self._stop.is_set():
                tries(self._tell_all)
                self._pause(POLL_SECONDS)
        except Exception:  # fenced, or stopped while the tracker was silent: the events stay in the ledger
            pass
        finally:
            with self._told:
                self._told.notify_all()
            self._close()

    def _tell_all(self) -> None:
        """Tells all that is pending. Raises what makes a tracker (or the ledger) unreachable now, with the cursor moved."""
        self._check_store()
        while not self._stop.is_set():
            began = time.monotonic()
            events = self._ledger.pending(self._tracker.key, BATCH)
            self._tell_batch(events)
            if not events:
                self._say_back()
                with self._told:
                    self._told_at = began
                    self._told.notify_all()
                return

    def _tell_batch(self, events: Sequence[EventRow]) -> None:
        last: int | None = None
        try:
            for event in events:
                if self._stop.is_set():
                    break
                self._tell(event)
                last = event.id
        finally:
            if last is not None:
                self._ledger.sent(self._tracker.key, last, self._teller.new)
                self._teller.new = {}

    def _tell(self, event: EventRow) -> None:
        try:
            self._teller.tell(event)
        except _NEVER as error:
            if event.kind not in self._refused:
                self._refused.add(event.kind)
                said = mask(f"{type(error).__name__}: {error}" if not isinstance(error, TrackerRefusedError) else str(error))
                self._notice(f"{self._tracker.kind} does not take event {event.id} ({event.kind}), which is passed over: {said}")

    def _check_store(self) -> None:
        if self._checked:
            return
        run = self._ledger.tracker_run(self._tracker.key, None)
        if run is not None and not self._tracker.knows(run):
            self._notice(f"{self._tracker.kind} no longer holds this sweep; it is told everything again")
            self._ledger.sent(self._tracker.key, 0)
        self._checked = True

    def _say_silent(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if not self._silent:
            self._silent = True
            said = mask(str(error).strip().splitlines()[0]) if error is not None and str(error).strip() else type(error).__name__
            self._notice(f"{self._tracker.kind} cannot be told now ({said}); the sweep goes on, and it is told later")

    def _say_back(self) -> None:
        if self._silent:
            self._silent = False
            self._notice(f"{self._tracker.kind} answers again and has been told everything")

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _close(self) -> None:
        try:
            self._tracker.close()
        except Exception as error:
            self._notice(f"{self._tracker.kind} could not be closed: {mask(str(error))}")
