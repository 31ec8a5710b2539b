"""Runs of `SFTTrainer` and `DPOTrainer` on several ranks, each compared with a plain loop over all ranks' batches.

trainer_ranks.py FOLDER ddp|zero1|zero2|zero3|dpo. The settings are the default's, but for the safety tokens and
how many anchors there are. For test_trainer_ranks.py.
"""

from __future__ import annotations

import gc
import itertools
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed.ops
import pytest
import torch
from both import Recording, changed, probe_of
from leaving import leave
from loop import FEW_ANCHORS, anchors_of
from pact_transformers.data_facts import facts_of
from peft import get_peft_model, get_peft_model_state_dict
from plain_run import Plain
from preferences import CONFIG as PREFERENCES
from preferences import PlainPreferences, dpo_loss, dpo_trainer, lora_of_dpo
from remembered import remember
from safetensors.torch import load_file
from sft import TOKENIZER, TOKENS, completions, lora, sft_trainer, train_logs
from tiny import tiny_model
from torch import Tensor, distributed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import pact_plugin as pact
from pact_plugin.errors import ModelStructureError, ReferenceModelError
from pact_plugin.model.ranks import gathered, is_partitioned
from pact_plugin.run.verify import verify_run

# Else it is compiled for a minute; gloo adds up, too.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# Chunks so small that the ranks have unlike numbers of them: 4 and 5. Of 16 both have as many.
CONFIG = pact.PactConfig(safety_tokens=TOKENS, advanced={"chunk_size": 5})
FEW = changed(CONFIG, anchors=FEW_ANCHORS)
"""For all cases of a mode but its first, as reading the bundled anchors takes half of a run's time."""
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
    loaded: bool = False
    """Whether the trainer loads the model, which ZeRO 3 then partitions before the constraint sees it."""
    static: bool = False
    """Whether DDP counts on the same graph in each step; it has no accumulation then."""

    def settings(self, mode: str) -> dict[str, Any]:
        found = SETTINGS | MODES[mode]
        if self.checkpointing is not None:
            found |= {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": self.checkpointing},
                "ddp_find_unused_parameters": False,  # DDP itself wants it
            }
        if self.static:
            found |= {"ddp_static_graph": True, "gradient_accumulation_steps": 1}
        return found


def zero(stage: int) -> dict[str, Any]:
    # DeepSpeed would keep parameters as small as these whole.
    partitioned = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage, **partitioned},
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    }


MODES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero1": zero(1),
    "zero2": zero(2),
    "zero3": zero(3),
    "dpo": {},
}


def cases(mode: str) -> list[Case]:
    if mode in ("ddp", "dpo"):
        kinds = itertools.product(("lora", "full"), (None, True))
        found = [Case(train, checkpointing) for train, checkpointing in kinds]
    elif mode == "zero1":  # our code tells stage 3 alone apart
        found = [Case("full")]
    else:  # DeepSpeed is slow: each kind once
        found = [Case("lora", True), Case("full")]
    if mode == "zero3":
        found += [Case(train, loaded=True) for train in ("lora", "full")]
    return [*found, Case("full", static=True)] if mode == "ddp" else found


def weights(model: Any) -> dict[str, Tensor]:
    with gathered(model):
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def build(case: Case, mode: str, folder: Path, **settings: Any) -> Any:
    model = None
    if case.loaded:
        model = str(folder / "model")
        tiny_model().save_pretrained(model)
        TOKENIZER.save_pretrained(model)
        distributed.barrier()  # a trainer before has begun the group
    peft = lora() if case.train == "lora" else None
    data = completions(36)
    return sft_trainer(folder, model=model, peft=peft, data=data, **(case.settings(mode) | settings))


