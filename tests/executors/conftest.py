"""One Ray for all tests of this folder, as a user's own `ray.init` would give it; files of workers go into a cache of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local cluster of two CPUs; its workers' SWEEPER_CACHE."""
    import ray

    cache = tmp_path_factory.mktemp("cache")
    before, os.environ["SWEEPER_CACHE"] = os.environ.get("SWEEPER_CACHE"), str(cache)
    sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    signal.signal(signal.SIGTERM, sigterm)
    yield cache
    ray.shutdown()
    if before is None:
        del os.environ["SWEEPER_CACHE"]
    else:
        os.environ["SWEEPER_CACHE"] = before
