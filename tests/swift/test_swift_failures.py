"""Everything that must stop ms-swift rather than let it train unconstrained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import Run
from pact_swift.problems import problems
from swift_runs import FULL, LORA, Workshop
from tiny import tiny_model

import pact_plugin as pact
from pact_plugin.errors import AdapterError, ReceiptError, TokenFileError


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("swift"))


# --- through the command itself ---


def assert_stops(run: Run, *words: str) -> None:
    assert run.status != 0
    assert "pact_plugin.errors." in run.log, run.log[-2000:]
    for word in words:
        assert word in run.log, run.log[-2000:]
    assert not run.checkpoints
    assert not (run.output / "pact_receipt.json").exists()


def test_an_unknown_setting_stops_before_the_model_is_loaded(workshop):
    run = workshop.train("unknown", external_plugins=[workshop.plugin("unknown", weigth=2)], **FULL)
    assert_stops(run, "weigth", "Did you mean `weight`?")
    assert "model_parameter_info" not in run.log


def test_dpo_stops_before_the_model_is_loaded(workshop):
    run = workshop.train("dpo", command="rlhf", rlhf_type="dpo", **LORA)
    assert_stops(run, "rlhf_type='dpo'", "no next-token loss", "Train with `swift sft`")
    assert "model_parameter_info" not in run.log


def with_plugin(workshop, code):
    """PACT's plugin, and another of this code."""
    file = workshop.folder / "another_plugin.py"
    file.write_text(code)
    return [workshop.plugin(), str(file)]


def test_a_loss_weighted_in_the_data_stops_before_the_first_step(workshop):
    """`loss_scale` says that it is binary, and another plugin's is not."""
    plugins = with_plugin(
        workshop,
        "from swift.loss_scale import LossScale, loss_scale_map\n\n\n"
        "class Half(LossScale):\n    is_binary = False\n\n"
        "    def get_loss_scale(self, context, **kwargs):\n        return [context], [0.5]\n\n\n"
        'loss_scale_map["base"] = Half\n',
    )
    run = workshop.train("scaled", external_plugins=plugins, **FULL)
    assert run.status != 0
    assert "easing needs a plain one (loss_scale" in run.log or "`loss_scale`" in run.log, run.log[-2000:]
    assert not run.checkpoints
    assert run.verify().returncode == 1


def test_a_model_that_refuses_nothing_stops_before_the_first_step(workshop):
    folder = workshop.folder / "untaught"
    tiny_model(seed=3, max_position_embeddings=1024).save_pretrained(folder)
    workshop.tokenizer.save_pretrained(folder)
    plugin = workshop.folder / "chosen.py"
    plugin.write_text("import pact_swift\n\npact_swift.register()\n")
    run = workshop.train("untaught-run", model=str(folder), external_plugins=[str(plugin)], **LORA)
    assert_stops(run, "refuses 0 of")


def test_a_checkpoint_of_other_settings_stops(workshop):
    first = workshop.train("first", max_steps=1, save_steps=1, **LORA).ok()
    heavier = workshop.plugin("heavier", weight=2)
    on = {"resume_from_checkpoint": str(first.checkpoints[-1]), "external_plugins": [heavier]}
    run = workshop.train("heavier-run", max_steps=2, **on, **LORA)
    assert run.status != 0
    assert "constrained differently: weight was 10.0" in run.log
    assert not run.checkpoints


def test_an_adapter_of_other_settings_than_the_checkpoints_stops(workshop):
    """Its weights would be loaded into it without a word."""
    first = workshop.train("strong", max_steps=1, save_steps=1, **(LORA | {"lora_alpha": 16})).ok()
    on = {"resume_from_checkpoint": str(first.checkpoints[-1]), "max_steps": 2}
    run = workshop.train("strong-on", **on, **LORA)
    assert_stops(run, "lora_alpha=8.0", "the adapter in the checkpoint has 16.0")


def test_a_tuner_with_checkpoints_of_its_own_is_not_resumed(workshop):
    """ms-swift asks the tuner itself to load them; `lora_llm` keeps a vision tower there."""
    on = {"resume_from_checkpoint": str(workshop.folder), "tuner_type": "lora_llm"}
    run = workshop.train("own-checkpoints", **on)
    assert_stops(run, "resume_from_checkpoint=", "`tuner_type: lora_llm` may keep", "Begin a new run")
    assert "model_parameter_info" not in run.log


def test_a_template_with_a_loss_of_its_own_stops(workshop):
    """It makes another loss of the model's, which is the only one that the first step looks at."""
    plugins = with_plugin(
        workshop,
        "from swift.template import Template, register_template\n"
        "from swift.template.templates.utils import ChatmlTemplateMeta\n\n\n"
        "class Scaled(Template):\n"
        "    def compute_sft_loss(self, *args, **kwargs):\n"
        "        outputs = super().compute_sft_loss(*args, **kwargs)\n"
        "        outputs.loss = outputs.loss / 10\n"
        "        return outputs\n\n\n"
        'register_template(ChatmlTemplateMeta("scaled", template_cls=Scaled))\n',
    )
    run = workshop.train("own-loss", template="scaled", external_plugins=plugins, **LORA)
    assert_stops(run, "template='Scaled'", "a loss of its own", "{'easing': False}")


