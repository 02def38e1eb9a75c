"""The depot as the driver sees it: what workers wrote to `executor.storage_path` comes home, what nobody needs is removed.

Does not know what the folders hold. Cost: a copy of an adapter a trial where workers write elsewhere, else nothing.
"""

from __future__ import annotations

from sweeper.engine.depot import FolderDepot
from sweeper.spec.models import ExecutorSpec
from sweeper.sweep.home import Home


class DriverDepot:
    """The home's depot, and the one that workers write to where that is another."""

    def __init__(self, home: Home, executor: ExecutorSpec) -> None:
        self._home = home
        self._ours = FolderDepot(home.depot)
        away = executor.storage_path if executor.kind != "local" else None
        self._theirs = FolderDepot(away) if away is not None else self._ours

    def bring(self, name: str) -> None:
        """Copies a folder into the home, if it is not there yet."""
        if self._theirs is not self._ours and not (self._home.depot / name).exists():
            self._ours.put(name, self._theirs.get(name))

    def forget(self, name: str) -> None:
        """Removes a folder wherever it is."""
        for depot in {id(d): d for d in (self._ours, self._theirs)}.values():
            depot.remove(name)
