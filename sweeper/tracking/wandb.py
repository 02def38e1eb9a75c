"""Weights & Biases: one W&B run per sweep and one per trial, in one group, online or offline.

Purpose: translate tracker calls into `wandb`. Runs are opened side by side (`reinit="create_new"`), under ids made of the sweep
and the trial's number, so that a run is always found again. Values keep their own times; their x axis is `examples`.
W&B cannot be asked what it holds, so a journal beside it says what was told; a kill between the two may double one call's values.
Offline, each stay of a run is a folder of its own under the same id, which `wandb sync` puts together.
Does not know: W&B's sweeps, agents or launch. Cost: the import takes 0.7 s, opening a run 0.2 s offline; keys are wandb's matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from sweeper.errors import ResourceError
from sweeper.records import ParamValue, TrialState
from sweeper.spec.mask import mask
from sweeper.tracking.base import TAG_REASON, TAG_STATE, TAG_STUDY, TAG_SWEEP, TAG_TRIAL, TAG_WINNER, Metric
from sweeper.tracking.journal import Journals
from sweeper.tracking.memory import status_of
from sweeper.tracking.privacy import quiet

STEP = "examples"
"""Name of the x axis."""


class WandbTracker:
    """Tracker over a W&B project; `folder` holds its local files and the journals.

    Raises ResourceError if W&B cannot be reached, or no key is known, when the sweep starts.
    """

    kind = "wandb"

    def __init__(self, project: str, folder: Path, online: bool = True, key: str | None = None) -> None:
        quiet()
        self.project = project
        self.folder = folder
        self.online = online
        self.key = key or f"wandb-{sha256(project.encode()).hexdigest()[:8]}"
        self._journals = Journals(folder / "journals")
        self._open: dict[str, Any] = {}

    def start_sweep(
        self,
        study: str,
        spec: Mapping[str, object],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        run = run or self._journals.run_id(tags.get(TAG_SWEEP, study))
        self._journals.note(run, name=study, parent="")
        self._run(run).config.update({"spec": mask(spec)}, allow_val_change=True)
        self.set_tags(run, {TAG_STUDY: study, TAG_STATE: "running", **tags})
        return run

    def start_trial(
        self,
        sweep: str,
        number: int,
        params: Mapping[str, ParamValue],
        tags: Mapping[str, str],
        run: str | None = None,
        time_ms: int | None = None,
    ) -> str:
        run = run or self._journals.run_id(sweep, str(number))
        self._journals.note(run, name=f"trial {number}", parent=sweep)
        self._run(run).config.update(dict(params), allow_val_change=True)
        self.set_tags(run, {TAG_TRIAL: str(number), TAG_STATE: TrialState.RUNNING.value, **tags})
        return run

    def log(self, run: str, metrics: Sequence[Metric]) -> None:
        fresh = self._journals.fresh(run, metrics)
        moments = {(metric.step, metric.time_ms) for metric in fresh}
        for step, time_ms in sorted(moments, key=lambda moment: moment[::-1]):
            values = {m.name: m.value for m in fresh if (m.step, m.time_ms) == (step, time_ms)}
            self._run(run).log({STEP: step, "_timestamp": time_ms / 1000, **values})
        self._journals.note_metrics(run, fresh)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        masked = mask(tags)
        self._run(run).summary.update(masked)
        self._journals.note(run, tags=masked)

    def log_artifact(self, run: str, path: Path, folder: str = "") -> None:
        import wandb

        name = self._journals.run_id(run, folder or path.name)
        bundle = wandb.Artifact(name, type=folder or "file")
        if path.is_dir():
            bundle.add_dir(str(path))
        else:
            bundle.add_file(str(path))
        self._run(run).log_artifact(bundle)  # the same content again is the same version

    def log_dataset(self, run: str, name: str, digest: str, source: str, context: str, profile: Mapping[str, object]) -> None:
        fact = {"name": name, "digest": digest, "source": mask(source), "profile": mask(profile)}
        self._run(run).config.update({f"data_{context}": fact}, allow_val_change=True)

    def log_table(self, run: str, name: str, columns: Mapping[str, Sequence[object]]) -> None:
        import wandb

        rows = [[_plain(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
        self._run(run).log({name: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)})

    def register_model(self, run: str, name: str, folder: str) -> str:
        return ""

    def mark_winner(self, sweep: str, run: str, number: int, params: Mapping[str, ParamValue], metrics: Sequence[Metric]) -> None:
        for other in self._journals.trials(sweep).values():
            if other != run and self._journals.facts(other).tags.get(TAG_WINNER) == "true":
                self.set_tags(other, {TAG_WINNER: "false"})
                self._finish(other)
        self.set_tags(run, {TAG_WINNER: "true"})
        self.set_tags(sweep, {TAG_WINNER: str(number), **{f"winner.{key}": str(value) for key, value in params.items()}})
        self.log(sweep, metrics)

    def end_trial(self, run: str, state: TrialState, reason: str = "", time_ms: int | None = None) -> None:
        self.set_tags(run, {TAG_STATE: state.value, TAG_REASON: reason})
        self._finish(run, failed=status_of(state, reason) == "failed")

    def end_sweep(self, run: str, finished: bool, reason: str = "", time_ms: int | None = None) -> None:
        self.set_tags(run, {TAG_STATE: "finished" if finished else "interrupted", TAG_REASON: reason})
        for other in list(self._open):
            if other != run:
                self._finish(other)
        self._finish(run)

    def knows(self, run: str) -> bool:
        return self._journals.known(run)

    def url(self, run: str) -> str:
        opened = self._open.get(run)
        return str(opened.url) if self.online and opened is not None else str(self.folder / "wandb")

    def close(self) -> None:
        for run in list(self._open):
            self._finish(run)

    def _run(self, run: str) -> Any:
        """The W&B run of that id, opened (again) where it is not open."""
        import wandb

        if run in self._open:
            return self._open[run]
        facts = self._journals.facts(run)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            opened = wandb.init(
                project=self.project,
                id=run,
                name=facts.name,
                group=facts.parent or run,
                job_type="trial" if facts.parent else "sweep",
                dir=str(self.folder),
                mode="online" if self.online else "offline",
                resume="allow" if self.online else None,
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    x_disable_stats=True,
                    x_disable_meta=True,
                    init_timeout=30,
                    x_sync_dir_suffix=self._stay(run),
                ),
            )
        except (wandb.Error, OSError) as error:
            raise ResourceError(
                f"Weights & Biases cannot be opened: {mask(str(error)).splitlines()[0]}; run `wandb login`, or set mode: offline"
            ) from error
        opened.define_metric(STEP, hidden=True)
        opened.define_metric("*", step_metric=STEP)
        self._open[run] = opened
        return opened

    def _stay(self, run: str) -> str:
        """Ends the name of an offline stay's folder, which W&B makes of the second: two stays in one would share a file."""
        stays = len(list((self.folder / "wandb").glob(f"offline-run-*/run-{run}.wandb")))
        return f"stay-{stays:03d}" if stays and not self.online else ""

    def _finish(self, run: str, failed: bool = False) -> None:
        opened = self._open.pop(run, None)
        if opened is not None:
            opened.finish(exit_code=1 if failed else 0)


def _plain(cell: object) -> object:
    """A cell as W&B's tables allow it."""
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else str(cell)
    return cell if isinstance(cell, bool | int | str) or cell is None else str(cell)
