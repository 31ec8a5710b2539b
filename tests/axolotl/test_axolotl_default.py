"""`axolotl train` under the default, easing and anchors: every loss and every metric equals a plain computation."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from axolotl_runs import LORA
from dumped_plain import Place, assert_equal_to_plain, assert_metrics, expected


@pytest.mark.parametrize("changes", [LORA, {"learning_rate": 1e-3}], ids=["lora", "full"])
def test_the_default_in_one_epoch(workshop, request, changes):
    """Easing and anchors, and a table that is filled before the first step: no step runs a reference."""
    epoch = {"num_epochs": 1, "max_steps": None, "micro_batch_size": 8, "save_steps": 6}
    name = f"default-{request.node.callspec.id}"
    run = workshop.train(name, dump=True, pact=workshop.named_tokens, **epoch, **changes).ok()
    assert run.receipt["terms"] == ["easing", "anchors"]
    assert run.receipt["reference"] == "table"
    assert list((run.output / "_pact_store").rglob("*.shard"))
    assert len(run.steps) == 6
    assert_equal_to_plain(workshop, run)
    # With the adapter off, the anchors are read when the first step begins.
    assert max(run.reference_passes, default=0) <= 1
    line = run.verify().stdout
    assert "constrained: 6 steps" in line
    assert "easing and anchors" in line


def test_prompts_that_are_trained_on_like_answers_are_told_of(workshop):
    """`train_on_inputs: true` masks the headers of a chat template alone: each prompt is a response of its own."""
    settings = {"learning_rate": 1e-3, "max_steps": 1, "pact": workshop.named_tokens}
    told = "answers in the data begin behind"
    assert told in workshop.train("inputs", train_on_inputs=True, **settings).ok().log
    ends = {"train_on_eos": "all", "train_on_eot": "all"}  # one token of each prompt
    data = {"path": str(workshop.folder / "chat.jsonl"), "type": "chat_template", **ends}
    assert told not in workshop.train("ends", datasets=[data], **settings).ok().log


def test_lisa(workshop):
    """Which layers are trained changes; what was read before the first step does not."""
    settings = {"lisa_n_layers": 1, "lisa_step_interval": 1, "learning_rate": 1e-3}
    run = workshop.train("lisa", dump=True, pact=workshop.named_tokens, **settings).ok()
    assert "Activating layers at indices" in run.log
    assert run.receipt["reference"] == "table"
    assert_equal_to_plain(workshop, run)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [(LORA, "adapter_off"), ({"learning_rate": 1e-3, "sample_packing": True}, "copy")],
    ids=["lora", "packed"],
)
def test_streaming_data_is_read_by_a_reference_in_each_step(workshop, request, changes, kind):
    name = f"streaming-{request.node.callspec.id}"
    settings = changes | {"streaming": True, "dataset_prepared_path": None}
    if "sample_packing" in changes:
        file = {"path": "json", "data_files": str(workshop.folder / "chat.jsonl"), "split": "train"}
        settings["datasets"] = [{**file, "type": "chat_template"}]
    run = workshop.train(name, dump=True, pact=workshop.named_tokens, **settings).ok()
    assert run.receipt["reference"] == kind
    assert run.receipt["table"] is None
    assert "PACT reference: run in each step, as the training data has no length" in run.log
    assert set(run.reference_passes) == {1, 2, 3}
    assert_equal_to_plain(workshop, run)


@pytest.mark.skipif(find_spec("axolotl.integrations.mixlora") is None, reason="of Axolotl 0.21")
def test_mixlora(workshop):
    """Its experts stay on with the adapter off, and its routers have a loss: a reference is named, nothing is eased."""
    aligned = str(workshop.folder / "model")
    settings = LORA | {
        "adapter": "mixlora",
        "lora_target_linear": None,
        "lora_target_modules": ["q_proj", "v_proj"],
        "plugins": ["axolotl.integrations.mixlora.MixLoraPlugin", "pact_axolotl.PactPlugin"],
        "pact": {**workshop.named_tokens, "reference": aligned, "easing": False},
    }
    run = workshop.train("mixlora", **settings).ok()
    assert run.receipt["terms"] == ["anchors"]
    assert run.steps[0]["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
    assert run.steps[-1]["pact/anchor_divergence"] > 1e-5
    assert all(step["mixlora_aux_loss"] > 0 for step in run.steps)
    assert "constrained: 3 steps" in run.verify().stdout


TORCHRUN = ("--launcher", "torchrun", "--", "--nproc_per_node=2", "--standalone")
REENTRANT = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "ddp_find_unused_parameters": False,
}


@pytest.mark.parametrize("changes", [{}, REENTRANT], ids=["plain", "reentrant"])
def test_two_ranks(workshop, changes):
    """The default: anchors are spread over the ranks, whatever the checkpointing."""
    pact = workshop.named_tokens
    settings = {"dump": True, "pact": pact, "micro_batch_size": 2, **LORA, **changes}
    name = f"ranks-{len(changes)}"
    if changes:
        run = workshop.train(name, ranks=2, **settings).ok()
    else:  # through Axolotl's own launcher, which takes longer
        run = workshop.train(name, *TORCHRUN, **settings).ok()
    both = [expected(workshop, run, Place(rank=rank, ranks=2)) for rank in (0, 1)]
    losses = [sum(pair) / 2 for pair in zip(both[0][0], both[1][0], strict=True)]
    assert [entry["loss"] for entry in run.steps] == pytest.approx(losses, abs=1e-4)
    for step, entry in enumerate(run.steps):
        assert_metrics(entry, [parts[step] for _, parts in both], run)
    assert run.steps[-1]["pact/anchor_divergence"] > 1e-5
    assert run.receipt["steps"] == [[1, 3]]
    assert run.verify().returncode == 0
