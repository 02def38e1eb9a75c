"""Loss on the assistant's tokens only, whatever the template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from data_helpers import CHATML, make_tokenizer

from sweeper.data.build import Bundle
from sweeper.data.chat import ChatEncoder
from sweeper.data.tokens import TokenSet
from sweeper.errors import DataError, ModelError

Built = Callable[..., Bundle]

TALK = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": " one two"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "the sum"},
]
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As templates of reasoning models do: only the last answer keeps its thoughts.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<s><s>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COUNTING = "{{ messages | length }}" + CHATML


def predicted(template: str, messages: list[dict[str, str]], **options: Any) -> list[str]:
    """The runs of target tokens as text."""
    tokenizer = make_tokenizer(chat=template)
    encoder = ChatEncoder(tokenizer, "messages", options.get("max_length", 200), options.get("cut", False))
    row = encoder.encode({"messages": [messages]})[0].row
    assert row is not None
    assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(messages, tokenize=False)[: len(tokenizer.decode(row.ids))]
    runs, last = [], False
    for token, wanted in zip(row.ids, row.target, strict=True):
        if wanted:
            runs = [*runs[:-1], [*runs[-1], token]] if last else [*runs, [token]]
        last = bool(wanted)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_every_assistant_turn_is_predicted_with_its_end(template: str) -> None:
    assert predicted(template, TALK) == [" one two<|im_end|>", "the sum<|im_end|>"]


def test_a_template_that_rewrites_earlier_answers_still_works() -> None:
    assert predicted(FORGETFUL, TALK) == [" one two<|im_end|>", "<s><s>the sum<|im_end|>"]


def test_a_template_whose_beginning_changes_is_refused() -> None:
    with pytest.raises(DataError, match="assistant's tokens cannot be told apart"):
        predicted(COUNTING, TALK)


def test_a_long_conversation_is_cut_at_its_end() -> None:
    tokenizer = make_tokenizer()
    first = len(tokenizer(tokenizer.apply_chat_template(TALK[:3], tokenize=False))["input_ids"])
    assert predicted(CHATML, TALK, max_length=first, cut=True) == [" one two<|im_end|>"]
    uncut = ChatEncoder(tokenizer, "messages", 5, cut=True).encode({"messages": [TALK]})[0]
    assert (uncut.row, uncut.fate) == (None, "long")


def test_lists_and_json_text_give_the_same_rows(built: Built) -> None:
    rows = [[{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": f"sum {i}"}] for i in range(60)]
    lists = TokenSet(built([{"id": i, "messages": row} for i, row in enumerate(rows)], task="chat").train)
    texts = TokenSet(built([{"id": i, "messages": json.dumps(row)} for i, row in enumerate(rows)], task="chat").train)
    assert {tuple(lists.row(i).ids) for i in range(len(lists))} & {tuple(texts.row(i).ids) for i in range(len(texts))}
    row = lists.row(0)
    assert (row.prompt, row.label, lists.references()[0]) == (0, -1, "")
    assert make_tokenizer().decode(row.ids[row.target]) == json.loads(str(lists.column("messages")[0]))[1]["content"] + "<|im_end|>"


def test_a_conversation_without_an_answer_is_dropped_and_counted(built: Built) -> None:
    rows = [{"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "hi"}]} for i in range(60)]
    rows += [{"messages": [{"role": "user", "content": f"anyone {i}"}]} for i in range(60)]
    bundle = built(rows, task="chat")
    assert bundle.counts["dropped_empty"] + bundle.counts["train"] + bundle.counts["validation"] + bundle.counts["test"] == 120
    assert bundle.counts["dropped_empty"] > 20


@pytest.mark.parametrize("value", ["hello", '{"role": "user"}', [{"content": "x"}], 7])
def test_a_cell_that_is_no_conversation_is_refused(built: Built, value: object) -> None:
    with pytest.raises(DataError, match="must be a list of objects with role and content"):
        built([{"messages": value, "id": i} for i in range(30)], task="chat")


def test_a_conversation_that_the_template_refuses_gets_its_reason() -> None:
    strict = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system message must come first') }}{% endif %}" + CHATML
    tokenizer = make_tokenizer(chat=CHATML)
    encoder = ChatEncoder(tokenizer, "messages", 200, False)
    tokenizer.chat_template = strict
    with pytest.raises(DataError, match="refuses a conversation of user, assistant: a system message must come first"):
        encoder.encode({"messages": [TALK[1:3]]})


def test_a_tokenizer_without_chat_template_is_refused(built: Built) -> None:
    with pytest.raises(ModelError, match="needs a chat template"):
        built([{"messages": TALK, "id": i} for i in range(30)], task="chat", with_tokenizer=make_tokenizer(chat=None))
