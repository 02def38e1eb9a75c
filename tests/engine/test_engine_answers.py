"""Scores, losses and decoded text against transformers' own forward pass and `generate`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sweeper.engine.export import merge_adapter, read_adapter
from sweeper.engine.net import Net, build_net
from sweeper.engine.outcomes import from_parquet
from sweeper.engine.predict import Predictor
from sweeper.errors import ModelError
from tests.engine.engine_world import END, LABEL_IDS, World, classify_rows, drive, instruct_rows, trial, write_rows

FAMILIES = ["llama", "qwen3", "gpt_neox", "gpt2"]


def bare_net(world: World) -> Net:
    return build_net(world.setup())


def prompts(count: int) -> list[np.ndarray]:
    return [row.ids[: row.prompt] for row in instruct_rows(count, 3)]


def separate_score(model: torch.nn.Module, prompt: np.ndarray, label: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt.tolist(), *label]])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(label))


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_score_as_separate_prompts_do(make_world: Callable[..., World], family: str) -> None:
    """Labels of one to four tokens, one of which begins another; also a label that is the end token alone."""
    world = make_world(family)
    labels = [(10, END), (10, 11, END), (12, 13, 14, END), (END,)]
    reference = AutoModelForCausalLM.from_pretrained(str(world.model)).eval()
    some = prompts(6)
    scores = bare_net(world).score([(0, some)], labels)[0]
    expected = [[separate_score(reference, prompt, label) for label in labels] for prompt in some]
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    single = bare_net(world).score([(0, some)], [(10,), (11,)])[0]
    np.testing.assert_allclose(single, [[separate_score(reference, p, (t,)) for t in (10, 11)] for p in some], atol=2e-4)


def test_a_label_that_begins_another_does_not_always_win(world: World) -> None:
    """Taught the longer label alone, the model answers it, though the shorter one begins it and so is never less probable."""
    shutil.rmtree(world.root / "train")
    write_rows(world.root / "train", [row for row in classify_rows(90, 4) if row.label == 1], "classify")
    end = drive(world.engine(), [trial(every=80, schedule="constant")]).ends[0]
    stored = from_parquet(world.depot.get(end.outcomes or "")["rows.parquet"])
    assert stored.scores is not None
    assert (stored.scores.argmax(1) == 1).all()
    beginning = Predictor(world.model, Path(world.depot.path(end.adapter or "")))
    some = [prompt.tolist() for prompt in prompts(10)]
    assert (beginning.classify(some, [ids[:-1] for ids in LABEL_IDS])[0] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_equal_a_plain_forward_pass(make_world: Callable[..., World], family: str) -> None:
    world = make_world(family, "instruct")
    reference = AutoModelForCausalLM.from_pretrained(str(world.model)).eval()
    rows = [world.validation.row(i) for i in range(12)]
    for (loss, count), row in zip(bare_net(world).losses([(0, rows)])[0], rows, strict=True):
        assert count == len(row.ids) - row.prompt
        expected = -separate_score(reference, row.ids[: row.prompt], tuple(row.ids[row.prompt :].tolist()))
        assert loss == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_greedy_generate(make_world: Callable[..., World], family: str) -> None:
    world = make_world(family)
    reference = AutoModelForCausalLM.from_pretrained(str(world.model)).eval()
    some = prompts(7)
    free = bare_net(world).decode([(0, some)], 12, None)[0]
    stop = free[0][4]
    stopped = bare_net(world).decode([(0, some)], 12, stop)[0]
    for prompt, whole, cut in zip(some, free, stopped, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        made = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert whole == made[0, len(prompt) :].tolist()
        assert cut == (whole[: whole.index(stop)] if stop in whole else whole)


def test_text_metrics_read_decoded_rows(make_world: Callable[..., World]) -> None:
    world = make_world("llama", "instruct")
    story = drive(world.engine(metrics=("exact_match", "rouge_l")), [trial(every=80)])
    report = story.reports[-1]
    assert {"validation/loss", "validation/exact_match", "validation/rouge_l"} <= set(report.metrics)
    rows = from_parquet(world.depot.get(report.outcomes or "")["rows.parquet"])
    assert rows.references == world.validation.references()
    assert rows.texts is not None
    assert any(text.startswith("w") for text in rows.texts)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapter_merged_model_and_validation_agree(make_world: Callable[..., World], family: str) -> None:
    world = make_world(family)
    end = drive(world.engine(), [trial()]).ends[0]
    folder = Path(world.depot.path(end.adapter or ""))
    stored = from_parquet(world.depot.get(end.outcomes or "")["rows.parquet"])
    asked = [world.validation.row(i).ids[: world.validation.row(i).prompt].tolist() for i in range(len(world.validation))]
    chosen, scores = Predictor(world.model, folder).classify(asked, LABEL_IDS)
    np.testing.assert_allclose(scores, stored.scores, atol=1e-5)
    assert chosen.tolist() == stored.scores.argmax(1).tolist()

    merged = merge_adapter(world.model, folder, world.root / "merged")
    np.testing.assert_allclose(Predictor(merged).classify(asked, LABEL_IDS)[1], scores, atol=2e-4)
    model = AutoModelForCausalLM.from_pretrained(str(merged)).eval()
    assert separate_score(model, np.array(asked[0]), LABEL_IDS[1]) == pytest.approx(scores[0, 1], abs=2e-4)
    with pytest.raises(ModelError, match="not empty"):
        merge_adapter(world.model, folder, merged)


def test_a_fully_trained_model_is_a_folder_that_predicts(world: World) -> None:
    end = drive(world.engine(training={"method": "full"}), [trial(learning_rate=1e-3)]).ends[0]
    folder = Path(world.depot.path(end.adapter or ""))
    stored = from_parquet(world.depot.get(end.outcomes or "")["rows.parquet"])
    asked = [world.validation.row(i).ids[: world.validation.row(i).prompt].tolist() for i in range(len(world.validation))]
    np.testing.assert_allclose(Predictor(folder).classify(asked, LABEL_IDS)[1], stored.scores, atol=1e-5)


def test_an_incomplete_adapter_is_refused(world: World) -> None:
    end = drive(world.engine(), [trial(every=80)]).ends[0]
    files = world.depot.get(end.adapter or "")
    broken = world.root / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes(files["adapter_config.json"])
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        read_adapter(broken)