def of_all_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def compare(case: Case, mode: str, folder: Path, config: pact.PactConfig) -> None:
    trainer = build(case, mode, folder)
    assert is_partitioned(trainer.model) == case.loaded
    unset_hf_deepspeed_config()  # else every model from here on is partitioned
    twin = get_peft_model(tiny_model(), lora()) if case.train == "lora" else tiny_model()
    with gathered(trainer.model):
        twin.load_state_dict(trainer.model.state_dict())
    pact.attach(trainer, config)
    recording = Recording(trainer)
    trainer.train()
    logs, ranks = train_logs(trainer), distributed.get_world_size()
    size = trainer.args.gradient_accumulation_steps
    batches = of_all_ranks(recording.batches)
    plain = Plain(
        config, tiny_model(), torch.tensor(TOKENS.positive.ids), anchors_of(trainer.pact), probe_of(trainer)
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
    if mode == "ddp" and trainer.is_world_process_zero():  # one rank may save alone
        trainer.save_model(str(folder / "saved"))
        assert "3 steps" in verify_run(folder / "saved")
    distributed.barrier()
    if ranks > 1 and distributed.get_rank() == 0:
        assert "3 steps" in verify_run(folder)


def resume(mode: str, folder: Path) -> None:
    """A run that goes on after its second step ends where the other one has ended."""
    found = []
    for checkpoint in (None, str(folder / "checkpoint-2")):
        trainer = build(Case("lora"), mode, folder, save_strategy="steps", save_steps=2)
        unset_hf_deepspeed_config()
        pact.attach(trainer, FEW)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(str(folder / "saved"))
        found.append((train_logs(trainer)[-1], weights(trainer.model)))
    (log, before), (resumed, after) = found
    assert resumed["loss"] == pytest.approx(log["loss"], abs=1e-6)
    assert resumed["pact/anchor_divergence"] == pytest.approx(log["pact/anchor_divergence"], rel=1e-4)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=1e-5)
    distributed.barrier()
    assert "3 steps" in verify_run(folder)
    saved = load_file(folder / "saved" / "adapter_model.safetensors")
    ours = get_peft_model_state_dict(twin_with(after))
    assert set(saved) == set(ours)
    for name, weight in ours.items():
        torch.testing.assert_close(saved[name], weight)


def twin_with(trained: dict[str, Tensor]) -> Any:
    twin = get_peft_model(tiny_model(), lora())
    twin.load_state_dict(trained, strict=False)
    return twin


def refused(mode: str, folder: Path) -> None:
    """Single rows of a head in training, and a second model, cannot be had in pieces."""
    published = {"easing": False, "anchors": False, "advanced": {"published": True}}
    trainer = build(Case("full"), mode, folder)
    unset_hf_deepspeed_config()
    pact.attach(trainer, pact.PactConfig(safety_tokens=TOKENS, **published))
    with pytest.raises(ModelStructureError, match=r"^deepspeed: single rows .*ZeRO stage 3"):
        trainer.train()
    trainer = build(Case("full", loaded=True), mode, folder / "loaded")
    with pytest.raises(ReferenceModelError, match=r"^reference=.*reference: auto"):
        pact.attach(trainer, {"safety_tokens": TOKENS, "reference": str(folder / "loaded" / "model")})
    unset_hf_deepspeed_config()


def agree(folder: Path) -> None:
    """Ranks that hold other parts of the data know the same of it."""
    trainer = build(Case("lora"), "ddp", folder)
    if distributed.get_rank() == 1:  # as a stream that is split by ranks may begin

        def otherwise(row: dict[str, Any]) -> dict[str, Any]:
            ids = zip(row["input_ids"], row["labels"], strict=True)
            return {"input_ids": [7 if label == -100 else token for token, label in ids]}

        trainer.train_dataset = trainer.train_dataset.map(otherwise)
    here = facts_of(trainer, None)
    assert len(here[1].endings) == 2
    assert of_all_ranks(here) == [here, here]


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
    plain = PlainPreferences(task, PREFERENCES.weight, tiny_model(), anchors_of(trainer.pact))
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
    remember()
    gc.freeze()  # a trainer collects garbage when it begins and ends
    if mode == "ddp":
        agree(folder / "agree")
    if mode in ("zero2", "zero3"):
        resume(mode, folder / "resumed")
    if mode == "zero3":
        refused(mode, folder / "refused")
    for number, case in enumerate(cases(mode)):
        where = folder / str(number)
        if mode == "dpo":
            compare_preferences(case, mode, where)
        else:
            compare(case, mode, where, FEW if number else CONFIG)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
