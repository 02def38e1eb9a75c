"""`search.deterministic`: what must be the same for two runs of a sweep to be equal, and what this device cannot promise.

Engines go in rounds, and everything is decided in their order; so the number of engines and of their slots are part of the study.
They are settled when it begins and stored with it. Does not know how engines keep the order. Costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from sweeper.engine.node import cores
from sweeper.executors.factory import DETERMINISTIC_SLOTS, Choice
from sweeper.spec.models import SweepSpec


@dataclass(frozen=True)
class Order:
    """Engines, and slots of each."""

    engines: int
    slots: int

    def document(self) -> dict[str, int]:
        """As it is stored."""
        return asdict(self)

    def applied(self, spec: SweepSpec) -> SweepSpec:
        """`spec` with this many engines and slots."""
        workers = None if spec.executor.kind == "local" else self.engines
        return spec.model_copy(update={"executor": spec.executor.model_copy(update={"workers": workers, "slots": self.slots})})


def settle(
    spec: SweepSpec, choice: Choice, device: str, stored: Mapping[str, object] | None, notice: Callable[[str], None] | None
) -> Order | None:
    """The order of a deterministic study: as asked, else as stored, else as this machine has it; None for any other study."""
    if not spec.search.deterministic:
        return None
    before = stored.get("order") if stored is not None else None
    known = Order(**before) if isinstance(before, dict) else None
    executor = spec.executor
    slots = executor.slots or (known.slots if known else DETERMINISTIC_SLOTS)
    engines = executor.workers or (known.engines if known else _here(spec, device))
    order = Order(1 if choice.kind == "local" else engines, slots if choice.packs else 1)
    if known is not None and order != known and notice is not None:
        notice(
            f"this study began with {known.engines} engines of {known.slots} slots and goes on with {order.engines} of "
            f"{order.slots}: search.deterministic holds only between runs where both are the same"
        )
    return order


def promises(spec: SweepSpec, device: str) -> list[str]:
    """Sentences on what `search.deterministic` cannot promise here; none where two runs are equal bit for bit."""
    if not spec.search.deterministic:
        return []
    said: list[str] = []
    if device != "cpu":
        said.append("on a GPU losses are equal only within a tolerance, so that a decision near a cut-off may differ")
    elif spec.executor.cpus >= 2:
        said.append(
            f"executor.cpus is {spec.executor.cpus:g}, and with more than one thread losses are equal only within a tolerance: "
            "write cpus: 1 for equal bits"
        )
    if spec.search.time is not None or spec.search.budget.limits:
        said.append(
            "a limit of time or budget ends the search by the clock, not by a count: two runs may end with different trials"
        )
    return [f"search.deterministic: {sentence}" for sentence in said]


def _here(spec: SweepSpec, device: str) -> int:
    """Engines that this machine has room for, as the executor would count them."""
    executor = spec.executor
    engines = max(1, math.floor(cores() / executor.cpus))
    if device == "cpu":
        return engines
    import torch

    return max(1, min(engines, math.floor(torch.cuda.device_count() / (executor.gpus or 1.0) + 1e-6)))
