"""Is this machine fit for a sweep? One line for each thing that a sweep needs: ok, or what to do.

Versions are compared with what the installed package itself asks for; databases, servers and clusters are only knocked at:
nothing is created, changed or started. What fits into memory is worked out from the model's config, where it is on this machine.
Does not know data. Cost: 3-5 s, nearly all of it the import of torch; a server that does not answer adds 3 s.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from sweeper.engine.node import cores
from sweeper.errors import UserError
from sweeper.spec.check_space import largest
from sweeper.spec.mask import mask
from sweeper.spec.models import SweepSpec, TrackerSpec
from sweeper.sweep.home import LEAST_FREE_BYTES, Home

WAIT_SECONDS = 3.0
"""How long a server may take to answer."""

_LIBRARIES = ("transformers", "peft", "optuna", "ray", "mlflow", "sqlalchemy")
_EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
_CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and what to do where it is not ok."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def doctor(home: Path | str, spec: SweepSpec | None = None) -> list[Check]:
    """Looks at everything a sweep in `home` needs; with a spec at its databases, trackers and cluster too. Never raises."""
    place = Home.at(home)
    trackers = spec.tracking if spec is not None else [TrackerSpec()]
    looks: list[tuple[str, Callable[[], Check]]] = [
        ("Python", _python),
        ("torch", _torch),
        *((name, _version_look(name)) for name in _LIBRARIES),
        *((tracker.kind, _version_look(_EXTRAS[tracker.kind])) for tracker in trackers if tracker.kind in _EXTRAS),
        ("Ray token", _token),
        ("home", lambda: _home(place)),
        ("disk", lambda: _disk(place)),
        ("memory", lambda: _memory(place, spec)),
        ("study database", lambda: _database(spec.storage if spec is not None and spec.storage else place.default_storage)),
        *(("MLflow store", _mlflow_look(place, tracker)) for tracker in trackers if tracker.kind == "mlflow"),
    ]
    if spec is not None and spec.executor.address is not None:
        address = spec.executor.address
        looks.append(("Ray cluster", lambda: _cluster(address)))
    return list(_looked(looks))


def _looked(looks: list[tuple[str, Callable[[], Check]]]) -> Iterator[Check]:
    for name, look in looks:
        try:
            yield look()
        except UserError as error:
            yield Check(name, False, "not usable", str(error))
        except Exception as error:  # a doctor that fails would help nobody
            yield Check(name, False, f"{type(error).__name__}: {mask(str(error))}", f"install again what {name} needs: make setup")


def _python() -> Check:
    version = platform.python_version()
    needed = metadata.metadata("sweeper")["Requires-Python"]
    ok = Requirement(f"python{needed}").specifier.contains(version, prereleases=True)
    return Check("Python", ok, f"{version} on {platform.system()} {platform.machine()}", "" if ok else f"use Python {needed}")


def _torch() -> Check:
    found = _version("torch")
    if not found.ok:
        return found
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    where = (
        f"{len(devices)} GPU: {', '.join(devices)}" if devices else f"no GPU, {cores()} cores, {torch.get_num_threads()} threads"
    )
    return Check("torch", True, f"{found.found}; {where}")


def _version_look(name: str) -> Callable[[], Check]:
    return lambda: _version(name)


def _version(name: str) -> Check:
    wanted = _requirement(name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", f"run: pip install '{wanted or name}'")
    ok = wanted is None or wanted.specifier.contains(version, prereleases=True)
    return Check(name, ok, version, "" if ok else f"{version} came, but {wanted} is needed; run: pip install '{wanted}'")


def _requirement(name: str) -> Requirement | None:
    """What the installed sweeper asks of a library, extras included."""
    for line in metadata.requires("sweeper") or []:
        found = Requirement(line)
        if found.name.lower() == name.lower():
            return Requirement(f"{found.name}{found.specifier}")
    return None


def _token() -> Check:
    """Ray makes a token for a local cluster by itself and keeps it in the user's own folder; others must not read it."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() == "disabled":
        return Check(
            "Ray token", False, "RAY_AUTH_MODE=disabled", "anyone who reaches the cluster may run code there; unset RAY_AUTH_MODE"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Check("Ray token", True, "from RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.is_file():
        if _others_can_read(path):
            return Check("Ray token", False, f"{path} can be read by others", f"run: chmod 600 {path}")
        return Check("Ray token", True, f"in {path}")
    if not _writable(path.parent):
        return Check("Ray token", False, f"none, and {path.parent} cannot be written", "set RAY_AUTH_TOKEN_PATH to a file of yours")
    return Check("Ray token", True, "none yet; a local cluster makes one")


def _others_can_read(path: Path) -> bool:
    # Ray writes its token as the umask has it, often 0644: then only a closed folder above keeps it from other users.
    readable = stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH
    return bool(readable) and all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)


def _home(place: Home) -> Check:
    if _writable(place.root):
        return Check("home", True, f"{place.root}{'' if place.root.exists() else ' (not made yet)'}")
    return Check("home", False, f"{place.root} cannot be written", "choose a folder of yours with --home or SWEEPER_HOME")


def _disk(place: Home) -> Check:
    free = shutil.disk_usage(_existing(place.root)).free
    found = f"{free / 2**30:.1f} GB free at {place.root}"
    advice = f"a sweep needs at least {LEAST_FREE_BYTES // 2**20} MB; free some space or choose another disk with --home"
    return Check("disk", free >= LEAST_FREE_BYTES, found, "" if free >= LEAST_FREE_BYTES else advice)


def _memory(place: Home, spec: SweepSpec | None) -> Check:
    """What is free, and what of a spec's model and trials fits into an engine's part of it."""
    import torch

    from sweeper.engine.capacity import gigabytes
    from sweeper.engine.estimate import PLANNED, what_fits
    from sweeper.engine.room import free_bytes

    device = "cuda" if torch.cuda.is_available() and (spec is None or spec.executor.gpus != 0) else "cpu"
    free = free_bytes(device)
    folder = _model_folder(place, spec) if spec is not None else None
    if spec is None or folder is None:
        later = "; what fits is told once the model is here (run: sweeper validate --data)" if spec is not None else ""
        return Check("memory", True, f"{gigabytes(free)} free for training on {device}{later}")
    executor = spec.executor
    engines = 1 if device == "cuda" or executor.kind == "local" else executor.workers or cores()
    memory = int(executor.memory) if executor.memory is not None else int(PLANNED * free / engines)
    trust = spec.model.trust_remote_code
    found = what_fits(folder, spec.training, device, memory, largest(spec, "rank", spec.training.rank), trust)
    share = f"{found.sentence} (one of {engines} engines on {device})" if engines > 1 else f"{found.sentence} ({device})"
    short = found.longest == 0 or (spec.training.max_length or 0) > found.longest
    advice = (
        "run fewer engines (executor.workers), choose a smaller model, training.max_length or rank, dtype: bf16, "
        "or training.gradient_checkpointing: true"
    )
    return Check("memory", not short, share, advice if short else "")


def _model_folder(place: Home, spec: SweepSpec) -> Path | None:
    """Where the model's config lies on this machine, as far as nothing has to be fetched or converted for it."""
    path = Path(spec.model.name).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        made = (config.parent for config in place.models.glob(f"{path.stem}-*/config.json"))
        return max(made, key=lambda folder: folder.stat().st_mtime, default=None)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(spec.model.name, "config.json", revision=spec.model.revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _database(storage: str) -> Check:
    from sweeper.study.database import connect_to_read, masked, parse, reached, refuse_network_file_system, sqlite_path

    url = parse(storage)
    path = sqlite_path(url)
    if path is not None:
        refuse_network_file_system(path)
        return _sqlite("study database", path)
    with reached(url):
        engine = connect_to_read(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    return Check("study database", True, f"{masked(url)} answers")


def _sqlite(name: str, path: Path) -> Check:
    """An SQLite file that opens and can be written, or a folder that one can be made in."""
    if not path.exists():
        ok = _writable(path.parent)
        return Check(
            name, ok, f"{path} (not made yet)" if ok else f"{path.parent} cannot be written", "" if ok else "choose another folder"
        )
    try:
        with sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=WAIT_SECONDS, isolation_level=None) as connection:
            tables = connection.execute("select count(*) from sqlite_master where type = 'table'").fetchone()[0]
            connection.execute("begin immediate")
            connection.execute("rollback")
        connection.close()
    except sqlite3.Error as error:
        busy = "locked" in str(error)
        advice = (
            "another program writes to it; wait for it or stop it"
            if busy
            else "restore it from a copy, or move it away to begin anew"
        )
        return Check(name, False, f"{path}: {error}", advice)
    return Check(name, True, f"{path}, {tables} tables, writable")


def _mlflow_look(place: Home, tracker: TrackerSpec) -> Callable[[], Check]:
    return lambda: _mlflow(place, tracker.uri)


def _mlflow(place: Home, uri: str | None) -> Check:
    from sweeper.tracking.factory import default_mlflow_uri

    name, uri = "MLflow store", uri or default_mlflow_uri(place.root)
    if uri.startswith("sqlite:///"):
        return _sqlite(name, Path(uri.removeprefix("sqlite:///")).absolute())
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return Check(name, True, f"{mask(uri)} (not tried)")
    return _knock(
        name, uri, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), "start it with `mlflow server`"
    )


def _cluster(address: str) -> Check:
    name = "Ray cluster"
    if address in ("auto", "local"):
        running = address == "local" or bool(os.environ.get("RAY_ADDRESS")) or _CURRENT_CLUSTER.is_file()
        advice = "start one with `ray start --head`, or leave executor.address out"
        return Check(name, running, address if running else "no cluster on this machine", "" if running else advice)
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    default = 10001 if "://" in address else 6379
    return _knock(name, address, parts.hostname or "", parts.port or default, "start it, or mend executor.address")


def _knock(name: str, what: str, host: str, port: int, advice: str) -> Check:
    try:
        socket.create_connection((host, port), timeout=WAIT_SECONDS).close()
    except OSError as error:
        return Check(name, False, f"{mask(what)} does not answer ({error.strerror or error})", f"{advice}, or check {host}:{port}")
    return Check(name, True, f"{mask(what)} answers")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _writable(folder: Path) -> bool:
    nearest = _existing(folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
