"""The READMEs: their Python runs as it stands, on a tiny model; what they quote is there.

That of TRL, and links: test_docs.py.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hf import tokenized
from loop import a_batch
from pact_axolotl.check.problems import problems
from settings_table import PAGE, settings_table, with_settings
from sft import TOKENIZER, TOKENS
from tiny import tiny_model

import pact_plugin as pact

ROOT = Path(__file__).parents[2]
TOKENS_BY_NAME = {"safety_tokens": "safety_tokens.safetensors"}
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRL, LOOP = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
AXOLOTL = (ROOT / "integrations" / "pact_axolotl" / "README.md").read_text(encoding="utf-8")
TRANSFORMERS = (ROOT / "integrations" / "pact_transformers" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _where_the_token_file_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TOKENS.save("safety_tokens.safetensors")


def named(code: str) -> str:
    """With safety tokens by name: the tiny model refuses nothing that they could be chosen from."""
    code = re.sub(r"(attach\(trainer|PactConstraint\(model, tokenizer)\)", rf"\1, {TOKENS_BY_NAME})", code)
    return code.replace('{"advanced"', f'{TOKENS_BY_NAME} | {{"advanced"')


@pytest.fixture
def _a_model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")


@pytest.mark.usefixtures("_a_model")
def test_transformers(tmp_path):
    code, audit = re.findall(r"```python\n(.*?)```", TRANSFORMERS, re.DOTALL)
    code = named(code).replace("my-org/my-aligned-model", str(tmp_path / "model"))
    code = code.replace(
        'TrainingArguments("out")', 'TrainingArguments("out", max_steps=2, use_cpu=True, report_to=[])'
    )
    assert code.count("max_steps") == 1
    names = {"dataset": tokenized()}
    exec(code, names)
    assert names["trainer"].pact.record.receipt.steps == [[1, 2]]
    assert (tmp_path / "out" / "pact_receipt.json").is_file()
    exec(audit, names)
    names["trainer"].train()
    assert "pact/refusal_rate" in {name for entry in names["trainer"].state.log_history for name in entry}


def test_own_loop():
    model = tiny_model()
    names = {
        "pact": pact,
        "model": model,
        "tokenizer": TOKENIZER,
        "loader": [a_batch(seed) for seed in range(3)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(named(LOOP), names)
    assert names["constraint"].record.receipt.steps == [[1, 3]]


def yaml_of(text: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


# --- the adapters' ---


def test_the_table_of_settings_is_that_of_the_class():
    text = PAGE.read_text(encoding="utf-8")
    assert settings_table() in text
    assert text == with_settings(text), "python tools/settings_table.py writes it"
    for row in (
        "| `advanced.published.top_p` | number > 0 and ≤ 1 | `0.9` |",
        "| `easing.first` | integer ≥ 1 or `all` | `16` |",
        "| `anchors` | true, false or a block | `true` |",
        "| `hold_data` | true, false or a block | `false` |",
        "| `advanced.published` | true, false or a block | `false` |",
    ):
        assert row in text


def test_the_configurations_of_the_axolotl_readme_would_be_constrained():
    found = [*yaml_of(AXOLOTL), yaml.safe_load((ROOT / "examples/first_run/axolotl.yml").read_text("utf-8"))]
    assert [config.get("pact") for config in found].count(True) == 2
    for config in found:
        assert list(problems({"plugins": ["pact_axolotl.PactPlugin"], **config})) == []


REFUSED = re.findall(r"^\| `([^`]+: [^`]+)`.*? \| ⛔ \| “(.+?)”", AXOLOTL, re.MULTILINE)


@pytest.mark.parametrize(("setting", "message"), REFUSED, ids=[setting for setting, _ in REFUSED])
def test_what_the_axolotl_readme_calls_refused_is_refused(setting, message):
    config = {"pact": True, "base_model": "m"} | yaml.safe_load(setting)
    (problem,) = problems(config)
    assert message in str(problem)


def test_no_refused_row_goes_untested():
    rows = re.findall(r"^\| (.+?) \| ⛔ \| “", AXOLOTL, re.MULTILINE)
    tested = [row for row in rows if any(row.startswith(f"`{setting}`") for setting, _ in REFUSED)]
    untested = [row for row in rows if row not in tested]
    assert untested == ["FSDP, full fine-tuning, `streaming: true`"]  # axolotl/check/test_check_reference.py
    assert len(tested) == len(REFUSED) >= 12


def texts_of_the_code() -> str:
    """Every literal text of the packages; parts of f-strings one by one."""
    found = []
    for folder in ("pact_plugin", "integrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
            found += [value for value in constants if isinstance(value, str)]
    return "\n".join(found).lower()


def test_the_messages_of_the_axolotl_readme_are_those_of_the_code():
    section = AXOLOTL.split("## When it stops")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert len(messages) >= 8
    texts = texts_of_the_code()
    assert [message for message in messages if message.lower() not in texts] == []
