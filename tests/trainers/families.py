"""Families of models that people fine-tune, tiny and random, in TRL's SFTTrainer with every term; by hand.

Among them: mixtures of experts, layers of state-space models and of linear attention, models that see, on text.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from both import CONFIG, each_kind, with_reference_in_steps
from sft import lora, sft_trainer, train_logs
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

import pact_plugin as pact

EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT = {
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    "num_key_value_heads": 4,
}
MAMBA = {
    **dict.fromkeys(("mamba_d_head", "mamba_d_state", "mamba_chunk_size"), 16),
    "mamba_n_heads": 4,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
LINEAR = {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
SLIDING = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}

PLAIN = ["llama", "qwen2", "qwen3", "mistral", "ministral", "phi3", "gemma2", "gemma3_text", "smollm3"]
PLAIN += ["olmo2", "olmo3", "glm4", "granite", "starcoder2", "stablelm", "nemotron", "exaone4", "ernie4_5"]
PLAIN += ["hunyuan_v1_dense", "apertus", "arcee", "gpt_neox", "lfm2"]
TEXT: dict[str, dict[str, Any]] = {
    **{name: dict[str, Any]() for name in PLAIN},
    **dict.fromkeys(("mixtral", "qwen2_moe", "olmoe", "granitemoe", "hunyuan_v1_moe"), EXPERTS),
    "gemma4_text": {
        "vocab_size_per_layer_input": 400,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 16,
    },
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "phimoe": EXPERTS | {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "qwen3_moe": EXPERTS | {"decoder_sparse_step": 1},
    "gpt_oss": EXPERTS | SLIDING,
    "glm4_moe": EXPERTS | LATENT,
    "deepseek_v3": EXPERTS | LATENT,
    "falcon_h1": MAMBA,
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA | EXPERTS | {"layer_types": ["mamba", "attention"]},
    "qwen3_next": EXPERTS | LINEAR,
    "qwen3_5_text": LINEAR,
    "mamba": {"state_size": 8},
    "bloom": {"n_head": 4},
    # Of these the defaults have dropout, so that the model in training differs from itself.
    "seed_oss": {"attention_dropout": 0.0, "residual_dropout": 0.0},
    "opt": {"dropout": 0.0},
    "gpt2": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}

_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4, "partial_rotary_factor": 1.0}
SEEING: dict[str, dict[str, Any]] = {
    "gemma3": {},
    "llava": {"model_type": "mistral"},
    "mistral3": {"model_type": "mistral"},
    "qwen2_5_vl": {"rope_parameters": _ROPE},
    "qwen3_5": LINEAR | {"rope_parameters": _ROPE},
    "qwen3_vl": {"rope_parameters": _ROPE},
    "qwen3_vl_moe": EXPERTS | {"rope_parameters": _ROPE},
}

ADAPTED = r".*(q_proj|v_proj|qkv_proj|query_key_value|c_attn|in_proj|q_a_proj)"


def seeing_model(family: str) -> Any:
    """With a tower for images of one layer."""
    text = tiny_model("llama").config.to_dict()
    named = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = {key: text[key] for key in (*named, "num_key_value_heads", "head_dim", "initializer_range")}
    tower = {
        **dict.fromkeys(("hidden_size", "embed_dim"), 16),
        **dict.fromkeys(("num_hidden_layers", "depth"), 1),
        **dict.fromkeys(("num_attention_heads", "num_heads"), 2),
        **{"intermediate_size": 32, "out_hidden_size": 32, "image_size": 28, "patch_size": 14},
    }
    tokenizer = tiny_tokenizer()
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(family, text_config=text | SEEING[family], vision_config=tower)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("family", [*TEXT, *SEEING])
@each_kind
@pytest.mark.filterwarnings("ignore")
def test_a_table_and_a_reference_in_each_step_hold_it_alike(tmp_path, family, with_lora):
    logs = []
    for attach in (pact.attach, with_reference_in_steps):
        model = seeing_model(family) if family in SEEING else tiny_model(family, **TEXT[family])
        # AdamW's first steps are nearly the signs of gradients, some of which rounding turns.
        how: dict[str, Any] = {"model": model, "optim": "sgd", "learning_rate": 0.3 if with_lora else 0.01}
        trainer = sft_trainer(tmp_path, peft=lora(target_modules=ADAPTED) if with_lora else None, **how)
        attach(trainer, CONFIG).train()
        logs.append(train_logs(trainer))
        assert trainer.pact.record.receipt.steps == [[1, 3]]
    table, steps = logs
    for name in ("pact/divergence", "pact/anchor_divergence"):
        assert table[0][name] == pytest.approx(0, abs=1e-5), name
        assert table[-1][name] > table[0][name] + 1e-7, name
    for ours, theirs in zip(table, steps, strict=True):
        for name in ("loss", "pact/eased", "pact/divergence", "pact/anchor_divergence"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=2e-6), name
