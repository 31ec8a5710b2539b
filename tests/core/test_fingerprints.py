"""What tells documents and models apart: a key and a fingerprint (spec/PACT.md, clauses C7.4 and C7.5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from tiny import tiny_model

from pact_plugin.data.documents import documents_of
from pact_plugin.data.positions import positions_of
from pact_plugin.model.fingerprint import model_fingerprint

# --- the key of a document (C7.4) ---


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 4), st.integers(1, 4))
def test_a_documents_key_is_of_its_content_p23_c7_4(seed, left, right, number):
    """Padding on either side, packing and what comes after the last response position change nothing; all else does."""
    random = np.random.default_rng(seed)
    parts = []
    for _ in range(number):
        width = int(random.integers(3, 9))
        ids = random.integers(5, 90, width)
        labels = np.where(random.random(width) < 0.5, ids, -100)
        labels[0], labels[-1] = -100, ids[-1]
        parts.append((ids, labels))

    def keys(ids, labels, **boundaries):
        host = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), **boundaries}
        return [d.key for d in documents_of(host, positions_of(host))]

    alone = [keys(ids[None], labels[None])[0] for ids, labels in parts]
    padded = []
    for ids, labels in parts:
        sides = ((0, 0), (left, right))
        mask = np.pad(np.ones_like(ids)[None], sides)
        more = np.pad(ids[None], sides, constant_values=3), np.pad(labels[None], sides, constant_values=-100)
        padded += keys(*more, attention_mask=torch.from_numpy(mask))
    assert padded == alone
    ids, labels = (np.concatenate([part[side] for part in parts])[None] for side in (0, 1))
    starts = torch.cat([torch.arange(len(part[0])) for part in parts])[None]
    assert keys(ids, labels, position_ids=starts) == alone
    lengths = torch.tensor([0, *(len(part[0]) for part in parts)]).cumsum(0)
    assert keys(ids, labels, cu_seq_lens_q=lengths.int()) == alone
    ids, labels = parts[0]
    for place in range(len(ids)):
        changed, unlabelled = ids.copy(), labels.copy()
        changed[place] += 1
        assert keys(changed[None], labels[None]) != alone[:1]
        if place:
            unlabelled[place] = -100 if labels[place] != -100 else ids[place]
            assert keys(ids[None], unlabelled[None]) != alone[:1]


# --- the fingerprint of a model (C7.5) ---


def test_every_value_and_every_name_counts_in_a_models_fingerprint():
    model = tiny_model()
    known = model_fingerprint(model)
    assert model_fingerprint(tiny_model()) == known
    assert model_fingerprint(tiny_model().to(torch.bfloat16)).values != known.values
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        place = int(torch.randint(parameter.numel(), (), generator=generator))
        flat = parameter.data.view(-1)
        before = flat[place].clone()
        flat[place] = torch.nextafter(before, torch.tensor(9.0))
        assert model_fingerprint(model).values != known.values
        assert model_fingerprint(model).structure == known.structure
        flat[place] = before
        if parameter.shape[0] == parameter.numel() or parameter.shape[0] < 2:
            continue
        rows = parameter.data[:2].clone()
        parameter.data[:2] = rows.flip(0)  # the same values in another order
        assert model_fingerprint(model).values != known.values
        parameter.data[:2] = rows
    assert model_fingerprint(model) == known


def test_what_the_configuration_makes_of_the_weights_counts_too():
    known = model_fingerprint(tiny_model())
    other = model_fingerprint(tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 100.0}))
    assert (other.structure, other.values) != (known.structure, known.values)
    assert other.values != known.values
    same = tiny_model()
    same.config.use_cache, same.config.pad_token_id = False, 3  # as trainers do
    assert model_fingerprint(same) == known
    peft = get_peft_model(tiny_model(), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert model_fingerprint(peft, base_only=True) == known


def test_an_adapter_of_another_scale_is_another_model(tmp_path):
    settings = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False}
    get_peft_model(tiny_model(), LoraConfig(lora_alpha=8, **settings)).save_pretrained(tmp_path)
    known, again, other = (
        model_fingerprint(
            PeftModel.from_pretrained(tiny_model(), tmp_path, config=LoraConfig(lora_alpha=alpha, **settings))
        )
        for alpha in (8, 8, 32)
    )
    assert again == known
    assert other.values != known.values


class InBuffers(torch.nn.Module):
    """A linear layer as GPTQ and AWQ have it: its weight lies in buffers."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", (linear.weight.detach() * 2**27).to(torch.int32))
        self.register_buffer("scales", torch.tensor(2.0**-27))
        self.register_buffer("workspace", torch.zeros(2), persistent=False)


def with_weights_in_buffers() -> torch.nn.Module:
    model = tiny_model()
    for layer in model.model.layers:
        layer.mlp.down_proj = InBuffers(layer.mlp.down_proj)
    return model


@pytest.mark.parametrize("any_type", [False, True])
def test_weights_in_buffers_count_in_a_models_fingerprint(any_type):
    model = with_weights_in_buffers()
    known = model_fingerprint(model, any_type=any_type)
    assert model_fingerprint(with_weights_in_buffers(), any_type=any_type) == known
    layer = model.model.layers[1].mlp.down_proj
    layer.workspace += 1  # what a kernel leaves behind is not saved
    assert model_fingerprint(model, any_type=any_type) == known
    place = layer.qweight.abs().argmax()
    assert layer.qweight.view(-1)[place].abs() > 2**24, "float32 would round it"
    for values, change in ((layer.qweight.view(-1)[place], 1), (layer.scales, 2.0**-40)):
        values += change
        assert model_fingerprint(model, any_type=any_type).values != known.values
        assert model_fingerprint(model, any_type=any_type).structure == known.structure
        values -= change
    assert model_fingerprint(model, any_type=any_type) == known
    peft = get_peft_model(model, VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert [name for name in peft.state_dict() if "vera_A" in name], "it has buffers of its own"
    assert model_fingerprint(peft, base_only=True, any_type=any_type) == known


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]),
        LoraConfig(r=4, use_dora=True, trainable_token_indices=[1, 2]),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        VeraConfig(r=4, target_modules=["q_proj"]),
        AdaLoraConfig(total_step=9, target_modules=["q_proj"]),
    ],
    ids=lambda config: config.peft_type.value,
)
@pytest.mark.parametrize("name", ["default", "model", "weight"])
def test_whatever_an_adapter_is_named_the_model_below_counts(config, name):
    model = tiny_model(tie_word_embeddings=False)
    known = model_fingerprint(model)
    peft = get_peft_model(model, config, adapter_name=name)
    assert model_fingerprint(peft, base_only=True) == known
    assert model_fingerprint(peft).structure != known.structure
    model.model.norm.weight.data += 1
    assert model_fingerprint(peft, base_only=True).values != known.values
