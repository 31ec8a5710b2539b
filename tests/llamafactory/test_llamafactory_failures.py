"""Everything that must stop LLaMA-Factory rather than let it train unconstrained, and what `check` says of it."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import yaml
from command_runs import Run, pact_command
from llamafactory_runs import BIN, FULL, LORA, Workshop
from pact_llamafactory.check.check import check
from pact_llamafactory.launch import output
from pact_llamafactory.launch import run as launch
from pact_llamafactory.problems import problems

import pact_plugin as pact
from pact_plugin.errors import AdapterError
from pact_plugin.hooks.manager import find_config_check


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("llamafactory"))


def assert_stops(run: Run, *words: str) -> None:
    """Before a model is loaded."""
    text = " ".join(run.log.split())
    assert run.status == 1
    for word in words:
        assert word in text, run.log[-2000:]
    assert "Traceback" not in run.log
    assert not (run.output / "pact_receipt.json").exists()


def test_the_command_stops(workshop):
    assert_stops(
        workshop.train("dpo", stage="dpo", **LORA), "✗ stage: dpo", "DPO compares answers", "Remove `stage`"
    )
    wrong = workshop.named_tokens | {"weigth": 2}
    assert_stops(workshop.train("unknown", pact=wrong, **FULL), "weigth", "Did you mean `weight`?")
    assert_stops(workshop.train("missing", pact=None, **FULL), "It is missing", "Write `pact: true`")
    assert_stops(workshop.train("off", pact=False, **FULL), "It is off", "Write `pact: true`")


def test_a_checkpoint_of_other_settings_stops(workshop):
    first = workshop.train("first", max_steps=1, save_steps=1, **LORA).ok()
    heavier = workshop.named_tokens | {"weight": 2}
    run = workshop.train("first", pact=heavier, max_steps=2, **LORA)
    assert run.status == 1
    assert "was constrained with 10.0" in " ".join(run.log.split())
    assert run.checkpoints == first.checkpoints


@pytest.mark.parametrize(("launcher", "arguments"), [("torchrun", []), (None, ["max_steps=3"])])
def test_what_is_checked_is_what_is_trained(workshop, launcher, arguments):
    with pytest.raises(AdapterError, match="takes no arguments"):
        launch(workshop.written("given", **LORA), launcher, arguments)


@pytest.mark.parametrize("name", ["USE_MCA", "USE_MEGATRON_BRIDGE", "USE_RAY", "USE_V1"])
def test_trainers_that_the_environment_chooses(monkeypatch, workshop, name):
    file = workshop.written("environment", **LORA)
    monkeypatch.setenv(name, "1")
    assert [(one.key, one.value) for one in check(file).findings] == [(name, "1")]
    monkeypatch.setenv(name, "0")
    assert check(file).constrained


def test_torchrun_outside_of_the_path(workshop):
    words = [str(BIN / "pact-plugin"), "train", str(workshop.written("path", **LORA))]
    run = workshop.command(words, workshop.folder / "path", PATH="/usr/bin:/bin", FORCE_TORCHRUN="1")
    assert_stops(run, "torchrun is not found", "Activate the environment")


def test_a_run_that_met_no_trainer_of_ours_is_an_error(workshop):
    """LLaMA-Factory hands over to what was not brought in, as to Ray's workers."""
    elsewhere = (
        "import sys; from llamafactory.train import tuner; from pact_llamafactory.launch import run; "
        "tuner._training_function = lambda config: None; run(sys.argv[1], None, [])"
    )
    words = [sys.executable, "-c", elsewhere, str(workshop.written("elsewhere", **LORA))]
    run = workshop.command(words, workshop.folder / "elsewhere")
    assert run.status == 1, run.log
    assert "so this run was NOT constrained" in run.log


