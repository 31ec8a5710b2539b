"""`pact-plugin check` where no Axolotl is: what can be said from the configuration, the models and the machine."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pact_axolotl.check import memory
from pact_axolotl.check.check import check
from pact_axolotl.check.environment import find_axolotl
from pact_axolotl.check.reference_plan import ReferencePlan
from pact_axolotl.check.report import Report
from tiny import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

import pact_plugin as pact
from pact_plugin.cli.main import app
from pact_plugin.reference.source import build_reference
from pact_plugin.run.receipt import Receipt

PLUGIN = "pact_axolotl.PactPlugin"
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, a model of another tokenizer, one too large for any machine, an adapter's folder, and token files."""
    folder = tmp_path_factory.mktemp("check")
    tokenizer = tiny_tokenizer()
    tiny_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pact.SafetyTokens.for_tokenizer(tokenizer, [40, 41, 75], [1.0, 0.5, -0.2]).save(folder / "t.safetensors")
    other = Tokenizer(models.WordLevel({"one": 0, "two": 1, "[UNK]": 2}, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=other)
    words.save_pretrained(folder / "other")
    tiny_model().config.save_pretrained(folder / "other")
    pact.SafetyTokens.for_tokenizer(words, [0, 1], [1.0, 0.5]).save(folder / "other.safetensors")
    large = AutoConfig.for_model(
        "llama", hidden_size=1 << 16, intermediate_size=1 << 22, num_hidden_layers=4, vocab_size=1 << 17
    )
    large.save_pretrained(folder / "large")
    tokenizer.save_pretrained(folder / "large")
    (folder / "adapter").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _no_axolotl_on_path(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(folder)  # so that the configurations can name files


def config(**changes: Any) -> dict[str, Any]:
    """An Axolotl configuration, in the folder above; a key set to None is left out."""
    base = {
        "base_model": "./model",
        "plugins": [PLUGIN],
        "pact": {"safety_tokens": "t.safetensors"},
        "datasets": [{"path": "chat.jsonl", "type": "chat_template"}],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.01,
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def checked(content: str | dict[str, Any]) -> Report:
    file = Path("config.yml")
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return check(file)


def found(report: Report) -> dict[str, str]:
    """The findings by key; each key has one here, with a problem and a remedy."""
    assert len({finding.key for finding in report.findings}) == len(report.findings)
    assert all(finding.problem and finding.remedy for finding in report.findings)
    return {one.key: f"{one.value!r} {one.problem}. {one.remedy}" for one in report.findings}


# --- a run that would be constrained ---


def test_a_good_configuration():
    report = checked(config(**LORA))
    assert report.constrained
    tokens = pact.SafetyTokens.load("t.safetensors")
    assert report.tokens == {"source": "file", "name": "t.safetensors", "count": 3, "digest": tokens.digest}
    assert (report.reference.kind, report.reference.bytes) == ("adapter_off", 0)
    (unchecked,) = report.unchecked
    assert "no Axolotl was found" in unchecked


def test_tokens_are_chosen_where_none_are_named():
    assert checked(config(pact=True)).tokens == {"source": "model"}


def test_tokens_that_refusals_do_not_begin_with_are_noted(tmp_path):
    def named(mass: str) -> Report:
        kept = pact.SafetyTokens.load("t.safetensors")
        other = replace(kept, provenance={**kept.provenance, "first_token_mass": mass})
        other.save(tmp_path / "other.safetensors")
        return checked(config(pact={"safety_tokens": str(tmp_path / "other.safetensors")}))

    assert not [note for note in named("0.9").notes if "first word" in note]
    assert [note for note in named("0.01").notes if "hold 1.0% of the probability at the first word" in note]
    assert "tokens select" in found(named("much"))["first_token_mass"]


def test_anchors_merge_keys_and_yaml_1_1_are_read_as_axolotl_reads_them():
    text = """
base: &base {weight: 3.0, safety_tokens: t.safetensors}
base_model: ./model
plugins: [pact_axolotl.PactPlugin]
pact: {<<: *base, easing: no}
"""
    assert checked(text).constrained
    assert list(found(checked(text.replace("easing: no", "easing: never")))) == ["pact.easing"]
    assert list(found(checked(config() | {"pact": True}))) == []
    assert checked(yaml.safe_dump(config(pact=None)) + "pact: yes\n").constrained


# --- reasons why it would not ---


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"pact": False}, "pact", ("False", "off", "pact: true")),
        ({"pact": None}, "pact", ("missing", "Add `pact: true`")),
        ({"pact": "yes please"}, "pact", ("not a configuration",)),
        ({"pact": {"weight": 0}}, "pact.weight", ("only measures", "above 0")),
        ({"pact": {"weigth": 1}}, "pact.weigth", ("1", "Did you mean `weight`?")),
        ({"pact": {"weight": -1}}, "pact.weight", ("-1", "greater than or equal to 0")),
        ({"pact": {"objective": "published", "easing": True}}, "pact.easing", ("objective: confidence",)),
        ({"pact": {"safety_tokens": "gone.safetensors"}}, "pact.safety_tokens", ("gone", "no such file")),
        ({"pact": {"safety_tokens": "other.safetensors"}}, "pact.safety_tokens", ("another tokenizer",)),
        ({"plugins": None}, "plugins", ("missing", f"plugins: [{PLUGIN}]")),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"]}, "plugins", (f"Add `- {PLUGIN}`",)),
        ({"plugins": PLUGIN}, "plugins", ("not a list", f"[{PLUGIN}]")),
        ({"safety_tokens": "t.safetensors"}, "safety_tokens", ("outside of its block", "below `pact:`")),
        ({"rl": "dpo"}, "rl", ("dpo", "next-token loss", "Remove `rl`")),
        ({"use_eaft": True}, "use_eaft", ("easing: false",)),
        ({"relora": True, **LORA}, "relora", ("pact: {reference: ./model}",)),
        ({"pact": {"reference": "adapter-off"}}, "pact.reference", ("Did you mean `adapter_off`?",)),
        ({"pact": {"reference": "adapter_off"}}, "pact.reference", ("no adapter to switch off",)),
        ({"pact": {"reference": "/nowhere"}}, "pact.reference", ("/nowhere", "no such folder")),
        ({"pact": {"reference": "./other"}}, "pact.reference", ("another tokenizer",)),
        ({"tokenizer_config": "./gone"}, "tokenizer_config", ("./gone", "no such folder")),
        ({"base_model": "./gone", "pact": True}, "base_model", ("./gone", "no such folder")),
        ({"lora_model_dir": "./gone", **LORA}, "lora_model_dir", ("./gone", "no such folder")),
        ({"tokenizer_type": "NoTokenizer"}, "tokenizer_type", ("NoTokenizer",)),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_each_reason_is_found_once_with_its_remedy(changes, key, words):
    (item,) = found(checked(config(**changes))).items()
    assert item[0] == key
    for word in words:
        assert word in item[1]


@pytest.mark.parametrize(
    "path",
    [
        "pact_axolotl.PactPlugn",
        "pact_axolotl.pactplugin",
        "pact_axolotl",
        "pact-axolotl.PactPlugin",
        "pact_plugin.PactPlugin",
        "axolotl.integrations.pact.PactPlugin",
        "pact_axolotl:PactPlugin",
        "act_axolotl.PactPlugin",
    ],
)
def test_misspelt_plugin_paths(path):
    (item,) = found(checked(config(plugins=["axolotl.integrations.liger.LigerPlugin", path]))).items()
    assert item[0] == "plugins"
    assert path in item[1]
    assert f"`{PLUGIN}`" in item[1]


def test_both_paths_of_the_plugin_are_right():
    assert checked(config(plugins=["pact_axolotl.plugin.PactPlugin"])).constrained


@pytest.mark.parametrize("key", ["pcat", "PACT", "Pact", "pact_config", "pact-plugin", "pac", "pactt"])
@pytest.mark.parametrize("beside", [{"pact": None}, {"pact": True}])
def test_misspelt_keys(key, beside):
    (item,) = found(checked(config(**beside, **{key: True}))).items()
    assert item[0] == key
    assert "The key is called `pact`" in item[1]


def test_an_empty_block_is_no_block():
    (item,) = found(checked(yaml.safe_dump(config(pact=None)) + "pact:\n")).items()
    assert item[0] == "pact"
    assert "it is empty" in item[1]


def test_every_reason_is_found_not_only_the_first():
    block = {"weigth": 1, "easing": "maybe", "published": {"topp": 1}, "safety_tokens": "gone.safetensors"}
    report = checked(config(pact=block, plugins=["pact.Plugin"], rl="dpo", reward_model=True, pcat=1))
    assert set(found(report)) == {
        *("pcat", "plugins", "rl", "reward_model"),
        *("pact.weigth", "pact.easing", "pact.published.topp", "pact.safety_tokens"),
    }


def test_every_missing_folder_is_found():
    missing = dict.fromkeys(("base_model", "tokenizer_config", "lora_model_dir"), "./gone")
    assert set(found(checked(config(**missing, **LORA)))) == set(missing)


def test_a_key_given_twice():
    report = checked(yaml.safe_dump(config()) + f"plugins: [{PLUGIN}]\n")
    assert "reads only the last" in found(report)["plugins"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("- pact: true\n", "a list"),
        ("pact:true\nplugins: [x]\n", "not YAML"),
        ("pact: [", "not YAML"),
    ],
)
def test_files_that_are_no_configuration(content, words):
    assert words in found(checked(content))["config"]


