"""The control groups that hold this process, both versions of them: what containers and batch systems limit memory and cores with.

Does not know what is limited. Costs a few small files read; nothing where there are no such groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def group_folders(controller: str) -> Iterator[tuple[int, Path]]:
    """Version (1 or 2) and folder of each group above this process that may limit `controller` (memory, cpu), inmost first."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            yield from ((2, folder) for folder in _above(ROOT, path))
        elif controller in kinds.split(","):
            yield from ((1, folder) for folder in _above(ROOT / controller, path))


def _above(root: Path, path: str) -> Iterator[Path]:
    own = root / path.strip("/")
    # Inside a container the path is often the host's; the group's own files then lie at the top.
    yield from dict.fromkeys((own, *(parent for parent in own.parents if parent.is_relative_to(root)), root))
