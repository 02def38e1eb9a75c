"""Turns the JSON files of measurements into the tables of README.md.

    python -m benchmarks.makespan --json benchmarks/results/makespan.json
    python -m benchmarks.render [benchmarks/results/*.json]          writes README.md of this folder again

What stands between `<!-- printed -->` and `<!-- end -->` is replaced; all else is left. Does not measure. Costs nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- printed -->", "<!-- end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders the files given, or all of `results/`; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    files = [Path(name) for name in given] or sorted((FOLDER / "results").glob("*.json"))
    readme = FOLDER / "README.md"
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{readme} must have one {BEGIN} and, after it, one {END}", file=sys.stderr)
        return 2
    readme.write_text(placed(text, [json.loads(file.read_text()) for file in files], [file.stem for file in files]))
    return 0


def placed(text: str, found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """`text` with the measurements between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    sections = [section(measured, name) for measured, name in zip(found, names, strict=True)]
    return "\n\n".join([before + BEGIN, *sections, END + after])


def section(measured: Mapping[str, Any], name: str) -> str:
    """One measurement: where it was made, its table as printed, its goals."""
    facts, versions = measured["machine"], measured["versions"]
    where = f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB, GPUs: {', '.join(facts['gpus']) or 'none'}"
    made = f"{where}; torch {versions['torch']}, transformers {versions['transformers']}, ray {versions['ray']}."
    parts = [f"### {name}", made, f"```text\n{table(measured['rows'])}\n```"]
    goals = [
        f"- {'met' if goal['met'] else '**missed**'}: {goal['what']}: {goal['measured']} (goal: {goal['goal']})"
        for goal in measured["goals"]
    ]
    return "\n\n".join([*parts, *(["\n".join(goals)] if goals else [])])


if __name__ == "__main__":
    sys.exit(main())