def test_megatron_stops(tmp_path):
    code = (
        "import sys, types\nsys.modules['swift.megatron.arguments'] = types.ModuleType('arguments')\n"
        "import pact_swift\npact_swift.register()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Megatron-SWIFT has trainers of its own" in done.stderr


def test_two_plugins_of_different_settings_stop():
    code = "import pact_swift\nfor weight in (1, 1, 2):\n    pact_swift.register({'weight': weight})\n    print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.count("ok") == 2
    assert "two plugins register PACT with different settings" in done.stderr


# --- by the arguments alone ---


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ({"rlhf_type": "dpo"}, {}, "`swift sft`"),
        ({"rlhf_type": "kto"}, {"easing": False}, "`swift sft`"),
        ({"task_type": "seq_cls"}, {}, "`task_type`"),
        ({"task_type": "embedding"}, {}, "`task_type`"),
        ({"predict_with_generate": True}, {}, "`predict_with_generate`"),
        ({"loss_scale": "hermes"}, {}, "easing"),
        ({"loss_scale": "last_round+react"}, {}, "easing"),
        ({"is_binary_loss_scale": False}, {}, "easing"),
        ({"enable_dft_loss": True}, {}, "easing"),
        ({"loss_type": "cross_entropy"}, {}, "easing"),
        ({"label_smoothing_factor": 0.1}, {}, "easing"),
        ({"tuner_type": "llamapro"}, {}, "`tuner_type`"),
        ({"tuner_backend": "unsloth"}, {}, "`tuner_backend`"),
        ({"sequence_parallel_size": 2}, {}, "`sequence_parallel_size`"),
        ({"fsdp": "fsdp2"}, {}, "`deepspeed: zero3`"),
        ({"deepspeed_autotp_size": 2}, {}, "anchors"),
        ({"resume_only_model": True}, {}, "`resume_only_model`"),
        ({"tuner_type": "lora_llm", "resume_from_checkpoint": "out"}, {}, "Begin a new run"),
        ({"tuner_type": "adalora", "resume_from_checkpoint": "out"}, {}, "Begin a new run"),
    ],
    ids=str,
)
def test_refused_by_its_arguments(arguments, settings, words):
    (problem,) = problems(arguments, pact.PactConfig(**settings))
    assert isinstance(problem, AdapterError)
    assert problem.key in arguments
    assert words in problem.remedy


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {}),
        ({"task_type": "causal_lm", "tuner_type": "lora", "tuner_backend": "peft"}, {}),
        ({"loss_scale": "default+ignore_empty_think", "sequence_parallel_size": 1}, {}),
        ({"loss_scale": "hermes"}, {"easing": False}),
        ({"loss_scale": "hermes", "is_binary_loss_scale": True}, {}),
        ({"enable_dft_loss": True}, {"easing": False}),
        ({"deepspeed": "zero3"}, {}),
        ({"deepspeed_autotp_size": 2}, {"anchors": False}),
        ({"resume_only_model": True}, {"reference": "model"}),
        ({"resume_from_checkpoint": "out"}, {}),
        ({"tuner_type": "ia3", "resume_from_checkpoint": "out"}, {}),
        ({"deepspeed": {"tensor_parallel": {"autotp_size": 1}}}, {}),
        ({"deepspeed": {"tensor_parallel": {"autotp_size": 2}}}, {"anchors": False}),
    ],
    ids=str,
)
def test_not_refused(arguments, settings):
    assert list(problems(arguments, pact.PactConfig(**settings))) == []


def test_tensor_parallelism_in_deepspeeds_own_configuration_is_refused():
    """ms-swift writes `deepspeed_autotp_size` there, too."""
    deepspeed = {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": 2}}
    (problem,) = problems({"deepspeed": deepspeed}, pact.PactConfig())
    assert (problem.key, problem.value) == ("autotp_size", 2)


def test_a_token_file_that_is_not_there():
    (problem,) = problems({}, pact.PactConfig(safety_tokens="/nowhere.safetensors"))
    assert isinstance(problem, TokenFileError)


def test_trainers_of_another_loss_are_refused_by_name(tmp_path):
    """By the adapter, where one is attached by hand."""
    from pact_swift.trainer import swift_parts
    from swift.trainers import Trainer

    with pytest.raises(AdapterError, match=r"Trainer.*not a next-token"):
        swift_parts(Trainer.__new__(Trainer), None)


def test_a_checkpoint_without_a_receipt_stops(workshop):
    plain = workshop.train("plain", external_plugins=None, max_steps=1, save_steps=1, **FULL).ok()
    on = {"resume_from_checkpoint": str(plain.checkpoints[-1]), "max_steps": 2}
    run = workshop.train("plain-on", **on, **FULL)
    assert run.status != 0
    assert ReceiptError.__name__ in run.log
    assert "no receipt" in run.log
    assert not run.checkpoints
    assert Path(run.output).is_dir()
