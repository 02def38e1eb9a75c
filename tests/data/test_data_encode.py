"""What a row's tokens and targets are, for classify, instruct and text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from data_helpers import make_tokenizer, reviews
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sweeper.data.build import Bundle
from sweeper.data.encode import leading_ids
from sweeper.data.task import prompt_encoder
from sweeper.data.template import names_in
from sweeper.data.tokens import TokenSet
from sweeper.errors import DataError, ModelError
from sweeper.spec.models import Columns, DataSpec

Built = Callable[..., Bundle]


def texts_of(tokens: TokenSet, tokenizer: Any) -> list[tuple[str, str]]:
    """(what is given, what is to be predicted) of each row."""
    rows = [tokens.row(i) for i in range(len(tokens))]
    return [(tokenizer.decode(row.ids[~row.target]), tokenizer.decode(row.ids[row.target])) for row in rows]


def qa(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"what is {i} and {i}", "completion": f"the sum is {2 * i}"} for i in range(count)]


def test_classify_predicts_the_label_and_the_end_token(built: Built, tokenizer: Any) -> None:
    tokens = TokenSet(built(reviews(60)).train)
    text, label = tokens.column("text")[0], tokens.column("label")[0]
    assert texts_of(tokens, tokenizer)[0] == (f"{text}\nLabel:", f" {label}<|im_end|>")
    row = tokens.row(0)
    assert tokens.info.labels == ("negative", "positive")
    assert tuple(row.ids[row.prompt :]) == tokens.info.label_ids[row.label]
    assert tokens.info.labels[row.label] == label
    assert tokens.info.end_id == tokenizer.eos_token_id
    assert np.flatnonzero(row.target)[0] == row.prompt


def test_the_prompt_is_tokenised_as_it_will_be_at_prediction(built: Built, tokenizer: Any) -> None:
    tokens = TokenSet(built(reviews(60), template="{text} =>").train)
    data = DataSpec(task="classify", path="x", template="{text} =>")
    texts = [str(text) for text in tokens.column("text")]
    new = prompt_encoder(data, tokenizer, ["text"], 64, tokens.info.labels).prompts({"text": texts})
    assert new == [tokens.row(i).ids[: tokens.row(i).prompt].tolist() for i in range(len(tokens))]


def test_new_rows_may_name_the_column_by_its_role(tokenizer: Any) -> None:
    for template in (None, "Review: {text}"):
        data = DataSpec(task="classify", path="x", columns=Columns(text="sentence"), template=template)
        by_role = prompt_encoder(data, tokenizer, ["text"], 64, ("a", "b")).prompts({"text": ["good film"]})
        assert by_role == prompt_encoder(data, tokenizer, ["sentence"], 64, ("a", "b")).prompts({"sentence": ["good film"]})
    with pytest.raises(DataError, match="'sentence', which the data does not have"):
        prompt_encoder(data, tokenizer, ["title"], 64, ("a", "b"))


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        ("{text} is\n", "T is\n", "positive<|im_end|>"),
        ("{text} is", "T is", " positive<|im_end|>"),
        ("Say {{x}}: {text}", "Say {x}: T", " positive<|im_end|>"),
    ],
)
def test_the_answer_follows_with_exactly_one_white_space(
    built: Built, tokenizer: Any, template: str, prompt: str, answer: str
) -> None:
    tokens = TokenSet(built(reviews(60), template=template).train)
    row = tokens.column("label").index("positive")
    expected = prompt.replace("T", str(tokens.column("text")[row]))
    assert texts_of(tokens, tokenizer)[row] == (expected, answer)


def test_labels_map_values_to_the_words_answered(built: Built, tokenizer: Any) -> None:
    rows = [{"text": f"film {i}", "label": i % 3} for i in range(90)]
    bundle = built(rows, labels={"2": "good", "1": "fair", "0": "fair"})
    tokens = TokenSet(bundle.train)
    assert bundle.labels == ("good", "fair")
    assert all((tokens.references()[i] == "good") == (value == 2) for i, value in enumerate(tokens.column("label")))
    assert bundle.class_counts["train"]["good"] == tokens.references().count("good")


def test_a_tokenizer_that_adds_bos_gets_it_once_and_never_as_a_target(built: Built) -> None:
    tokenizer = make_tokenizer(bos=True)
    tokens = TokenSet(built(reviews(60), with_tokenizer=tokenizer).train)
    ids = tokens.row(0).ids.tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_tokens_that_a_tokenizer_appends_by_itself_are_left_out(built: Built) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", 0), ("<|im_end|>", 2)]
    )
    assert leading_ids(tokenizer) == [0]
    row = TokenSet(built(qa(60), with_tokenizer=tokenizer, task="instruct").train).row(0)
    assert row.ids.tolist().count(2) == 1
    assert row.ids[-1] == 2


def test_a_tokenizer_that_puts_a_space_first_does_not_get_two(built: Built) -> None:
    words = ["</s>", "▁", "▁good", "▁bad", "▁film", "▁Label:", "▁<|unk|>"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="▁<|unk|>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    rows = [{"text": f"film {i}", "label": "good" if i % 2 else "bad"} for i in range(60)]
    tokens = TokenSet(built(rows, with_tokenizer=tokenizer).train)
    assert tokens.info.label_ids == ((3, 0), (2, 0))


def test_instruct_predicts_the_completion(built: Built, tokenizer: Any) -> None:
    tokens = TokenSet(built(qa(60), task="instruct").train)
    prompt, completion = tokens.column("prompt")[0], tokens.column("completion")[0]
    assert texts_of(tokens, tokenizer)[0] == (f"{prompt}\n", f"{completion}<|im_end|>")
    assert tokens.references()[0] == completion
    assert tokens.row(0).label == -1


def test_the_chat_template_wraps_the_prompt_as_a_user_turn(built: Built, tokenizer: Any) -> None:
    tokens = TokenSet(built(reviews(60), template="{text}?", chat_template=True).train)
    text, label = tokens.column("text")[0], tokens.column("label")[0]
    assert texts_of(tokens, tokenizer)[0] == (
        f"<|im_start|>user\n{text}?<|im_end|>\n<|im_start|>assistant\n",
        f"{label}<|im_end|>",
    )


def test_the_chat_templates_own_end_of_turn_ends_an_answer(built: Built) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<s>"
    assert TokenSet(built(qa(60), task="instruct", chat_template=True, with_tokenizer=tokenizer).train).info.end_id == 2
    assert TokenSet(built(task="instruct", with_tokenizer=tokenizer).train).info.end_id == 0


def test_a_tokenizer_without_chat_template_is_refused(built: Built) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        built(reviews(60), chat_template=True, with_tokenizer=make_tokenizer(chat=None))


def test_a_tokenizer_without_end_token_is_refused(built: Built) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        built(reviews(60), with_tokenizer=tokenizer)


def test_text_predicts_every_token_but_the_first(built: Built, tokenizer: Any) -> None:
    tokens = TokenSet(built([{"text": f"hello {i}"} for i in range(60)], task="text").train)
    row = tokens.row(0)
    assert tokenizer.decode(row.ids) == f"{tokens.column('text')[0]}<|im_end|>"
    assert row.target.tolist() == [False] + [True] * (len(row.ids) - 1)
    assert (row.prompt, row.label, tokens.references()[0]) == (0, -1, "")


def test_long_rows_are_refused_with_their_number_and_the_longest(built: Built) -> None:
    rows = [*reviews(60), *({"text": "long " * 50 + str(i), "label": "positive"} for i in range(20))]
    with pytest.raises(DataError, match=r"\d+ of \d+ rows are longer than 40 tokens \(the longest has \d{3}\); set data.too_long"):
        built(rows, max_length=40)


@pytest.mark.parametrize("bos", [False, True])
def test_cutting_keeps_the_completion_the_bos_and_the_prompts_end(built: Built, bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos)
    rows = [{"text": "long " * 50 + f"story {i}", "label": "positive" if i % 2 else "negative"} for i in range(60)]
    bundle = built(rows, max_length=40, too_long="cut", with_tokenizer=tokenizer)
    tokens = TokenSet(bundle.train)
    given, predicted = texts_of(tokens, tokenizer)[0]
    assert tokens.length(0) == 40
    assert given.startswith("<s>") == bos
    assert given.endswith(f"{str(tokens.column('text')[0])[-8:]}\nLabel:")
    assert predicted == f" {tokens.references()[0]}<|im_end|>"
    assert bundle.counts["cut"] == bundle.counts["train"] + bundle.counts["validation"]
    assert "were cut to 40 tokens" in bundle.notices[0]


def test_dropping_leaves_long_rows_out_and_says_so(built: Built) -> None:
    long = [{"text": "long " * 50 + str(i), "label": "positive"} for i in range(20)]
    bundle = built(reviews(60) + long, max_length=40, too_long="drop")
    tokens = TokenSet(bundle.train)
    assert not [text for text in tokens.column("text") if str(text).startswith("long")]
    assert bundle.counts["dropped_long"] + bundle.counts["train"] + bundle.counts["validation"] + bundle.counts["test"] == 80
    assert "longer than 40 tokens" in bundle.notices[0]
    assert tokens.info.longest <= 40


def test_text_is_cut_at_its_end(built: Built, tokenizer: Any) -> None:
    tokens = TokenSet(
        built([{"text": f"{i} " + "hello " * 50} for i in range(60)], task="text", max_length=10, too_long="cut").train
    )
    assert str(tokens.column("text")[0]).startswith(tokenizer.decode(tokens.row(0).ids))


def test_a_completion_that_does_not_fit_is_dropped_not_halved(built: Built) -> None:
    rows = [*qa(60), *({"prompt": f"tell {i}", "completion": "long " * 50} for i in range(20))]
    bundle = built(rows, task="instruct", max_length=40, too_long="cut")
    assert bundle.counts["dropped_long"] > 0
    assert bundle.counts["cut"] == 0


def test_rows_without_text_or_label_are_dropped_and_counted(built: Built) -> None:
    rows = [*reviews(60), {"text": " ", "label": "positive"}, {"text": None, "label": "negative"}, {"text": "x", "label": None}]
    rows = [row | {"side": "dev" if i < 10 else "train"} for i, row in enumerate(rows)]
    bundle = built(rows, split={"by": "column", "column": "side"})
    assert (bundle.counts["train"], bundle.counts["dropped_empty"], bundle.counts["dropped_unlabelled"]) == (50, 2, 1)
    assert [notice.split(" rows ")[1] for notice in bundle.notices[:2]] == [
        "were dropped, because they have no text, prompt or answer",
        "were dropped, because they have no label",
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=20, max_size=40, unique=True),
    task=st.sampled_from(["instruct", "text"]),
    max_length=st.integers(4, 30),
    too_long=st.sampled_from(["cut", "drop"]),
)
def test_every_row_kept_fits_and_has_a_target_that_is_not_its_first_token(
    built: Built, tokenizer: Any, texts: list[str], task: str, max_length: int, too_long: str
) -> None:
    rows = [{"text": text, "prompt": text, "completion": text[::-1]} for text in texts]
    try:
        bundle = built(rows, task=task, max_length=max_length, too_long=too_long, split={"validation": 0.4, "test": 0.2})
    except DataError as error:
        if "can be used" not in str(error) and "falls on the" not in str(error):
            raise
        return
    for folder in (bundle.train, bundle.validation):
        tokens = TokenSet(folder)
        for i in range(len(tokens)):
            row = tokens.row(i)
            assert 1 < len(row.ids) <= max_length
            assert row.target.any()
            assert not row.target[0]
            assert row.prompt == 0 or not row.target[: row.prompt].any()


def test_escaped_braces_of_a_template_name_nothing() -> None:
    assert names_in("{{json}} {text} and { text }: {{}}") == ("text",)
