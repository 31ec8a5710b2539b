"""`axolotl train` under PACT, as its users call it: every loss equals a plain computation on the same batch."""

from __future__ import annotations

import pytest
import torch
from axolotl_runs import LORA
from dumped_plain import Place, assert_equal_to_plain, expected
from peft import PeftModel
from plain import documents
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import pact_plugin as pact

PLUGINS = ["pact_axolotl.PactPlugin", "dump_batches.DumpPlugin"]


def test_lora_interrupted_resumed_and_merged(workshop):
    """Block form, several turns, checkpointing, Axolotl's kernels, evaluation, resuming, merge-lora, going on plain."""
    multi_turn = {
        "datasets": [
            {
                "path": str(workshop.folder / "chat.jsonl"),
                "type": "chat_template",
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
            }
        ],
        "train_on_inputs": False,
    }
    settings = (
        LORA
        | multi_turn
        | {
            "gradient_checkpointing": True,
            "lora_qkv_kernel": True,
            "lora_o_kernel": True,
            "save_steps": 2,
            "eval_steps": 2,
            "val_set_size": 8,
            "load_best_model_at_end": False,
            "pact": {
                **workshop.named_tokens,
                "weight": 2.0,
                "reference": "auto",
                "anchors": False,
                "hold_data": True,
            },
        }
    )
    run = workshop.train("lora", dump=True, max_steps=2, **settings).ok()
    assert_equal_to_plain(workshop, run)
    labels = run.dumped()[0]["inputs"]["labels"]
    runs = ((labels[:, 1:] != -100) & (labels[:, :-1] == -100)).sum(1)
    assert runs.tolist() == [2] * 4  # every row has two answers, each a response of its own
    evaluations = [entry for entry in run.history if "eval_loss" in entry]
    assert evaluations[0]["eval_pact/divergence"] == pytest.approx(0, abs=1e-7)
    assert evaluations[-1]["eval_pact/divergence"] > 0
    assert evaluations[0]["eval_pact/eased"] == pytest.approx(evaluations[-1]["eval_pact/eased"])
    assert run.receipt["reference"] == "table"

    first = run.checkpoints[-1]
    resumed = workshop.train("lora", max_steps=4, resume_from_checkpoint=str(first), **settings).ok()
    assert resumed.receipt["steps"] == [[1, 4]]
    line = resumed.verify()
    assert line.returncode == 0, line.stderr
    assert "constrained: 4 steps" in line.stdout
    assert resumed.verify(resumed.checkpoints[-1]).returncode == 0

    config = workshop.config(**settings | {"pact": {"safety_tokens": "gone.safetensors"}})
    workshop.axolotl("merge-lora", "lora", config).ok()  # which needs no tokens
    ids = torch.arange(20, 60)[None]
    merged = AutoModelForCausalLM.from_pretrained(run.output / "merged")
    base = AutoModelForCausalLM.from_pretrained(workshop.folder / "model")
    adapted = PeftModel.from_pretrained(base, run.output)
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(ids).logits, workshop.model(ids).logits, atol=1e-3)

    last = resumed.checkpoints[-1]
    changes = settings | {"pact": False, "max_steps": 6, "resume_from_checkpoint": str(last)}
    plain = workshop.train("lora", **changes).ok()
    assert "NOT constrained" in plain.log
    line = plain.verify()
    assert line.returncode == 1
    assert "steps 5-6 of 6 were not constrained" in line.stderr


def test_a_run_that_is_resumed_in_another_folder_reads_the_table_of_the_first(workshop):
    settings = {"learning_rate": 1e-3, "save_steps": 1, "pact": workshop.named_tokens}
    first = workshop.train("moved-first", max_steps=2, **settings).ok()
    resumed = workshop.train(
        "moved", max_steps=2, resume_from_checkpoint=str(first.checkpoints[0]), **settings
    ).ok()
    assert resumed.steps[-1]["loss"] == first.steps[-1]["loss"]
    assert resumed.receipt["table"] == first.receipt["table"]
    assert resumed.receipt["steps"] == [[1, 2]]


def test_packed_full_fine_tuning_with_chosen_tokens(workshop):
    """`pact: true` alone: tokens are chosen from the model. Documents start with labels that are no positions."""
    data = [
        {"path": str(workshop.folder / "chat.jsonl"), "type": "chat_template"},
        {"path": str(workshop.folder / "text.jsonl"), "type": "completion"},
    ]
    run = workshop.train(
        "packed",
        dump=True,
        pact=True,
        datasets=data,
        sample_packing=True,
        pad_to_sequence_len=True,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        sequence_len=192,
        learning_rate=1e-3,
        use_tensorboard=True,
    ).ok()
    tokens = pact.SafetyTokens.load(run.output / "pact/safety_tokens.safetensors")
    assert tokens.provenance["contrast"] == "benign"
    assert pact.SafetyTokens.load(run.checkpoints[-1] / "pact/safety_tokens.safetensors") == tokens
    assert_equal_to_plain(workshop, run, 2, tokens=tokens)

    rows = [
        (batch["inputs"]["position_ids"][r], batch["inputs"]["labels"][r])
        for batch in run.dumped()
        for r in range(2)
    ]
    spans = [(labels, documents(positions, len(labels))) for positions, labels in rows]
    assert all(len(found) > 2 for _, found in spans)
    labelled_starts = sum(int(labels[s] != -100) for labels, found in spans for s, _ in found if s)
    assert labelled_starts > 0  # Axolotl does not mask them: they count in the denominator, not in the sum
    tokens_counted = sum(int((labels[1:] != -100).sum()) for labels, _ in spans)
    assert run.receipt["trained_tokens"] == tokens_counted
    assert run.receipt["reference"] == "table"
    assert "constrained: 3 steps" in run.verify().stdout

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list(run.output.rglob("events.out.tfevents*"))
    tags = {tag for file in files for tag in EventAccumulator(str(file)).Reload().Tags()["scalars"]}
    assert {f"train/pact/{name}" for name in ("eased", "loss", "anchor_divergence", "refusal_shift")} <= tags


