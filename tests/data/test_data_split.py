"""Which side a row falls on, and that nothing but its own content decides."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_helpers import make_tokenizer, reviews, spec_of, write_csv, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeper.data.build import Bundle, build
from sweeper.data.scan import scan
from sweeper.data.source import open_source
from sweeper.data.split import SIDES
from sweeper.data.tokens import TokenSet
from sweeper.errors import DataError

Built = Callable[..., Bundle]
_QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sides(path: Path, **split: object) -> dict[str, set[str]]:
    """Texts of each side."""
    data = spec_of({"task": "text", "path": str(path), "split": split}).data
    found = scan(open_source(data), data.split)
    texts = [row for part in open_source(data).parts for batch in part.batches() for row in batch["text"]]
    return {side: {str(text) for text, s in zip(texts, found.sides, strict=True) if s == n} for n, side in enumerate(SIDES)}


def ids_of(bundle: Bundle) -> dict[str, set[str]]:
    found = {side: set(TokenSet(getattr(bundle, side)).row_ids()) for side in ("train", "validation")}
    return found | {"test": set(pq.read_table(bundle.sealed / "test.parquet")["row_id"].to_pylist())}


@_QUIET
@given(
    old=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=40),
    new=st.lists(st.text(st.characters(codec="utf-8")), max_size=40),
    seed=st.integers(0, 1000),
)
def test_new_rows_and_another_order_never_move_a_row(tmp_path: Path, old: list[str], new: list[str], seed: int) -> None:
    before = sides(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in old]), test=0.3, validation=0.3)
    rows = [{"text": text} for text in old + new]
    random.Random(seed).shuffle(rows)
    after = sides(write_jsonl(tmp_path / "b.jsonl", rows), test=0.3, validation=0.3)
    for side in SIDES:
        assert before[side] <= after[side]
    assert not after["train"] & after["test"]


@_QUIET
@given(groups=st.lists(st.integers(0, 8), min_size=2, max_size=60))
def test_a_group_is_never_torn(tmp_path: Path, groups: list[int]) -> None:
    rows = [{"text": f"{group}", "number": i, "group": group} for i, group in enumerate(groups)]
    found = sides(write_jsonl(tmp_path / "a.jsonl", rows), by="group", column="group", test=0.3, validation=0.3)
    assert sum(len(texts) for texts in found.values()) == len(set(groups))


def test_the_shares_are_those_asked_for(tmp_path: Path) -> None:
    found = sides(write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(4000)]), test=0.2, validation=0.1)
    assert len(found["test"]) == pytest.approx(800, abs=100)
    assert len(found["validation"]) == pytest.approx(400, abs=80)


def test_a_larger_validation_share_leaves_the_test_rows_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(500)])
    assert sides(path, validation=0.1)["test"] == sides(path, validation=0.4)["test"]


def test_template_tokenizer_labels_and_limit_do_not_move_rows(built: Built) -> None:
    plain = built(reviews(200))
    other = built(
        template="Is this good? {text}\nAnswer: ",
        with_tokenizer=make_tokenizer(bos=True),
        labels={"positive": "yes", "negative": "no"},
        max_length=60,
    )
    limited = built(limit={"train": 20})
    assert ids_of(plain) == ids_of(other)
    assert plain.rows_fingerprint == other.rows_fingerprint == limited.rows_fingerprint
    assert len({plain.tokens_fingerprint, other.tokens_fingerprint, limited.tokens_fingerprint}) == 3
    assert TokenSet(limited.train).row_ids() == TokenSet(plain.train).row_ids()[:20]
    assert ids_of(limited)["test"] == ids_of(plain)["test"]


def test_rows_are_numbered_in_hash_order_and_copies_are_told_apart(built: Built) -> None:
    bundle = built(reviews(100) * 2)
    rows = TokenSet(bundle.train).row_ids()
    assert rows == sorted(rows)
    assert len(set(rows)) == len(rows)
    assert {row.split("-")[1] for row in rows} == {"0", "1"}
    assert bundle.counts["duplicates"] == 100
    for ids in ids_of(bundle).values():
        assert ids == {f"{row.split('-')[0]}-{number}" for row in ids for number in (0, 1)}


def test_the_same_rows_in_csv_or_jsonl_in_any_order_have_one_fingerprint(tmp_path: Path, built: Built) -> None:
    jsonl = built(reviews(80))
    csv = built(path=str(write_csv(tmp_path / "same.csv", reviews(80)[::-1])))
    assert csv == type(csv)(**(vars(jsonl) | {"source": csv.source}))
    assert csv.rows_fingerprint != built(reviews(81)).rows_fingerprint


def test_many_buckets_give_the_same_order_as_one(tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = reviews(5000)
    one = TokenSet(built(rows).train)
    monkeypatch.setattr("sweeper.data.store._BUCKET_BYTES", 10_000)
    data = {"task": "classify", "path": str(tmp_path / "data.jsonl")}
    many = TokenSet(build(spec_of(data, max_length=64), make_tokenizer(), tmp_path / "other").train)
    assert many.row_ids() == one.row_ids()
    assert many.column("text") == one.column("text")


def test_by_column_takes_default_and_given_names(built: Built) -> None:
    rows = [
        row | {"part": ("train", "train", "train", "train", "dev", "dev", "test", "test")[i % 8]}
        for i, row in enumerate(reviews(64))
    ]
    bundle = built(rows, split={"by": "column", "column": "part"})
    assert (bundle.counts["train"], bundle.counts["validation"], bundle.counts["test"]) == (32, 16, 16)
    rows = [row | {"fold": i % 4} for i, row in enumerate(reviews(64))]
    bundle = built(rows, split={"by": "column", "column": "fold", "names": {"train": [0, 1], "validation": [2, 3]}})
    assert (bundle.counts["train"], bundle.counts["validation"], bundle.counts["test"]) == (32, 32, 0)


def test_by_column_refuses_a_value_that_names_no_side(built: Built) -> None:
    rows = [row | {"part": "train" if i else "trian"} for i, row in enumerate(reviews(10))]
    with pytest.raises(DataError, match=r"'trian' in row 1, .* did you mean 'train'\?"):
        built(rows, split={"by": "column", "column": "part"})


@pytest.mark.parametrize("write", [lambda i: i, lambda i: f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}", lambda i: str(1000.5 + i)])
def test_by_time_trains_on_the_oldest_and_tests_on_the_newest(built: Built, write: Callable[[int], object]) -> None:
    rows = [row | {"when": write(i), "place": i} for i, row in enumerate(reviews(100))]
    bundle = built(rows[::-1], split={"by": "time", "column": "when", "validation": 0.2, "test": 0.1})
    train, validation = (sorted(map(int, map(str, TokenSet(f).column("place")))) for f in (bundle.train, bundle.validation))
    assert train == list(range(70))
    assert validation == list(range(70, 90))
    assert bundle.counts["test"] == 10


@pytest.mark.parametrize(("value", "message"), [("soon", "'soon' in row 3"), (None, "'' in row 3"), (7, "mixes numbers and dates")])
def test_by_time_refuses_what_is_no_time(built: Built, value: object, message: str) -> None:
    rows = [row | {"when": value if i == 2 else "2024-05-31T10:00:00Z"} for i, row in enumerate(reviews(10))]
    with pytest.raises(DataError, match=message):
        built(rows, split={"by": "time", "column": "when"})


def test_by_files_keeps_the_files_apart_and_tells_of_rows_in_two(tmp_path: Path, built: Built) -> None:
    rows = reviews(60)
    validation = write_csv(tmp_path / "v.csv", rows[38:50])
    test = write_jsonl(tmp_path / "t.jsonl", rows[50:])
    bundle = built(rows[:40], split={"by": "files", "validation_path": str(validation), "test_path": str(test)})
    assert (bundle.counts["train"], bundle.counts["validation"], bundle.counts["test"]) == (40, 12, 10)
    assert bundle.notices[0].startswith("2 rows stand word for word on another side")


def test_a_side_without_rows_is_refused(built: Built) -> None:
    with pytest.raises(DataError, match="none of the 2 rows falls on the"):
        built(reviews(2), split={"validation": 0.01})


def test_a_split_column_that_is_missing_is_refused_with_the_nearest(built: Built) -> None:
    rows = [row | {"author": "a"} for row in reviews(10)]
    with pytest.raises(DataError, match=r"'auther', .* did you mean 'author'\?"):
        built(rows, split={"by": "group", "column": "auther"})
