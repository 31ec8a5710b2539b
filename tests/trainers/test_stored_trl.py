"""A stored reference in TRL's SFTTrainer: filled before the first step, then equal to one that runs in every step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from sft import TOKENS, completions, conversations, lora, sft_trainer, train_logs, weights
from tiny import tiny_model

import pact_plugin as pact
from pact_plugin.errors import AdapterError, ReceiptError, StoreError
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

CONFIG = pact.PactConfig(safety_tokens=TOKENS, weight=2.0, anchors=0)
FOLDER = "_pact_store"
EPOCHS = {"num_train_epochs": 3, "max_steps": -1}


def config(**changes) -> pact.PactConfig:
    return CONFIG.model_copy(update=changes)


def with_training() -> torch.nn.Module:
    """An adapter that already holds training, so that it cannot be switched off."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    return model


MODELS = {
    "full": lambda: {"model": tiny_model()},
    "lora": lambda: {"model": tiny_model(), "peft": lora()},
    "trained lora": lambda: {"model": with_training()},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({}, completions),
        ({"packing": True, "packing_strategy": "bfd", "max_length": 96}, completions),
        ({"packing": True, "packing_strategy": "wrapped", "max_length": 48}, completions),
        ({"padding_free": True, "max_length": None}, completions),
        ({"assistant_only_loss": True, "gradient_accumulation_steps": 2}, conversations),
        ({"max_length": 24}, completions),
    ],
    ids=["padded", "packed", "wrapped", "padding-free", "multi-turn", "truncated"],
)
@pytest.mark.filterwarnings("ignore")
def test_three_epochs_equal_a_reference_that_runs_in_every_step(tmp_path, model, settings, data):
    def run(name: str, **changes):
        trainer = sft_trainer(tmp_path / name, data=data(), **MODELS[model](), **EPOCHS, **settings)
        pact.attach(trainer, config(**changes)).train()
        return trainer

    online = run("online", reference="adapter_off" if model == "lora" else "frozen_copy")
    stored = run("stored")
    assert stored.pact.receipt.reference == "stored"
    losses, expected = ([log["loss"] for log in train_logs(t)] for t in (stored, online))
    assert losses == pytest.approx(expected, abs=1e-3)
    for name in ("divergence", "safety_mass_reference", "eased", "positions"):
        ours, theirs = ([log[f"pact/{name}"] for log in train_logs(t)] for t in (stored, online))
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-5), name
    assert train_logs(stored)[-1]["pact/divergence"] > 2e-5
    assert stored.pact.receipt.positions == online.pact.receipt.positions


@pytest.mark.parametrize("reference", ["stored", "frozen_copy", "adapter_off"])
def test_the_reference_runs_in_the_precision_of_training(tmp_path, reference):
    """Under bfloat16 autocast the first step's divergence is that of equal models, and no more."""
    peft = lora() if reference == "adapter_off" else None
    trainer = sft_trainer(tmp_path, model=tiny_model(), peft=peft, bf16=True, max_steps=1)
    pact.attach(trainer, config(reference=reference)).train()
    (log,) = train_logs(trainer)
    assert log["pact/divergence"] == pytest.approx(0, abs=1e-6)
    assert log["pact/positions"] > 0


def test_no_reference_pass_runs_once_the_store_is_filled(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path, **EPOCHS), CONFIG)
    modes = []
    trainer.model.model.register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer.train()
    steps = trainer.state.global_step
    assert modes[-steps:] == [True] * steps
    assert modes[:-steps] == [False], "sixteen short rows fit into one pass"


