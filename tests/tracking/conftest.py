"""One real MLflow server for the session."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.contracts.tracker")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real `mlflow server`, started by the command that `sweeper mlflow` runs."""
    from sweeper.tracking.serve import free_port, mlflow_command

    home = tmp_path_factory.mktemp("server")
    port = free_port(0)
    command, environment = mlflow_command(f"sqlite:///{home / 'mlflow.db'}", home / "artifacts", port)
    with open(home / "log.txt", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=home, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, (home / "log.txt").read_text()
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).read()
                break
            except OSError:
                time.sleep(0.25)
        yield uri
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(5)
