"""From a spec's data section to two folders of tokens and a sealed test set.

    read   source -> scan (hashes, sides) -> store: each side's rows in hash order       named by the rows fingerprint
    encode train and validation rows -> tokens, memory-mapped and read-only              named by the tokens fingerprint

*rows* = content + split rule; *tokens* = rows + task, columns, template, labels, tokenizer, length, limit. Whatever is there
already is used as it is: a second sweep reads nothing but a file's size and time. Everything is written aside and renamed.
Test rows are put aside in the first step and never tokenised here.
Does not know: models' weights, studies, workers. Cost: two readings of the source and one tokenisation the first time;
milliseconds (and the tokenizer's fingerprint) after that. Memory is that of one batch, one bucket of rows and about 40 bytes a row.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sweeper.data import labels as classes
from sweeper.data.encode import Encoder, PromptEncoder
from sweeper.data.fingerprint import as_text, fingerprint, tokenizer_fingerprint
from sweeper.data.judge import Tally, check_sides, class_counts, judge
from sweeper.data.scan import Progress, scan
from sweeper.data.seal import sealed_unknown
from sweeper.data.source import Source, open_source
from sweeper.data.split import rule
from sweeper.data.store import RowsInfo, move_in, new_aside, store_rows
from sweeper.data.task import columns_of, encoder_of, template_of
from sweeper.data.tokenizer import context_length
from sweeper.data.tokens import TokenInfo
from sweeper.data.write import TokenWriter
from sweeper.errors import DataError, ModelError, ResourceError
from sweeper.spec.models import DataSpec, SplitSpec, SweepSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1024
_SETTLED_SECONDS = 2.0
"""A file changed less than this ago is read again: its time of change may not tell a second change."""
_VERSION = 1


@dataclass(frozen=True)
class Bundle:
    """What a sweep trains and validates on. `train` and `validation` are TokenSet folders, `sealed` the test rows' place."""

    train: Path
    validation: Path
    sealed: Path
    source: str
    counts: Mapping[str, int]  # source, duplicates, train, validation, test; cut, dropped_long, dropped_empty, dropped_unlabelled
    labels: tuple[str, ...]  # classify: the words the model answers, in class order
    class_counts: Mapping[str, Mapping[str, int]]  # side -> label -> rows, of train and validation
    longest: int  # tokens of the longest row kept
    max_length: int
    rows_fingerprint: str
    tokens_fingerprint: str
    notices: tuple[str, ...] = ()  # sentences for people: rows cut or dropped, rare classes


