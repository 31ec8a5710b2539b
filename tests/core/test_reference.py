"""What the aligned model is computed with: switched-off adapters, copies, other models (spec/PACT.md, clause C7)."""

from __future__ import annotations

import pytest
import torch
from loop import TOKENIZER, a_batch, adapted, loss_of, settings
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_model

from pact_plugin import PactConstraint
from pact_plugin.errors import ReferenceModelError
from pact_plugin.model.head import language_head
from pact_plugin.model.wrappers import evaluation_mode
from pact_plugin.reference.adapter_state import adapter_state
from pact_plugin.reference.source import Source, build_source

TOKENS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))


def lora(model, name="default", **settings):
    defaults = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.5}
    return get_peft_model(model, LoraConfig(**(defaults | settings)), adapter_name=name)


def nudge(model, seed: int = 0) -> None:
    """Stands for training: moves every parameter in training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def aligned_logits(source: Source) -> torch.Tensor:
    with source.session():
        hidden = source.hidden((), {"input_ids": TOKENS})
        return source.project(hidden.flatten(0, 1))


def own_logits(model) -> torch.Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits.flatten(0, 1)
    model.train(training)
    return logits


def test_adapter_off_where_the_adapter_starts_at_zero():
    model = lora(tiny_model())
    before = own_logits(model)
    assert adapter_state(model) == "new"
    source = build_source("adapter_off", model)
    assert source.extra_bytes == 0
    nudge(model)
    assert not torch.equal(own_logits(model), before)
    torch.testing.assert_close(aligned_logits(source), before)


def test_adapter_off_with_a_head_and_embeddings_of_its_own():
    model = lora(
        tiny_model(tie_word_embeddings=False), modules_to_save=["lm_head"], target_modules=["q_proj"]
    )
    before = own_logits(model)
    assert adapter_state(model) == "new"
    source = build_source("adapter_off", model)
    nudge(model)
    torch.testing.assert_close(aligned_logits(source), before)


def test_a_copy_where_the_adapter_already_holds_training():
    model = lora(tiny_model())
    nudge(model)
    before = own_logits(model)
    assert adapter_state(model) == "trained"
    source = build_source("copy", model)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert source.extra_bytes == trained
    nudge(model, seed=1)
    torch.testing.assert_close(aligned_logits(source), before)
    assert set(model.peft_config) == {"default"}, "the copy must not become an adapter that checkpoints save"


@pytest.mark.parametrize("tied", [True, False])
def test_a_copy_of_a_fully_trained_model(tied):
    model = tiny_model(tie_word_embeddings=tied)
    before = own_logits(model)
    assert adapter_state(model) == "none"
    source = build_source("copy", model)
    assert source.extra_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    nudge(model)
    torch.testing.assert_close(aligned_logits(source), before)
    with source.session():
        hidden = source.hidden((), {"input_ids": TOKENS}).flatten(0, 1)
        some = source.safety_logits(hidden, torch.tensor([5, 9]), 4)
    torch.testing.assert_close(some, before[:, [5, 9]])


def test_a_copy_that_shares_what_has_begun_to_train_is_refused():
    model = tiny_model()
    model.model.layers[0].requires_grad_(False)
    source = build_source("copy", model)
    source.require_kept()
    model.model.layers[0].mlp.up_proj.requires_grad_(True)
    with pytest.raises(ReferenceModelError, match=r"1 parameters have begun to train.*gradual unfreezing"):
        source.require_kept()


def test_a_copy_that_shares_what_trains_in_turn_is_refused():
    model = tiny_model()
    first, second = model.model.layers[:2]
    second.requires_grad_(False)
    source = build_source("copy", model)
    first.requires_grad_(False)
    second.requires_grad_(True)
    with pytest.raises(ReferenceModelError, match="have begun to train"):
        source.require_kept()


def test_a_copy_has_its_own_bias():
    model = tiny_model(tie_word_embeddings=False)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    before = own_logits(model)
    source = build_source("copy", model)
    nudge(model)
    with source.session():
        hidden = source.hidden((), {"input_ids": TOKENS}).flatten(0, 1)
        some = source.safety_logits(hidden, torch.tensor([5, 9]), 4)
    torch.testing.assert_close(some, before[:, [5, 9]])


def test_a_copy_follows_the_model_and_stays_as_large():
    model = tiny_model(tie_word_embeddings=True)
    source = build_source("copy", model)
    size = source.extra_bytes
    model.to("meta")
    with source.session():
        hidden = source.hidden((), {"input_ids": TOKENS.to("meta")})
        assert source.safety_logits(hidden[0], torch.tensor([5], device="meta"), 4).is_meta
    assert source.extra_bytes == size


def test_another_model_with_more_rows():
    aligned, model = tiny_model(seed=3), tiny_model()
    before = own_logits(aligned)
    aligned.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    source = build_source("model", model, aligned)
    torch.testing.assert_close(aligned_logits(source), before)


def test_an_adapter_beside_which_weights_have_begun_to_train_is_refused():
    model = lora(tiny_model())
    source = build_source("adapter_off", model)
    source.require_kept()
    next(p for name, p in model.named_parameters() if name.endswith("norm.weight")).requires_grad_(True)
    with pytest.raises(ReferenceModelError, match=r"1 parameters have begun to train.*gradual unfreezing"):
        source.require_kept()


def test_weights_that_have_begun_to_train_are_noticed_beside_a_table_too(tmp_path):
    """A document that is not in it would be computed with the weights as they are now."""
    model = adapted().train()
    constraint = PactConstraint(model, TOKENIZER, settings(easing=False, hold_data=True, store=tmp_path))
    known, other = a_batch(), a_batch(seed=1)
    constraint.fill([known], progress=False)
    loss_of(constraint, model, known)
    model.get_base_model().lm_head.requires_grad_(True)
    loss_of(constraint, model, known)
    with pytest.raises(ReferenceModelError, match="1 parameters have begun to train"):
        loss_of(constraint, model, other)


def test_a_rank_without_weights():
    """As FSDP's memory-saving loading leaves all but the first."""
    with torch.device("meta"):
        whole, adapted = tiny_model(), lora(tiny_model())
    source = build_source("itself", whole)
    with pytest.raises(ReferenceModelError, match="cpu_ram_efficient_loading: false"):
        source.fingerprint()
    with pytest.raises(ReferenceModelError, match="cpu_ram_efficient_loading: false"):
        adapter_state(adapted)


