"""Loading models and tokenizers: directories, GGUF files, and processors."""

from __future__ import annotations

import json

import pytest
import torch
from hf import hf_trainer
from hubs import no_hub
from pact_transformers import loading
from pact_transformers.mixin import tokenizer_of
from tiny import CHATML, tiny_model, tiny_tokenizer
from transformers import CLIPImageProcessor, LlavaProcessor

from examples.demo.smollm2 import smollm2_path
from pact_plugin.data.chat_template import user_prompts
from pact_plugin.errors import ConfigError
from pact_plugin.tokens.safety_tokens import tokenizer_fingerprint


@pytest.fixture
def folder(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    ("asked", "found"),
    [("auto", torch.bfloat16), ("float32", torch.float32), (torch.float64, torch.float64)],
)
def test_a_directory_loads_in_eval_mode_and_the_asked_dtype(folder, asked, found):
    model = loading.load_causal_lm(folder, dtype=asked, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {found}
    assert model.device.type == "cpu"
    assert not model.training
    expected = tiny_model().to(torch.bfloat16).state_dict()
    assert all(
        torch.equal(weight.to(torch.bfloat16), expected[name]) for name, weight in model.state_dict().items()
    )


def test_a_tokenizer_loads_as_it_was(folder):
    tokenizer = loading.load_tokenizer(folder)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(tiny_tokenizer())
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"dtype": "nonsense"}, "dtype='nonsense'"),
        ({"dtype": "nn"}, "dtype='nn'"),  # a name in torch that is no dtype
        ({"device": "toaster"}, "device='toaster'"),
    ],
)
def test_bad_settings_are_refused_by_name(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        loading.load_causal_lm(folder, **settings)


def test_what_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(b"GGUF")
    for name, message in (
        ("missing", r"missing': cannot be loaded"),
        ("missing.gguf", r"missing\.gguf': there is no such file"),
        ("empty", r"empty': cannot be loaded"),
        ("two", r"two': several GGUF files: a\.gguf, b\.gguf"),
    ):
        with pytest.raises(ConfigError, match=message):
            loading.load_causal_lm(tmp_path / name)
        with pytest.raises(ConfigError, match=message):
            loading.load_tokenizer(tmp_path / name)


def test_gguf_without_its_package_is_refused_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install gguf"):
        loading.load_causal_lm(tmp_path)


@pytest.mark.real_model
def test_a_gguf_model_can_be_trained_and_saved(tmp_path, monkeypatch):
    no_hub(monkeypatch)
    model = loading.load_causal_lm(smollm2_path(), device="cpu")
    tokenizer = loading.load_tokenizer(smollm2_path())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not getattr(model, "is_quantized", False)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()) == " Paris"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = loading.load_causal_lm(tmp_path, device="cpu")
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert tokenizer_fingerprint(loading.load_tokenizer(tmp_path)) == tokenizer_fingerprint(tokenizer)


def test_a_processors_chat_template_is_the_tokenizers_where_that_has_none(tmp_path):
    """Older models that see have it in a file of its own."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer(chat_template=None).save_pretrained(tmp_path)
    assert loading.load_tokenizer(tmp_path).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}), encoding="utf-8")
    assert loading.load_tokenizer(tmp_path).chat_template == CHATML
    tiny_tokenizer(chat_template="own").save_pretrained(tmp_path)
    assert loading.load_tokenizer(tmp_path).chat_template == "own"


def test_so_is_that_of_a_trainers_processor(tmp_path):
    tokenizer = tiny_tokenizer(chat_template=None)
    trainer = hf_trainer(tmp_path)
    trainer.processing_class = LlavaProcessor(
        image_processor=CLIPImageProcessor(), tokenizer=tokenizer, chat_template=CHATML, patch_size=2
    )
    assert tokenizer_of(trainer).chat_template == CHATML
    assert tokenizer.chat_template is None
    assert user_prompts(tokenizer_of(trainer), ["a"]) == user_prompts(tiny_tokenizer(), ["a"])