def test_accumulation_with_another_plugins_trainer_and_no_logits(workshop):
    run = workshop.train(
        "accumulated",
        plugins=["dump_batches.OtherTrainerPlugin", *PLUGINS],
        micro_batch_size=1,
        gradient_accumulation_steps=4,
        learning_rate=1e-3,
        pact={
            **workshop.named_tokens,
            "anchors": False,
            "hold_data": True,
            "advanced": {"chunk_size": 3},
        },
    ).ok()
    assert (run.output / "micro_batches").read_text() == "x" * 12
    assert_equal_to_plain(workshop, run, 4)
    _, parts = expected(workshop, run, Place(4))
    assert len({part["tokens"] for part in parts[:4]}) > 1  # so that the denominator matters


def test_compiled_with_a_named_reference(workshop):
    """`torch_compile`, without generating code; the aligned model loaded a second time; every term there is."""
    aligned = str(workshop.folder / "model")
    settings = {**workshop.named_tokens, "reference": aligned, "hold_data": {"first": 2}}
    run = workshop.train(
        "compiled", dump=True, pact=settings, torch_compile=True, torch_compile_backend="eager"
    ).ok()
    assert run.receipt["config"]["reference"] == aligned
    assert "PACT: constrained; weight 10, easing and hold_data and anchors, 5 safety tokens" in run.log
    assert_equal_to_plain(workshop, run)
    assert run.reference_passes == []  # it is another model


def test_the_published_objective_on_data_of_which_nothing_is_masked(workshop):
    """A block with every kind of key, and the warning that completion data deserves."""
    block = {
        **workshop.named_tokens,
        "weight": 0.5,
        "easing": False,
        "anchors": False,
        "advanced": {"published": {"top_p": 0.8, "assistant_header": "Answer: "}},
    }
    data = [{"path": str(workshop.folder / "text.jsonl"), "type": "completion"}]
    run = workshop.train("published", pact=block, datasets=data).ok()
    assert "no token is masked in the first rows" in run.log
    for step in run.steps:  # each of these labels is a position
        assert {name for name in step if "pact" in name} == {"pact/loss", "pact/divergence"}
        assert step["pact/loss"] == pytest.approx(0.5 * step["pact/divergence"], rel=1e-3)
    assert run.steps[-1]["pact/divergence"] > 1e-5
    settings = run.receipt["config"]["advanced"]["published"]
    assert (settings["top_p"], settings["assistant_header"]) == (0.8, "Answer: ")
    assert "constrained: 3 steps" in run.verify().stdout
    assert "weight 0.5, published" in run.verify().stdout


def test_the_plugin_claims_neither_trainer_nor_collator_nor_data():
    from axolotl.integrations.base import BasePlugin
    from pact_axolotl import PactPlugin

    hooks = {name for name in vars(PactPlugin) if callable(getattr(BasePlugin, name, None))}
    assert hooks == {"register", "get_input_args", "load_datasets", "post_trainer_create"}
    plugin = PactPlugin()
    assert plugin.load_datasets({"pact": True}) is None
    others = {name for name in dir(BasePlugin) if not name.startswith("_")} - hooks
    assert len(others) > 10
    assert all(callable(getattr(plugin, name)) for name in others)
    assert not plugin.get_adapter_capabilities()


def test_pact_false_and_weight_0_are_axolotl_bit_for_bit(workshop):
    dropout = {"overrides_of_model_config": {"attention_dropout": 0.3}}
    without = workshop.train("without", plugins=None, pact=None, **dropout).ok()
    off = workshop.train("off", pact=False, **dropout).ok()
    measured = {**workshop.named_tokens, "weight": 0, "hold_data": True}
    only = workshop.train("measured", pact=measured, **dropout).ok()
    theirs = load_file(without.output / "model.safetensors")
    for run in (off, only):
        assert [entry["loss"] for entry in run.steps] == [entry["loss"] for entry in without.steps]
        ours = load_file(run.output / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(
        not torch.equal(theirs[name], weight)
        for name, weight in workshop.model.named_parameters()
        if name in theirs
    )
    assert "PACT: measured with weight 0, NOT constrained; weight 0, easing and hold_data, " in only.log
    assert only.steps[-1]["pact/divergence"] > 1e-5
    verified = only.verify()
    assert verified.returncode == 1
    assert "the run was measured, not constrained" in verified.stdout + verified.stderr
    assert not list(off.output.rglob("pact_*"))
    assert off.verify().returncode == 1