@pytest.mark.parametrize(
    ("arguments", "settings", "word"),
    [
        ({"stage": "dpo"}, {}, "DPO"),
        ({"stage": "kto"}, {"easing": False}, "KTO"),
        ({"stage": "ppo"}, {}, "PPO"),
        ({"stage": "rm"}, {}, "reward model"),
        ({"use_asft_loss": True}, {"easing": False}, "ASFT"),
        ({"use_dft_loss": True}, {}, "plain one"),
        ({"use_eaft_loss": True}, {}, "plain one"),
        ({"label_smoothing_factor": 0.1}, {}, "plain one"),
        ({"use_unsloth": True}, {}, "Unsloth"),
        ({"use_megatron_bridge": True}, {}, "Megatron"),
        ({"predict_with_generate": True}, {}, "evaluation data"),
        ({"packing": True}, {"hold_data": True}, "see each other"),
        ({"train_from_scratch": True}, {"easing": False}, "random weights"),
        ({"ignore_pad_token_for_loss": False}, {}, "padding"),
    ],
    ids=str,
)
def test_refused_by_its_arguments(arguments, settings, word):
    (problem,) = problems(arguments, pact.PactConfig(**settings))
    assert isinstance(problem, AdapterError)
    assert problem.key in arguments
    assert word in problem.problem


ALONE = {"easing": False, "anchors": False}


@pytest.mark.parametrize(
    ("arguments", "settings", "remedy"),
    [
        ({"packing": True}, {"hold_data": True}, "or leave `hold_data` out."),
        (
            {"packing": True},
            ALONE | {"advanced": {"published": True}},
            "or leave `advanced.published` out.",
        ),
        (
            {"ignore_pad_token_for_loss": False},
            {"hold_data": True},
            "or hold anchors alone: `pact: {easing: false, hold_data: false}`.",
        ),
        (
            {"ignore_pad_token_for_loss": False},
            ALONE | {"advanced": {"published": True}},
            "Remove `ignore_pad_token_for_loss`.",
        ),
    ],
    ids=str,
)
def test_a_remedy_names_what_is_on(arguments, settings, remedy):
    (problem,) = problems(arguments, pact.PactConfig(**settings))
    assert problem.remedy.endswith(remedy)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({"stage": "sft", "finetuning_type": "lora"}, {}),
        ({"packing": True}, {}),
        ({"packing": True, "neat_packing": True}, {"hold_data": True}),
        ({"stage": "pt", "packing": True}, {"hold_data": True}),
        ({"use_dft_loss": True}, {"easing": False}),
        ({"ignore_pad_token_for_loss": False}, {"easing": False}),
        ({"stage": "pt", "ignore_pad_token_for_loss": False}, {}),
    ],
    ids=str,
)
def test_not_refused(arguments, settings):
    assert list(problems(arguments, pact.PactConfig(**settings))) == []


def test_trainers_of_another_loss_are_refused_by_name():
    from llamafactory.train.kto.trainer import CustomKTOTrainer
    from pact_llamafactory.trainer import llamafactory_parts

    with pytest.raises(AdapterError, match=r"CustomKTOTrainer.*not a next-token"):
        llamafactory_parts(CustomKTOTrainer.__new__(CustomKTOTrainer), None)


# --- check ---


def test_check(workshop):
    good = pact_command("check", str(workshop.written("good", **LORA)))
    assert good.returncode == 0, good.stdout
    assert "LLaMA-Factory 0.9.5" in good.stdout
    assert "this run will be constrained" in " ".join(good.stdout.split())
    bad = workshop.written("bad", leraning_rate=3, stage="kto", model_name_or_path="./nowhere", **LORA)
    done = pact_command("check", str(bad), "--json")
    assert done.returncode == 1
    found = {one["key"]: one["remedy"] for one in json.loads(done.stdout)["findings"]}
    assert set(found) == {"leraning_rate", "stage", "model_name_or_path"}
    assert "`learning_rate`" in found["leraning_rate"]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (None, "pact"),
        (False, "pact"),
        ({"weight": 0}, "pact.weight"),
        ({"weigth": 1}, "pact.weigth"),
        ({"anchors": {"prompts": "no.txt"}}, "pact.anchors.prompts"),
        ("yes", "pact"),
    ],
)
def test_check_of_the_key(workshop, value, key):
    (finding,) = check(workshop.written("key", pact=value, **LORA)).findings
    assert finding.key == key


