"""How many trials shared one model: told to people while a sweep runs, kept in the ledger, and read again for its result.

Does not know how trials share anything. Cost: a row each time more trials than before are inside one engine; a query to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sweeper.executors.base import Sharing
from sweeper.study.ledger import Ledger

EVENT = "engines"


class Notices(Protocol):
    """Where sentences for people go."""

    def notice(self, text: str) -> None: ...


class SharingLog:
    """An executor's watch that hands sentences on, and writes an event for each new largest number of trials in one engine."""

    def __init__(self, ledger: Ledger, term: int, kind: str, listener: Notices) -> None:
        self._ledger = ledger
        self._term = term
        self._kind = kind
        self._listener = listener

    def notice(self, text: str) -> None:
        """To the listener."""
        self._listener.notice(text)

    def sharing(self, sharing: Sharing) -> None:
        """To the ledger."""
        engines = [asdict(engine) for engine in sharing.engines]
        payload = {"kind": self._kind, "engines": engines, "most": sharing.most}
        self._ledger.add_event(EVENT, None, payload, key=f"{EVENT}:{self._term}:{len(engines)}:{sharing.most}")


@dataclass(frozen=True)
class Shared:
    """The engines of a sweep, of its last run where they differ, and the most trials that one of them ever held at once."""

    kind: str
    engines: int
    slots: int  # the most of any engine
    most: int

    def sentence(self, trials: int) -> str:
        """`12 trials on 2 engines; up to 4 shared one model.`"""
        on = f"{trials} trial{'s' * (trials != 1)} on {self.engines} engine{'s' * (self.engines != 1)}"
        return f"{on}; up to {self.most} shared one model." if self.most > 1 else f"{on}, one at a time in each."


def shared(payloads: Sequence[Mapping[str, Any]]) -> Shared | None:
    """What the ledger's events say, oldest first; None where no engine was ever told of."""
    told = [payload for payload in payloads if payload.get("engines")]
    if not told:
        return None
    last: list[Mapping[str, Any]] = told[-1]["engines"]
    most = max(int(payload.get("most") or 0) for payload in told)
    return Shared(str(told[-1].get("kind", "")), len(last), max(int(engine["slots"]) for engine in last), most)
