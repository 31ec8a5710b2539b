"""Adapters as models to audit and as references: loaded with all that they were trained with, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import seeing_model
from pact_transformers.adapters import load_adapter
from pact_transformers.loading import load_causal_lm
from pact_transformers.plugin import load_reference_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from pact_plugin.errors import ConfigError, ReferenceModelError

TOKENIZER = tiny_tokenizer()
MORE = len(TOKENIZER) + 2
FILE = "adapter_model.safetensors"
EMBEDDED = {
    "beside": {},
    "trained whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "trained by token": {"trainable_token_indices": [MORE - 2, MORE - 1]},
    "with LoRA": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}
"""How an adapter may treat the embeddings of tokens that were added."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def saved(model: Any, folder: Path, *, more: int | None = None, **settings: Any) -> Any:
    """The model saved in `base`, and an adapter of it that has learnt something in `adapter`."""
    model.save_pretrained(folder / "base")
    if more is not None:
        model.resize_token_embeddings(more)
    model.name_or_path = str(folder / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(**({"r": 4, "target_modules": ["q_proj"]} | settings)))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    TOKENIZER.save_pretrained(folder / "adapter")
    return adapted.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([[5, 40, 41, 7, 250]])).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", EMBEDDED.values(), ids=EMBEDDED)
def test_an_adapter_with_added_tokens_comes_with_them(tmp_path, tied, settings):
    trained = saved(tiny_model(tie_word_embeddings=tied), tmp_path, more=MORE, **settings)
    loaded = load_causal_lm(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(loaded), logits(trained))
    assert logits(loaded).shape[-1] == MORE
    base = load_causal_lm(tmp_path / "base", device="cpu")
    with pytest.raises(ConfigError, match=f"trained with {MORE} tokens.* has {MORE - 2}.*as --candidate"):
        load_adapter(base, str(tmp_path / "adapter"))


def test_rows_of_the_head_that_an_adapter_lacks_are_not_made_up(tmp_path):
    saved(
        tiny_model(tie_word_embeddings=False),
        tmp_path,
        more=MORE,
        target_modules=["q_proj", "embed_tokens"],
    )
    with pytest.raises(ConfigError, match=f"trained with {MORE} tokens.*merge it into its model"):
        load_causal_lm(tmp_path / "adapter", device="cpu")


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_vl", "gemma3"])
def test_an_adapter_of_a_model_that_sees_comes_on_that(tmp_path, family):
    """AutoModelForCausalLM reads the language part of Qwen3.5 alone, under other names."""
    trained = saved(seeing_model(family), tmp_path, target_modules=r".*language_model.*(q_proj|in_proj_qkv)")
    loaded = load_causal_lm(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(loaded), logits(trained))
    whole = load_causal_lm(tmp_path / "base", device="cpu")
    assert not torch.allclose(logits(whole), logits(trained))


def test_an_adapter_of_the_language_part_comes_on_that(tmp_path):
    whole = seeing_model("qwen3_5")
    whole.save_pretrained(tmp_path / "base")
    trained = saved(load_causal_lm(tmp_path / "base", device="cpu"), tmp_path)
    whole.save_pretrained(tmp_path / "base")
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "adapter", device="cpu")), logits(trained))


@pytest.mark.parametrize("more", [None, MORE])
def test_an_adapter_is_a_reference(tmp_path, more):
    trained = saved(tiny_model(), tmp_path, more=more)
    found = load_reference_model(str(tmp_path / "adapter"), tiny_model(), TOKENIZER)
    torch.testing.assert_close(logits(found), logits(trained))


@pytest.mark.parametrize("old", ["layers.1", "q_proj", "model.model."])
def test_an_adapter_that_does_not_fit_its_model_is_no_reference(tmp_path, old):
    """Transformers leaves its weights out, with a line in the log, and the unadapted model would be held to."""
    saved(tiny_model(), tmp_path)
    weights = load_file(tmp_path / "adapter" / FILE)
    renamed = {
        name.replace(old, "model.language_model." if "model." in old else "x"): one
        for name, one in weights.items()
    }
    save_file(renamed, tmp_path / "adapter" / FILE)
    with pytest.raises(
        ReferenceModelError, match=r"^reference=.*missing adapter keys.*adapter that fits"
    ) as met:
        load_reference_model(str(tmp_path / "adapter"), tiny_model(), TOKENIZER)
    assert "layers.1.self_attn.q_proj.lora_A" in str(met.value)


def test_an_activated_lora_is_not_loaded_as_if_it_were_always_on(tmp_path):
    saved(tiny_model(), tmp_path, alora_invocation_tokens=[5])
    for load in (
        lambda: load_causal_lm(tmp_path / "adapter", device="cpu"),
        lambda: load_adapter(tiny_model(), str(tmp_path / "adapter")),
    ):
        with pytest.raises(ConfigError, match=r"activated LoRA.*cannot be audited"):
            load()
