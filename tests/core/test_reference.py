"""References: switched-off adapters, frozen copies, frozen models (spec/PACT.md, "Reference")."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_model

from pact_plugin.errors import ReferenceModelError
from pact_plugin.reference.source import build_reference

PROBE = torch.arange(3, 11)
TOKENS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))


def lora(model, **settings):
    defaults = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.5}
    return get_peft_model(model, LoraConfig(**(defaults | settings)))


def nudge(model, seed: int = 0) -> None:
    """Stands for training: moves every parameter in training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def aligned_logits(reference) -> torch.Tensor:
    with reference.session():
        hidden = reference.hidden((), {"input_ids": TOKENS})
        return reference.project(hidden.flatten(0, 1))


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
    reference = build_reference(model, "auto", PROBE)
    assert reference.kind == "adapter_off"
    assert reference.extra_bytes == 0
    nudge(model)
    assert not torch.equal(own_logits(model), before)
    torch.testing.assert_close(aligned_logits(reference), before)


def test_adapter_off_with_a_head_and_embeddings_of_its_own():
    model = lora(
        tiny_model(tie_word_embeddings=False), modules_to_save=["lm_head"], target_modules=["q_proj"]
    )
    before = own_logits(model)
    reference = build_reference(model, "auto", PROBE)
    assert reference.kind == "adapter_off"
    nudge(model)
    torch.testing.assert_close(aligned_logits(reference), before)


def test_frozen_copy_where_the_adapter_already_holds_training():
    model = lora(tiny_model())
    nudge(model)
    before = own_logits(model)
    reference = build_reference(model, "auto", PROBE)
    assert reference.kind == "frozen_copy"
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert reference.extra_bytes == trained
    nudge(model, seed=1)
    torch.testing.assert_close(aligned_logits(reference), before)
    assert set(model.peft_config) == {"default"}, "the copy must not become an adapter that checkpoints save"


def test_adapter_off_asked_for_in_spite_of_training_is_the_base_model(caplog):
    base = tiny_model()
    before = own_logits(base)
    model = lora(base)
    nudge(model)
    with caplog.at_level("WARNING", logger="pact_plugin"):
        reference = build_reference(model, "adapter_off", PROBE)
    assert "safety included" in caplog.text
    torch.testing.assert_close(aligned_logits(reference), before)


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_copy_of_a_fully_trained_model(tied):
    model = tiny_model(tie_word_embeddings=tied)
    before = own_logits(model)
    reference = build_reference(model, "auto", PROBE)
    assert reference.kind == "frozen_copy"
    assert reference.extra_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    nudge(model)
    torch.testing.assert_close(aligned_logits(reference), before)
    torch.testing.assert_close(reference.safety_logits(*hidden_and_ids(reference)), before[:, [5, 9]])


def hidden_and_ids(reference):
    with reference.session():
        return reference.hidden((), {"input_ids": TOKENS}).flatten(0, 1), torch.tensor([5, 9]), 4


def test_frozen_model():
    aligned = tiny_model(seed=3)
    before = own_logits(aligned)
    reference = build_reference(tiny_model(), aligned, PROBE)
    assert reference.kind == "frozen_model"
    assert not any(p.requires_grad for p in aligned.parameters())
    torch.testing.assert_close(aligned_logits(reference), before)


def test_dropout_off_no_gradient_and_training_flags_restored():
    model = lora(tiny_model(attention_dropout=0.5))
    model.train()
    model.base_model.model.model.layers[0].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    reference = build_reference(model, "auto", PROBE)
    first, second = aligned_logits(reference), aligned_logits(reference)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state), "the reference must not consume random numbers"
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: p.requires_grad for name, p in model.named_parameters()} == requires_grad


def test_flags_are_restored_after_an_error():
    model = lora(tiny_model())
    model.train()
    reference = build_reference(model, "auto", PROBE)
    with pytest.raises(RuntimeError, match="stop"), reference.session():
        raise RuntimeError("stop")
    assert model.training
    assert not model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters


def test_references_that_cannot_exist():
    model = tiny_model()
    with pytest.raises(ReferenceModelError, match="no PEFT adapter"):
        build_reference(model, "adapter_off", PROBE)
    with pytest.raises(ReferenceModelError, match="model in training itself"):
        build_reference(model, model, PROBE)
    with pytest.raises(ReferenceModelError, match="not a kind of reference"):
        build_reference(model, "stored_somewhere", PROBE)
    prompt = get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ReferenceModelError, match="virtual tokens"):
        build_reference(prompt, "auto", PROBE)
    frozen = tiny_model().requires_grad_(False)
    with pytest.raises(ReferenceModelError, match="no parameter in training"):
        build_reference(frozen, "auto", PROBE)
