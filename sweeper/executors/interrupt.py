"""Ctrl-C at a moment of our choosing.

Purpose: a KeyboardInterrupt in the middle of an optimizer step or of a database commit would leave a trial half written. Inside
`deferred` the first signal is only noted, and the loop asks `requested` between two pieces of work (at most about 2 s); the
second signal does what it did before.
Does not know: what is being interrupted. Costs two system calls.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def deferred() -> Iterator[Interrupts]:
    """Notes the first SIGINT (and SIGTERM, where the caller has a handler of its own for it) in place of acting on it.

    Outside the main thread no signal can be caught, and none arrives.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}

    def note(number: int, frame: FrameType | None) -> None:
        previous = before[signal.Signals(number)]
        if interrupts.requested:
            previous(number, frame)
        interrupts.requested = True

    for each in _SIGNALS:
        handler = signal.getsignal(each)
        # The default of SIGTERM is death, and an ignored signal stays ignored: neither is ours to change.
        if callable(handler):
            before[each] = handler
            signal.signal(each, note)
    try:
        yield interrupts
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
