"""Every verb on a finished sweep, as a user types it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.support.cli import sweeper_command
from tests.support.specs import tiny_spec


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, sentences_csv: Path) -> Path:
    """A home in which the tiny sweep has finished, by `sweeper run`."""
    folder = tmp_path_factory.mktemp("verbs")
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(tiny_spec(model_folder, sentences_csv), sort_keys=False))
    ran = sweeper_command("run", spec, "--home", folder / "home")
    assert ran.code == 0, ran.out + ran.err
    assert "trial 0 starts" in ran.out
    assert "sweeper predict tiny" in ran.out
    return folder / "home"


def test_run_without_a_terminal_prints_a_line_an_event_and_a_verdict(home: Path) -> None:
    again = sweeper_command("run", home.parent / "spec.yaml", "--home", home)
    assert again.code == 0
    assert "6 trials finished before" in again.out
    assert "default" in again.out


def test_status_counts_the_states(home: Path) -> None:
    out = sweeper_command("status", "--home", home).out
    assert "COMPLETE" in out
    assert "not running" in out


def test_trials_as_csv_and_json_hold_the_same_trials(home: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(sweeper_command("trials", "--csv", "--home", home).out)))
    records = json.loads(sweeper_command("trials", "tiny", "--json", "--home", home).out)
    assert [int(row["number"]) for row in rows] == [record["number"] for record in records] == list(range(6))
    assert float(rows[0]["params.learning_rate"]) == records[0]["params.learning_rate"] == 0.002


def test_show_tells_reports_and_decisions(home: Path) -> None:
    out = sweeper_command("show", 1, "--home", home).out
    assert "trial 1" in out
    assert "rung" in out


def test_best_names_the_adapter_and_export_copies_it(home: Path, tmp_path: Path) -> None:
    best = json.loads(sweeper_command("best", "--json", "--home", home).out)
    assert (Path(best["adapter"]) / "adapter_model.safetensors").is_file()
    assert sweeper_command("export", best["trial"], tmp_path / "adapter", "--home", home).code == 0
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_a_merged_export_answers_as_the_adapter_does(home: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    best = json.loads(sweeper_command("best", "--json", "--home", home).out)
    assert sweeper_command("export", "best", tmp_path / "merged", "--merged", "--home", home).code == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    base = yaml.safe_load((home.parent / "spec.yaml").read_text())["model"]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), best["adapter"]).eval()
    ids = tokenizer("the film was lovely\nsentiment:", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_predict_answers_a_text_and_a_file(home: Path, tmp_path: Path, sentences_csv: Path) -> None:
    ran = sweeper_command("predict", "tiny", "the film was lovely", "--home", home)
    assert ran.code == 0, ran.err
    assert ran.out.split()[0] in ("positive", "negative")
    assert sweeper_command("predict", "tiny", "--file", sentences_csv, "--out", tmp_path / "out.csv", "--home", home).code == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    assert {row["prediction"] for row in rows} <= {"positive", "negative"}


def test_doctor_finds_this_machine_fit(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another program's Ray may have left its token open, which doctor is right to tell.
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    ran = sweeper_command("doctor", "--home", home)
    assert ran.code == 0, ran.out
    for word in ("Python", "torch", "Ray", "MLflow", "disk"):
        assert word.lower() in ran.out.lower()


@pytest.mark.parametrize("verb", ["mlflow", "dashboard"])
def test_the_pages_open_on_this_machine_only(home: Path, verb: str) -> None:
    import socket
    import time

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-c", "from sweeper.cli import main; main()", verb, "tiny", "--port", str(port), "--home", str(home)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_installed_command_ends_with_its_code_its_output_and_its_last_functions(tmp_path: Path) -> None:
    code = "import atexit; atexit.register(print, 'last words'); from sweeper.cli import command; command()"
    for words, expected, said in (("--help",), 0, "Hyperparameter sweeps"), (("validate", "no.yaml"), 2, "no.yaml"):
        ended = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == expected
        assert said in ended.stdout + ended.stderr
        assert ended.stdout.endswith("last words\n")
