"""Reading files as people have them, and one sentence for each that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pytest
from data_helpers import reviews, spec_of, write_csv, write_jsonl

from sweeper.data.build import Bundle
from sweeper.data.source import open_source
from sweeper.data.tokens import TokenSet
from sweeper.errors import DataError

Built = Callable[..., Bundle]


def read(path: Path | str) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {}
    for part in open_source(spec_of({"task": "text", "path": str(path)}).data).parts:
        for batch in part.batches():
            for name, values in batch.items():
                columns.setdefault(name, []).extend(values)
    return columns


def test_csv_with_quotes_line_ends_bom_and_unicode(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefftext,label\r\n"a, ""b""\nc",007\r\n\r\n"naïve ☃", x \r\n'.encode())
    assert read(path) == {"text": ['a, "b"\nc', "naïve ☃"], "label": ["007", " x "]}


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t")])
def test_other_delimiters(tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(f"text{mark}label\nx{mark}1\n")
    assert read(tmp_path / name) == {"text": ["x"], "label": ["1"]}


def test_jsonl_rows_may_lack_keys(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "n": 1}, {"text": "y", "m": [1]}])) == {
        "text": ["x", "y"],
        "n": [1, None],
        "m": [None, [1]],
    }


def test_a_glob_reads_all_files_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"text": "2"}])
    write_jsonl(tmp_path / "a.jsonl", [{"text": "1"}])
    assert read(tmp_path / "*.jsonl") == {"text": ["1", "2"]}


def test_parquet_keeps_types_and_every_other_column(tmp_path: Path, built: Built) -> None:
    rows = reviews(60)
    frame = pd.DataFrame(rows).assign(stars=[i % 5 for i in range(60)], score=0.5, spam=False, reference="mine", tags=[["a"]] * 60)
    frame.loc[0, "score"] = None
    frame.to_parquet(tmp_path / "a.parquet")
    tokens = TokenSet(built(path=str(tmp_path / "a.parquet")).train)
    assert tokens.columns() == ["row_id", "reference", "text", "label", "stars", "score", "spam", "source_reference", "tags"]
    assert set(tokens.column("stars")) <= {0, 1, 2, 3, 4}
    assert tokens.column("source_reference")[0] == "mine"
    assert tokens.column("spam")[0] is False
    assert json.loads(str(tokens.column("tags")[0])) == ["a"]
    assert tokens.references() == tokens.column("label")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text,label\n", "a.csv holds no rows"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no rows"),
        ("a.csv", b"text,label\nx,1\ny\xff,2\n", r"not valid UTF-8 at line 3 \(byte 0xff at offset 16\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', r"not valid UTF-8 at line 2 \(byte 0xe9 at offset 24\)"),
        ("a.csv", "text,label\nx,1\n".encode("utf-16"), "is UTF-16, but must be UTF-8"),
        ("a.csv", b"text,label\nx,1\ny,2,3\n", "line 3 has 3 cells, but the header has 2"),
        ("a.csv", b'text,label\n"x,1\ny,2\n', "is no valid csv"),
        ("a.csv", b"text,text\nx,1\n", "two columns named 'text'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is no valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "line 2 is '\\[\"y\"\\]', but must be a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', "half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "no valid JSON|nests too deep"),
        ("a.parquet", b"PAR1 but not really", "no readable parquet file"),
        ("a.parquet", b"", "no readable parquet file"),
        ("a.txt", b"x", "ends in '.txt', but must end in one of .csv"),
    ],
)
def test_a_file_that_cannot_be_read_gets_one_sentence(
    tmp_path: Path, built: Built, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        built(path=str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").glob("*"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, built: Built) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        built(path=str(tmp_path / "gone.csv"))
    with pytest.raises(DataError, match="is the folder"):
        built(path=str(tmp_path))


def test_a_hub_data_set_is_read_with_the_names_of_its_classes(
    tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # `load_dataset` takes a folder as it takes a hub id, with the same features.
    folder = tmp_path / "set"
    folder.mkdir()
    write_csv(folder / "train.csv", reviews(60))
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n"
        "        names:\n          '0': negative\n          '1': positive\n---\n"
    )
    bundle = built(hub={"name": str(folder)})
    assert bundle.labels == ("negative", "positive")
    assert bundle.counts["source"] == 60
    assert bundle.source == f"hub:{folder}:train"
    monkeypatch.setattr("sweeper.data.build.scan", None)
    assert built(hub={"name": str(folder)}) == bundle


def test_a_hub_data_set_out_of_reach_gets_one_sentence(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hub data set 'nobody/nothing' .* cannot be loaded") as caught:
        built(hub={"name": "nobody/nothing"})
    assert "\n" not in str(caught.value)
