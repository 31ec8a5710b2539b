"""What must not pass in silence, in `transformers.Trainer` and in TRL's `SFTTrainer`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from both import CONFIG, HELD, changed, each_trainer, of_transformers
from sft import TOKENS, train_logs
from tiny import tiny_model
from transformers.tokenization_mistral_common import MistralCommonBackend

import pact_plugin as pact
from pact_plugin.errors import (
    AdapterError,
    ConfigError,
    HiddenStatesNotSeenError,
    NoResponseError,
    ReferenceModelError,
    TokenizerMismatchError,
)
from pact_plugin.hooks.manager import find_adapter

UNEASED = changed(HELD, easing=False)


def summed_logits(outputs, labels, num_items_in_batch=None):
    return outputs.logits.sum() * 1e-6


def relabelled(trainer: Any, label: Any) -> Any:
    """The trainer with every batch's labels replaced by those of a function."""
    collator = trainer.data_collator

    def relabel(rows):
        batch = collator(rows)
        batch["labels"] = label(batch)
        return batch

    trainer.data_collator = relabel
    return trainer


@each_trainer
def test_a_trainer_that_has_trained_holds_no_aligned_model(tmp_path, build):
    trainer = build(tmp_path, max_steps=2)
    trainer.train()
    with pytest.raises(AdapterError, match=r"2 steps.*it has trained"):
        pact.attach(trainer, CONFIG)


# --- a loss that easing cannot ease ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0.1.*easing: false"),
        ({"trainer_settings": {"compute_loss_func": summed_logits}}, r"compute_loss_func.*easing: false"),
    ],
    ids=["label smoothing", "compute_loss_func"],
)
@each_trainer
@pytest.mark.filterwarnings("ignore")
def test_easing_needs_the_models_own_loss(tmp_path, build, settings, words):
    if "label_smoothing_factor" in settings and build.__name__ == "of_trl":
        settings = settings | {"loss_type": "nll"}  # the chunked loss does not smooth
    trainer = build(tmp_path, **settings)
    kind = type(trainer)
    with pytest.raises(AdapterError, match=words):
        pact.attach(trainer, CONFIG)
    assert type(trainer) is kind, "a refused trainer is left as it was"
    pact.attach(trainer, UNEASED).train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]
    assert train_logs(trainer)[-1]["pact/divergence"] > 0


@each_trainer
def test_a_subclass_with_a_loss_of_its_own_needs_easing_off(tmp_path, build):
    base = type(build(tmp_path))

    class Weighted(base):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    trainer = build(tmp_path, trainer_class=Weighted)
    with pytest.raises(AdapterError, match=r"compute_loss.*Weighted.*easing: false"):
        pact.attach(trainer, CONFIG)
    assert type(trainer) is Weighted
    pact.attach(trainer, UNEASED).train()
    assert trainer.pact.record.receipt.steps == [[1, 3]]


@each_trainer
def test_a_compute_loss_that_never_runs_the_model(tmp_path, build):
    class Silent(type(build(tmp_path))):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return sum(p.sum() for p in model.parameters()) * 0.0

    trainer = pact.attach(build(tmp_path, trainer_class=Silent), UNEASED)
    with pytest.raises(HiddenStatesNotSeenError, match="not seen in this step"):
        trainer.train()


@each_trainer
def test_a_compute_loss_replaced_on_the_trainer(tmp_path, build):
    trainer = build(tmp_path)
    trainer.compute_loss = lambda *args, **kwargs: torch.zeros(())
    with pytest.raises(AdapterError, match="never be called"):
        pact.attach(trainer, CONFIG)


@each_trainer
def test_a_compute_loss_replaced_after_it_was_attached(tmp_path, build):
    """Then the first step stops; one that goes round the trainer's own is called, and calls it."""

    def plain(model, inputs, *args, **kwargs):
        return model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss

    trainer, around = (pact.attach(build(tmp_path / name), UNEASED) for name in ("plain", "around"))
    trainer.compute_loss = plain
    with pytest.raises(AdapterError, match="never be called"):
        trainer.train()
    own = around.compute_loss
    around.compute_loss = lambda *args, **kwargs: own(*args, **kwargs)
    around.train()
    assert around.pact.record.receipt.steps == [[1, 3]]


# --- a trainer that cannot be constrained ---


def test_distillation_on_top_of_trls_trainer():
    from trl.experimental.gkd import GKDTrainer

    with pytest.raises(AdapterError, match="no adapter knows"):
        find_adapter(object.__new__(GKDTrainer))


@pytest.mark.parametrize("kind", ["SFTTrainer", "DPOTrainer"])
@pytest.mark.parametrize("framework", ["axolotl", "swift", "llamafactory"])
def test_a_frameworks_trainer_on_top_of_trls_is_the_frameworks(framework, kind):
    trainer = type("Own", (getattr(trl, kind),), {"__module__": f"{framework}.trainers"})
    assert find_adapter(object.__new__(trainer)).name == framework


