"""Runs of `SFTTrainer` and `DPOTrainer` on several ranks, each compared with a plain loop over all ranks' batches.

trainer_ranks.py FOLDER ddp|zero1|zero2|dpo. The settings are the default's, but for the safety tokens. For
test_trainer_ranks.py.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from both import Recording, anchors_of, probe_of
from leaving import leave
from peft import get_peft_model
from plain_run import Plain
from preferences import CONFIG as PREFERENCES
from preferences import PlainPreferences, dpo_loss, dpo_trainer, lora_of_dpo
from sft import TOKENS, completions, lora, sft_trainer, train_logs
from tiny import tiny_model
from torch import Tensor, distributed

import pact_plugin as pact
from pact_plugin.run.verify import verify_run

CONFIG = pact.PactConfig(safety_tokens=TOKENS)
SETTINGS: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 0.0,
}


@dataclass(frozen=True)
class Case:
    train: str
    checkpointing: bool | None = None
    """Whether it is reentrant; None where there is none."""

    def settings(self, mode: str) -> dict[str, Any]:
        found = SETTINGS | MODES[mode]
        if self.checkpointing is not None:
            found |= {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": self.checkpointing},
                "ddp_find_unused_parameters": False,  # DDP itself wants it
            }
        return found


def deepspeed(stage: int) -> dict[str, Any]:
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    }


MODES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero1": deepspeed(1),
    "zero2": deepspeed(2),
    "dpo": {},
}


def cases(mode: str) -> list[Case]:
    kinds = itertools.product(("lora", "full"), (None, True))
    return [Case(train, checkpointing) for train, checkpointing in kinds]


def whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def weights(model: Any) -> dict[str, Tensor]:
    return {
        name: whole(parameter.detach()).clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def of_all_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def compare(case: Case, mode: str, folder: Path) -> None:
    trainer = sft_trainer(
        folder, peft=lora() if case.train == "lora" else None, data=completions(36), **case.settings(mode)
    )
    twin = get_peft_model(tiny_model(), lora()) if case.train == "lora" else tiny_model()
    twin.load_state_dict(trainer.model.state_dict())
    pact.attach(trainer, CONFIG)
    recording = Recording(trainer)
    trainer.train()
    logs, ranks = train_logs(trainer), distributed.get_world_size()
    size = SETTINGS["gradient_accumulation_steps"]
    batches = of_all_ranks(recording.batches)
    plain = Plain(
        CONFIG, tiny_model(), torch.tensor(TOKENS.positive.ids), anchors_of(trainer), probe_of(trainer)
    )
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=SETTINGS["learning_rate"])
    for step, log in enumerate(logs, 1):
        parts = [one[(step - 1) * size : step * size] for one in batches]
        outcome = plain.step_of_ranks(twin, parts, step)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        assert log["loss"] == pytest.approx(outcome.loss.item(), abs=1e-5)
        assert log["pact/anchor_divergence"] == pytest.approx(outcome.anchors, rel=1e-3, abs=1e-6)
        assert log["pact/eased"] == pytest.approx(outcome.eased[0] / outcome.eased[1], abs=1e-6)
    assert logs[-1]["pact/anchor_divergence"] > 1e-5
    ours, theirs = weights(trainer.model), {n: p for n, p in twin.named_parameters() if p.requires_grad}
    for (name, weight), expected in zip(ours.items(), theirs.values(), strict=True):
        torch.testing.assert_close(
            weight, expected.detach(), atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    print(case, trainer._pact_ahead, logs[-1]["loss"], flush=True)
    distributed.barrier()
    if ranks > 1 and distributed.get_rank() == 0:
        assert "3 steps" in verify_run(folder)


def compare_preferences(case: Case, mode: str, folder: Path) -> None:
    adapter = {"peft": lora_of_dpo()} if case.train == "lora" else {}
    trainer = dpo_trainer(folder, rows=36, **adapter, **case.settings(mode))
    twin = get_peft_model(tiny_model(), lora_of_dpo()) if case.train == "lora" else tiny_model()
    twin.load_state_dict(trainer.model.state_dict())
    pact.attach(trainer, PREFERENCES)
    recording = Recording(trainer)
    trainer.train()
    size, batches = SETTINGS["gradient_accumulation_steps"], of_all_ranks(recording.batches)
    task = partial(dpo_loss, reference=tiny_model())
    plain = PlainPreferences(task, PREFERENCES.weight, tiny_model(), anchors_of(trainer))
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=SETTINGS["learning_rate"])
    logs = train_logs(trainer)
    for step, log in enumerate(logs, 1):
        parts = [one[(step - 1) * size : step * size] for one in batches]
        loss, divergence = plain.step(twin, parts, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert log["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert log["pact/anchor_divergence"] == pytest.approx(divergence, rel=1e-3, abs=1e-6)
    assert logs[-1]["pact/anchor_divergence"] > 5e-6
    for weight, expected in zip(weights(trainer.model).values(), trained, strict=True):
        torch.testing.assert_close(weight, expected.detach(), atol=1e-5, rtol=1e-5)
    print(case, trainer._pact_ahead, logs[-1]["loss"], flush=True)
    distributed.barrier()
    if distributed.get_rank() == 0:
        assert "3 steps" in verify_run(folder)


def main(folder: Path, mode: str) -> None:
    for number, case in enumerate(cases(mode)):
        (compare_preferences if mode == "dpo" else compare)(case, mode, folder / str(number))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
