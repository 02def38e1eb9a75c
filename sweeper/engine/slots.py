"""A free list of slots: who may be in the engine, and nothing else.

Knows nothing of trials or tensors. Every call is constant time.
"""

from __future__ import annotations


class Slots:
    """Slots numbered from 0; the lowest free one is given first, so that equal histories give equal slots."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"slots is {count}, but must be >= 1")
        self._free = set(range(count))
        self._count = count

    def allocate(self) -> int:
        """Takes the lowest free slot. Raises IndexError if none is free."""
        if not self._free:
            raise IndexError(f"all {self._count} slots are taken")
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def free(self, slot: int) -> None:
        """Gives `slot` back. Raises ValueError if it was not taken."""
        if slot in self._free or not 0 <= slot < self._count:
            raise ValueError(f"slot {slot} is not taken")
        self._free.add(slot)

    def available_size(self) -> int:
        """Free slots."""
        return len(self._free)
