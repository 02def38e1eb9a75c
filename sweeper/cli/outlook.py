"""How forecasts are printed. Knows ranges and records, not how they came about."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

from sweeper.cli.tables import duration, number, range_text
from sweeper.engine.capacity import gigabytes
from sweeper.sweep.forecast.forecast import Range
from sweeper.sweep.plan import Outlook


def outlook_lines(found: Outlook, now: float) -> Iterator[tuple[str, str]]:
    """The lines of `sweeper plan`, as (what, text). `now`: Unix seconds."""
    ahead, speed = found.forecast, found.speed
    each = f"{speed.slots} trial{'s' * (speed.slots != 1)} each" if speed.slots > 1 else "one trial each"
    yield "plan", f"{found.study} on {speed.engines} engine{'s' * (speed.engines != 1)} ({found.executor}), {each}"
    if found.history.started:
        yield "so far", f"{found.history.ended} trials have ended; this is the rest, at the speed that they had"
    if found.probe is not None and found.probe.capacity.reason:
        yield "engines", found.probe.capacity.reason
    yield "measured", _measured(found)
    yield "trials", _trials(found)
    yield "time", f"{range_text(ahead.seconds, duration)}; it would end at {_clock(now, ahead.seconds)}"
    hours = f"{found.device.unit}-hours"
    yield hours, f"{range_text(ahead.device_hours, number)}, in which trials train or are evaluated"
    if found.money is not None:
        yield "money", f"{range_text(found.money, number)} at {found.price:g} a {found.device.unit}-hour"
    yield "memory", _memory(found)
    if ahead.drained > 0:
        yield "budget", f"search.budget ends it before its last trial in {ahead.drained:.0%} of the simulated sweeps"
    for notice in found.notices:
        yield "note", notice
    yield "assumed", f"{found.assumed}; {ahead.runs} simulated sweeps; intervals should hold four times in five"


def outlook_record(found: Outlook) -> dict[str, object]:
    """The same as plain values, for JSON: seconds, hours, bytes."""
    speed = found.speed
    return {
        "study": found.study,
        "executor": found.executor,
        "engines": speed.engines,
        "slots": speed.slots,
        **found.forecast.plain(),
        "device": found.device.unit,
        "price": found.price,
        "money": asdict(found.money) if found.money is not None else None,
        "probe": asdict(found.probe) if found.probe is not None else None,
        "memory": asdict(found.memory),
        "history": {"started": found.history.started, "ended": found.history.ended},
        "assumed": found.assumed,
        "notices": list(found.notices),
    }


def _measured(found: Outlook) -> str:
    speed = found.speed
    reading = f"{speed.read_seconds * 1000:.3g} ms a validation row"
    if found.probe is None:
        tokens = speed.pass_tokens(1)
        return f"{speed.passes.seconds(tokens) / tokens * 1000:.3g} ms a trained token, {reading}"
    parts = [
        f"{one.what} (batch {one.batch}): {one.train_seconds / one.tokens * 1000:.3g} ms a token at {one.point[0]:.0f} a pass"
        for one in found.probe.stretches
    ]
    return "; ".join([*parts, reading, f"{duration(speed.start_seconds)} to start"])


def _trials(found: Outlook) -> str:
    ahead = found.forecast
    parts = [f"{_count(ahead.started)} started in all", f"{_count(ahead.complete)} complete", f"{_count(ahead.pruned)} pruned"]
    parts += [f"{_count(ahead.failed)} failed"] if ahead.failed.high > 0 else []
    parts += [f"{_count(ahead.waiting)} left waiting"] if ahead.waiting.high > 0 else []
    return ", ".join(parts)


def _memory(found: Outlook) -> str:
    memory = found.memory
    verdict = "" if memory.enough else "; that is too much: lower executor.workers, executor.slots or training.max_length"
    each = f"each of {memory.engines} engines" if memory.engines > 1 else "the engine"
    return f"{each} takes {gigabytes(memory.engine)} of {gigabytes(memory.part)}{verdict}; {memory.fits}"


def _count(value: Range) -> str:
    low, mid, high = (round(number) for number in (value.low, value.mid, value.high))
    return f"{mid}" if low == high else f"{mid} ({low} - {high})"


def _clock(now: float, seconds: Range) -> str:
    """Time of day; with the date where that is another day."""
    ends = [time.localtime(now + value) for value in (seconds.mid, seconds.low, seconds.high)]
    same = all(end.tm_yday == time.localtime(now).tm_yday for end in ends)
    shown = [time.strftime("%H:%M" if same else "%a %d %b %H:%M", end) for end in ends]
    return f"{shown[0]} ({shown[1]} - {shown[2]})"