def build(
    spec: SweepSpec,
    tokenizer: PreTrainedTokenizerBase,
    data_home: Path,
    progress: Progress | None = None,
    context: int | None = None,
) -> Bundle:
    """Makes the data of a spec ready under `data_home`, or finds it there.

    `context` is how many tokens the model can read; None asks the model's config (4 s for a GGUF file) where training.max_length
    is not set. Raises DataError for rows that cannot be used, ModelError for a tokenizer or length, ResourceError for the disk.
    """
    with disk_errors(data_home):
        max_length = _max_length(spec, tokenizer, context)
        source = open_source(spec.data)
        rows = _rows(source, spec.data.split, data_home, progress)
        check_sides(rows, spec.data)
        name = _tokens_fingerprint(rows, spec.data, tokenizer, max_length)
        folder = data_home / rows.fingerprint
        if not (folder / name / "bundle.json").exists():
            _encode(spec.data, tokenizer, max_length, rows, folder, name, source.name, progress)
        return _bundle(folder, name, source.name)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk, or one that may not be written, into a ResourceError."""
    try:
        yield
    except OSError as error:
        # pyarrow does not always carry errno; it then stands in the text.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "[errno 28]" in str(error).lower()
        if full:
            raise ResourceError(f"the disk of {folder} is full; free some space, or choose another disk with --home") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            where = error.filename or folder
            raise ResourceError(f"{where} may not be written ({error.strerror}); choose another --home") from error
        raise


def _max_length(spec: SweepSpec, tokenizer: PreTrainedTokenizerBase, context: int | None) -> int:
    asked = spec.training.max_length
    if asked is None:
        return context if context is not None else context_length(spec.model, tokenizer)
    if context is not None and asked > context:
        raise ModelError(f"training.max_length is {asked}, but the model reads at most {context} tokens; lower it")
    return asked


def _rows(source: Source, split: SplitSpec, data_home: Path, progress: Progress | None) -> RowsInfo:
    stamp = source.stamp()
    began = time.time()
    cache = data_home / "sources.json"
    known = _read_json(cache)
    # What is kept depends on the split only where files decide over the sides; their stamps hold that.
    key = fingerprint(_VERSION, *stamp)
    content = known.get(key)
    if content is not None:
        info = RowsInfo.read(data_home / _rows_fingerprint(str(content), split))
        if info is not None:
            return info
    found = scan(source, split, progress)
    name = _rows_fingerprint(found.content, split)
    if source.stamp() == stamp and began - stamp[1] > _SETTLED_SECONDS:
        _write_json(cache, dict(list(known.items())[-199:]) | {key: found.content})
    return RowsInfo.read(data_home / name) or store_rows(source, found, name, data_home, progress)


def _rows_fingerprint(content: str, split: SplitSpec) -> str:
    return fingerprint("rows", _VERSION, content, rule(split))


def _tokens_fingerprint(rows: RowsInfo, data: DataSpec, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    return fingerprint(
        "tokens",
        _VERSION,
        rows.fingerprint,
        data.task,
        data.columns.model_dump(),
        data.template,
        data.chat_template,
        # Pairs, because the order of labels is the order of classes.
        list(data.labels.items()) if isinstance(data.labels, dict) else data.labels,
        data.too_long,
        data.limit.model_dump(),
        max_length,
        tokenizer_fingerprint(tokenizer),
    )


def _encode(
    data: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    rows: RowsInfo,
    folder: Path,
    name: str,
    source: str,
    progress: Progress | None,
) -> None:
    values = _values(data, rows, folder)
    labels = _labels(data, rows, folder, values)
    encoder = encoder_of(data, tokenizer, list(rows.columns), max_length, labels)
    limits = {"train": data.limit.train, "validation": data.limit.validation}
    totals = {side: min(rows.rows[side], limit or rows.rows[side]) for side, limit in limits.items()}
    info = TokenInfo(
        task=data.task,
        rows=0,
        tokens=0,
        longest=0,
        labels=labels.words if labels is not None else (),
        label_ids=encoder.label_ids if isinstance(encoder, PromptEncoder) else (),
        end_id=encoder.end_id,
        rows_fingerprint=rows.fingerprint,
        tokens_fingerprint=name,
    )
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("tokenising", done, sum(totals.values()))

    aside = new_aside(folder.parent)
    try:
        tallies = {
            side: _encode_side(folder / f"{side}.parquet", aside / side, encoder, rows.columns, info, total, advance)
            for side, total in totals.items()
        }
        record = {
            "counts": _counts(rows, tallies),
            "labels": info.labels,
            "class_counts": class_counts(tallies, info.labels),
            "longest": max(tally.longest_used for tally in tallies.values()),
            "max_length": max_length,
            "notices": judge(data, max_length, tallies, labels, rows, values["train"]),
        }
        (aside / "bundle.json").write_text(json.dumps(record, ensure_ascii=False, indent=1))
        move_in(aside, folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _counts(rows: RowsInfo, tallies: Mapping[str, Tally]) -> dict[str, int]:
    fates = sum((tally.fates for tally in tallies.values()), Counter[str]())
    return {
        "source": sum(rows.rows.values()),
        "duplicates": rows.duplicates,
        "train": tallies["train"].rows,
        "validation": tallies["validation"].rows,
        "test": rows.rows["test"],
        "cut": fates["cut"],
        "dropped_long": fates["long"],
        "dropped_empty": fates["empty"],
        "dropped_unlabelled": fates["unlabelled"],
    }


def _values(data: DataSpec, rows: RowsInfo, folder: Path) -> dict[str, Counter[str]]:
    """Side -> value of the label column, as text -> rows, of training and validation; empty where there is no such column."""
    found: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
    if data.task != "classify":
        return found
    columns = columns_of(data, list(rows.columns))
    template_of(data, columns, list(rows.columns))
    for side, counts in found.items():
        column = pq.read_table(folder / f"{side}.parquet", columns=[rows.columns[columns["label"]]]).column(0)
        for pair in pc.value_counts(column).to_pylist():
            counts[as_text(pair["values"]).strip()] += pair["counts"]
        counts.pop("", None)
    return found


def _labels(data: DataSpec, rows: RowsInfo, folder: Path, values: Mapping[str, Counter[str]]) -> classes.Labels | None:
    if data.task != "classify":
        return None
    columns = columns_of(data, list(rows.columns))
    labels = classes.resolve(data.labels, values["train"] + values["validation"], columns["label"])
    unknown = sealed_unknown(folder / "sealed", rows.columns[columns["label"]], labels.class_of)
    if unknown:
        what = "a value" if unknown == 1 else f"{unknown} values"
        raise DataError(
            f"the test rows hold {what} of the label column {columns['label']!r} that neither training nor data.labels has; "
            "add training rows of it, list it in data.labels, or leave those rows out"
        )
    return labels


def _encode_side(
    path: Path,
    folder: Path,
    encoder: Encoder,
    stored: Mapping[str, str],
    info: TokenInfo,
    total: int,
    advance: Callable[[int], None],
) -> Tally:
    """Tokenises the first `total` rows of a side's parquet file into a token set; `stored` maps columns to names in the file."""
    tally = Tally()
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow.insert(1, pa.field("reference", pa.string()))
        with TokenWriter(folder, schema) as writer:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                batch = batch.slice(0, total - tally.seen)
                coded = encoder.encode({column: batch.column(stored[column]).to_pylist() for column in encoder.columns})
                tally.add(coded)
                references = pa.array([row.reference for row in coded], pa.string())
                table = pa.record_batch([batch.column(0), references, *batch.columns[1:]], schema=schema)
                used = pa.array([row.row is not None for row in coded], pa.bool_())
                writer.append([row.row for row in coded if row.row is not None], table.filter(used))
                advance(len(coded))
                if tally.seen >= total:
                    break
            writer.finish(info)
    return tally


def _bundle(folder: Path, name: str, source: str) -> Bundle:
    record: dict[str, Any] = json.loads((folder / name / "bundle.json").read_text())
    return Bundle(
        train=folder / name / "train",
        validation=folder / name / "validation",
        sealed=folder / "sealed",
        source=source,
        counts=record["counts"],
        labels=tuple(record["labels"]),
        class_counts=record["class_counts"],
        longest=record["longest"],
        max_length=record["max_length"],
        rows_fingerprint=folder.name,
        tokens_fingerprint=name,
        notices=tuple(record["notices"]),
    )


def _read_json(path: Path) -> dict[str, object]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".sources-")
    with os.fdopen(handle, "w") as file:
        json.dump(value, file)
    os.replace(aside, path)