@each_trainer
def test_weights_that_begin_to_train_later_stop_a_run_that_shares_them(tmp_path, build):
    """With streaming data each step asks the aligned model, of which the copy holds what was trained before."""
    trainer = build(tmp_path, streaming=True)
    trainer.model.model.layers[0].requires_grad_(False)
    pact.attach(trainer, HELD)
    trainer.model.model.layers[0].requires_grad_(True)
    with pytest.raises(ReferenceModelError, match="have begun to train"):
        trainer.train()


def test_a_trainer_that_no_adapter_knows():
    with pytest.raises(AdapterError, match="no adapter knows"):
        pact.attach(object(), CONFIG)


@each_trainer
def test_constrained_twice(tmp_path, build):
    trainer = pact.attach(build(tmp_path), CONFIG)
    with pytest.raises(AdapterError, match="constrained already"):
        pact.attach(trainer, CONFIG)


def test_a_trainer_that_makes_its_model_anew(tmp_path):
    """As for `hyperparameter_search`: the new one would not be the one that the constraint watches."""

    def anew() -> Any:
        return tiny_model()

    made = of_transformers(tmp_path)
    trainer = type(made)(
        model_init=anew,
        args=made.args,
        train_dataset=made.train_dataset,
        processing_class=made.processing_class,
        data_collator=made.data_collator,
    )
    kind = type(trainer)
    with pytest.raises(AdapterError, match=r"model_init.*another model.*Pass the model itself.*each trial"):
        pact.attach(trainer, CONFIG)
    assert type(trainer) is kind


@each_trainer
def test_a_trainer_whose_model_is_replaced(tmp_path, build):
    trainer = pact.attach(build(tmp_path), CONFIG)
    trainer.model = trainer.model_wrapped = tiny_model()
    with pytest.raises(AdapterError, match=r"trainer\.model='.*another than the one that was constrained"):
        trainer.train()


@each_trainer
def test_a_trainer_without_a_tokenizer(tmp_path, build):
    trainer = build(tmp_path)
    trainer.processing_class = None
    with pytest.raises(AdapterError, match=r"processing_class=tokenizer"):
        pact.attach(trainer, CONFIG)


@each_trainer
@pytest.mark.parametrize("settings", [CONFIG, True], ids=["tokens given", "tokens chosen"])
def test_a_tokenizer_of_mistral_common(tmp_path, build, settings):
    trainer = build(tmp_path)
    kind = type(trainer)
    trainer.processing_class = object.__new__(MistralCommonBackend)  # making one needs its package
    with pytest.raises(ConfigError, match=r"tokenizer='MistralCommonBackend'.*Hugging Face tokenizer"):
        pact.attach(trainer, settings)
    assert type(trainer) is kind


@each_trainer
def test_several_visible_gpus_without_a_launcher(tmp_path, build):
    trainer = build(tmp_path)
    trainer.args._n_gpu = 2  # as transformers counts them
    with pytest.raises(AdapterError, match=r"n_gpu=2.*accelerate launch"):
        pact.attach(trainer, CONFIG)


@each_trainer
@pytest.mark.parametrize("key", ["cp_size", "sp_size"])
def test_ranks_that_share_a_sequence(tmp_path, build, key):
    trainer = build(tmp_path)
    trainer.accelerator.state.parallelism_config = SimpleNamespace(**{key: 2})
    try:
        with pytest.raises(AdapterError, match=rf"{key}=2.*Remove `{key}`"):
            pact.attach(trainer, HELD)
    finally:
        trainer.accelerator.state.parallelism_config = None


@each_trainer
def test_a_model_that_was_loaded_in_parts_would_read_different_anchors(tmp_path, build):
    """`from_pretrained(tp_plan="auto")` notes it in the model: Accelerate knows nothing of it."""
    early, held = build(tmp_path), build(tmp_path)
    for trainer in (early, held):
        trainer.model._tp_size = 2
    with pytest.raises(AdapterError, match=r"tp_size=2.*anchors: false"):
        pact.attach(early, CONFIG)
    assert pact.attach(held, HELD) is held


@each_trainer
def test_tensor_parallel_ranks_would_read_different_anchors(tmp_path, build):
    early, late, held = build(tmp_path), pact.attach(build(tmp_path), CONFIG), build(tmp_path)
    late.accelerator.state.parallelism_config = SimpleNamespace(
        tp_size=2
    )  # one for all: accelerate shares it
    try:
        with pytest.raises(AdapterError, match=r"tp_size=2.*anchors: false"):
            pact.attach(early, CONFIG)
        with pytest.raises(AdapterError, match=r"tp_size=2.*anchors: false"):
            late.train()
        assert pact.attach(held, HELD) is held
    finally:
        late.accelerator.state.parallelism_config = None


