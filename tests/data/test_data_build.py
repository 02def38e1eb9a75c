"""Building once, finding again, writing whole or not at all; and the seal."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import make_tokenizer, reviews, spec_of, write_jsonl

from sweeper.data.build import Bundle, build, disk_errors
from sweeper.data.seal import open_sealed, openings, sealed_rows
from sweeper.data.tokens import TokenSet
from sweeper.errors import DataError, ModelError, ResourceError

Built = Callable[..., Bundle]


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A data file that was last written an hour ago."""
    path = write_jsonl(tmp_path / "settled.jsonl", reviews(300))
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    return path


def test_a_second_build_neither_reads_nor_tokenises(tmp_path: Path, settled: Path, tokenizer: Any) -> None:
    spec = spec_of({"task": "classify", "path": str(settled)}, max_length=64)
    stages: list[str] = []
    first = build(spec, tokenizer, tmp_path / "home", lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"reading", "sorting", "tokenising"}
    stages.clear()
    assert build(spec, make_tokenizer(), tmp_path / "home", lambda stage, done, total: stages.append(stage)) == first
    assert stages == []


def test_another_template_reads_no_source_again(tmp_path: Path, settled: Path, tokenizer: Any) -> None:
    stages: list[str] = []
    for template in ("{text} is", "{text}:"):
        stages.clear()
        spec = spec_of({"task": "classify", "path": str(settled), "template": template}, max_length=64)
        build(spec, tokenizer, tmp_path / "home", lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"tokenising"}


def test_a_changed_file_is_noticed_even_at_once(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", reviews(100))
    spec = spec_of({"task": "classify", "path": str(path)}, max_length=64)
    first = build(spec, tokenizer, tmp_path / "home")
    when = path.stat()
    path.write_text(path.read_text().replace("number 7 was good", "number 7 was fine"))
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert build(spec, tokenizer, tmp_path / "home").rows_fingerprint != first.rows_fingerprint


def test_progress_counts_up_to_all_rows(tmp_path: Path, settled: Path, tokenizer: Any) -> None:
    told: list[tuple[str, int, int | None]] = []
    spec = spec_of({"task": "classify", "path": str(settled)}, max_length=64)
    bundle = build(spec, tokenizer, tmp_path / "home", lambda *call: told.append(call))
    used = bundle.counts["train"] + bundle.counts["validation"]
    assert told[-1] == ("tokenising", used, used)
    assert ("sorting", 300, 300) in told
    assert ("reading", 300, None) in told


def test_token_files_are_read_only_and_nothing_is_left_aside(built: Built) -> None:
    bundle = built(reviews(100))
    files = [path for folder in (bundle.train, bundle.validation) for path in folder.iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}
    assert stat.S_IMODE(bundle.sealed.stat().st_mode) == 0o700
    assert not list(bundle.sealed.parent.parent.glob(".*"))
    with pytest.raises(ValueError, match="read-only"):
        TokenSet(bundle.train).row(0).ids[0] = 1


def test_no_word_of_a_test_row_reaches_the_folders_of_workers(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    rows = [{"text": f"secret{i:04d}", "label": "positive" if i % 2 else "negative"} for i in range(400)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    bundle = build(spec_of({"task": "classify", "path": str(path)}, max_length=64), tokenizer, tmp_path / "home")
    sealed = pq.read_table(bundle.sealed / "test.parquet")
    assert len(sealed) == bundle.counts["test"] > 20
    seen: set[object] = set()
    for folder in (bundle.train, bundle.validation):
        tokens = TokenSet(folder)
        seen |= set(tokens.row_ids()) | set(tokens.column("text"))
        seen |= {tokenizer.decode(tokens.row(i).ids).split("\n")[0] for i in range(len(tokens))}
    assert not seen & (set(sealed["text"].to_pylist()) | set(sealed["row_id"].to_pylist()))
    beside = [path.read_bytes() for path in bundle.sealed.parent.glob("*.json")]
    assert not any(str(text).encode() in content for text in sealed["text"].to_pylist() for content in beside)


def test_two_processes_may_build_the_same_at_once(tmp_path: Path, settled: Path, tokenizer: Any) -> None:
    spec = spec_of({"task": "classify", "path": str(settled)}, max_length=64)
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)

    def run() -> None:
        start.wait()
        build(spec, tokenizer, tmp_path / "home")

    both = [fork.Process(target=run) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(TokenSet(build(spec, tokenizer, tmp_path / "home").train)) > 200
    assert not list((tmp_path / "home").glob(".aside*"))


def test_an_interrupted_build_leaves_nothing_half_done(tmp_path: Path, settled: Path, tokenizer: Any) -> None:
    spec = spec_of({"task": "classify", "path": str(settled)}, max_length=64)

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "tokenising":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(spec, tokenizer, tmp_path / "home", stop)
    assert not list((tmp_path / "home").glob(".aside*"))
    assert build(spec, tokenizer, tmp_path / "home").counts["source"] == 300


def test_a_full_disk_gets_one_sentence(tmp_path: Path) -> None:
    # /dev/full answers every write as a full disk does.
    with pytest.raises(ResourceError, match="is full; free some space"), disk_errors(tmp_path), open("/dev/full", "wb") as file:
        file.write(b"x")
    # Through an open file, because pyarrow deletes a path that it failed to write.
    with pytest.raises(ResourceError, match="is full; free some space"), disk_errors(tmp_path), open("/dev/full", "wb") as file:
        pq.write_table(pa.table({"x": list(range(100_000))}), file)


def test_a_home_that_cannot_be_written_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="may not be written"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))


def test_the_length_is_the_specs_or_the_contexts(tmp_path: Path, settled: Path, tokenizer: Any) -> None:
    data = {"task": "classify", "path": str(settled)}
    assert build(spec_of(data), tokenizer, tmp_path / "home", context=128).max_length == 128
    assert build(spec_of(data, max_length=50), tokenizer, tmp_path / "home", context=128).max_length == 50
    with pytest.raises(ModelError, match=r"training.max_length is 129, but the model reads at most 128"):
        build(spec_of(data, max_length=129), tokenizer, tmp_path / "home", context=128)


def test_sealed_rows_are_counted_without_an_opening(built: Built) -> None:
    bundle = built(reviews(200))
    assert sealed_rows(bundle.sealed) == bundle.counts["test"]
    assert openings(bundle.sealed) == []


def test_every_opening_is_on_record(built: Built) -> None:
    bundle = built(reviews(200))
    table = open_sealed(bundle.sealed, "first", "final confirmation")
    assert table.column_names == ["row_id", "text", "label"]
    assert len(table) == bundle.counts["test"]
    open_sealed(bundle.sealed, "second", "curiosity")
    assert [(entry["sweep"], entry["reason"]) for entry in openings(bundle.sealed)] == [
        ("first", "final confirmation"),
        ("second", "curiosity"),
    ]
    assert stat.S_IMODE((bundle.sealed.parent / "openings.jsonl").stat().st_mode) == 0o600


def test_changed_test_rows_are_refused_and_the_attempt_is_on_record(built: Built) -> None:
    bundle = built(reviews(200))
    path = bundle.sealed / "test.parquet"
    path.chmod(0o600)
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match="are not those that were sealed"):
        open_sealed(bundle.sealed, "first", "final confirmation")
    assert len(openings(bundle.sealed)) == 1


def test_opening_what_was_never_sealed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no seal"):
        open_sealed(tmp_path / "sealed", "first", "reason")
