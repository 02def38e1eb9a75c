"""The home of sweeps on disk: the one place that knows its file names.

    study.db        Optuna's tables and ours (SQLite, unless the spec names another database)
    mlflow.db       MLflow's tracking store; artifacts/ its files
    data/           token files and sealed test rows, by fingerprint
    models/         base models made ready (a GGUF file converted once)
    speeds/         what `sweeper plan` measured, by study
    checkpoints/<study>/<trial>/, adapters/<study>/<trial>/, outcomes/<study>/<trial>/   the depot: what workers hand over
    stores.json     which database and MLflow store hold which study (mode 0600: a URL may hold a password)

Does not know what is inside those files. Cost: a few system calls.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import ResourceError, StudyError, nearest

LEAST_FREE_BYTES = 256 * 1024 * 1024
"""Below this much free disk no sweep begins: token files, checkpoints and two databases must fit."""


@dataclass(frozen=True)
class Home:
    """A folder of sweeps. `Home.at(None)` is `$SWEEPER_HOME`, or `./sweeps`."""

    root: Path

    @classmethod
    def at(cls, path: Path | str | None = None) -> Home:
        """The home at `path`, made absolute; nothing is created."""
        return cls(Path(path or os.environ.get("SWEEPER_HOME") or "sweeps").expanduser().absolute())

    @property
    def data(self) -> Path:
        """Token files and sealed rows."""
        return self.root / "data"

    @property
    def models(self) -> Path:
        """Base models made ready."""
        return self.root / "models"

    @property
    def speeds(self) -> Path:
        """What was measured for forecasts."""
        return self.root / "speeds"

    @property
    def depot(self) -> Path:
        """Root of the depot's names (checkpoints/..., adapters/..., outcomes/...)."""
        return self.root

    @property
    def default_storage(self) -> str:
        """URL of the study database where the spec names none."""
        return f"sqlite:///{self.root / 'study.db'}"

    def create(self) -> None:
        """Makes the folder. Raises ResourceError if it cannot be written, or the disk is all but full."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise ResourceError(
                f"the home {self.root} cannot be written ({error.strerror}); choose a folder of yours with --home or SWEEPER_HOME"
            ) from error
        free = shutil.disk_usage(self.root).free
        if free < LEAST_FREE_BYTES:
            raise ResourceError(
                f"{free // 2**20} MB are free on the disk of {self.root}, but a sweep needs at least "
                f"{LEAST_FREE_BYTES // 2**20} MB; free some space or choose another disk with --home"
            )

    def remember(self, study: str, storage: str, mlflow: str | None) -> None:
        """Notes which database and which MLflow store hold `study`, so that later verbs need only its name."""
        stores = self._stores()
        if stores.get(study) == {"storage": storage, "mlflow": mlflow}:
            return
        stores[study] = {"storage": storage, "mlflow": mlflow}
        handle, aside = tempfile.mkstemp(dir=self.root, prefix=".stores-")  # mkstemp makes it mode 0600
        with os.fdopen(handle, "w") as file:
            json.dump(stores, file, indent=1, sort_keys=True)
        os.replace(aside, self.root / "stores.json")

    def storage_of(self, study: str) -> str:
        """URL of the database that holds `study`. Raises StudyError if this home knows no such study."""
        stores = self._stores()
        if study in stores:
            return str(stores[study]["storage"])
        if not stores:
            raise self._empty()
        raise StudyError(f"no study {study!r} in {self.root}; {nearest(study, stores)}")

    def mlflow_of(self, study: str) -> str | None:
        """MLflow's tracking URI as the spec named it, if it did."""
        return self._stores().get(study, {}).get("mlflow")

    def only_study(self) -> str:
        """The name of the one study of this home. Raises StudyError if there are none or several."""
        stores = self._stores()
        if len(stores) == 1:
            return next(iter(stores))
        if not stores:
            raise self._empty()
        raise StudyError(f"{len(stores)} studies in {self.root}; name one of: {', '.join(sorted(stores))}")

    def _empty(self) -> StudyError:
        return StudyError(f"no study in {self.root}; start one with `sweeper run SPEC`, or name another home with --home")

    def _stores(self) -> dict[str, dict[str, str | None]]:
        try:
            raw = json.loads((self.root / "stores.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ResourceError(f"{self.root / 'stores.json'} cannot be read ({error}); mend or delete it and run again") from error
        return {str(name): dict(stores) for name, stores in raw.items()}
