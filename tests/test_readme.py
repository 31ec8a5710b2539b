"""The README's Python runs as it stands, on a tiny model in place of the names it gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from sft import TOKENIZER, TOKENS, completions, lora
from test_constraint import a_batch
from tiny import tiny_model

import pact_plugin as pact
from pact_plugin.config import PactConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TRL, LOOP, BARE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def _where_the_token_file_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TOKENS.save("safety_tokens.safetensors")


def test_trl(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    code = TRL.replace("my-org/my-aligned-model", str(tmp_path / "model"))
    code = code.replace(
        'SFTConfig("out")', 'SFTConfig("out", max_steps=2, use_cpu=True, bf16=False, report_to=[])'
    )
    assert code.count("max_steps") == 1
    names = {"dataset": completions(), "lora": lora()}
    exec(code, names)
    assert names["trainer"].pact.receipt.steps == [[1, 2]]


def test_own_loop():
    model = tiny_model()
    names = {
        "pact": pact,
        "model": model,
        "tokenizer": TOKENIZER,
        "loader": [a_batch(seed) for seed in range(3)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(LOOP, names)
    assert names["constraint"].receipt.steps == [[1, 3]]


def test_bare_loss():
    logprobs = torch.randn(5, 9).log_softmax(-1)
    names = {"pact": pact}
    names |= {f"{side}_logprobs": logprobs[:, :4] for side in ("student", "reference")}
    names |= {f"{side}_log_rest": logprobs[:, 4:].logsumexp(1) for side in ("student", "reference")}
    exec(BARE, names)
    torch.testing.assert_close(names["divergence"], torch.zeros(5), atol=1e-6, rtol=0)


def test_the_settings_table_names_real_keys_and_defaults():
    rows = re.findall(r"^\| `(\w+)` \| (\S+) ", README, re.MULTILINE)
    assert {"weight", "easing", "safety_tokens", "reference"} <= {key for key, _ in rows}
    defaults = PactConfig().model_dump() | {"easing": "on" if PactConfig().eases else "off"}
    for key, default in rows:
        assert key in PactConfig.model_fields
        if default != "chosen":
            assert default.strip("`") == str(defaults[key])
