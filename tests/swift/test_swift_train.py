"""`swift sft` under PACT, as its users call it: every loss equals a plain computation on the same batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dumped_plain import assert_equal_to_plain
from plain import documents
from safetensors.torch import load_file
from swift_runs import FULL, LORA, PACKED, Workshop

import pact_plugin as pact


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("swift"))


each_tuner = pytest.mark.parametrize("tuner", [LORA, FULL], ids=["lora", "full"])


@each_tuner
def test_the_default(workshop, request, tuner):
    """Rows of several turns, padded, with gradient checkpointing, which is ms-swift's default."""
    run = workshop.train(f"default-{request.node.callspec.id}", dump=True, **tuner).ok()
    assert "PACT: constrained; weight 10, easing and anchors, 5 safety tokens" in run.log
    assert run.receipt["reference"] == "table"
    assert_equal_to_plain(workshop, run, 2, whole_step=True)
    line = run.verify()
    assert line.returncode == 0, line.stderr
    assert "constrained: 3 steps" in line.stdout
    assert "easing and anchors" in line.stdout


@each_tuner
def test_packed(workshop, request, tuner):
    """One row, of which ms-swift keeps the logits at some positions."""
    plugins = [workshop.plugin("held", hold_data=True), PACKED]
    packed = {"packing": True, "attn_impl": "flash_attention_2", "per_device_train_batch_size": 1}
    name = f"packed-{request.node.callspec.id}"
    run = workshop.train(name, dump=True, external_plugins=plugins, **packed, **tuner).ok()
    assert "use_logits_to_keep: True" in run.log
    for batch in run.dumped():
        assert batch["inputs"]["input_ids"].shape[0] == 1
        positions = batch["inputs"]["position_ids"][0]
        assert len(documents(positions, len(positions))) > 2
    assert run.receipt["terms"] == ["easing", "hold_data", "anchors"]
    assert_equal_to_plain(workshop, run, 2, whole_step=True)
    assert run.verify().returncode == 0


def test_padding_free(workshop):
    flat = {"padding_free": True, "attn_impl": "flash_attention_2"}
    plugins = [workshop.plugin(), PACKED]
    run = workshop.train("padding-free", dump=True, external_plugins=plugins, **flat, **FULL).ok()
    assert all(batch["inputs"]["input_ids"].shape[0] == 1 for batch in run.dumped())
    assert_equal_to_plain(workshop, run, 2, whole_step=True)


@each_tuner
def test_two_ranks(workshop, request, tuner):
    """Through ms-swift's own launcher; micro-batches of two ranks weigh in a step as two of one."""
    name = f"ranks-{request.node.callspec.id}"
    on_cpu = {"use_cpu": True, "ddp_backend": "gloo"}
    settings = {"gradient_accumulation_steps": 1, **on_cpu, **tuner}
    run = workshop.train(name, dump=True, ranks=2, **settings).ok()
    assert len(run.dumped()) == 6
    assert_equal_to_plain(workshop, run, 2, whole_step=True)
    assert run.verify().returncode == 0


@each_tuner
def test_interrupted_and_resumed_into_another_folder(workshop, request, tuner):
    """As ms-swift does by default: the folder has a version, and the aligned model is not the one that goes on."""
    name = f"resumed-{request.node.callspec.id}"
    settings = {**tuner, "save_steps": 2, "split_dataset_ratio": 0.2, "external_plugins": [chosen(workshop)]}
    first = workshop.train(name, max_steps=2, **settings).ok()
    assert first.receipt["steps"] == [[1, 2]]
    whole = workshop.train(f"{name}-whole", max_steps=4, **settings).ok()
    on = {"max_steps": 4, "resume_from_checkpoint": str(first.checkpoints[-1]), **settings}
    resumed = workshop.train(f"{name}-on", **on).ok()
    assert resumed.receipt["steps"] == [[1, 4]]
    assert not (resumed.output / "_pact_store").exists()
    line = resumed.verify()
    assert line.returncode == 0, line.stderr
    assert "constrained: 4 steps" in line.stdout
    assert resumed.verify(resumed.checkpoints[-1]).returncode == 0
    for key in ("loss", "pact/anchor_divergence", "pact/eased"):
        found = [entry[key] for entry in resumed.steps]
        assert found == pytest.approx([entry[key] for entry in whole.steps], abs=1e-5)
    evaluations = [entry for entry in resumed.history if "eval_loss" in entry]
    assert evaluations
    assert all("eval_pact/eased" in entry for entry in evaluations)

    plugins = [str(workshop.folder / "plugins" / "none.py")]
    Path(plugins[0]).write_text("")
    last = {"max_steps": 6, "resume_from_checkpoint": str(resumed.checkpoints[-1]), "add_version": False}
    plain = workshop.train(f"{name}-on", **(settings | last | {"external_plugins": plugins})).ok()
    line = plain.verify()
    assert line.returncode == 1
    assert "steps 5-6 of 6 were not constrained" in line.stderr


def chosen(workshop: Workshop) -> str:
    """The plugin whose path the package prints: tokens are chosen from the model."""
    asked = subprocess.run([sys.executable, "-m", "pact_swift"], capture_output=True, text=True, check=True)
    assert os.listdir(Path(asked.stdout.strip()).parent)[0].startswith(("pact.py", "__pycache__"))
    return asked.stdout.strip()


def test_streaming_data_is_read_by_a_reference_in_each_step(workshop):
    settings = {"streaming": True, "shuffle_buffer_size": 1, "save_steps": 3}
    run = workshop.train("streaming", dump=True, **settings, **LORA).ok()
    assert run.receipt["reference"] == "adapter_off"
    assert run.receipt["table"] is None
    assert "PACT reference: run in each step, as the training data has no length" in run.log
    assert_equal_to_plain(workshop, run, 2, whole_step=True)


def test_weight_0_is_ms_swift_bit_for_bit(workshop):
    without = workshop.train("without", external_plugins=None, **FULL).ok()
    only = workshop.train(
        "measured", external_plugins=[workshop.plugin("measured", weight=0, hold_data=True)], **FULL
    ).ok()
    theirs = load_file(without.checkpoints[-1] / "model.safetensors")
    ours = load_file(only.checkpoints[-1] / "model.safetensors")
    assert [entry["loss"] for entry in only.steps] == [entry["loss"] for entry in without.steps]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "PACT: measured with weight 0, NOT constrained" in only.log
    assert only.steps[-1]["pact/divergence"] > 1e-5
    assert "the run was measured, not constrained" in only.verify().stderr
    assert not list(without.output.rglob("pact_*"))
    line = without.verify()
    assert line.returncode == 1
    assert "no receipt: nothing shows that this run was constrained" in line.stderr


def test_pretraining_data_warns_that_nothing_is_masked(workshop):
    run = workshop.train("pretrained", command="pt", **FULL).ok()
    assert "no token is masked in the first rows" in run.log
    assert run.receipt["steps"] == [[1, 3]]
    assert run.receipt["sums"]["eased"][0] == 0
    assert run.verify().returncode == 0


def test_the_chosen_tokens_lie_beside_the_model(workshop):
    run = workshop.train(
        "chosen", external_plugins=[chosen(workshop)], max_steps=1, save_steps=1, **LORA
    ).ok()
    tokens = pact.SafetyTokens.load(run.output / "pact/safety_tokens.safetensors")
    assert tokens.provenance["contrast"] == "benign"
    assert pact.SafetyTokens.load(run.checkpoints[-1] / "pact/safety_tokens.safetensors") == tokens