def test_a_file_that_is_not_there():
    assert "No such file" in found(check(Path("gone.yml")))["config"]


def test_a_folder_means_its_only_configuration(tmp_path):
    assert "a folder with 0" in found(check(tmp_path))["config"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config()))
    assert check(tmp_path).constrained
    (tmp_path / "two.yml").write_text(yaml.safe_dump(config()))
    assert "a folder with 2" in found(check(tmp_path))["config"]


# --- what cannot be checked is said ---


def test_a_tokenizer_that_cannot_be_loaded_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = checked(
        config(
            base_model="nobody/no-model", pact={"safety_tokens": "t.safetensors", "reference": "frozen_copy"}
        )
    )
    assert any("nobody/no-model" in one and "safety tokens fit" in one for one in report.unchecked)
    assert any("nobody/no-model" in one and "memory" in one for one in report.unchecked)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    report = checked(
        config(
            base_model="nobody/no-model", pact={"safety_tokens": "t.safetensors", "reference": "frozen_copy"}
        )
    )
    assert time.monotonic() - began < 15  # the hub's client alone would wait longer
    assert len(report.unchecked) == 3


def test_a_model_without_language_head_is_said(folder):
    AutoConfig.for_model("vit").save_pretrained(folder / "vision")
    report = checked(config(base_model="./vision", tokenizer_config="./model", **COPIED))
    assert report.constrained
    assert any("./vision" in one and "memory" in one for one in report.unchecked)


