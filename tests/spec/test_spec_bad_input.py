"""Every mistake that belongs to a spec gets one sentence: where it stands, what came, what is allowed, what to do."""

# ruff: noqa: E501  (a table with a mistake a line)

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.errors import Problem, SpecError
from sweeper.spec.load import load_spec

GOOD = {
    "schema": "schema: 1",
    "name": "name: try",
    "model": "model: some/model",
    "data": "data: {path: rows.csv, task: classify}",
    "training": "training: {rank: 4}",
    "space": "space: {learning_rate: {low: 1e-5, high: 1e-3, log: true}}",
}


def text(**sections: str) -> str:
    """A good spec, one section a line (schema 1, name 2, model 3, data 4, training 5, space 6), with some sections replaced."""
    return "\n".join([*({**GOOD, **sections}).values(), ""])


def problems(source: str, *overrides: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        load_spec(source, overrides)
    assert caught.value.problems
    return list(caught.value.problems)


def only(source: str, *overrides: str) -> Problem:
    found = problems(source, *overrides)
    assert len(found) == 1, found
    return found[0]


# what it is, section, its text, path, line, words of the sentence
ONE_MISTAKE = [
    ("unknown section", "search", "serach: {trials: 3}", "serach", 7, ["did you mean 'search'"]),
    ("unknown key", "training", "training: {learning_rat: 1}", "training.learning_rat", 5, ["'learning_rate'"]),
    ("unknown nested key", "data", "data: {path: a, task: text, split: {bye: x}}", "data.split.bye", 4, ["unknown key", "by, column"]),
    ("text for number", "training", "training: {learning_rate: fast}", "training.learning_rate", 5, ["'fast'", "number"]),
    ("fraction for whole", "training", "training: {batch_size: 2.5}", "training.batch_size", 5, ["2.5", "whole number"]),
    ("switch for number", "training", "training: {batch_size: true}", "training.batch_size", 5, ["true", "whole number"]),
    ("number for switch", "training", "training: {gradient_checkpointing: 7}", "training.gradient_checkpointing", 5, ["true or false"]),
    ("list for section", "training", "training: [1]", "training", 5, ["section"]),
    ("section for list", "tracking", "tracking: 3", "tracking.0", 7, ["section"]),
    ("out of bounds", "training", "training: {dropout: 1}", "training.dropout", 5, ["1", "below 1"]),
    ("layers as a number", "training", "training: {layers: 4}", "training.layers", 5, ["4 came", "all, or last N"]),
    ("no layer", "training", "training: {layers: last 0}", "training.layers", 5, ["'last 0' came", "1 or more"]),
    ("layers of full fine-tuning", "training", "training: {layers: last 2, method: full}", "training.layers", 5, ["method: full", "layers: all"]),
    ("layers searched", "space", "space: {layers: [last 2, last 4]}", "space.layers", 6, ["cannot be searched", "training.layers"]),
    ("infinite", "training", "training: {learning_rate: .inf}", "training.learning_rate", 5, ["finite"]),
    ("unknown word", "training", "training: {schedule: cosin}", "training.schedule", 5, ["did you mean 'cosine'", "linear"]),
    ("unknown task", "data", "data: {path: a, task: clasify}", "data.task", 4, ["did you mean 'classify'"]),
    ("low above high", "space", "space: {dropout: {low: 0.4, high: 0.1}}", "space.dropout", 6, ["low is 0.4", "swap"]),
    ("log at 0", "space", "space: {learning_rate: {low: 0, high: 1, log: true}}", "space.learning_rate", 6, ["log range", "above 0"]),
    ("not searchable", "space", "space: {max_length: [8, 16]}", "space.max_length", 6, ["cannot be searched", "training.max_length"]),
    ("unknown dimension", "space", "space: {learning_rte: [1e-4]}", "space.learning_rte", 6, ["did you mean 'learning_rate'"]),
    ("unknown key of a dimension", "space", "space: {rank: {low: 1, high: 2, stp: 1}}", "space.rank.stp", 6, ["'step'"]),
    ("no range", "space", "space: {rank: 4}", "space.rank", 6, ["4 came", "low", "list of values"]),
    ("no values", "space", "space: {rank: []}", "space.rank.values", 6, ["at least one value"]),
    ("value twice", "space", "space: {rank: [4, 4]}", "space.rank", 6, ["4 stands twice"]),
    ("rank 0", "space", "space: {rank: {low: 0, high: 4}}", "space.rank.low", 6, ["0 came", "at least 1"]),
    ("dropout 1", "space", "space: {dropout: {low: 0, high: 1.0}}", "space.dropout.high", 6, ["below 1"]),
    ("unknown schedule searched", "space", "space: {schedule: [linear, step]}", "space.schedule.values", 6, ["'step'", "constant, cosine"]),
    ("real batch sizes", "space", "space: {batch_size: {low: 2.5, high: 8}}", "space.batch_size", 6, ["whole numbers"]),
    ("real batch size among values", "space", "space: {batch_size: [4, 8.0]}", "space.batch_size.values", 6, ["8.0", "whole numbers"]),
    ("text for a number among values", "space", "space: {learning_rate: ['1e-4']}", "space.learning_rate.values", 6, ["numbers"]),
    ("range of words", "space", "space: {schedule: {low: 1, high: 2}}", "space.schedule", 6, ["words", "list them"]),
    ("targets", "space", "space: {targets: ['q proj']}", "space.targets.values", 6, ["all, attention, mlp, qv"]),
    ("nothing searched", "space", "space: {}", "space", 6, ["nothing is searched"]),
    ("when of an unknown key", "space", "space: {warmup: {low: 0, high: 0.1, when: {shedule: [linear]}}}", "space.warmup.when.shedule", 6,
     ["did you mean 'schedule'"]),
    ("when of a fixed key", "space", "space: {warmup: {low: 0, high: 0.1, when: {schedule: [linear]}}}", "space.warmup.when.schedule", 6,
     ["not searched"]),
    ("when of itself", "space", "space: {rank: {values: [4, 8], when: {rank: [4]}}}", "space.rank.when.rank", 6, ["itself"]),
    ("when of a value never taken", "space", "space: {rank: [4, 8], alpha: {values: [8], when: {rank: [16]}}}", "space.alpha.when.rank", 6,
     ["16 came", "4, 8"]),
    ("when in a ring", "space", "space: {rank: {values: [4], when: {alpha: [8]}}, alpha: {values: [8], when: {rank: [4]}}}",
     "space.rank.when", 6, ["ring", "rank -> alpha -> rank"]),
    ("rank searched in full", "training", "training: {method: full}\nspace: {rank: [4, 8]}", "space.rank", 6, ["method: lora"]),
    ("quantised full", "training", "training: {method: full, base: nf4}", "training.base", 5, ["method: lora"]),
    ("chunk below a row", "training", "training: {max_length: 64, chunk_tokens: 32}", "training.chunk_tokens", 5, ["64"]),
    ("epochs beside examples", "training", "training: {examples: 64}\nspace: {epochs: [1, 2]}", "space.epochs", 6, ["training.examples"]),
    ("metric unknown", "objective", "objective: {metric: acuracy}", "objective.metric", 7, ["did you mean 'accuracy'"]),
    ("metric of another task", "objective", "objective: {metric: rouge_l}", "objective.metric", 7, ["needs task instruct", "macro_f1"]),
    ("metric twice", "objective", "objective: {metric: [loss, loss]}", "objective.metric", 7, ["twice"]),
    ("no metric", "objective", "objective: {metric: []}", "objective.metric", 7, ["at least one"]),
    ("metric of a wrong type", "objective", "objective: {metric: 3}", "objective.metric", 7, ["text or a list"]),
    ("wrong element of a list", "objective", "objective: {metric: [loss, 3]}", "objective.metric.1", 7, ["3 came"]),
    ("function misspelt", "objective", "objective: {metric: 'my metrics:f', direction: minimize}", "objective.metric", 7,
     ["package.module:function"]),
    ("function without direction", "objective", "objective: {metric: 'm:f'}", "objective.direction", 7, ["maximize or minimize"]),
    ("direction against the metric", "objective", "objective: {metric: loss, direction: maximize}", "objective.direction", 7,
     ["minimize"]),
    ("too many directions", "objective", "objective: {metric: loss, direction: [minimize, minimize]}", "objective.direction", 7,
     ["2 came for 1"]),
    ("best of several", "objective", "objective: {metric: [loss, accuracy], at: best}", "objective.at", 7, ["at: last"]),
    ("bound of nothing", "objective", "objective: {constraints: {lss: {max: 1}}}", "objective.constraints.lss", 7, ["'loss'"]),
    ("bound crossed", "objective", "objective: {constraints: {loss: {min: 2, max: 1}}}", "objective.constraints.loss", 7, ["above max"]),
    ("empty bound", "objective", "objective: {constraints: {loss: {}}}", "objective.constraints.loss", 7, ["min, max or both"]),
    ("sampler unknown", "search", "search: {sampler: bayes}", "search.sampler", 7, ["tpe"]),
    ("grid of a range", "search", "search: {sampler: grid}", "space.learning_rate", 6, ["step"]),
    ("cmaes of values", "space", "space: {rank: [4, 8], dropout: {low: 0, high: 0.5}}\nsearch: {sampler: cmaes}", "space.rank", 6,
     ["ranges only"]),
    ("cmaes of one key", "search", "search: {sampler: cmaes}", "search.sampler", 7, ["at least two"]),
    ("no end", "search", "search: {trials: null}", "search.trials", 7, ["never end"]),
    ("threshold without bound", "search", "search: {pruner: threshold}", "search.pruner", 7, ["lower"]),
    ("pruner of several metrics", "search", "objective: {metric: [loss, accuracy]}\nsearch: {pruner: halving}", "search.pruner", 8,
     ["halving", "2 metrics", "pruner: none"]),
    ("collapse of several metrics", "search", "objective: {metric: [loss, accuracy]}\nsearch: {collapse: {enabled: true}}",
     "search.collapse.enabled", 8, ["2 metrics", "leave it out"]),
    ("rungs falling", "search", "search: {rungs: [0.3, 0.1]}", "search.rungs", 7, ["rising"]),
    ("rungs too close", "search", "search: {rungs: [0.1, 0.105]}", "search.rungs", 7, ["too close"]),
    ("rungs within a batch", "training", "training: {examples: 64}\nsearch: {rungs: [0.1, 0.15]}", "search.rungs", 6, ["batch of 8"]),
    ("no duration", "search", "search: {time: soon}", "search.time", 7, ["'soon'", "30m"]),
    ("enqueued key not searched", "search", "search: {enqueue: [{rank: 4}]}", "search.enqueue.0.rank", 7, ["not in the space"]),
    ("enqueued value outside", "search", "search: {enqueue: [{learning_rate: 1}]}", "search.enqueue.0.learning_rate", 7,
     ["1e-05 to 0.001"]),
    ("more enqueued than trials", "search", "search: {trials: 1, enqueue: [{learning_rate: 1e-4}]}", "search.enqueue", 7, ["2 or more"]),
    ("no source of rows", "data", "data: {task: text}", "data", 4, ["path", "hub"]),
    ("two sources of rows", "data", "data: {path: a, hub: {name: b}, task: text}", "data", 4, ["only one"]),
    ("column of another task", "data", "data: {path: a, task: text, columns: {label: x}}", "data.columns.label", 4, ["no label"]),
    ("labels without classes", "data", "data: {path: a, task: text, labels: [a, b]}", "data.labels", 4, ["classify"]),
    ("one label", "data", "data: {path: a, task: classify, labels: [a]}", "data.labels", 4, ["at least two"]),
    ("template of another task", "data", "data: {path: a, task: chat, template: 'x {text}'}", "data.template", 4, ["chat template"]),
    ("template with an open brace", "data", "data: {path: a, task: classify, template: 'x {text'}", "data.template", 4, ["lone '{'", "'{{'"]),
    ("template without a column", "data", "data: {path: a, task: classify, template: hello}", "data.template", 4, ["no column"]),
    ("template with empty braces", "data", "data: {path: a, task: text, template: '{}'}", "data.template", 4, ["column's name"]),
    ("chat template of plain text", "data", "data: {path: a, task: text, chat_template: true}", "data.chat_template", 4, ["instruct"]),
    ("group without column", "data", "data: {path: a, task: text, split: {by: group}}", "data.split", 4, ["needs column"]),
    ("column of a hash split", "data", "data: {path: a, task: text, split: {column: x}}", "data.split.column", 4, ["group", "time"]),
    ("nothing left to train on", "data", "data: {path: a, task: text, split: {validation: 0.6, test: 0.4}}", "data.split", 4,
     ["no training rows"]),
    ("unknown side", "data", "data: {path: a, task: text, split: {by: column, column: s, names: {train: [a], validation: [b], tset: [c]}}}",
     "data.split.names.tset", 4, ["'test'"]),
    ("value on two sides", "data", "data: {path: a, task: text, split: {by: column, column: s, names: {train: [a], validation: [a]}}}",
     "data.split.names", 4, ["two sides"]),
    ("cluster of one process", "executor", "executor: {kind: local, address: auto}", "executor.address", 7, ["kind: packed"]),
    ("engine of two GPUs", "executor", "executor: {kind: packed, gpus: 2}", "executor.gpus", 7, ["lives on one GPU", "workers"]),
    ("slots of a worker", "executor", "executor: {kind: tune, slots: 4}", "executor.slots", 7, ["one trial per worker"]),
    ("slots of whole models", "training", "training: {method: full}\nexecutor: {slots: 4}", "executor.slots", 6, ["cannot share"]),
    ("no amount of memory", "executor", "executor: {memory: much}", "executor.memory", 7, ["'much'", "8GB"]),
    ("memory beyond numbers", "executor", "executor: {memory: " + 400 * "9" + "}", "executor.memory", 7, ["more than any machine"]),
    ("no memory", "executor", "executor: {memory: 0GB}", "executor.memory", 7, ["not above 0"]),
    ("order of workers", "executor", "executor: {kind: tune}\nsearch: {deterministic: true}", "search.deterministic", 8,
     ["happen to report", "packed or local"]),
    ("order of whole models", "training", "training: {method: full}\nsearch: {deterministic: true}", "search.deterministic", 6,
     ["executor.kind: local"]),
    ("order of a cluster", "search", "search: {deterministic: true}\nexecutor: {address: auto}", "executor.workers", 8, ["number of engines"]),
    ("part of a GPU above one", "executor", "executor: {gpus: 1.5}", "executor.gpus", 7, ["whole GPUs"]),
    ("tracker twice", "tracking", "tracking: [mlflow, mlflow]", "tracking.1", 7, ["twice"]),
    ("tracker unknown", "tracking", "tracking: [mlflo]", "tracking.0.kind", 7, ["did you mean 'mlflow'"]),
    ("folder for MLflow", "tracking", "tracking: [{uri: ./mlruns}]", "tracking.0.uri", 7, ["sqlite:///"]),
    ("uri for wandb", "tracking", "tracking: [{kind: wandb, uri: x}]", "tracking.0.uri", 7, ["no uri"]),
    ("no database URL", "storage", "storage: study.db", "storage", 7, ["sqlite:///study.db"]),
    ("unknown database", "storage", "storage: postgres://me@here/x", "storage", 7, ["did you mean 'postgresql'"]),
    ("database in memory", "storage", "storage: 'sqlite://'", "storage", 7, ["outlive"]),
    ("name", "name", "name: my sweep", "name", 2, ["'my sweep'", "letters"]),
    ("schema of the future", "schema", "schema: 2", "schema", 1, ["up to 1", "upgrade"]),
    ("schema that is none", "schema", "schema: one", "schema", 1, ["'one'", "schema: 1"]),
    ("key twice", "training", "training: {rank: 4, rank: 8}", "training.rank", 5, ["stands twice", "line 5"]),
    ("variable that is not set", "storage", "storage: 'postgresql://u:${SWEEPER_TEST_ABSENT}@h/d'", "storage", 7,
     ["SWEEPER_TEST_ABSENT", "not set"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "replacement", "path", "line", "words"), [row[1:] for row in ONE_MISTAKE], ids=[row[0] for row in ONE_MISTAKE]
)
def test_one_mistake_is_one_sentence_with_its_path_and_line(
    section: str, replacement: str, path: str, line: int, words: list[str]
) -> None:
    sections = {section: replacement}
    if "\nspace:" in replacement:
        sections = {**sections, "space": ""}
    source = "\n".join(part for part in [*({**GOOD, **sections}).values(), ""] if part) + "\n"
    problem = only(source)
    assert (problem.path, problem.line) == (path, line)
    for word in words:
        assert word in problem.message, problem.message


@pytest.mark.parametrize("section", ["schema", "name", "model", "data"])
def test_a_missing_section_says_what_to_write(section: str) -> None:
    problem = only("\n".join(line for name, line in GOOD.items() if name != section) + "\n")
    assert problem.path == section
    assert "is missing; write" in problem.message


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    found = problems(
        text(
            name="name: a b",
            data="data: {path: x, task: clasify, labels: [a]}",
            training="training: {rank: 0, method: full, base: int8}",
            space="space: {learnin_rate: [1e-4], alpha: [8], dropout: {low: 1, high: 0}, warmup: {high: 0.1}}",
        )
        + "search: {sampler: cmaes, enqueue: [{clip: 1.0}]}\nobjective: {metric: lss}\n"
    )
    assert [problem.line for problem in found] == sorted(problem.line or 0 for problem in found)
    assert {problem.path for problem in found} == {
        "name",
        "data.task",
        "training.rank",
        "training.base",
        "space.learnin_rate",
        "space.alpha",
        "space.dropout",
        "space.warmup.low",
        "search.enqueue.0.clip",
        "objective.metric",
    }


def test_what_follows_from_a_mistake_is_not_reported_beside_it() -> None:
    problem = only(text(data="data: {path: x, task: clasify, labels: [a, b]}") + "objective: {metric: accuracy}\n")
    assert problem.path == "data.task"
    problem = only(text(space="space: {schedule: [1, 1], warmup: {low: 0, high: 0.1, when: {schedule: [linear]}}}"))
    assert problem.path == "space.schedule"


def test_two_missing_bounds_leave_the_rest_checked() -> None:
    found = problems(text(space="space: {rank: {step: 1}, learnin_rate: [1e-4]}"))
    assert {problem.path for problem in found} == {"space.rank.low", "space.rank.high", "space.learnin_rate"}


def test_every_sentence_stands_in_the_message_with_path_and_line() -> None:
    with pytest.raises(SpecError, match=r"(?s)spec: 2 problems.*name \(line 2\): .*training\.rank \(line 5\): 0 came"):
        load_spec(text(name="name: a b", training="training: {rank: 0}"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"- a\n- b\n", "KEY: VALUE"),
        (b"schema: 1\nname: \xff\n", "not UTF-8"),
        (b"schema: 1\nname: [a\n", "not valid YAML"),
        (b"schema: 1\n\tname: a\n", "not valid YAML"),
        (b"name: !!python/object/apply:os.getcwd []\nschema: 1\n", ""),
        (b"a: &a [1]\nb: " + b"[*a, " * 2 + b"*a" + b"]" * 2 + b"\n", "unknown key 'a'"),
        (b"a: &a {b: *a}\n", "alias holds itself"),
    ],
    ids=["empty", "list", "not utf-8", "open bracket", "tab", "python tag", "alias", "alias of itself"],
)
def test_a_file_that_is_no_spec(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("schema: 1\nname: [a\n", 2),
        ("schema: 1\nname: [a\n\n\n", 2),
        ("schema: 1\nspace: {rank: [4, 8],\n  alpha: [8]\n", 2),
        ('schema: 1\nname: "a\n', 2),
        ("schema: 1\nmodel: m\n\tname: a\ndata: x\n", 3),
        ("schema: 1\nname: a: b\nmodel: m\n", 2),
        ("schema: 1\nname\n", 2),
    ],
)
def test_text_that_is_no_yaml_is_told_with_a_line_of_the_file(content: str, line: int) -> None:
    problem = only(content)
    assert problem.line == line
    assert str(problem).startswith(f"line {line}: not valid YAML: ")


