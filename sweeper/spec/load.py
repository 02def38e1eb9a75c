"""A spec from a YAML file, with all its mistakes at once.

    text -> plain values with lines -> `--set` -> ${NAME} -> schema -> pydantic -> checks across sections -> SweepSpec

Does not know whether files, models or databases exist. Cost: milliseconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from sweeper.errors import Problem, SpecError
from sweeper.spec.checks import check, resolve
from sweeper.spec.models import SweepSpec
from sweeper.spec.overrides import apply_override
from sweeper.spec.translate import came, problems_of, sound_part
from sweeper.spec.yaml_text import Path, YamlError, dotted, read_yaml

SCHEMA = 1
"""The schema that this version writes and reads; older ones are migrated on the way in."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a schema's number to the function that turns its spec into the next schema's."""

_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FROM_SET = 0  # a line number that no file has: the value was given by --set
_NO_VARIABLES = {("data", "template")}  # braces there name columns


def load_spec(source: FilePath | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> SweepSpec:
    """The spec in `source`, changed by `overrides` (`KEY=VALUE`), checked and with `auto` resolved.

    Args:
        source: a YAML file's path; or YAML text (of more than one line); or plain values, as `yaml.safe_load` gives them.
        overrides: what `--set` takes, e.g. `training.rank=4`, `space.learning_rate.low=1e-5`, `tracking.0.kind=wandb`.

    `${NAME}` in a text becomes the environment variable (for secrets; `$${NAME}` stays as `${NAME}`), except in data.template.
    Raises SpecError with every mistake found, each with its path and line, in the order of the file.
    """
    raw, lines, name = _read(source)
    problems: list[Problem] = []
    for override in overrides:
        path, problem = apply_override(raw, override)
        if problem is not None:
            problems.append(problem)
        elif path:
            lines = {other: line for other, line in lines.items() if other[: len(path)] != path}
            lines[path] = _FROM_SET
    raw = _with_variables(raw, (), problems)
    raw = _migrated(raw, problems)
    spec, more = _checked(raw)
    problems += more
    if problems or spec is None:
        located = [_located(problem, lines) for problem in problems]
        raise SpecError(sorted(located, key=lambda problem: (problem.line is None, problem.line or 0)), name)
    return resolve(spec)


def _checked(raw: dict[str, Any]) -> tuple[SweepSpec | None, list[Problem]]:
    try:
        spec = SweepSpec.model_validate(raw)
    except ValidationError as error:
        partial, broken = sound_part(raw)
        return None, [*(problem for _, problem in problems_of(error)), *check(partial, broken)]
    return spec, check(spec)


def _read(source: FilePath | str | Mapping[str, Any]) -> tuple[dict[str, Any], dict[Path, int], str]:
    if isinstance(source, Mapping):
        return _text_keys(source), {}, "spec"
    name = "spec"
    if isinstance(source, FilePath) or "\n" not in source:
        name = str(source)
        text = _text_of(FilePath(source).expanduser(), name)
    else:
        text = source
    try:
        value, lines = read_yaml(text)
    except YamlError as error:
        raise SpecError(error.problems, name) from None
    if value is None:
        raise SpecError([Problem("", "this is empty, but a spec has at least schema, name, model and data")], name)
    if not isinstance(value, dict):
        raise SpecError([Problem("", f"{came(value)} came, but a spec is KEY: VALUE lines, beginning with `schema: 1`")], name)
    return value, lines, name


def _text_keys(value: Any) -> Any:
    """A copy of `value` with every key as text, as the keys of a YAML file are read."""
    if isinstance(value, Mapping):
        return {str(key): _text_keys(item) for key, item in value.items()}
    return [_text_keys(item) for item in value] if isinstance(value, list) else value


def _text_of(path: FilePath, name: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SpecError([Problem("", "this is not UTF-8 text; save the file as UTF-8", line)], name) from None
    except FileNotFoundError:
        nearby = sorted(other.name for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        there = f"; in {path.parent} there are: {', '.join(nearby[:8])}" if nearby else ""
        raise SpecError([Problem("", f"no such file{there}; give the path of a YAML spec")], name) from None
    except OSError as error:
        raise SpecError([Problem("", f"this cannot be read ({error.strerror}); give the path of a YAML spec")], name) from None


def _with_variables(value: Any, path: Path, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {key: _with_variables(item, (*path, key), problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_variables(item, (*path, index), problems) for index, item in enumerate(value)]
    if not isinstance(value, str) or path in _NO_VARIABLES:
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        if match[2] not in os.environ:
            problems.append(
                Problem(
                    dotted(path), f"the environment variable {match[2]} is not set; export it, or write the value in place of it"
                )
            )
        return os.environ.get(match[2], "unset")

    return _VARIABLE.sub(replace, value)


def _migrated(raw: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """`raw` in today's schema. A spec whose schema cannot be told is checked as one of today."""
    schema = raw.get("schema")
    if "schema" not in raw:
        problems.append(Problem("schema", f"is missing; write `schema: {SCHEMA}` at the top"))
    elif isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        problems.append(Problem("schema", f"{came(schema)} came, but schemas are whole numbers from 1; write `schema: {SCHEMA}`"))
    elif schema > SCHEMA:
        problems.append(Problem("schema", f"{schema} came, but this Sweeper reads schemas up to {SCHEMA}; upgrade sweeper"))
    else:
        while schema < SCHEMA:
            raw, schema = MIGRATIONS[schema](raw), schema + 1
    return {**raw, "schema": SCHEMA}


def _located(problem: Problem, lines: Mapping[Path, int]) -> Problem:
    """`problem` with the line of its path, or of the nearest section above that stands in the file."""
    if problem.line is not None:
        return problem
    path: Path = tuple(int(part) if part.isdigit() else part for part in problem.path.split("."))
    while path:
        line = lines.get(path) or lines.get(tuple(map(str, path)))
        if path in lines and lines[path] == _FROM_SET:
            return Problem(problem.path, f"{problem.message} (given by --set)")
        if line:
            return Problem(problem.path, problem.message, line)
        path = path[:-1]
    return problem