def test_the_published_objective_needs_a_header(folder):
    tiny_model().config.save_pretrained(folder / "plain")
    tiny_tokenizer(chat_template=None).save_pretrained(folder / "plain")
    block = {"objective": "published", "safety_tokens": "t.safetensors"}
    assert checked(config(pact=block)).constrained
    report = checked(config(pact=block, base_model="./plain"))
    assert "chat template" in found(report)["pact.published.assistant_header"]
    header = block | {"published": {"assistant_header": "Answer: "}}
    assert checked(config(pact=header, base_model="./plain")).constrained


# --- the reference and its memory ---


@pytest.mark.parametrize(
    ("changes", "kind", "of"),
    [
        ({}, "stored", "model-out/_pact_store"),
        ({"output_dir": "./out"}, "stored", "out/_pact_store"),
        ({"pact": {"reference": "frozen_copy"}}, "frozen_copy", "parameters"),
        ({"streaming": True, "max_steps": 10}, "frozen_copy", "parameters"),
        ({"pact": {"reference": "stored"}, "processor_type": "AutoProcessor"}, "frozen_copy", "parameters"),
        (LORA, "adapter_off", None),
        ({**LORA, "num_epochs": 3}, "stored", "model-out/_pact_store"),
        ({**LORA, "num_epochs": 3, "pact": {"reference": "adapter_off"}}, "adapter_off", None),
        ({**LORA, "pact": {"store": "./store"}}, "stored", "./store"),
        ({**LORA, "pact": {"reference": "stored"}}, "stored", "model-out/_pact_store"),
        ({**LORA, "num_epochs": 3, "streaming": True, "max_steps": 10}, "adapter_off", None),
        ({"adapter": "qlora", "load_in_4bit": True}, "adapter_off", None),
        ({**LORA, "lora_model_dir": "./adapter"}, "frozen_copy", "adapter"),
        ({**LORA, "peft_init_lora_weights": "pissa_niter_4"}, "frozen_copy", "adapter"),
        ({**LORA, "peft_init_lora_weights": "gaussian"}, "adapter_off", None),
        ({**LORA, "pact": {"reference": "frozen_copy"}}, "frozen_copy", "adapter"),
        ({**LORA, "pact": {"reference": "./model"}}, "frozen_model", "./model"),
    ],
    ids=str,
)
def test_which_reference_it_will_be(changes, kind, of):
    report = checked(config(**changes))
    assert report.constrained
    assert (report.reference.kind, report.reference.of) == (kind, of)


