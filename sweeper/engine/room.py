"""How much memory an engine may take on its device: the least of all limits that hold for this process.

On the CPU: what the system has available, a control group's limit (both versions), and the limits on the process's address space
and data. On a GPU: what the driver has free, what torch's allocator holds unused, and the share the process was allowed.
Does not know models. Costs a few small files read.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from sweeper.engine.base import EngineSetup
from sweeper.engine.groups import group_folders

_UNLIMITED = 1 << 60  # control groups say so with a number near 2**63
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def room(setup: EngineSetup, taken: int) -> int:
    """Bytes that an engine which takes `taken` now may take in all: `setup.memory`, else `taken` and what is free."""
    return setup.memory if setup.memory is not None else taken + free_bytes(setup.device)


def free_bytes(device: str) -> int:
    """Bytes that this process could still take on `device`; never below 0."""
    where = torch.device(device)
    if where.type == "cuda":
        return _free_on_gpu(where)
    return max(0, min([*_system(), *_group(), *_process()], default=_UNLIMITED))


def _free_on_gpu(device: torch.device) -> int:
    if device.index is None:  # which the last of these calls does not take
        device = torch.device("cuda", torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    return max(0, min(free + unused, int(total * share) - torch.cuda.memory_allocated(device)))


def _system() -> Iterator[int]:
    if (free := _field(Path("/proc/meminfo"), "MemAvailable")) is not None:
        yield free


def _process() -> Iterator[int]:
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, _ = resource.getrlimit(limit)
        used = _field(Path("/proc/self/status"), name)
        if most != resource.RLIM_INFINITY and used is not None:
            yield most - used


def _group() -> Iterator[int]:
    """Of each control group above this process, the room that is left; what the page cache holds counts as free."""
    for version, folder in group_folders("memory"):
        limit, usage, cache = _FILES[version]
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < _UNLIMITED:
            yield most - used + (_field(folder / "memory.stat", cache, unit=1) or 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str, unit: int = 1024) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = (line.replace(":", " ").split() for line in lines)
    return next((int(words[1]) * unit for words in values if len(words) > 1 and words[0] == name), None)
