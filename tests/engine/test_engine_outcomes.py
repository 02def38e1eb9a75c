"""Per-row outcomes survive their parquet part exactly, and refuse what cannot be right."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper.engine.outcomes import RowOutcomes, from_parquet, join, to_parquet


def classified(n: int = 5, start: int = 0) -> RowOutcomes:
    rng = np.random.default_rng(start)
    scores = rng.normal(size=(n, 3)).astype(np.float32)
    return RowOutcomes(
        row_ids=[f"r{i}" for i in range(start, start + n)],
        loss_sum=rng.random(n),
        tokens=rng.integers(1, 9, n),
        labels=rng.integers(0, 3, n).astype(np.int32),
        scores=scores,
        predictions=scores.argmax(1).astype(np.int32),
        references=["a", "b", "ü"] + ["c"] * (n - 3),
    )


def decoded() -> RowOutcomes:
    return RowOutcomes(
        row_ids=["x", "y"],
        loss_sum=np.array([0.25, np.nan]),
        tokens=np.array([3, 4]),
        labels=np.full(2, -1, np.int32),
        texts=["first\nline", ""],
        references=["first line", "zwei"],
    )


def same(a: RowOutcomes, b: RowOutcomes) -> None:
    for name, left in vars(a).items():
        right = getattr(b, name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            assert left.shape == right.shape
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right, name


@pytest.mark.parametrize("rows", [classified(), decoded(), classified().take([])], ids=["classified", "decoded", "empty"])
def test_a_part_gives_back_exactly_what_was_written(rows: RowOutcomes) -> None:
    same(rows, from_parquet(to_parquet(rows)))


def test_equal_rows_give_equal_bytes() -> None:
    assert to_parquet(classified()) == to_parquet(classified())


def test_a_part_is_a_plain_parquet_table_for_other_tools() -> None:
    table = pq.read_table(io.BytesIO(to_parquet(classified())))
    assert table.column_names == ["row_id", "loss_sum", "tokens", "label", "scores", "prediction", "reference"]
    assert pa.types.is_fixed_size_list(table.schema.field("scores").type)


def test_a_foreign_file_is_refused_with_what_it_lacks() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"row_id": ["a"], "tokens": [1]}), sink)
    with pytest.raises(ValueError, match=r"lacks label, loss_sum; it has row_id, tokens"):
        from_parquet(sink.getvalue())
    with pytest.raises(ValueError, match="not a parquet file"):
        from_parquet(b"PK\x03\x04 something else")


def test_pieces_join_in_order() -> None:
    whole = join([classified(4, start=0), classified(3, start=4)])
    assert whole.row_ids == [f"r{i}" for i in range(7)]
    same(whole.take(range(4, 7)), classified(3, start=4))


def test_a_row_counted_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        join([classified(4), classified(3)])


def test_pieces_that_know_different_things_do_not_join() -> None:
    with pytest.raises(ValueError, match="in some parts only"):
        join([classified(), decoded()])


def test_fields_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        RowOutcomes(row_ids=["a"], loss_sum=np.zeros(2), tokens=np.ones(1, np.int64), labels=np.zeros(1, np.int32))


def test_take_keeps_rows_whole() -> None:
    rows = classified()
    picked = rows.take([3, 1])
    assert picked.row_ids == ["r3", "r1"]
    assert picked.loss_sum[1] == rows.loss_sum[1]
    assert picked.scores is not None
    assert rows.scores is not None
    np.testing.assert_array_equal(picked.scores[0], rows.scores[3])


def test_the_class_is_the_highest_score_where_no_prediction_was_stored() -> None:
    rows = classified()
    bare = RowOutcomes(rows.row_ids, rows.loss_sum, rows.tokens, rows.labels, scores=rows.scores)
    np.testing.assert_array_equal(bare.classes(), rows.predictions)
    assert decoded().classes() is None
