"""What every worker of a sweep is told once, and how a user's mistake that a worker meets comes back as what it was.

Does not know Ray, or which executor asks. Costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sweeper import errors
from sweeper.engine.base import EngineSetup
from sweeper.errors import ResourceError, UserError
from sweeper.executors.base import EngineFactory


@dataclass(frozen=True)
class Plan:
    """What all workers of a sweep are told once."""

    setup: EngineSetup
    factory: EngineFactory
    kinds: tuple[str, ...]  # parcels to fetch
    storage: str | None  # a depot that workers open themselves, in place of the driver's


def told(error: UserError) -> tuple[str, str]:
    """Class and sentence of a user's mistake, also of one that Ray wrapped on its way from another actor."""
    cause = getattr(error, "cause", None)
    inner = cause if isinstance(cause, UserError) else error
    return type(inner).__name__, str(inner)


def user_error(kind: str, sentence: str) -> UserError:
    """The error again, in the driver. One whose class takes more than a sentence becomes a ResourceError."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, UserError) and found is not errors.SpecError:
        return found(sentence)
    return ResourceError(sentence)
