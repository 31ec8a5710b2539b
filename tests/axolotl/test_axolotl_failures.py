"""Everything that must stop `axolotl train` rather than let it train unconstrained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from axolotl_runs import LORA, Workshop, loads_installed
from tiny import tiny_model

import pact_plugin as pact
from pact_plugin.errors import AdapterError, ConfigError

PLUGIN, DIFFUSION = "pact_axolotl.PactPlugin", "axolotl.integrations.diffusion.DiffusionPlugin"


# --- through the command itself ---


def assert_stops(run, *words: str) -> None:
    assert run.status != 0
    assert "PactError" in run.log or "pact_plugin.errors." in run.log, run.log[-2000:]
    for word in words:
        assert word in run.log, run.log[-2000:]
    assert not run.checkpoints
    assert not (run.output / "pact_receipt.json").exists()


def test_an_unknown_key_stops_before_the_data_is_prepared(workshop):
    prepared = workshop.folder / "never"
    run = workshop.train("unknown", pact={"weigth": 2}, dataset_prepared_path=str(prepared))
    assert_stops(run, "weigth", "Did you mean `weight`?")
    assert not prepared.exists()


def test_missing_tokens_stop_before_the_data_is_prepared(workshop):
    prepared = workshop.folder / "never"
    settings = {"pact": {"safety_tokens": "/nowhere.safetensors"}, "dataset_prepared_path": str(prepared)}
    assert_stops(workshop.train("nowhere", **settings), "/nowhere.safetensors", "there is no such file")
    assert not prepared.exists()


def test_tokens_of_another_tokenizer_stop_before_the_data_is_prepared(workshop):
    other = workshop.folder / "other.safetensors"
    pact.SafetyTokens(
        ids=(1, 2), weights=(1.0, -1.0), tokens=("a", "b"), vocab_size=10, fingerprint="0" * 64
    ).save(other)
    prepared = workshop.folder / "never"
    run = workshop.train("mismatch", pact={"safety_tokens": str(other)}, dataset_prepared_path=str(prepared))
    assert_stops(run, "another tokenizer", "pact-plugin tokens select")
    assert not prepared.exists()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "conflict",
            {"pact": {"advanced": {"published": True}, "easing": True}},
            ("easing", "Set `easing: false`"),
        ),
        ("rl", {"rl": "kto"}, ("rl='kto'", "only `dpo`", "Remove `rl`")),
        ("dpo", {"rl": "dpo"}, ("hold_data=True", "no next-token labels", "Remove `hold_data`")),
        ("reward", {"reward_model": True}, ("reward_model=True", "Remove `reward_model`")),
        ("diffusion", {"plugins": [DIFFUSION, PLUGIN]}, (DIFFUSION, "not trained on the next token")),
    ],
    ids=["conflicting-keys", "rl", "dpo", "reward-model", "diffusion"],
)
def test_what_cannot_be_constrained_stops_before_the_data_is_prepared(workshop, name, changes, words):
    prepared = workshop.folder / "never"
    settings = changes | {"dataset_prepared_path": str(prepared)}
    assert_stops(workshop.train(name, **settings), *words)
    assert not prepared.exists()


def test_a_misspelt_plugin_class_stops(workshop):
    run = workshop.train("class", plugins=["pact_axolotl.PactPlugn"])
    assert run.status != 0
    assert "has no attribute 'PactPlugn'" in run.log
    assert not run.checkpoints


def test_a_model_that_divides_its_loss_by_another_count_stops_before_the_first_step(workshop):
    """Axolotl 0.19 names no denominator, so that there is none to ignore."""
    plugins = ["dump_batches.IgnoringPlugin", PLUGIN]
    run = workshop.train("ignoring", plugins=plugins, micro_batch_size=1, gradient_accumulation_steps=4)
    if not loads_installed():
        assert "constrained: 3 steps" in run.ok().verify().stdout
        return
    assert run.status != 0
    assert "though it was given num_items_in_batch=" in run.log
    assert "or set `easing: false`" in run.log
    assert not run.checkpoints
    assert run.verify().returncode == 1


def test_a_model_that_refuses_nothing_stops_after_the_trainer_is_made(workshop):
    tiny_model(seed=3, max_position_embeddings=1024).save_pretrained(workshop.folder / "untaught")
    workshop.tokenizer.save_pretrained(workshop.folder / "untaught")
    run = workshop.train("untaught-run", pact=True, base_model=str(workshop.folder / "untaught"), **LORA)
    assert_stops(run, "refuses 0 of")


# --- as Axolotl reads configurations, without the command's start ---


def load(workshop: Workshop, **changes):
    from axolotl.cli.config import load_cfg

    file = Path(workshop.folder) / "loaded.yml"
    config = workshop.config(**changes) | {"output_dir": str(workshop.folder / "loaded")}
    if changes.get("pact", 0) is None:
        config["pact"] = None
    file.write_text(yaml.safe_dump(config))
    return load_cfg(str(file))


def test_the_block_survives_axolotls_validation(workshop):
    assert load(workshop, pact={"weight": 0.5}).pact.to_dict() == {"weight": 0.5}
    assert load(workshop, pact=True).pact is True
    assert load(workshop, pact=False).pact is False


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"pact": None}, ConfigError, "it is empty"),
        ({"pact": "yes"}, ConfigError, "not a configuration"),
        ({"pact": {"weight": -1}}, ConfigError, "weight"),
        ({"pact": {"advanced": {"published": True}}}, ConfigError, "Set `easing: false`"),
        ({"pact": {"advanced": {"published": {"topp": 1}}}}, ConfigError, "Did you mean `top_p`"),
        ({"rl": "kto"}, AdapterError, "`rl`"),
        ({"reward_model": True}, AdapterError, "`reward_model`"),
        ({"process_reward_model": True}, AdapterError, "`process_reward_model`"),
        ({"context_parallel_size": 2}, AdapterError, "`context_parallel_size`"),
        ({"context_parallel": {"size": 2}}, AdapterError, "`context_parallel`"),
        ({"tensor_parallel_size": 2, "pact": True}, AdapterError, "anchors: false"),
        ({"tokenizer_use_mistral_common": True}, AdapterError, "tokenizer_use_mistral_common: false"),
        ({"diffusion_lm": {}}, AdapterError, "`diffusion_lm`"),
        ({"relora": True, **LORA}, AdapterError, "`relora`"),
        ({**LORA, "adapter": "mixlora"}, AdapterError, "adapter='mixlora'.*`adapter: lora`"),
        ({"pcat": True}, ConfigError, "pcat.*The key is called `pact`"),
        (
            {"datasets": [{"path": "x", "type": "y", "pact": True}]},
            ConfigError,
            r"datasets\.0\.pact.*outermost",
        ),
        (
            {"lisa_n_layers": 1, "lisa_step_interval": 2, "streaming": True},
            AdapterError,
            "Remove `lisa_n_layers` or `streaming`",
        ),
        ({"use_eaft": True}, AdapterError, "easing: false"),
        (
            {"plugins": [DIFFUSION, PLUGIN]},
            AdapterError,
            "diff",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refused_when_the_configuration_is_read(workshop, changes, error, words):
    with pytest.raises(error, match=words):
        load(workshop, **changes)
