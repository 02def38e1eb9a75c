"""The Ray cluster that trials run on: a local one of our own, or the one that the spec names.

Purpose: one sentence in place of what Ray does on its own when an address is silent (it retries for 80 s, then exits the process)
or when nobody can give what a trial asks for (it waits for ever).
Does not know trials. Cost: a local cluster takes 2 to 4 s to start; one that runs already is used as it is.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from sweeper.engine.node import cores
from sweeper.errors import ResourceError
from sweeper.spec.models import ExecutorSpec

KNOCK_SECONDS = 5.0
NAMESPACE = "sweeper"
_UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")


@dataclass(frozen=True)
class Room:
    """What one sweep may use of the cluster: workers (or engines) at once, what each of them gets, and how many a node holds."""

    workers: int
    cpus: float
    gpus: float
    nodes: Mapping[str, int] = field(default_factory=dict)

    def share(self, node: str) -> float:
        """The part of a node's memory, or of a GPU's, that one of them may take."""
        if self.gpus:
            return min(1.0, self.gpus)
        return 1 / max(1, min(self.workers, self.nodes.get(node, 1)))


@contextmanager
def cluster(spec: ExecutorSpec) -> Iterator[Room]:
    """Joins or starts the cluster; one that this call started or joined is left at the end.

    Raises ResourceError if the address does not answer, or if no node can hold a trial.
    """
    await_ending()
    ours = not ray.is_initialized()
    if ours:
        _connect(spec)
    try:
        yield room(spec, [node for node in ray.nodes() if node["Alive"]])
    finally:
        if ours:
            ray.shutdown()


_ending: set[threading.Thread] = set()


def ends_with(thread: threading.Thread) -> None:
    """The cluster will be left by `thread`, which nobody waits for before somebody needs a cluster again."""
    _ending.add(thread)


def await_ending() -> None:
    """Waits for a cluster that is being left."""
    for thread in _ending - {threading.current_thread()}:
        thread.join()
        _ending.discard(thread)


def room(spec: ExecutorSpec, nodes: list[dict[str, Any]]) -> Room:
    """How many trials the nodes (as `ray.nodes()` gives them) hold at once. Raises ResourceError if it is none."""
    have = [(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes]
    gpus = spec.gpus if spec.gpus is not None else float(any(gpu >= 1 for _, gpu in have))
    each = {str(node.get("NodeID", i)): _fits(*one, spec.cpus, gpus) for i, (node, one) in enumerate(zip(nodes, have, strict=True))}
    fits = sum(each.values())
    if fits < 1:
        largest = ", ".join(f"{cpu:g} CPUs and {gpu:g} GPUs" for cpu, gpu in have) or "no node"
        raise ResourceError(
            f"a trial asks for executor.cpus {spec.cpus:g} and gpus {gpus:g}, but the nodes of the cluster have {largest}; "
            "lower executor.cpus or executor.gpus, or add a node"
        )
    return Room(min(fits, spec.workers or fits), spec.cpus, gpus, each)


def _fits(cpu: float, gpu: float, cpus: float, gpus: float) -> int:
    slack = 1e-6  # 0.9 / 0.3 is a little less than 3
    count = math.floor(cpu / cpus + slack)
    return min(count, math.floor(gpu / gpus + slack)) if gpus else count


def _close_token() -> None:
    """Ray writes the token that guards a local cluster as the umask has it, often for all to read: now only its owner may."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):
        path.chmod(0o600)


def _connect(spec: ExecutorSpec) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": NAMESPACE}
    with _sigterm_kept():
        try:
            if spec.address is None:
                cpus = max(cores(), math.ceil((spec.workers or 1) * spec.cpus))
                # "local" keeps Ray from joining whatever cluster it finds; the loopback address keeps it from being found.
                with _few_processes():
                    ray.init(address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
                _close_token()
            else:
                _knock(spec.address)
                ray.init(address=spec.address, **quiet)
        except ResourceError:
            raise
        except (Exception, SystemExit) as error:
            where = f"the Ray cluster at {spec.address}" if spec.address else "a local Ray cluster"
            said = str(error).strip().split("\n")[0]
            raise ResourceError(
                f"{where} cannot be used: {said}; start one with `ray start --head`, mend executor.address, or remove it"
            ) from error


@contextmanager
def _few_processes() -> Iterator[None]:
    """Leaves out what a local cluster of one sweep has no use for: dashboard, autoscaler and log monitor.

    Ray has no option for it (without its pages the dashboard still starts, and is waited for): they are three processes that
    import Ray, half of a start's time on two cores. A version of Ray that names them otherwise starts them as ever.
    """
    node = getattr(sys.modules.get("ray._private.node"), "Node", None)
    found = {name: getattr(node, name) for name in _UNUSED if hasattr(node, name)}
    for name in found:
        setattr(node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in found.items():
            setattr(node, name, method)


def _knock(address: str) -> None:
    """Raises ResourceError if nobody listens at host:port: Ray itself would retry for more than a minute, then exit the process."""
    if address.startswith("ray://"):
        raise ResourceError(
            f"executor.address is {address}, but through Ray's client the sweep itself would run in the cluster; "
            "run sweeper on a node of the cluster with address: auto, or give host:port of its head (6379 by default)"
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    if not port.isdigit():
        raise ResourceError(f"executor.address is {address}; write auto, or host:port of the cluster's head, e.g. 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"nobody answers at executor.address {address} ({error.strerror or error}); "
            "start the cluster there with `ray start --head`, or remove executor.address to use this machine"
        ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """`ray.init` puts its own SIGTERM handler, which exits at once, in place of the caller's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
