"""Conversations to tokens: the tokenizer's own chat template, loss on the assistant's tokens only.

Where the template marks the assistant's words ({% generation %}), its marks are used. Elsewhere each turn's span is derived by
rendering prefixes:

    start   the end of  render(messages before it, with the generation prompt)
    end     the end of  render(messages up to it), or, where the template writes earlier turns in another way once others follow
            (as those that drop past reasoning do), the first end token after the start

and the prefix must be one, else the conversation is refused. The token that ends a turn is a target.
Does not know: files, splits. Cost: two renderings an assistant turn, some 100 µs each.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sweeper.data.encode import Columns, Encoded, Fate, end_of, render_chat, turn_end
from sweeper.data.tokens import TokenRow
from sweeper.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = list[dict[str, Any]]


class ChatEncoder:
    """chat: a column of messages, [{"role": ..., "content": ...}, ...] or that as JSON text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, column: str, max_length: int, cut: bool) -> None:
        if not tokenizer.chat_template:
            raise ModelError("task chat needs a chat template, but the tokenizer has none; use a chat model, or task: instruct")
        if not tokenizer.is_fast:
            raise ModelError("task chat needs a fast tokenizer (tokenizer.json), which tells where a token stands in the text")
        self.columns: tuple[str, ...] = (column,)
        self.end_id: int = turn_end(tokenizer)
        self._ends = {self.end_id, end_of(tokenizer)}
        self._tokenizer = tokenizer
        self._column = column
        self._max_length = max_length
        self._cut = cut
        self._marked = isinstance(tokenizer.chat_template, str) and bool(_MARKED.search(tokenizer.chat_template))

    def encode(self, batch: Columns) -> list[Encoded]:
        """One Encoded a row; there is no reference."""
        conversations = [read_messages(value, self._column) for value in batch[self._column]]
        kept = [messages for messages in conversations if messages]
        tokenised = iter([self._marked_tokens(messages) for messages in kept] if self._marked else self._derived_tokens(kept))
        return [self._fit(*next(tokenised)) if messages else Encoded(None, "empty") for messages in conversations]

    def _fit(self, ids: npt.NDArray[np.int32], target: npt.NDArray[np.bool_]) -> Encoded:
        length = len(ids)
        if length:
            target[0] = False
        if not target.any():
            return Encoded(None, "empty", length=length)
        if length > self._max_length and (not self._cut or not target[: self._max_length].any()):
            return Encoded(None, "long", length=length)
        fate: Fate = "cut" if length > self._max_length else "kept"
        return Encoded(TokenRow(ids[: self._max_length], target[: self._max_length], 0, -1), fate, "", length)

    def _marked_tokens(self, messages: Messages) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        render_chat(self._tokenizer, messages, generation=False)
        coded = self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids = np.array(coded["input_ids"], np.int32)
        target = np.array(coded["assistant_masks"], np.bool_)
        # Many templates close the mark before the token that ends the turn; the model must learn to end it.
        after = np.flatnonzero(target[:-1] & ~target[1:]) + 1
        target[after[np.isin(ids[after], list(self._ends))]] = True
        return ids, target

    def _derived_tokens(self, kept: list[Messages]) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
        texts = [render_chat(self._tokenizer, messages, generation=False) for messages in kept]
        if not texts:
            return []
        coded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            self._targets(messages, text, np.array(ids, np.int32), np.array(offsets, np.int64).reshape(-1, 2))
            for messages, text, ids, offsets in zip(kept, texts, coded["input_ids"], coded["offset_mapping"], strict=True)
        ]

    def _targets(
        self, messages: Messages, text: str, ids: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        target = np.zeros(len(ids), np.bool_)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = render_chat(self._tokenizer, messages[:turn], generation=True)
            if not text.startswith(before):
                raise _unmarked()
            start = len(before)
            if ((offsets[:, 0] < start) & (offsets[:, 1] > start)).any():
                raise _unmarked()
            upto = render_chat(self._tokenizer, messages[: turn + 1], generation=False)
            inside = offsets[:, 0] >= start
            if text.startswith(upto):
                inside &= offsets[:, 0] < len(upto)
            ends = np.flatnonzero(inside & np.isin(ids, list(self._ends)))
            if len(ends):
                # White space that the template puts after the end token is never generated.
                inside[ends[0] + 1 :] = False
            elif not text.startswith(upto):
                raise _unmarked()
            target |= inside
        return ids, target


def read_messages(value: object, column: str) -> Messages:
    """The messages of one cell; empty for an empty cell or one without an assistant's turn. Raises DataError if it is none."""
    if value is None or value == "":
        return []
    try:
        messages = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        messages = None
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message for message in messages
    ):
        raise DataError(
            f"the messages column {column!r} holds {str(value)[:60]!r}, but must be a list of objects with role and content, "
            'such as [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'
        )
    return messages if any(message["role"] == "assistant" for message in messages) else []


def _unmarked() -> DataError:
    return DataError(
        "the model's chat template writes the beginning of a conversation in another way once more follows, so the assistant's "
        "tokens cannot be told apart; use a template with {% generation %} marks, or task: instruct"
    )
