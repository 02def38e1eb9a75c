"""The commands that open the UIs of MLflow and optuna-dashboard, on this machine alone.

Purpose: build command lines and environments; starting and stopping them is the caller's matter. Both bind 127.0.0.1, MLflow
answers only requests that name this host, and neither sends anything home.
Does not know: sweeps, or processes. Costs nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

from sweeper.errors import BusyError, ResourceError
from sweeper.tracking.privacy import QUIET

HOST = "127.0.0.1"
MLFLOW_PORT = 5000
DASHBOARD_PORT = 8080

_STORAGE = "SWEEPER_DASHBOARD_STORAGE"


def mlflow_command(uri: str, artifact_root: Path | None, port: int = MLFLOW_PORT) -> tuple[list[str], dict[str, str]]:
    """Command and environment that show the MLflow store `uri` (a database URL) at http://127.0.0.1:port.

    `artifact_root` is where a client that sends artifacts through this server puts them.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"{HOST}:*,localhost:*"]
    # The addresses go by environment: they may hold a password, and everyone can read command lines.
    environment = {
        **os.environ,
        **QUIET,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else 7 helper processes of 245 MB each
        "PYTHONUNBUFFERED": "1",
    }
    if artifact_root is not None:
        environment["MLFLOW_ARTIFACTS_DESTINATION"] = artifact_root.absolute().as_uri()
    return command, environment


def dashboard_command(storage_url: str, port: int = DASHBOARD_PORT) -> tuple[list[str], dict[str, str]]:
    """Command and environment that show the study database `storage_url` in optuna-dashboard at http://127.0.0.1:port."""
    code = (
        f"import os; from optuna_dashboard import run_server; run_server(os.environ[{_STORAGE!r}], host={HOST!r}, port={int(port)})"
    )
    return [sys.executable, "-c", code], {**os.environ, **QUIET, _STORAGE: storage_url, "PYTHONUNBUFFERED": "1"}


def free_port(port: int) -> int:
    """`port` if it can be bound on 127.0.0.1; for 0 any free one.

    Raises BusyError if it is taken, ResourceError if this user may not bind it or it is no port.
    """
    if not 0 <= port <= 65535:
        raise ResourceError(f"port is {port}, but must be between 1 and 65535 (0: any free one); give another with --port")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise BusyError(
                    f"port {port} on {HOST} is in use; give another with --port, or --port 0 for any free one"
                ) from error
            raise ResourceError(f"port {port} cannot be bound ({error.strerror}); give one above 1023 with --port") from error
        return int(probe.getsockname()[1])