def test_leaving_out_what_an_adapter_has_learnt_is_noted():
    report = checked(config(**LORA, lora_model_dir="./adapter", pact={"reference": "adapter_off"}))
    assert report.reference.kind == "adapter_off"
    assert any("`auto` keeps it" in note for note in report.notes)


@pytest.mark.parametrize(("dtype", "changes"), [("float32", {}), ("bfloat16", {"bf16": "auto"})])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # untied and tied embeddings
def test_the_estimate_is_what_the_reference_holds(folder, architecture, dtype, changes):
    import torch

    model = tiny_model(architecture).to(getattr(torch, dtype))
    model.config.save_pretrained(folder / architecture)
    tiny_tokenizer().save_pretrained(folder / architecture)
    probe = torch.arange(4)
    copied = {"pact": {"reference": "frozen_copy"}}
    planned = checked(config(base_model=f"./{architecture}", **copied, **changes)).reference
    assert planned.bytes == build_reference(model, "frozen_copy", probe).extra_bytes
    assert planned.model_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    named = checked(
        config(base_model=f"./{architecture}", pact={"reference": "./model"}, **changes)
    ).reference
    assert named.bytes == sum(p.numel() * model.dtype.itemsize for p in tiny_model().parameters())


def test_only_what_is_trained_is_copied():
    patterns = ["^lm_head.weight$", "model.layers.1.mlp.[a-z_]+.weight$", "^model.embed_tokens.weight$[:20]"]
    model = tiny_model()
    trained = [model.lm_head, model.model.layers[1].mlp, model.model.embed_tokens]
    size = memory.size(model.config, patterns)
    assert size.trained == sum(p.numel() for module in trained for p in module.parameters())
    assert size.parameters == sum(p.numel() for p in model.parameters())


def test_a_quantized_model_is_smaller_than_its_reference():
    planned = checked(config(**LORA, load_in_4bit=True, bf16=True, pact={"reference": "./model"})).reference
    assert planned.bytes == 4 * planned.model_bytes


COPIED = {"pact": {"reference": "frozen_copy"}}
LARGE = {"base_model": "./large", "bf16": True}


def test_a_reference_that_does_not_fit():
    report = checked(config(**LARGE, **COPIED))
    text = found(report)["pact.reference"]
    parameters = memory.size(AutoConfig.from_pretrained("./large")).parameters
    assert report.reference.bytes == report.reference.model_bytes == 2 * parameters
    assert f"about {2 * parameters / 2**30:.1f} GiB beside the {2 * parameters / 2**30:.1f} GiB" in text
    assert f"{report.reference.device.free / 2**30:.1f} GiB free" in text
    assert "`reference: stored`, which needs no memory" in text
    assert checked(config(**LARGE)).reference.bytes == 0


