"""pydantic's errors in our own sentences: what came, what is allowed, what to do.

Also cuts a broken spec down to what is sound, so that everything else in it can still be checked in the same go.
Does not know files, lines or what spans sections. Cost: milliseconds, and only for a spec that is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sweeper.errors import Problem, nearest
from sweeper.spec.mask import mask
from sweeper.spec.models import SweepSpec
from sweeper.spec.shape import description, keys_at, options_at, words_at
from sweeper.spec.space import SEARCHABLE
from sweeper.spec.yaml_text import Path, dotted

_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section (KEY: VALUE)",
    "model_type": "a section",
    "model_attributes_type": "a section",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_EXAMPLES: dict[Path, str] = {
    ("schema",): "write `schema: 1` at the top",
    ("name",): "write e.g. `name: first-sweep`",
    ("model",): "write a hub id, a folder or a .gguf file, e.g. `model: HuggingFaceTB/SmolLM2-135M`",
    ("data",): "write a section with path and task, e.g. `data: {path: rows.csv, task: classify}`",
    ("data", "task"): "write one of classify, instruct, text, chat",
}
_STAND_INS: dict[str, Any] = {
    "schema": 1,
    "name": "unnamed",
    "model": {"name": "unknown"},
    "data": {"path": "unknown", "task": "text"},
}


def came(value: Any) -> str:
    """A value as a sentence names it: YAML's words for true, false and null, secrets masked, at most 60 characters."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(mask(value))
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_dimension(key: str) -> str:
    """The sentence for a key of `space` that cannot be searched."""
    if key in (keys_at(("training",)) or []):
        return f"{key} is fixed for a study and cannot be searched; set training.{key} instead. Searchable: {', '.join(SEARCHABLE)}"
    return f"unknown key {key!r}; {nearest(key, SEARCHABLE)}"


def problems_of(error: ValidationError, root: Path = ()) -> list[tuple[Path, Problem]]:
    """Every mistake that pydantic found, once each, with the path it stands at in the file. `root`: the section validated."""
    groups: dict[Path, list[ErrorDetails]] = {}
    unions: set[Path] = set()
    for detail in error.errors():
        path = _path_in_file((*root, *detail["loc"]))
        groups.setdefault(path, []).append(detail)
        if len(path) < len(root) + len(detail["loc"]) and path[:1] != ("space",):
            unions.add(path)
    # Of a union that takes one value or a list, a list with a wrong element is wrong at that element alone.
    shadowed = {path for path in unions if any(path != other and other[: len(path)] == path for other in groups)}
    found: list[tuple[Path, Problem]] = []
    for path, details in groups.items():
        if path in shadowed:
            continue
        if path[:1] == ("space",) and len(path) > 1 and path[1] not in SEARCHABLE:
            path, message = path[:2], unknown_dimension(str(path[1]))
            if any(other == path for other, _ in found):
                continue
        else:
            message = _sentence(path, details)
        found.append((path, Problem(dotted(path), message)))
    return found


def sound_part(raw: Mapping[str, Any]) -> tuple[SweepSpec, set[str]]:
    """What is left of a broken spec when its mistakes are taken out, and the paths that cannot be trusted therefore."""
    rest: dict[str, Any] = copy.deepcopy(dict(raw))
    broken: set[str] = set()
    while True:
        try:
            return SweepSpec.model_validate(rest), broken
        except ValidationError as error:
            gone: list[Path] = []
            for path, _ in problems_of(error):
                broken.add(dotted(path))
                if not any(path[: len(above)] == above for above in gone):
                    gone.append(_take_out(rest, path))


def _take_out(rest: dict[str, Any], path: Path) -> Path:
    """Takes the value at `path` out, or the least section around it that must go with it; returns what went."""
    if path[:1] == ("space",):
        path = path[:2]
    if path == ("data",) and isinstance(rest.get("data"), dict):
        rest["data"] = {"task": "text", **{key: value for key, value in rest["data"].items() if key != "hub"}, "path": "unknown"}
        return ("data", "path")
    if path == ("data", "task"):
        rest["data"]["task"] = "text"
        return path
    node: Any = rest
    for depth, key in enumerate(path[:-1]):
        below = node.get(key)
        if not isinstance(below, dict):  # an element of a list goes with the whole list
            path = path[: depth + 1]
            break
        node = below
    if path[-1] in node:
        del node[path[-1]]
    elif len(path) > 1:  # a required key is absent: its section goes
        return _take_out(rest, path[:-1])
    if path[0] in _STAND_INS and path[0] not in rest:
        rest[str(path[0])] = copy.deepcopy(_STAND_INS[str(path[0])])
    return path


def _path_in_file(loc: tuple[int | str, ...]) -> Path:
    """pydantic's location without the names of union branches that it puts in."""
    if loc[:1] == ("space",) and len(loc) > 2:
        loc = (*loc[:2], *loc[3:])
    path: Path = ()
    for index, part in enumerate(loc):
        part = "schema" if part == "schema_" else part
        # An unknown key is the last part, below a section; the name of a union branch never stands below a section.
        unknown = bool(keys_at(path)) and isinstance(part, str) and (index == len(loc) - 1 or path == ("space",))
        if unknown or options_at((*path, part)):
            path = (*path, part)
    return path


def _sentence(path: Path, details: list[ErrorDetails]) -> str:
    first = details[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {str(path[-1])!r}; {nearest(str(path[-1]), keys_at(path[:-1]) or [])}"
    if kind == "missing":
        about = description(path)
        return f"is missing; {_EXAMPLES.get(path) or f'write `{path[-1]}: ...`' + (f' ({about})' if about else '')}"
    if kind == "value_error":
        return str(context.get("error", first["msg"].removeprefix("Value error, ")))
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{came(value)} came, but it must be {words} {context[name]}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"type {came(context.get('tag'))} came; allowed: float, int, values"
    if kind == "string_pattern_mismatch":
        return f"{came(value)} came, but a name is 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first"
    if kind in ("too_short", "string_too_short"):
        return f"{came(value)} came, but it must not be empty; give at least one {'value' if kind == 'too_short' else 'character'}"
    words_allowed = words_at(path)
    if words_allowed and isinstance(value, str):
        return f"{came(value)} is not allowed; {nearest(value, words_allowed)}"
    return f"{came(value)} came, but {_wanted(path, details)} is needed{_hint(path)}"


def _wanted(path: Path, details: list[ErrorDetails]) -> str:
    wanted = [_WANTED.get(detail["type"], "") for detail in details]
    if words := words_at(path):
        wanted.append("one of " + ", ".join(words))
    if path[:1] == ("space",) and len(path) == 2:
        wanted = ["a range {low: ..., high: ...} or a list of values"]
    return " or ".join(dict.fromkeys(word for word in wanted if word)) or details[0]["msg"]


def _hint(path: Path) -> str:
    if any(isinstance(option, type) and issubclass(option, BaseModel) for option in options_at(path)) and path[:1] != ("space",):
        return f" with keys among: {', '.join(keys_at(path) or [])}"
    about = description(path)
    return f" ({about})" if about else ""