@each_trainer
def test_rows_or_layers_that_unsloth_spreads_over_ranks(tmp_path, build):
    """By means of its own, which need GPUs: only its marks are set here."""
    rows, layers = build(tmp_path), build(tmp_path)
    rows.args.context_parallel_size = 2
    with pytest.raises(AdapterError, match=r"context_parallel_size=2.*Remove `context_parallel_size`"):
        pact.attach(rows, CONFIG)
    layers.model.model.layers[0].mlp.up_proj._unsloth_tp_style = "colwise"
    with pytest.raises(AdapterError, match=r"UNSLOTH_TP_SIZE.*Unset it"):
        pact.attach(layers, HELD)


@each_trainer
def test_the_trainers_parts_are_looked_at_and_left_alone(tmp_path, build):
    """Also the flag by which bitsandbytes would repack 4-bit weights; only a pass of the reference turns that off."""
    trainer = build(tmp_path, with_lora=True)
    trainer.model.train()
    flagged = next(module for module in trainer.model.modules() if isinstance(module, torch.nn.Linear))
    flagged.support_avx512bf16_for_cpu = True

    def state() -> list[Any]:
        """Every attribute of every module: flags, hooks, parameters, buffers."""
        return [
            {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
            for module in trainer.model.modules()
        ]

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
        return a is b or (not torch.is_tensor(a) and a == b)

    values = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    kind, before = type(trainer), state()
    parts = find_adapter(trainer).parts(trainer, None)
    assert parts.model is trainer.model
    assert type(trainer) is kind
    assert all(same(a, b) for a, b in zip(before, state(), strict=True))
    assert all(torch.equal(trainer.model.state_dict()[name], tensor) for name, tensor in values.items())
    assert flagged.support_avx512bf16_for_cpu


# --- settings and data ---


@each_trainer
def test_another_tokenizers_tokens_and_unknown_keys(tmp_path, build):
    trainer = build(tmp_path)
    kind = type(trainer)
    other = pact.SafetyTokens(TOKENS.ids, TOKENS.weights, TOKENS.tokens, TOKENS.vocab_size, "0" * 64)
    with pytest.raises(TokenizerMismatchError):
        pact.attach(trainer, pact.PactConfig(safety_tokens=other))
    with pytest.raises(ConfigError, match=r"wieght.*Did you mean `weight`"):
        pact.attach(trainer, {"wieght": 1.0})
    assert type(trainer) is kind, "a refused trainer is left as it was"


@each_trainer
def test_labels_all_ignored(tmp_path, build):
    trainer = relabelled(build(tmp_path), lambda batch: torch.full_like(batch["labels"], -100))
    pact.attach(trainer, CONFIG)
    with pytest.raises(NoResponseError, match="labels"):
        trainer.train()


@each_trainer
def test_labels_that_are_all_ignored_stop_a_run_that_never_logs_too(tmp_path, build):
    trainer = relabelled(
        build(tmp_path, logging_strategy="no", max_steps=2),
        lambda batch: torch.full_like(batch["labels"], -100),
    )
    pact.attach(trainer, CONFIG)
    with pytest.raises(NoResponseError, match="no response position in the whole run"):
        trainer.train()


def test_empty_training_data_is_refused_by_the_trainer_itself(tmp_path):
    def refusal(constrained: bool) -> str:
        trainer = of_transformers(tmp_path)
        trainer.train_dataset = trainer.train_dataset.select([])
        if constrained:
            pact.attach(trainer, CONFIG)
        with pytest.raises(ValueError, match="num_samples") as refused:
            trainer.train()
        return str(refused.value)

    assert refusal(True) == refusal(False)


@each_trainer
def test_nothing_masked_warns(tmp_path, build):
    trainer = relabelled(
        build(tmp_path), lambda batch: torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    )
    with pytest.warns(UserWarning, match="completion_only_loss"):
        pact.attach(trainer, CONFIG)


# --- a model that cannot be asked where it is ---


@each_trainer
def test_layers_on_several_devices(tmp_path, build):
    trainer = build(tmp_path)
    trainer.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(AdapterError, match=r"device_map=\['0', '1'\].*several devices.*accelerate launch"):
        pact.attach(trainer, CONFIG)


@each_trainer
def test_flash_attention_of_a_model_that_waits_on_the_cpu(tmp_path, build, monkeypatch):
    trainer = build(tmp_path)
    trainer.model.config._attn_implementation_internal = "flash_attention_2"
    monkeypatch.setattr(type(trainer.accelerator), "device", torch.device("cuda", 0))
    with pytest.raises(AdapterError, match=r"attn_implementation='flash_attention_2'.*before `pact.attach"):
        pact.attach(trainer, CONFIG)
