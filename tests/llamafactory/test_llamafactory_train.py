"""`pact-plugin train`, as its users call it: every loss equals a plain computation on the same batch."""

from __future__ import annotations

import pytest
from dumped_plain import Place, assert_equal_to_plain, assert_metrics, expected
from llamafactory_runs import FULL, LORA, Workshop
from pact_llamafactory.check.check import check
from plain import documents


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("llamafactory"))


each_kind = pytest.mark.parametrize("kind", [LORA, FULL], ids=["lora", "full"])


@each_kind
def test_the_default(workshop, request, kind):
    run = workshop.train(f"default-{request.node.callspec.id}", dump=True, **kind).ok()
    assert "PACT: constrained; weight 10, easing and anchors, 5 safety tokens" in run.log
    assert run.receipt["reference"] == "table"
    assert_equal_to_plain(workshop, run, 2, whole_step=True)
    line = run.verify()
    assert line.returncode == 0, line.stderr
    assert "constrained: 3 steps" in line.stdout


@each_kind
def test_packed(workshop, request, kind):
    """`neat_packing`: conversations in a row do not see each other."""
    packed = {"neat_packing": True, "per_device_train_batch_size": 1}
    held = workshop.named_tokens | {"hold_data": True}
    run = workshop.train(f"packed-{request.node.callspec.id}", dump=True, pact=held, **packed, **kind).ok()
    for batch in run.dumped():
        positions = batch["inputs"]["position_ids"][0]
        assert len([span for span in documents(positions, len(positions)) if span[1] - span[0] > 1]) > 2
    assert_equal_to_plain(workshop, run, 2, whole_step=True)
    assert run.verify().returncode == 0


def test_packed_alone(workshop):
    """Conversations in a row see each other in training; the aligned model reads each by itself."""
    packed = {"packing": True, "per_device_train_batch_size": 1}
    run = workshop.train("packed-alone", dump=True, **packed, **LORA).ok()
    _, parts = expected(workshop, run, Place(2), whole_step=True)
    for step, entry in enumerate(run.steps):
        assert_metrics(entry, parts[step * 2 : step * 2 + 2], run)
    assert sum(part["eased"] for part in parts) > 0


def test_a_template_that_ends_an_answer_in_the_next_prompt(workshop):
    """LLaMA-Factory's `efficient_eos`: the first token of the next prompt has the label that ends the answer."""
    run = workshop.train("ends-later", dump=True, template="falcon", **LORA).ok()
    batch = run.dumped()[0]["inputs"]
    assert ((batch["labels"] != -100) & (batch["labels"] != batch["input_ids"])).any()
    assert_equal_to_plain(workshop, run, 2, whole_step=True)


def test_streamed(workshop):
    """Each step runs the reference; LLaMA-Factory splits a stream over its workers, of which it needs one."""
    streamed = {"streaming": True, "dataloader_num_workers": 1}
    run = workshop.train("streamed", dump=True, **streamed, **LORA).ok()
    assert run.receipt["reference"] == "adapter_off"
    assert_equal_to_plain(workshop, run, 2, whole_step=True)


def test_interrupted_and_resumed(workshop):
    """LLaMA-Factory finds the last checkpoint in its output folder by itself."""
    settings = {**LORA, "save_steps": 2, "val_size": 0.2, "eval_strategy": "steps", "eval_steps": 2}
    workshop.train("resumed", max_steps=2, **settings).ok()
    resumed = workshop.train("resumed", max_steps=4, **settings).ok()
    assert "Resuming training from" in resumed.log
    assert resumed.receipt["steps"] == [[1, 4]]
    line = resumed.verify()
    assert line.returncode == 0, line.stderr
    assert "constrained: 4 steps" in line.stdout
    assert any("eval_pact/eased" in entry for entry in resumed.history)
    whole = workshop.train("whole", max_steps=4, **settings).ok()
    for key in ("loss", "pact/anchor_divergence", "pact/eased"):
        found = [entry[key] for entry in resumed.steps]
        assert found == pytest.approx([entry[key] for entry in whole.steps], abs=1e-5)
    line = workshop.plain("resumed", max_steps=6, **settings).ok().verify()
    assert line.returncode == 1
    assert "steps 5-6 of 6 were not constrained" in line.stderr


def test_the_last_checkpoint_by_name(workshop):
    """`true` is the last one of the output folder, also for PACT's table and tokens, and for `check`."""
    settings = {**LORA, "save_steps": 2}
    workshop.train("named", max_steps=2, **settings).ok()
    settings["resume_from_checkpoint"] = True
    (finding,) = check(workshop.written("named", max_steps=3, pact={"weight": 1}, **settings)).findings
    assert finding.key == "pact.weight"
    resumed = workshop.train("named", max_steps=3, **settings).ok()
    assert resumed.receipt["steps"] == [[1, 3]]


def test_two_processes_through_torchrun(workshop):
    """LLaMA-Factory's launcher starts PACT's file on every rank."""
    run = workshop.train("ranks", torchrun=True, **LORA).ok()
    assert "Initializing 2 distributed tasks" in run.log
    assert run.receipt["steps"] == [[1, 3]]
    assert run.verify().returncode == 0


def test_llamafactory_cli_knows_no_pact_and_leaves_no_receipt(workshop):
    run = workshop.plain("cli", pact=True, max_steps=1, **FULL)
    assert run.status != 0
    assert "pact" in run.log
    run = workshop.plain("cli", max_steps=1, save_steps=1, **FULL).ok()
    assert not list(run.output.rglob("pact_*"))
    line = run.verify()
    assert line.returncode == 1
    assert "no receipt: nothing shows that this run was constrained" in line.stderr


def test_pretraining(workshop):
    run = workshop.train("pretrained", stage="pt", **FULL).ok()
    assert "no token is masked in the first rows" in run.log
    assert run.receipt["steps"] == [[1, 3]]
