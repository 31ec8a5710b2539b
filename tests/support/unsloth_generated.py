"""Trains with the SFTTrainer that Unsloth writes for GPUs, around a plain model: `python unsloth_generated.py OUTPUT`.

Unsloth writes it when `unsloth.models.rl` is imported, and takes a machine for one with a GPU where it is told to.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


class _OnceThere(MetaPathFinder):
    """Ends the pretence that keeps TRL's trainers as they are."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "unsloth.models.rl":
            os.environ["UNSLOTH_ALLOW_CPU"] = "0"


os.environ.pop("UNSLOTH_FORCE_CPU", None)
os.environ["UNSLOTH_ALLOW_CPU"] = "1"
os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"  # the name it has for no autocast; fp16 otherwise
sys.meta_path.insert(0, _OnceThere())

import torch  # noqa: E402
import unsloth  # noqa: E402, F401
from both import CONFIG  # noqa: E402
from hf import adapted  # noqa: E402
from plain_run import Plain, assert_equal_to_a_plain_loop  # noqa: E402
from sft import TOKENS, sft_trainer  # noqa: E402
from tiny import tiny_model  # noqa: E402
from transformers import Trainer  # noqa: E402
from trl import SFTTrainer  # noqa: E402
from unsloth.models._utils import patch_gradient_accumulation_fix  # noqa: E402

import pact_plugin as pact  # noqa: E402

if __name__ == "__main__":
    patch_gradient_accumulation_fix(Trainer)  # as its loaders do
    assert Trainer.compute_loss.__name__ == "_unsloth_pre_compute_loss"
    assert SFTTrainer.__module__ == "UnslothSFTTrainer"
    output = sys.argv[1]
    settings = {"gradient_accumulation_steps": 2, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    trainer = sft_trainer(output, model=adapted(), **settings)
    assert trainer.args.padding_free
    assert "train" in vars(trainer)
    pact.attach(trainer, CONFIG)
    formulas = partial(Plain, CONFIG, tiny_model(), torch.tensor(TOKENS.positive.ids))
    logs = assert_equal_to_a_plain_loop(trainer, adapted().eval(), formulas, partial(torch.optim.SGD, lr=0.1))
    assert trainer.pact.record.receipt.reference == "table"
    print("equal to a plain loop in", len(logs), "steps")