def test_another_model():
    aligned = tiny_model(seed=3)
    before = own_logits(aligned)
    source = build_source("model", tiny_model(), aligned)
    assert source.extra_bytes == sum(p.numel() * p.element_size() for p in aligned.parameters())
    assert not any(p.requires_grad for p in aligned.parameters())
    torch.testing.assert_close(aligned_logits(source), before)


def test_another_model_follows_the_one_in_training():
    """Under FSDP and DeepSpeed that is still on the CPU when the other is loaded."""
    aligned, model = tiny_model(seed=3), tiny_model()
    source, itself = build_source("model", model, aligned), build_source("itself", model)
    for one in (source, itself):
        with one.session(torch.device("meta")):
            pass
    assert {p.device.type for p in aligned.parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_the_model_itself_is_aligned_until_it_moves():
    model = tiny_model()
    before = own_logits(model)
    source = build_source("itself", model)
    assert source.extra_bytes == 0
    torch.testing.assert_close(aligned_logits(source), before)
    nudge(model)
    assert not torch.equal(aligned_logits(source), before)


@pytest.mark.parametrize("kind", ["adapter_off", "copy", "itself"])
def test_dropout_off_no_gradient_and_training_flags_restored(kind):
    model = lora(tiny_model(attention_dropout=0.5))
    model.train()
    model.base_model.model.model.layers[0].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    adapter_state(model)
    source = build_source(kind, model)
    first, second = aligned_logits(source), aligned_logits(source)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state), "the reference must not consume random numbers"
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: p.requires_grad for name, p in model.named_parameters()} == requires_grad


def test_flags_are_restored_after_an_error():
    model = lora(tiny_model())
    model.train()
    source = build_source("adapter_off", model)
    with pytest.raises(RuntimeError, match="stop"), source.session():
        raise RuntimeError("stop")
    assert model.training
    assert not model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters


