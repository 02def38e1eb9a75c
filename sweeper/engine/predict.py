"""A trained model at work: labels and answers for token ids, by the same code that evaluates trials.

Does not know tokenizers, templates or studies. Cost: loading the model once, then its forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sweeper.engine.base import EngineSetup
from sweeper.engine.export import read_adapter
from sweeper.engine.full import FullNet
from sweeper.engine.lora_net import LoraNet
from sweeper.engine.model import check_folder, knows, load_config
from sweeper.engine.net import Net
from sweeper.engine.packed import LabelIds
from sweeper.engine.params import Params
from sweeper.engine.peft_net import PlainNet
from sweeper.errors import ModelError
from sweeper.spec.models import EvaluateSpec, TrainingSpec

_ROWS = 16  # prompts read together


class Predictor:
    """The model in `model_dir` (a base, or one that was fully fine-tuned), with the PEFT adapter in `adapter_dir` if given.

    `base` is how the base's linear layers are stored under an adapter, for the numbers that the trial had. Raises ModelError if
    either is incomplete or the adapter does not fit the model.
    """

    def __init__(
        self,
        model_dir: Path,
        adapter_dir: Path | None = None,
        device: str = "cpu",
        threads: int = 1,
        dtype: str = "fp32",
        trust_remote_code: bool = False,
        base: str = "full",
    ) -> None:
        torch.set_num_threads(threads)
        check_folder(model_dir)
        method = "full" if adapter_dir is None else "lora"
        training = TrainingSpec.model_validate(
            {"method": method, "dtype": dtype, "base": base, "chunk_tokens": 1024, "max_length": 1024}
        )
        setup = EngineSetup(
            study="",
            model=str(model_dir),
            revision=None,
            trust_remote_code=trust_remote_code,
            train=model_dir,
            validation=model_dir,
            training=training,
            evaluate=EvaluateSpec(),
            metrics=(),
            objective="loss",
            maximize=False,
            at="last",
            checkpoint_seconds=0.0,
            full_examples=0,
            device=device,
        )
        known = knows(load_config(model_dir, trust_remote_code))
        self._net: Net
        if adapter_dir is None:
            self._net = FullNet(setup) if known else PlainNet(setup)
            return
        config, pairs = read_adapter(adapter_dir)
        net = LoraNet(setup) if known else PlainNet(setup)
        _load(net, config, pairs, adapter_dir)
        self._net = net

    def classify(
        self, prompts: Sequence[Sequence[int]], label_ids: LabelIds
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The best label of each prompt, int32 [n], and log p of every label, float32 [n, labels].

        `label_ids` are each label's tokens, its end token included (TokenInfo.label_ids).
        """
        parts = [self._net.score([(0, part)], label_ids)[0] for part in _batches(prompts)]
        scores = np.concatenate(parts) if parts else np.empty((0, len(label_ids)), np.float32)
        return scores.argmax(1).astype(np.int32), scores

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_id: int | None) -> list[list[int]]:
        """Greedy continuation of each prompt, at most `max_new_tokens` tokens, ending before `end_id`."""
        return [tokens for part in _batches(prompts) for tokens in self._net.decode([(0, part)], max_new_tokens, end_id)[0]]


def _load(net: LoraNet | PlainNet, config: dict[str, object], pairs: dict[str, tuple[Tensor, Tensor]], folder: Path) -> None:
    params = Params(
        learning_rate=1.0,
        batch_size=1,
        weight_decay=0.0,
        dropout=0.0,
        rank=int(str(config["r"])),
        alpha=float(str(config["lora_alpha"])),
        targets=",".join(pairs),
        warmup=0.0,
        schedule="constant",
        beta1=0.9,
        beta2=0.999,
        clip=0.0,
        label_smoothing=0.0,
    )
    try:
        net.place(0, params, seed=0)
        net.load(0, pairs)
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"adapter {folder} does not fit this model: {error}") from error


def _batches(prompts: Sequence[Sequence[int]]) -> list[list[npt.NDArray[np.int32]]]:
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    return [rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]