def test_an_adapter_needs_no_memory_for_its_reference():
    assert checked(config(**LARGE, **LORA)).constrained


ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize("sharded", [{"fsdp_config": {"version": 2}}, {"fsdp": ["full_shard"]}], ids=str)
def test_a_copy_is_no_reference_where_parameters_are_sharded(sharded):
    (key,) = sharded
    text = found(checked(config(**sharded, **COPIED)))["pact.reference"]
    assert f"`{key}` shards the parameters" in text
    assert "pact: {reference: ./model}" in text
    assert "pact: {reference: stored}" in text
    assert checked(config(**sharded)).reference.kind == "stored"
    streaming = found(checked(config(**sharded, streaming=True, max_steps=10)))["pact.reference"]
    assert "remove `streaming`" in streaming
    assert checked(config(**sharded, **LORA)).constrained
    named = checked(config(**LARGE, **sharded, pact={"reference": "./large"}))
    assert named.constrained
    assert any(f"whether the reference fits, as `{key}`" in one for one in named.unchecked)


@pytest.mark.parametrize("deepspeed", ["zero3.json", ZERO3], ids=str)
@pytest.mark.parametrize("changes", [{}, COPIED, LORA, LARGE], ids=str)
def test_zero_stage_3_is_refused_whatever_the_reference(deepspeed, changes):
    Path("zero3.json").write_text(json.dumps(ZERO3))
    (item,) = found(checked(config(deepspeed=deepspeed, **changes))).items()
    assert item[0] == "deepspeed"
    assert "ZeRO stage 3 keeps parameters empty" in item[1]
    assert "Use ZeRO stage 2, or FSDP2." in item[1]


def test_deepspeed_without_sharded_parameters_is_measured():
    zero2 = {"deepspeed": {"zero_optimization": {"stage": 2}}}
    assert checked(config(**zero2, **COPIED)).constrained
    assert "GiB free" in found(checked(config(**LARGE, **COPIED, **zero2)))["pact.reference"]
    assert "gone.json" in found(checked(config(deepspeed="gone.json")))["deepspeed"]


def test_fitting_is_about_what_is_free():
    plan = ReferencePlan("frozen_copy", "parameters", "", 10, 20, memory.Device("a device", 30))
    assert plan.fits
    assert not ReferencePlan("frozen_copy", "parameters", "", 11, 20, memory.Device("a device", 30)).fits


# --- anchors ---


def test_anchors_are_noted_and_their_file_is_read(tmp_path):
    assert not [note for note in checked(config(pact={"anchors": 0})).notes if "Anchors" in note]
    report = checked(config(pact={"anchors": 4}))
    assert report.constrained
    assert any("Anchors: 4 in each step, taken in turn from those of 512 prompts" in n for n in report.notes)
    for hold in ("anchors", "all"):
        notes = " ".join(checked(config(pact={"hold": hold})).notes)
        assert ("they alone are held" in notes) == (hold == "anchors")
    checkpointed = {"gradient_checkpointing": True}
    other = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    for settings, then in (
        (True, "the run would have none, and hold the data"),
        ({"anchors": 4}, "the run would stop"),
        ({"hold": "anchors"}, "the run would stop"),
    ):
        notes = checked(config(pact=settings, **checkpointed)).notes
        assert [n for n in notes if "{use_reentrant: false}" in n and n.endswith(then)]
        assert not [
            n for n in checked(config(pact=settings, **checkpointed, **other)).notes if "reentrant" in n
        ]
    gone = checked(config(pact={"anchors": 4, "anchor_prompts": str(tmp_path / "gone.jsonl")}))
    assert "cannot be read" in found(gone)["pact.anchor_prompts"]
    published = checked(config(pact={"anchors": 4, "objective": "published"}))
    assert "does not define anchors" in found(published)["pact.anchors"]


# --- going on from a checkpoint ---


