"""Builds the trackers that a spec names, and says in one sentence what is missing.

Purpose: everything that a person can mend (an extra that is not installed, a server that does not answer, a wrong address)
comes to light here, before the first trial; what breaks later is the outbox's matter.
Does not know: the ledger. Cost: the import of what is used (MLflow 2-3 s); an address that is silent takes 5 s.
"""

from __future__ import annotations

import importlib.util
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from sweeper.errors import ResourceError, UserError
from sweeper.spec.mask import mask
from sweeper.spec.models import TrackerSpec
from sweeper.tracking.base import Tracker
from sweeper.tracking.privacy import quiet

ANSWER_SECONDS = 5.0
"""How long a tracking server may take to say that it is there."""

_MODULES = {"mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def build_trackers(specs: Sequence[TrackerSpec], home: Path, study: str) -> list[Tracker]:
    """The trackers of `specs`, in their order, ready for the first call.

    Args:
        specs: `tracking` of the spec; an empty list is allowed and tracks nothing.
        home: the sweep's home; default stores lie in it.
        study: name of the study; default name of experiments and projects.

    Raises ResourceError if a store or server is out of reach, UserError if an extra is missing or an address is none.
    """
    quiet()
    return [_BUILDERS[spec.kind](spec, home, study) for spec in specs if _installed(spec.kind)]


def default_mlflow_uri(home: Path) -> str:
    """MLflow's store where the spec names none."""
    return f"sqlite:///{home.absolute() / 'mlflow.db'}"


def mlflow_artifact_root(home: Path) -> Path:
    """Where artifacts go of a store that is a database."""
    return home.absolute() / "artifacts"


def _installed(kind: str) -> bool:
    if importlib.util.find_spec(_MODULES[kind]) is not None:
        return True
    package = "mlflow" if kind == "mlflow" else f"'sweeper[{kind}]'"
    raise UserError(
        f"tracking names {kind}, but {_MODULES[kind]} is not installed; run `pip install {package}`, or take it out of tracking"
    )


def _mlflow(spec: TrackerSpec, home: Path, study: str) -> Tracker:
    uri = spec.uri or default_mlflow_uri(home)
    scheme = uri.split(":", 1)[0].split("+", 1)[0]
    remote = scheme in ("http", "https")
    if remote:
        _answers(uri)
    elif scheme not in _DATABASES:
        raise UserError(
            f"tracking.uri is {mask(uri)!r}, but an MLflow store is sqlite:///FILE, postgresql://..., mysql://..., "
            "or http(s)://... of a server (folders of files are no longer written by MLflow); drop it for sqlite in the home"
        )
    from sweeper.tracking.mlflow import MlflowTracker

    project = spec.project or study
    key = "mlflow" if spec.uri is None and spec.project is None else f"mlflow-{_short(uri, project)}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        return MlflowTracker(uri, project, None if remote else mlflow_artifact_root(home), key=key)
    except UserError:
        raise
    except Exception as error:  # drivers raise what they like: a missing module, a wrong URL, a closed port
        said = mask(str(error)).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(f"the MLflow store {mask(uri)} cannot be opened: {said}; check tracking.uri") from error


def _tensorboard(spec: TrackerSpec, home: Path, study: str) -> Tracker:
    from sweeper.tracking.tensorboard import TensorboardTracker

    folder = Path(spec.uri).expanduser().absolute() if spec.uri else home.absolute() / "tensorboard"
    key = "tensorboard" if spec.uri is None else f"tensorboard-{_short(str(folder))}"
    return TensorboardTracker(folder, key)


def _wandb(spec: TrackerSpec, home: Path, study: str) -> Tracker:
    from sweeper.tracking.wandb import WandbTracker

    project = spec.project or study
    return WandbTracker(project, home.absolute() / "wandb", spec.mode == "online", f"wandb-{spec.mode}-{_short(project)}")


def _comet(spec: TrackerSpec, home: Path, study: str) -> Tracker:
    from sweeper.tracking.comet import CometTracker

    project = spec.project or study
    return CometTracker(project, home.absolute() / "comet", spec.mode == "online", f"comet-{spec.mode}-{_short(project)}")


_BUILDERS: dict[str, Callable[[TrackerSpec, Path, str], Tracker]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "comet": _comet,
}


def _answers(uri: str) -> None:
    """Raises ResourceError unless an MLflow server answers at `uri`."""
    how = "start it (`mlflow server`), mend tracking.uri, or drop it for sqlite in the home"
    request = urllib.request.Request(f"{_without_login(uri).rstrip('/')}/health")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
            reply.read(64)
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # it is there; whether it lets us in is seen at the first call
            raise ResourceError(f"{mask(uri)} answers {error.code} where an MLflow server would say it is well; {how}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise ResourceError(f"no MLflow server answers at {mask(uri)} ({why}); {how}") from error


def _without_login(uri: str) -> str:
    scheme, rest = uri.split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _short(*parts: str) -> str:
    return sha256(" ".join(parts).encode()).hexdigest()[:8]
