"""`doctor` tells a fit machine from an unfit one, says what to do, and changes nothing."""

from __future__ import annotations

import socket
import sqlite3
from pathlib import Path

import pytest

from sweeper.spec.load import load_spec
from sweeper.spec.models import SweepSpec
from sweeper.sweep.doctor import Check, doctor


def spec(*overrides: str) -> SweepSpec:
    sections = {"schema": 1, "name": "x", "model": "m", "data": {"path": "d.csv", "task": "text"}, "space": {"rank": [4, 8]}}
    return load_spec(sections, overrides)


def look(home: Path, *overrides: str) -> dict[str, Check]:
    return {check.name: check for check in doctor(home, spec(*overrides) if overrides else None)}


@pytest.fixture(autouse=True)
def _own_ray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "auth_token"))


def test_this_environment_is_fit_and_nothing_is_made(tmp_path: Path) -> None:
    found = look(tmp_path / "home")
    assert [check for check in found.values() if not check.ok] == []
    assert {"Python", "torch", "transformers", "peft", "optuna", "ray", "mlflow", "Ray token", "disk"} <= set(found)
    assert "cores" in found["torch"].found or "GPU" in found["torch"].found
    assert not (tmp_path / "home").exists()


def test_a_database_that_is_none_or_in_use(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database, but long enough to be taken for one" * 20)
    writer = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    writer.execute("create table runs (id)")
    assert look(tmp_path)["MLflow store"].ok
    writer.execute("begin immediate")
    found = look(tmp_path)
    writer.close()
    assert (found["study database"].ok, "restore" in found["study database"].advice) == (False, True)
    assert (found["MLflow store"].ok, "wait for it" in found["MLflow store"].advice) == (False, True)


def test_what_a_spec_names_is_knocked_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answered = look(tmp_path, f"tracking.0.uri=http://127.0.0.1:{port}", f"executor.address=ray://127.0.0.1:{port}")
    silent = look(
        tmp_path,
        f"tracking.0.uri=http://me:hunter2@127.0.0.1:{port}",
        f"executor.address=ray://127.0.0.1:{port}",
        f"storage=postgresql+psycopg://me:hunter2@127.0.0.1:{port}/db",
    )
    for name in ("MLflow store", "Ray cluster"):
        assert answered[name].ok
        assert not silent[name].ok
        assert silent[name].advice
    assert not silent["study database"].ok
    assert "hunter2" not in str(silent)


def test_a_token_that_others_can_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    opened = all(folder.stat().st_mode & 0o001 for folder in token.parents)
    assert look(tmp_path)["Ray token"].ok is not opened
    token.chmod(0o600)
    assert look(tmp_path)["Ray token"].ok
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "unset RAY_AUTH_MODE" in look(tmp_path)["Ray token"].advice


def test_a_home_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = look(tmp_path / "file" / "home")
    assert not found["home"].ok
    assert "--home" in found["home"].advice


def test_versions_out_of_range_are_told_with_the_command_that_mends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder put first on the path, with metadata as an old release would leave it, is what importlib finds first.
    for name, version in (("peft", "0.1.0"), ("optuna", "4.9.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = look(tmp_path)
    assert (found["peft"].ok, found["optuna"].ok, found["ray"].ok) == (False, False, True)
    assert "pip install 'optuna<6,>=5.0'" in found["optuna"].advice


def test_what_fits_is_told_for_a_model_that_is_here(tmp_path: Path) -> None:
    """135 million parameters' config is enough; no weights are read."""
    assert "free for training on" in look(tmp_path / "home")["memory"].found
    assert "once the model is here" in look(tmp_path / "home", "model=owner/name")["memory"].found
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,'
        ' "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": true, "architectures": ["LlamaForCausalLM"]}'
    )
    here = [f"model={tmp_path}", "executor.kind=local", "executor.gpus=0"]
    room = look(tmp_path / "home", *here, "executor.memory=4GB")["memory"]
    assert room.ok
    assert "the model and its process take about 988 MB, a trial 39 MB, a pass of 1,024 tokens" in room.found
    assert "4 GB has room for" in room.found
    none = look(tmp_path / "home", *here, "executor.memory=500MB")["memory"]
    assert (none.ok, "fewer engines" in none.advice) == (False, True)
    long = look(tmp_path / "home", *here, "executor.memory=2GB", "training.max_length=8000")["memory"]
    assert not long.ok