@pytest.fixture
def output(tmp_path) -> Path:
    (tmp_path / "out/checkpoint-9").mkdir(parents=True)
    receipt = Receipt(config=pact.PactConfig().summary(), tokens={}, reference="adapter_off")
    receipt.write(tmp_path / "out/checkpoint-10")
    pact.SafetyTokens.load("t.safetensors").save(
        tmp_path / "out/checkpoint-10/pact_safety_tokens.safetensors"
    )
    return tmp_path / "out"


def test_the_last_checkpoint_keeps_its_tokens(output):
    report = checked(config(pact=True, output_dir=str(output), auto_resume_from_checkpoints=True))
    assert report.constrained
    assert report.tokens["source"] == "checkpoint"
    assert str(output / "checkpoint-10") in report.tokens["name"]
    assert checked(config(pact=True, output_dir=str(output))).tokens == {"source": "model"}


def test_a_checkpoint_without_receipt_or_of_other_settings(output):
    report = checked(config(resume_from_checkpoint=str(output / "checkpoint-9")))
    assert "no receipt" in found(report)["resume_from_checkpoint"]
    report = checked(config(resume_from_checkpoint=str(output / "checkpoint-10"), pact={"weight": 3}))
    assert "constrained with 1.0" in found(report)["pact.weight"]


# --- the command `axolotl` ---


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("head", ["#!{}\n", "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\n"])
def test_a_command_whose_interpreter_has_no_axolotl(tmp_path, head):
    script(tmp_path / "bin/axolotl", head.format(sys.executable))
    report = checked(config())
    assert sys.executable in found(report)["axolotl"]
    assert report.unchecked == []


@pytest.mark.parametrize("text", ["#!/bin/sh\ndocker run axolotl\n", "MZ a binary", ""])
def test_a_command_of_which_nothing_is_known(tmp_path, text):
    path = script(tmp_path / "bin/axolotl", text)
    report = checked(config())
    assert report.constrained
    assert any(str(path) in one and "which Python" in one for one in report.unchecked)


def test_no_axolotl():
    assert find_axolotl() is None


# --- what is printed ---


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_summary_of_a_good_run():
    Path("config.yml").write_text(yaml.safe_dump(config(**LORA)))
    status, output = run("config.yml")
    assert status == 0
    assert "this run will be constrained" in output
    assert "Reference: adapter_off" in output
    assert "Safety tokens: 3" in output
    assert "Not checked: whether Axolotl's environment has pact-plugin" in output


def test_findings_are_readable_at_80_columns_with_whole_paths(tmp_path):
    path = f"/nowhere/{'long/' * 20}tokens.safetensors"
    Path("config.yml").write_text(yaml.safe_dump(config(pact={"safety_tokens": path}, rl="dpo")))
    status, output = run("config.yml")
    assert status == 1
    lines = output.splitlines()
    assert [line for line in lines if len(line) > 80] == [f"  {path}"]
    assert "✗ rl: dpo" in lines
    assert "  → Remove `rl`, or set `pact: false`." in lines
    assert "2 reasons" in output


@pytest.mark.parametrize(("changes", "status"), [(LORA, 0), ({"pact": {"weigth": 1}}, 1)])
def test_json_is_all_there_is_on_the_standard_output(changes, status):
    Path("config.yml").write_text(yaml.safe_dump(config(**changes)))
    done = subprocess.run(
        [sys.executable, "-m", "pact_plugin.cli.main", "check", "config.yml", "--json"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    answer = json.loads(done.stdout)
    assert set(answer) == {"constrained", "findings", "notes", "unchecked", "reference", "tokens"}
    assert answer["constrained"] is (status == 0)
    if status:
        (finding,) = answer["findings"]
        assert finding == {
            "key": "pact.weigth",
            "value": 1,
            "problem": "unknown key",
            "remedy": "Did you mean `weight`?",
        }


def test_a_missing_package_is_named_with_the_remedy():
    code = "import sys; sys.modules['yaml'] = None; from pact_plugin.cli.main import main; main()"
    command = [sys.executable, "-c", code, "check", "config.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs the package yaml. pip install 'pact-plugin[cli]'" in done.stderr
