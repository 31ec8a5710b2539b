"""An Axolotl plugin that writes what the model is given in each forward pass of training, for the tests.

Into DUMP_BATCHES/<rank>-<number>.pt go the inputs and the weights at that moment, quantized ones apart. Into
<rank>-reference go the numbers of the micro-batches in which the decoder also ran without training.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin


class DumpPlugin(BasePlugin):
    def register(self, cfg: Any) -> None:
        if torch.version.cuda and not torch.cuda.is_available():
            # Asked of several ranks; Axolotl knows the answer of a torch without CUDA, not of one without driver.
            torch.cuda.can_device_access_peer = _no_cuda

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        if not torch.cuda.is_available():
            cfg.device_map = None  # with several ranks Axolotl asks for one accelerator each

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        folder = Path(os.environ["DUMP_BATCHES"])
        folder.mkdir(parents=True, exist_ok=True)
        rank = os.environ.get("RANK", "0")
        count = 0

        def write(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
            nonlocal count
            if not model.training or "labels" not in kwargs:
                return
            tensors = {key: value.cpu() for key, value in kwargs.items() if torch.is_tensor(value)}
            parameters = model.named_parameters()
            weights = {n: p.detach().clone() for n, p in parameters if type(p) is torch.nn.Parameter}
            torch.save({"inputs": tensors, "weights": weights}, folder / f"{rank}-{count:03d}.pt")
            count += 1

        def note(decoder: Any, args: Any) -> None:
            if count and not decoder.training:
                with (folder / f"{rank}-reference").open("a") as file:
                    file.write(f"{count}\n")

        trainer.model.register_forward_pre_hook(write, with_kwargs=True)
        decoder = next(module for module in trainer.model.modules() if hasattr(module, "embed_tokens"))
        decoder.register_forward_pre_hook(note)


def _no_cuda(*args: Any) -> bool:
    raise AssertionError("Torch not compiled with CUDA enabled")


class OtherTrainerPlugin(BasePlugin):
    """Another plugin that brings a trainer class of its own, and a model that computes no logits in training."""

    counts = True

    def get_trainer_cls(self, cfg: Any) -> type:
        from axolotl.core.trainers.base import AxolotlTrainer

        class CountingTrainer(AxolotlTrainer):
            def training_step(self, *args: Any, **kwargs: Any) -> Any:
                with (Path(self.args.output_dir) / "micro_batches").open("a") as file:
                    file.write("x")
                return super().training_step(*args, **kwargs)

        return CountingTrainer

    def post_model_load(self, cfg: Any, model: Any) -> None:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        forward = model.forward

        @functools.wraps(forward)  # Axolotl drops the columns that the signature does not name
        def without_logits(
            *args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any
        ) -> Any:
            if labels is None or not model.training:
                return forward(*args, labels=labels, **kwargs)
            hidden = model.model(*args, **kwargs).last_hidden_state[:, :-1]
            targets = labels[:, 1:]
            kept = targets != -100
            logits = model.lm_head(hidden[kept]).float()
            loss = torch.nn.functional.cross_entropy(logits, targets[kept], reduction="sum")
            named = num_items_in_batch if self.counts else None
            return CausalLMOutputWithPast(loss=loss / (kept.sum() if named is None else named))

        model.forward = without_logits


class IgnoringPlugin(OtherTrainerPlugin):
    """Likewise, but the model divides by its own tokens, whatever denominator it is given."""

    counts = False
