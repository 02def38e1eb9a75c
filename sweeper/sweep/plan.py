"""`plan`: what a sweep will cost before it costs anything: trials, device hours, money, the time it ends, and what it needs.

    prepare, as `run` does -> a few configurations in the real engine, for a minute -> hundreds of simulated sweeps

A study that has trials already is not probed: its own speed and survival rates count, and only the rest is forecast.
Does not know how it is printed. Cost: `prepare`, `seconds` of probing, and some seconds of simulation. Writes nothing to the study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper.engine.estimate import PLANNED, what_fits
from sweeper.engine.node import cores
from sweeper.engine.room import free_bytes
from sweeper.records import ParamValue
from sweeper.spec.check_space import largest
from sweeper.spec.load import load_spec
from sweeper.spec.space import ends
from sweeper.study.budget import Device
from sweeper.study.plan import StudyPlan
from sweeper.sweep.forecast.forecast import Forecast, Range, forecast
from sweeper.sweep.forecast.layout import CLUSTER_SECONDS, WORKER_SECONDS, frame_of, past_of, remember, setup_of
from sweeper.sweep.forecast.outlook import Configurations, History
from sweeper.sweep.forecast.probe import Probe, probe
from sweeper.sweep.forecast.simulate import World
from sweeper.sweep.forecast.speed import Passes, Speed
from sweeper.sweep.home import Home
from sweeper.sweep.prepare import Prepared, held_device, prepare

SECONDS = 60.0

PRIOR = (
    "nobody knows the learning curves to come: simulated trials improve alike, an early order gives way to a final one, and "
    "hyperparameters do not matter to it; none fails"
)
OWN_RATES = "trials are stopped and fail at the rates of this study so far"


@dataclass(frozen=True)
class Memory:
    """Bytes: the peak of one engine, and what each of so many engines may take; `fits` says what fits into that."""

    engine: int
    engines: int
    part: int
    fits: str

    @property
    def enough(self) -> bool:
        """Whether an engine has room in its part."""
        return self.engine <= self.part


@dataclass(frozen=True)
class Outlook:
    """The answer of `plan`. `probe` is None where the study's own trials told the speed."""

    study: str
    executor: str
    forecast: Forecast
    speed: Speed
    device: Device
    price: float | None  # of a device hour
    history: History
    probe: Probe | None
    memory: Memory
    assumed: str
    notices: tuple[str, ...]

    @property
    def money(self) -> Range | None:
        """What the device hours to come cost, where a price is known."""
        return self.forecast.device_hours.scaled(self.price) if self.price is not None else None


def plan(
    source: Path | str | Mapping[str, object],
    *,
    overrides: Sequence[str] = (),
    home: Path | str | None = None,
    price: float | None = None,
    seconds: float = SECONDS,
    workers: int | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Outlook:
    """Forecasts a sweep, or the rest of one.

    `price`: of an hour of a GPU, or of a core where engines have none (default: search.budget.price); `seconds`: at most so long
    is probed; `workers`: engines to plan for, in place of those that this machine has room for.
    Raises SpecError, DataError, ModelError or ResourceError for what the user can mend.
    """
    spec = load_spec(source, overrides)
    notices: list[str] = []
    ready = prepare(spec, Home.at(home), progress, notices.append)
    if progress is not None:
        progress("probe", 0, None)
    frame = frame_of(ready, workers)
    history, observed = past_of(ready, frame)
    measured: Probe | None = None
    if observed.known:
        speed = observed.speed(frame)
    else:
        measured, speed = _probed(ready, frame, seconds)
        remember(ready, speed)
    if progress is not None:
        progress("simulate", 0, None)
    device = held_device(spec)
    world = World(ready.plan, speed, Configurations(ready.plan, history), history, device)
    return Outlook(
        study=spec.name,
        executor=ready.choice.kind,
        forecast=forecast(world),
        speed=speed,
        device=device,
        price=price if price is not None else spec.search.budget.price,
        history=history,
        probe=measured,
        memory=_memory(ready, measured, speed),
        assumed=OWN_RATES if history.judged else PRIOR,
        notices=tuple(notices),
    )


def _probed(ready: Prepared, frame: Speed, seconds: float) -> tuple[Probe, Speed]:
    setup = setup_of(ready)
    found = probe(setup, ready.plan.defaults, _ends(ready.plan), seconds=seconds)
    around = 0.0 if ready.choice.kind == "local" else CLUSTER_SECONDS + WORKER_SECONDS
    speed = replace(
        frame,
        passes=Passes(stretch.point for stretch in found.stretches),
        read_seconds=found.read_seconds,
        slots=found.capacity.slots,
        micro_tokens=found.capacity.micro_tokens or frame.micro_tokens,
        start_seconds=around + found.build_seconds,
        turn_seconds=found.turn_seconds,
    )
    return found, speed


def _ends(plan: StudyPlan) -> dict[str, Mapping[str, ParamValue]]:
    """The default configuration with the smallest batch that the space holds, and with the largest batch and rank; those of the
    default's own batch left out."""
    smallest, biggest = (_changed(plan, keys, pick) for keys, pick in ((["batch_size"], min), (["batch_size", "rank"], max)))
    named = {"smallest batch": smallest, "largest batch": biggest}
    return {what: params for what, params in named.items() if params["batch_size"] != plan.defaults["batch_size"]}


def _changed(plan: StudyPlan, keys: Sequence[str], pick: Callable[[list[float]], float]) -> Mapping[str, ParamValue]:
    found = dict(plan.defaults)
    for key in keys:
        found[key] = pick([value for value in (*ends(plan.space.get(key)), found[key]) if isinstance(value, int | float)])
    return found


def _memory(ready: Prepared, found: Probe | None, speed: Speed) -> Memory:
    """An engine's peak as it was probed, else as its model's config promises; and what fits into its part of the machine."""
    setup = setup_of(ready)
    engines = 1 if setup.device != "cpu" else min(speed.engines, cores())
    part = setup.memory if setup.memory is not None else int(PLANNED * free_bytes(setup.device) / engines)
    rank = largest(ready.spec, "rank", ready.training.rank)
    fits = what_fits(ready.model, ready.training, setup.device, part, rank, ready.spec.model.trust_remote_code)
    forecast = fits.footprint.forecast_bytes(speed.slots, speed.micro_tokens)
    return Memory(found.peak_bytes if found is not None else forecast, engines, part, fits.sentence)
