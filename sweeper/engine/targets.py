"""Which linear layers carry an adapter: `training.targets` and `training.layers` against a model's own layer names.

    all         every linear layer of the blocks        qv          query and value projections
    attention   those of the attention                  a,b,...     layers by their last name, or by a whole path
    mlp         those of the feed-forward part

With `layers: last N` only linear layers of the last N transformer layers are chosen from.
Knows names only. Costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sweeper.errors import ModelError, nearest

GROUPS = ("all", "attention", "mlp", "qv")

_LLAMA = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "qv": ("q_proj", "v_proj"),
}
_NEOX = {
    "attention": ("query_key_value", "dense"),
    "mlp": ("dense_h_to_4h", "dense_4h_to_h"),
    "qv": ("query_key_value",),  # query, key and value are one layer here
}
FAMILIES = {"llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "mistral": _LLAMA, "gpt_neox": _NEOX}
"""Groups of the families that the packed engine knows, by transformers' `model_type`."""

_QV = (
    "q_proj",
    "v_proj",
    "query",
    "value",
    "q_lin",
    "v_lin",
    "q",
    "v",
    "wq",
    "wv",
    "c_attn",
    "query_key_value",
    "qkv_proj",
    "Wqkv",
    "qkv",
)


_BLOCK = re.compile(r"(?:^|\.)([^.]+)\.(\d+)\.")  # the list that holds a transformer layer, and its place in it


def block(path: str) -> int | None:
    """Number of the transformer layer that a linear layer's path leads into; None outside of them."""
    found = _BLOCK.search(path)
    return int(found[2]) if found else None


def block_list(path: str) -> str | None:
    """Name of the list that holds the transformer layers, `layers` or `h`, say; None outside of them."""
    found = _BLOCK.search(path)
    return found[1] if found else None


def last_layers(linears: Sequence[str], count: int | None) -> tuple[str, ...]:
    """Those of `linears` that lie in the last `count` transformer layers, in model order; all of them if `count` is None.

    Raises ModelError if the model has fewer layers.
    """
    if count is None:
        return tuple(linears)
    depth = 1 + max((number for path in linears if (number := block(path)) is not None), default=-1)
    if count > depth:
        raise ModelError(
            f"training.layers is 'last {count}', but this model has {depth} layers; write last {depth} at most, or all"
        )
    return tuple(path for path in linears if (number := block(path)) is not None and number >= depth - count)


def resolve_targets(targets: str, model_type: str, linears: Sequence[str], count: int | None = None) -> tuple[str, ...]:
    """Paths among `linears` (all linear layers but the head) that `targets` names, in model order; with `count`, only those in
    the last `count` transformer layers.

    In an unknown family a layer counts as attention or mlp by its path. Raises ModelError if a name or a group fits no layer.
    """
    linears = last_layers(linears, count)
    where = "" if count is None else f" in its last {count} layers"
    last = {path: path.rsplit(".", 1)[-1] for path in linears}
    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    chosen: set[str] = set()
    for name in wanted:
        found = _group(name, model_type, last) if name in GROUPS else [p for p in linears if p == name or p.endswith(f".{name}")]
        if not found:
            allowed = nearest(name, {*GROUPS, *last.values()})
            raise ModelError(f"targets is {targets!r}, but this model has no layer for {name!r}{where}; {allowed}")
        chosen.update(found)
    if not chosen:
        raise ModelError(f"targets is {targets!r}, which names no layer; {nearest(targets, {*GROUPS, *last.values()})}")
    return tuple(path for path in linears if path in chosen)


def _group(group: str, model_type: str, last: dict[str, str]) -> list[str]:
    if group == "all":
        return list(last)
    family = FAMILIES.get(model_type)
    if family is not None:
        return [path for path, name in last.items() if name in family[group]]
    if group == "qv":
        return [path for path, name in last.items() if name in _QV]
    in_attention = {path for path in last if "attn" in path.lower() or "attention" in path.lower()}
    return [path for path in last if (path in in_attention) == (group == "attention")]