def test_the_store_lies_in_the_output_and_is_used_again(tmp_path, caplog):
    def run(seed: int):
        trainer = sft_trainer(tmp_path, model=tiny_model(), peft=lora(), seed=seed, **EPOCHS)
        passes = []
        pact.attach(trainer, CONFIG)
        trainer.pact.head.decoder.register_forward_hook(lambda m, *_: passes.append(m.training))
        trainer.train()
        return trainer, passes

    with caplog.at_level("INFO", logger="pact_plugin"):
        first, _ = run(0)
    assert "stored, 16 documents" in caplog.text
    assert "3 epochs" in caplog.text
    assert (tmp_path / FOLDER / "header.json").is_file()
    again, passes = run(1)  # another seed, another initial adapter: the same aligned model
    assert all(passes)
    assert again.pact.receipt.store == first.pact.receipt.store == Receipt.read(tmp_path).store
    assert len(list((tmp_path / FOLDER).glob("*.lmdb"))) == 1


def test_what_auto_chooses(tmp_path):
    def chosen(**settings) -> str:
        return pact.attach(sft_trainer(tmp_path, **settings), CONFIG).pact.receipt.reference

    assert chosen() == "stored"
    assert chosen(peft=lora(), **EPOCHS) == "stored"
    assert chosen(peft=lora(), num_train_epochs=1, max_steps=-1) == "adapter_off"
    assert chosen(peft=lora(), max_steps=4) == "adapter_off"
    assert chosen(peft=lora(), max_steps=5) == "stored"
    assert chosen(model=with_training()) == "frozen_copy"


def test_evaluation_data_is_stored_too_and_other_data_is_left_out(tmp_path, caplog):
    trainer = sft_trainer(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.eval_dataset = trainer.eval_dataset.select(range(8))
    other = trainer.train_dataset.select(range(4)).map(
        lambda row: {"input_ids": [*row["input_ids"][:-1], 40], "labels": [*row["labels"][:-1], 40]}
    )
    pact.attach(trainer, CONFIG).train()
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert all(log["eval_pact/divergence"] > 1e-6 for log in evaluations)
    left_out = trainer.evaluate(other)
    assert left_out["eval_loss"] > 0
    assert not any("pact" in name for name in left_out)
    assert "left out of this evaluation" in caplog.text
    assert trainer.evaluate()["eval_pact/positions"] > 0


# --- resuming ---


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_finds_the_store_and_equals_one_that_was_not_interrupted(tmp_path, model):
    def trainer(folder: str, steps: int):
        saving = {"max_steps": steps, "save_strategy": "steps", "save_steps": 3}
        built = sft_trainer(tmp_path / folder, **MODELS[model](), **saving)
        return pact.attach(built, config(reference="stored"))

    whole = trainer("whole", 6)
    whole.train()
    trainer("cut", 3).train()
    resumed = trainer("cut", 6)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, atol=1e-6, rtol=1e-5)
    assert resumed.pact.receipt.steps == [[1, 6]]
    assert "reference stored" in verify_run(tmp_path / "cut")


