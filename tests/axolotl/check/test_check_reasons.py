"""What `pact-plugin check` finds in a configuration by itself: every reason, once, with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from check_configs import LORA, PLUGIN, STREAMING, checked, config, found
from pact_axolotl.check.check import check

import pact_plugin as pact


def test_a_good_configuration():
    report = checked(config(**LORA))
    assert report.constrained
    tokens = pact.SafetyTokens.load("t.safetensors")
    assert report.tokens == {"source": "file", "name": "t.safetensors", "count": 3, "digest": tokens.digest}
    assert (report.reference.kind, report.reference.source) == ("table", "adapter_off")
    (unchecked,) = report.unchecked
    assert "no Axolotl was found" in unchecked


def test_a_magistral_with_a_hugging_face_tokenizer_is_no_problem():
    named = {"base_model": "mistralai/Magistral-Small-2506", "tokenizer_use_mistral_common": False}
    assert checked(config(**named, pact=True)).constrained


@pytest.mark.parametrize("settings", [{"reference": "./model"}, {"easing": False}], ids=str)
def test_new_embeddings_change_no_reference_that_is_named_or_not_asked_again(settings):
    assert checked(config(fix_untrained_tokens=True, pact=settings)).constrained


def test_tokens_are_chosen_where_none_are_named():
    assert checked(config(pact=True)).tokens == {"source": "model"}


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


NOTHING = {"easing": False}
PUBLISHED = {"easing": False, "anchors": False, "advanced": {"published": True}}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"pact": False}, "pact", ("False", "off", "pact: true")),
        ({"pact": None}, "pact", ("missing", "Add `pact: true`")),
        ({"pact": "yes please"}, "pact", ("not a configuration",)),
        ({"pact": {"weight": 0}}, "pact.weight", ("only measures", "above 0")),
        ({"pact": {"weigth": 1}}, "pact.weigth", ("1", "Did you mean `weight`?")),
        ({"pact": {"weight": -1}}, "pact.weight", ("-1", "greater than or equal to 0")),
        ({"pact": {"hold_data": {"firts": 4}}}, "pact.hold_data.firts", ("4", "Did you mean `first`?")),
        ({"pact": {"first": 4}}, "pact.first", ("4", "Write it below `easing:`")),
        ({"pact": {**NOTHING, "anchors": False}}, "pact", ("nothing would be constrained",)),
        (
            {"pact": {**NOTHING, "advanced": {"store": "./s"}}},
            "pact.advanced.store",
            ("nothing would be stored",),
        ),
        (
            {"pact": {**PUBLISHED, "easing": True}},
            "pact.easing",
            ("Set `easing: false`", "advanced.published"),
        ),
        ({"pact": {**PUBLISHED, "hold_data": True}}, "pact.hold_data", ("Set `hold_data: false`",)),
        ({"pact": {"safety_tokens": "gone.safetensors"}}, "pact.safety_tokens", ("gone", "no such file")),
        ({"pact": {"safety_tokens": "other.safetensors"}}, "pact.safety_tokens", ("another tokenizer",)),
        ({"plugins": None}, "plugins", ("missing", f"plugins: [{PLUGIN}]")),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"]}, "plugins", (f"Add `- {PLUGIN}`",)),
        ({"plugins": PLUGIN}, "plugins", ("not a list", f"[{PLUGIN}]")),
        ({"safety_tokens": "t.safetensors"}, "safety_tokens", ("outside of its block", "below `pact:`")),
        ({"rl": "kto"}, "rl", ("kto", "only `dpo`", "Remove `rl`")),
        (
            {"rl": "dpo", "pact": {"hold_data": True}},
            "pact.hold_data",
            ("no next-token labels", "Remove `hold_data`"),
        ),
        ({"rl": "dpo", "pact": {"easing": True}}, "pact.easing", ("no next-token labels", "Remove `easing`")),
        (
            {"tokenizer_use_mistral_common": True},
            "tokenizer_use_mistral_common",
            ("mistral-common's tokenizer", "tokenizer_use_mistral_common: false", "`tokenizer_config`"),
        ),
        (
            {"base_model": "mistralai/Magistral-Small-2506", "pact": True},
            "base_model",
            ("mistral-common's tokenizer", "tokenizer_use_mistral_common: false"),
        ),
        ({"use_eaft": True}, "use_eaft", ("easing: false",)),
        ({"liger_use_token_scaling": True}, "liger_use_token_scaling", ("easing: false",)),
        ({"expert_parallel_size": 2}, "expert_parallel_size", ("`expert_parallel_size`",)),
        (
            {"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}, **LORA},
            "fsdp_config.cpu_ram_efficient_loading",
            ("`false`",),
        ),
        ({"relora": True, **LORA}, "relora", ("pact: {reference: ./model}",)),
        (
            {"fix_untrained_tokens": [3]},
            "fix_untrained_tokens",
            ("[3]", "new embeddings", "Remove `fix_untrained_tokens`", "pact: {reference: ./model}"),
        ),
        (
            {**LORA, "adapter": "mixlora", "pact": {"easing": False}},
            "adapter",
            ("mixlora", "no reference", "`adapter: lora`", "pact: {reference: ./model}"),
        ),
        (
            {**LORA, "adapter": "mixlora", "pact": {"reference": "./model"}},
            "adapter",
            ("routers' loss", "pact: {easing: false}"),
        ),
        ({"pact": None, "wandb": {"pact": True}}, "wandb.pact", ("below another key", "outermost level")),
        ({"wandb": [{"pact": True}]}, "wandb.0.pact", ("below another key", "outermost level")),
        (
            {"lisa_n_layers": 1, **STREAMING},
            "lisa_n_layers",
            ("or `streaming`", "pact: {reference: ./model}"),
        ),
        (
            {"tensor_parallel_size": 2},
            "tensor_parallel_size",
            ("different anchors", "pact: {anchors: false}"),
        ),
        ({"pact": {"reference": "atuo"}}, "pact.reference", ("Did you mean `auto`?",)),
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
    block = {
        "weigth": 1,
        "easing": "maybe",
        "advanced": {"published": {"topp": 1}},
        "safety_tokens": "gone.safetensors",
    }
    report = checked(config(pact=block, plugins=["pact.Plugin"], rl="kto", reward_model=True, pcat=1))
    assert set(found(report)) == {
        *("pcat", "plugins", "rl", "reward_model"),
        *("pact.weigth", "pact.easing", "pact.advanced.published.topp", "pact.safety_tokens"),
    }


def test_every_term_that_the_published_objective_goes_without_is_found():
    report = checked(config(pact={"advanced": {"published": {"top_p": 0.8}}}))
    assert set(found(report)) == {"pact.easing", "pact.anchors"}
    assert checked(config(pact=PUBLISHED)).constrained


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
