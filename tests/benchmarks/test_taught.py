"""The small model that was taught to refuse: by its adapter."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny import REQUESTS, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.taught import teach
from examples.demo.models import load_base
from examples.demo.prompts import example
from examples.demo.training import LINEAR_LAYERS


def quiet(done, total, description):
    """No progress bar."""


def test_an_adapter_is_merged_as_often_as_it_says(monkeypatch, tmp_path):
    examples = [example(request, "I'm sorry, but I can't help with that.") for request in REQUESTS]
    monkeypatch.setattr(teach, "lessons", lambda *_: examples)
    adapter = teach.teach(tiny_model(), tiny_tokenizer(), tmp_path, quiet)
    assert {one.dtype for one in load_file(adapter / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }

    def taught(factor):
        monkeypatch.setattr(teach, "FACTOR", factor)
        model = teach.merged(tiny_model(), adapter)
        return {name: value - before[name] for name, value in model.state_dict().items()}

    before = tiny_model().state_dict()
    once, more = taught(1.0), taught(1.5)
    moved = [name for name, value in once.items() if value.abs().max() > 1e-4]
    assert {name.split(".")[-2] for name in moved} == set(LINEAR_LAYERS)
    for name in moved:
        torch.testing.assert_close(more[name], 1.5 * once[name], rtol=1e-3, atol=1e-6)


@pytest.mark.real_model
def test_the_command_writes_the_model_with_the_kept_adapter(tmp_path):
    result = CliRunner().invoke(app, ["taught", "--output", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = load_file(tmp_path / "model.safetensors")
    base = load_base(device=None)[0].state_dict()
    name = "model.layers.3.mlp.up_proj.weight"
    kept = load_file(teach.KEPT / "adapter_model.safetensors")
    a, b = (
        kept[f"base_model.model.{name.replace('weight', f'lora_{side}.weight')}"].float() for side in "AB"
    )
    torch.testing.assert_close(written[name] - base[name], 1.35 * 2 * b @ a, rtol=1e-3, atol=1e-5)
    assert (tmp_path / "chat_template.jinja").is_file()