def test_resuming_without_the_store_or_with_another_ones(tmp_path):
    def trainer(**changes):
        built = sft_trainer(tmp_path, model=tiny_model(), max_steps=4, save_strategy="steps", save_steps=2)
        return pact.attach(built, config(**changes))

    trainer().train()
    shutil.rmtree(tmp_path / FOLDER)
    with pytest.raises(StoreError, match=r"store=.*is not stored.*no longer the aligned"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    other = pact.SafetyTokens.for_tokenizer(trainer().processing_class, [50, 51], [1.0, 1.0])
    shutil.rmtree(tmp_path / FOLDER, ignore_errors=True)
    pact.attach(sft_trainer(tmp_path, model=tiny_model()), config(safety_tokens=other)).train()
    with pytest.raises(StoreError, match=r"store=.*predictions of other safety tokens.*Delete the folder"):
        trainer()
    trained = sft_trainer(tmp_path, model=tiny_model(seed=1))
    with pytest.raises(StoreError, match="predictions of another model"):
        pact.attach(trained, config(safety_tokens=other))


def test_resuming_with_another_model_is_refused_by_the_receipt(tmp_path):
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    pact.attach(sft_trainer(tmp_path, model=tiny_model(), **saving), CONFIG).train()
    store = {"store": str(tmp_path / "elsewhere")}
    other = pact.attach(sft_trainer(tmp_path, model=tiny_model(seed=1), max_steps=4), config(**store))
    with pytest.raises(ReceiptError, match="store"):
        other.train(resume_from_checkpoint=True)


# --- data that cannot be stored ---


@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("reference", ["auto", "stored"])
def test_a_streaming_data_set_falls_back_with_a_message(tmp_path, caplog, with_lora, reference):
    data = completions().to_iterable_dataset()
    trainer = sft_trainer(
        tmp_path, model=tiny_model(), data=data, peft=lora() if with_lora else None, eval_strategy="no"
    )
    pact.attach(trainer, config(reference=reference)).train()
    assert trainer.pact.receipt.steps == [[1, 3]]
    assert trainer.pact.receipt.reference == ("adapter_off" if with_lora else "frozen_copy")
    warned = "not stored, as the training data has no length" in caplog.text
    assert warned == (not with_lora or reference == "stored")
    assert not (tmp_path / FOLDER).exists()


def test_a_streaming_data_set_with_sharded_parameters_has_no_reference(tmp_path):
    trainer = sft_trainer(
        tmp_path, model=tiny_model(), data=completions().to_iterable_dataset(), eval_strategy="no"
    )
    trainer.is_fsdp_enabled = True  # as where several accelerators are
    with pytest.raises(AdapterError, match=r"^fsdp: .*no length.*sharded"):
        pact.attach(trainer, CONFIG)


def test_rows_that_change_from_epoch_to_epoch_stop_full_fine_tuning(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path, **EPOCHS), CONFIG)
    collator = trainer.data_collator

    def changing(examples):
        batch = collator(examples)
        if trainer.state.global_step > 0:
            batch["input_ids"][:, 1] = 40
        return batch

    trainer.data_collator = changing
    with pytest.raises(StoreError, match=r"document 0 of the batch is not stored"):
        trainer.train()


def test_several_evaluation_data_sets_and_loading_processes(tmp_path):
    trainer = sft_trainer(tmp_path, eval_strategy="steps", eval_steps=2, dataloader_num_workers=2)
    rows = trainer.eval_dataset
    trainer.train_dataset = rows.select(range(8))
    trainer.eval_dataset = {"one": rows.select(range(8, 12)), "two": rows.select(range(12, 16))}
    pact.attach(trainer, CONFIG).train()
    logs = [log for log in trainer.state.log_history if any("eval" in name for name in log)]
    found = {name for log in logs for name in log if "pact/divergence" in name}
    assert found == {"eval_one_pact/divergence", "eval_two_pact/divergence"}
    assert trainer.pact.stored.store.documents == 16


def test_a_store_in_another_place(tmp_path):
    place = tmp_path / "shared" / "store"
    trainer = pact.attach(sft_trainer(tmp_path / "run"), config(store=str(place)))
    trainer.train()
    assert list(place.glob("*.lmdb"))
    assert not (tmp_path / "run" / FOLDER).exists()


def test_published_and_first_n(tmp_path):
    def losses(name: str, **changes) -> list[float]:
        trainer = sft_trainer(
            tmp_path / name, model=tiny_model(), data=conversations(), assistant_only_loss=True
        )
        pact.attach(trainer, config(objective="published", first_n=3, **changes)).train()
        return [log["loss"] for log in train_logs(trainer)]

    assert losses("stored") == pytest.approx(losses("copied", reference="frozen_copy"), abs=1e-3)


def test_every_file_of_a_store_is_of_this_run(tmp_path):
    trainer = pact.attach(sft_trainer(tmp_path), CONFIG)
    trainer.train()
    names = sorted(path.suffix for path in Path(tmp_path / FOLDER).iterdir())
    assert names == [".json", ".lmdb"]