def test_a_character_that_yaml_has_not_is_told_with_its_line() -> None:
    assert str(only("schema: 1\nname: a\x00b\n")).startswith("line 2: not valid YAML: ")


def test_nested_aliases_cannot_blow_up() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "check aliases" in problems("\n".join(lines) + "\n")[0].message


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("schema: 1\n")
    with pytest.raises(SpecError, match=r"no such file; in .* there are: demo\.yaml"):
        load_spec(tmp_path / "dmo.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.rnk=4", "did you mean 'rank'"),
        ("trainin.rank=4", "did you mean 'training'"),
        ("space.learning_rte.low=1", "did you mean 'learning_rate'"),
        ("tracking.kind=wandb", "tracking.0"),
        ("tracking.3.kind=wandb", "number"),
        ("training.rank.x=4", "no keys below"),
        ("space.rank.low=2", "space.rank"),
        ("training.rank", "KEY=VALUE"),
        ("training.rank=[4", "YAML"),
        ("training.rank=0", "(given by --set)"),
    ],
)
def test_a_wrong_override_gets_a_sentence(override: str, words: str) -> None:
    problem = only(text(space="space: {rank: [4, 8]}"), override)
    assert words in str(problem)
    assert problem.line is None


def test_a_secret_never_stands_in_a_sentence() -> None:
    found = problems(
        text() + "storage: [postgresql://me:hunter2@here/x]\ntracking: [{uri: 'me:hunter2@./x://?token=hunter2'}, 'x']\n"
    )
    assert "hunter2" not in "\n".join(map(str, found))