def test_bitsandbytes_repacks_nothing_in_evaluation_mode_and_finds_its_flags_as_they_were():
    """It would repack 4-bit weights, and the gradients of training were wrong from then on."""
    name = "support_avx512bf16_for_cpu"
    model = tiny_model().train()
    repacking, other = model.model.layers[0].self_attn.q_proj, model.model.layers[1].self_attn.q_proj
    setattr(repacking, name, True)
    setattr(other, name, False)

    def evaluated() -> None:
        with evaluation_mode(model):
            assert not repacking.training
            assert getattr(repacking, name) is getattr(other, name) is False
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        evaluated()
    assert getattr(repacking, name) is True
    assert getattr(other, name) is False
    assert not any(hasattr(module, name) for module in model.modules() if module not in (repacking, other))


def test_references_that_cannot_exist():
    model = tiny_model()
    for same in (model, torch.compile(model, backend="eager")):
        with pytest.raises(ReferenceModelError, match="model in training itself"):
            build_source("model", model, same)
    prompt = get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    activated = get_peft_model(tiny_model(), LoraConfig(alora_invocation_tokens=[5], task_type="CAUSAL_LM"))
    for adapted_model, words in ((prompt, "virtual tokens"), (activated, "activated LoRA")):
        with pytest.raises(ReferenceModelError, match=f"{words}.*forward pass alone"):
            adapter_state(adapted_model)
    frozen = tiny_model().requires_grad_(False)
    with pytest.raises(ReferenceModelError, match="no parameter in training"):
        build_source("copy", frozen)


@pytest.mark.parametrize("name", ["default", "model"])
def test_weights_that_are_trained_beside_a_new_adapter_are_copied(name):
    """With the adapter off the model would have the biases of training."""
    model = lora(tiny_model("qwen2"), name, bias="all")
    before = own_logits(model)
    assert adapter_state(model) == "beside"
    source = build_source("copy", model, adapter="beside")
    assert source.base_only
    nudge(model)
    assert adapter_state(model) == "trained"
    torch.testing.assert_close(aligned_logits(source), before)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_new_dora_is_new_though_it_rounds(kind):
    model = lora(tiny_model().to(kind), use_dora=True)
    assert adapter_state(model) == "new"
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1e-6)
    assert adapter_state(model) == "trained", "what has learnt little is told by its weights"


def test_a_dora_whose_magnitudes_alone_were_trained_is_no_new_one():
    model = lora(tiny_model(), use_dora=True)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.01
    assert adapter_state(model) == "trained"


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [300, 301]},
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_at_the_end_of_the_vocabulary_are_looked_at(settings, tied):
    """Rows of added tokens are initialised after the adapter is made, or come with one that is loaded."""
    model = lora(tiny_model(tie_word_embeddings=tied), **settings)
    assert adapter_state(model) in ("new", "beside")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter += 1
            elif "embed_tokens.modules_to_save" in name:
                parameter[300:302] += 1
    assert adapter_state(model) == "trained"


@pytest.mark.parametrize("kind", ["copy", "model"])
def test_a_tied_head_that_the_adapter_saves_has_the_whole_vocabulary(kind):
    """PEFT builds that head from the embeddings, and names its two sizes the wrong way round."""
    model = lora(
        tiny_model(tie_word_embeddings=True), modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    assert language_head(model).vocabulary == len(model.get_input_embeddings().weight)
    source = build_source(kind, model, tiny_model(tie_word_embeddings=True) if kind == "model" else None)
    assert torch.equal(aligned_logits(source), own_logits(model))


def test_what_was_frozen_of_an_adapter_stays_frozen():
    """PEFT leaves all of an adapter in training that is switched off and on again."""
    model = lora(tiny_model())
    frozen = [parameter for name, parameter in model.named_parameters() if "lora_A" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    assert adapter_state(model) == "new"
    aligned_logits(build_source("adapter_off", model))
    assert frozen
    assert not any(parameter.requires_grad for parameter in frozen)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("attribute", "wrapper", "way_out"),
    [
        ("full_tensor", "fsdp", "name the aligned model as `reference`"),
        ("ds_id", "deepspeed", "use ZeRO stage 2"),
    ],
)
def test_parameters_that_are_sharded_since_they_were_copied(attribute, wrapper, way_out):
    source = build_source("copy", model := tiny_model())
    source.require_kept()
    setattr(next(model.parameters()), attribute, 1)
    with pytest.raises(ReferenceModelError, match=rf"^{wrapper}: .*{way_out}"):
        source.require_kept()
