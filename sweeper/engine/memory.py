"""Running out of memory: how it is told from other errors, and how what was half done is let go.

The engine does a piece of work that did not fit again with less at once: fewer chunks in a micro-step, then smaller chunks, then
single rows. Does not know trials. Costs nothing until it happens.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

NO_ROOM = (
    "the device ran out of memory on a single row; a smaller max_length or rank, or gradient_checkpointing: true, needs less, "
    "and fewer slots leave more"
)
_SIGNS = ("can't allocate memory", "cannot allocate memory", "std::bad_alloc", "out of memory", "status_alloc_failed")


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that memory, the device's or the machine's, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):  # a file that could not be mapped
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def with_room(call: Callable[[], T]) -> T:
    """What `call`, which leaves nothing half done, returns; called once more where memory did not suffice, after `let_go`."""
    try:
        return call()
    except Exception as error:
        if not ran_out(error):
            raise
    let_go()
    return call()


def let_go() -> None:
    """Frees what a failed pass left: graphs in reference cycles, and the device allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
