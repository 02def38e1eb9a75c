"""Carries files between the driver's home and the workers: an actor on the driver's node, so that workers never open the home.

Out: what `parcels` names (train and validation rows, a local model, a metric's module) and nothing else; each worker's node keeps
a copy (`cache.py`). In: what workers put into the depot.
Does not know what the files mean. Cost: an actor without a CPU of its own; each byte crosses Ray's object store once per node.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeper.engine.base import EngineSetup
from sweeper.engine.depot import FolderDepot
from sweeper.errors import ResourceError
from sweeper.executors.cache import Manifest, cached, manifest
from sweeper.spec.metrics import is_function

MODULES = "modules"
OTHER_WEIGHTS = frozenset({".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite"})
"""Weights in formats that no engine reads; they often lie beside the safetensors."""


@dataclass(frozen=True)
class Parcel:
    """What lies at `root / inside`, a folder or a file; its file names begin at `root`."""

    root: Path
    inside: str = "."
    skip: frozenset[str] = frozenset()


Parcels = Mapping[str, Parcel]
"""What workers may read, by kind: train, validation, model (a local one), modules/NAME."""


def parcels(setup: EngineSetup) -> Parcels:
    """What the workers of this setup need from the driver's node. Raises ResourceError for a module that is not to be found."""
    found = {"train": Parcel(setup.train), "validation": Parcel(setup.validation)}
    model = Path(setup.model).expanduser()
    if model.is_dir():
        found["model"] = Parcel(model, skip=OTHER_WEIGHTS)
    for name in sorted({metric.split(":")[0].split(".")[0] for metric in setup.metrics if is_function(metric)}):
        source = module_source(name)
        if source is not None:
            found[f"{MODULES}/{name}"] = Parcel(source.parent, source.name)
    return found


def module_source(name: str) -> Path | None:
    """Where a user's top-level module lies (a file or a package folder); None for an installed one, which nodes have themselves.

    Raises ResourceError if it is nowhere on the path.
    """
    spec = PathFinder.find_spec(name, [*sys.path, str(Path.cwd())])
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise ResourceError(f"module {name} of a metric is not to be found; run sweeper in its folder, or set PYTHONPATH")
    found = Path(next(iter(spec.submodule_search_locations))) if spec.submodule_search_locations else Path(str(spec.origin))
    installed = [Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")]
    return None if any(found.is_relative_to(place) for place in installed) else found


class Porter:
    """The actor. Methods run in threads of their own, so that a long read holds no checkpoint up."""

    def __init__(self, parcels: Parcels, plan: object, depot_root: str) -> None:
        self._parcels = parcels
        self._plan = plan
        self._depot = FolderDepot(depot_root)
        self._manifests: dict[str, Manifest] = {}

    def plan(self) -> object:
        """What every worker is told once."""
        return self._plan

    def manifest(self, kind: str) -> Manifest:
        """The content of a parcel."""
        parcel = self._parcels[kind]
        if kind not in self._manifests:
            self._manifests[kind] = manifest(parcel.root, parcel.inside, parcel.skip)
        return self._manifests[kind]

    def read(self, kind: str, name: str, offset: int, count: int) -> bytes:
        """A piece of a parcel's file. Raises KeyError for a file that is not in it."""
        if name not in self.manifest(kind).files:
            raise KeyError(f"{kind} has no file {name}")
        with (self._parcels[kind].root / name).open("rb") as file:
            file.seek(offset)
            return file.read(count)

    def put(self, name: str, files: Mapping[str, bytes]) -> str:
        """See `records.Depot.put`."""
        return self._depot.put(name, files)

    def get(self, name: str) -> dict[str, bytes]:
        """See `records.Depot.get`."""
        return self._depot.get(name)

    def remove(self, name: str) -> None:
        """See `records.Depot.remove`."""
        self._depot.remove(name)


class RayDepot:
    """A depot whose files lie in the driver's home. Implements `records.Depot` in a worker."""

    def __init__(self, porter: Any) -> None:
        self._porter = porter

    def put(self, name: str, files: Mapping[str, bytes]) -> str:
        """Stores `files` as the folder `name`, whole or not at all; returns `name`."""
        return str(ray.get(self._porter.put.remote(name, dict(files))))

    def get(self, name: str) -> dict[str, bytes]:
        """The files of folder `name`. Raises FileNotFoundError."""
        files: dict[str, bytes] = ray.get(self._porter.get.remote(name))
        return files

    def remove(self, name: str) -> None:
        """Removes folder `name`; no error if it is not there."""
        ray.get(self._porter.remove.remote(name))


def start_porter(parcels: Parcels, plan: object, depot_root: Path | str, name: str) -> Any:
    """The actor `name`, on this node and nowhere else. It keeps nothing in memory, so that a killed one may start again."""
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Porter)
        .options(name=name, num_cpus=0, max_concurrency=8, scheduling_strategy=here, max_restarts=3, max_task_retries=3)
        .remote(parcels, plan, str(depot_root))
    )


def receive(setup: EngineSetup, kinds: Iterable[str], porter: Any) -> EngineSetup:
    """In a worker: the setup with every folder replaced by this node's own copy; modules become importable."""
    places: dict[str, Path] = {}
    for kind in kinds:
        what: Manifest = ray.get(porter.manifest.remote(kind))

        def read(name: str, offset: int, count: int, kind: str = kind) -> bytes:
            piece: bytes = ray.get(porter.read.remote(kind, name, offset, count))
            return piece

        places[kind] = cached(kind, what, read)
    for kind in places:
        if kind.startswith(f"{MODULES}/"):
            sys.path.insert(0, str(places[kind]))
    model = str(places.get("model", setup.model))
    return replace(setup, train=places["train"], validation=places["validation"], model=model)