@pytest.mark.parametrize("value", [None, False])
def test_check_of_a_run_that_trains_nothing(workshop, value):
    (finding,) = check(workshop.written("untrained", do_train=value, **LORA)).findings
    assert (finding.key, finding.problem) == ("do_train", "nothing is trained")


def test_a_key_that_is_there_twice_stops(workshop):
    """PyYAML takes the last, and LLaMA-Factory's reader stops."""
    from omegaconf import OmegaConf

    file = workshop.written("twice-there", **LORA)
    once = file.read_text()
    for more, key in (("stage: sft\n", "stage"), ("ray_init_kwargs: {a: 1, a: 2}\n", "a")):
        file.write_text(once + more)
        assert find_config_check(file).name == "llamafactory"
        (finding,) = check(file).findings
        assert finding.key == key
        assert "twice" in finding.problem
        with pytest.raises(yaml.YAMLError, match=f"duplicate key {key}"):
            OmegaConf.load(file)
    file.write_text(once)
    assert check(file).constrained


def test_the_output_folder_is_where_the_run_writes(workshop):
    from transformers import TrainingArguments

    file = workshop.written("home", output_dir="~/out", **LORA)
    assert str(output(file)) == TrainingArguments(output_dir="~/out", use_cpu=True).output_dir


def test_check_of_a_tokenizer_with_code_of_its_own(workshop):
    folder = workshop.folder / "own-code"
    shutil.copytree(workshop.folder / "model", folder)
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    named = {"model_name_or_path": str(folder), **LORA}
    (finding,) = check(workshop.written("code", **named)).findings
    assert "trust_remote_code" in finding.problem
    assert check(workshop.written("code", trust_remote_code=True, **named)).constrained


def test_arguments_that_llamafactory_is_told_to_pass_over(monkeypatch, workshop):
    from llamafactory.hparams import get_train_args

    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    file = workshop.written("extra", leraning_rate=3, **LORA)
    get_train_args(yaml.safe_load(file.read_text()))  # `pact` and the other one do not stop it
    report = check(file)
    assert report.constrained
    assert any("passes over the key `pact`" in note for note in report.notes)
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "yes")  # not what LLaMA-Factory takes for a yes
    assert [one.key for one in check(file).findings] == ["leraning_rate"]


def test_check_of_a_folder_that_llamafactory_resumes_from_by_itself(workshop):
    """What it says is what a run does: after a plain run there is nothing to go on from."""
    plain = workshop.plain("twice", max_steps=1, save_steps=1, **LORA).ok()
    assert [path.name for path in plain.checkpoints] == ["checkpoint-1"]
    (finding,) = check(workshop.written("twice", max_steps=2, **LORA)).findings
    assert finding.key == "resume_from_checkpoint"
    assert finding.value.endswith("checkpoint-1")
    assert "no receipt" in finding.problem
    assert "`overwrite_output_dir: true`" in finding.remedy
    run = workshop.train("twice", max_steps=2, **LORA)
    assert run.status == 1
    assert "No receipt" in run.log
    for other in ({"overwrite_output_dir": True}, {"output_dir": str(workshop.folder / "elsewhere")}):
        assert check(workshop.written("twice", max_steps=2, **LORA, **other)).constrained
    assert "constrained: 2 steps" in (
        workshop.train("twice", max_steps=2, overwrite_output_dir=True, **LORA).ok().verify().stdout
    )


def test_which_files_are_its_own(workshop, tmp_path):
    assert find_config_check(workshop.written("mine", **LORA)).name == "llamafactory"
    other = tmp_path / "other.yml"
    other.write_text("base_model: m\npact: true\n")
    assert find_config_check(other).name == "axolotl"
