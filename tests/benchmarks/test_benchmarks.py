"""The benchmarks run, and what they count is what happens; nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import traceback
from contextlib import nullcontext

import pytest
import torch
from forks import run_words
from sft import TOKENIZER, TOKENS
from tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from benchmarks import worker
from benchmarks.__main__ import app
from benchmarks.profiling import profile_step
from benchmarks.settings import MODES, PLAIN, Mode, Settings
from benchmarks.trainers import StepCallback, Switch, build_trainer
from pact_plugin import PactConfig, PactConstraint
from pact_plugin.errors import ConfigError
from pact_plugin.terms.step import Step

SMALL = {"batch": 2, "length": 32, "cycles": 1, "warmup": 0, "fill_batches": 2}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def forked(monkeypatch, tmp_path):
    """Workers are forked from a process that has imported TRL; `make benchmark`, in .ci/run, starts real ones."""
    started = subprocess.run

    def run(command, **how):
        if command[1:3] != ["-m", "benchmarks.worker"]:
            return started(command, **how)
        said = run_words(command, how["env"], tmp_path / "log")
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr("benchmarks.overhead.subprocess.run", run)


@pytest.mark.usefixtures("forked")
def test_the_smoke_run(tmp_path):
    """A process that measures the time; `make benchmark` measures memory as well."""
    command = [
        "overhead",
        "--mode",
        "easing+hold",
        "--cycles",
        "2",
        "--warmup",
        "1",
        "--no-memory",
        "--batch",
        "2",
    ]
    command += ["--response-share", "0.25", "--threads", "1", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    name = "overhead-tiny-lora-chunked"
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert set(found["machine"]) >= {
        "cpu",
        "cores",
        "threads",
        "accelerator",
        "versions",
        "load_at_start",
        "busy",
    }
    (run,) = found["runs"]
    assert run["settings"]["response_share"] == 0.25
    plain, constrained = run["kinds"]["plain"], run["kinds"]["easing+hold"]
    assert plain["time_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert plain["fill_seconds"] is None
    assert plain["seconds"]["low"] <= plain["seconds"]["median"] <= plain["seconds"]["high"]
    for key in ("fill_seconds", "fill_share", "tokens_per_second"):
        assert constrained[key] > 0, key
    assert constrained["run_ratio"] == pytest.approx(
        constrained["time_ratio"]["median"] + constrained["fill_share"] / 3
    )
    assert (
        constrained["table_bytes_per_token"] > 2 * 52
    )  # log P(S), K and log r in float16, and the rest of the file
    lines = (tmp_path / f"{name}.md").read_text().splitlines()
    assert len(lines) == 4
    assert not (tmp_path / "scratch").exists()


def test_peaks_of_a_step_and_of_filling(tmp_path):
    settings = Settings(modes=("hold",), **SMALL)
    peaks = {name: worker.peak_bytes(settings, name, tmp_path / name) for name in (PLAIN, "hold")}
    assert all(found["step"] > 0 for found in peaks.values())
    assert peaks[PLAIN]["fill"] is None
    assert isinstance(peaks["hold"]["fill"], int)  # in this process there may be room for it


def test_modes_and_settings():
    assert Mode.parse("published/step@64") == Mode(("published",), "step", 64)
    assert Mode.parse("default") == Mode.parse("easing+anchors/table") == Mode(("easing", "anchors"))
    for text in (
        "ease",
        "hold@",
        "hold@0",
        "hold/disk",
        "hold@x",
        "published+hold",
        "hold+hold",
        "anchors/step",
    ):
        with pytest.raises(ConfigError, match="mode="):
            Mode.parse(text)
    with pytest.raises(ConfigError, match=r"mode=.*stored"):
        Settings(modes=("stored",))
    settings = Settings(modes=("hold@3",), length=7)
    assert Settings.from_json(settings.to_json()) == settings
    assert settings.sizes.length == 7


def test_a_mode_is_a_configuration(tmp_path):
    default = Mode.parse("default").config(TOKENS, tmp_path).summary()
    written = PactConfig(safety_tokens=TOKENS, advanced={"store": tmp_path / "easing.anchors.None"}).summary()
    assert default == written
    step = Mode.parse("easing+hold/step@4").config(TOKENS, tmp_path)
    assert (step.easing.first, step.hold_data.first) == (4, 4)
    assert (step.anchors, step.advanced.store) == (None, None)
    assert Mode.parse("published@4").config(TOKENS, tmp_path).advanced.published.first == 4


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_plain_steps_of_the_switched_trainer_are_those_of_one_that_was_never_attached(tmp_path, loss):
    def trained(modes: tuple[str, ...]) -> dict[str, torch.Tensor]:
        settings = Settings(loss=loss, modes=modes, **SMALL)
        trainer = build_trainer(settings, 3, tmp_path)
        switch = Switch(trainer, settings, tmp_path / "tables")
        trainer.add_callback(StepCallback(switch, [PLAIN] * 3))
        trainer.train()
        return {name: p.detach() for name, p in trainer.model.named_parameters()}

    alone, switched = trained(()), trained(MODES)
    assert all(torch.equal(alone[name], weight) for name, weight in switched.items())
    assert any(weight.abs().sum() > 0 for name, weight in alone.items() if "lora_B" in name)


# --- the host does not wait ---


class BlockingCopies(TorchDispatchMode):
    """Notes copies from the host to the device that would make the host wait; `to_device` pins memory on CUDA."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        if function is torch.ops.aten._to_copy.default and made.is_meta and not args[0].is_meta:
            names = [frame.name for frame in traceback.extract_stack()]
            if not kwargs.get("non_blocking") and "to_device" not in names:
                self.found.append(names)
        return made


@pytest.mark.parametrize("first", ["all", 2])
@pytest.mark.parametrize("holds", [False, True])
def test_a_step_with_a_table_reads_nothing_from_the_device(tmp_path, first, holds, monkeypatch):
    """A `meta` tensor has no values: whatever would make a host wait for a device raises. The batch is on the host.

    What only a CUDA device does (pinned copies, events) is in test_cuda.py.
    """
    monkeypatch.setattr(
        "pact_plugin.data.view.ambient_autocast", lambda device: nullcontext()
    )  # meta knows no autocast
    ids = torch.randint(0, len(TOKENIZER), (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.masked_fill(torch.arange(12) < 6, -100)}
    config = PactConfig.of(
        {
            "safety_tokens": TOKENS,
            "easing": {"first": first},
            "hold_data": {"first": first} if holds else False,
            "anchors": False,  # for theirs, too, transformers looks at the mask
            "advanced": {"store": tmp_path},
        }
    )
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config)
    constraint.fill([batch], progress=False)
    model.to("meta")  # as a trainer moves a model to its device after it was constrained
    mask = torch.zeros(1, 1, 12, 12, device="meta")  # transformers itself looks at a mask of two dimensions
    with constraint.watch(batch):
        logits = model(input_ids=ids.to("meta"), attention_mask=mask, use_cache=False).logits
    with BlockingCopies() as copies:
        loss = constraint.loss(batch, Step(1, tokens=12))
    assert not copies.found
    (logits.sum() + loss).backward()
    assert loss.is_meta
    assert all(parameter.grad.is_meta for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


def test_a_profile_finds_the_constraints_operators_in_both_directions(tmp_path):
    settings = Settings(modes=("hold",), **SMALL)
    found = profile_step(settings, "hold", tmp_path)
    assert 0 < found.forward < found.step
    assert 0 < found.backward < found.step
    calls = {name: number for name, _, number in found.operators}
    assert calls["aten::mm"] == 3  # the head, its gradient of the states, and the rows of the safety tokens
    assert sum(seconds for _, seconds, _ in found.operators) <= found.forward + found.backward


def test_plans_take_turns():
    assert worker.plan_of(["a", "b"], 3) == ["a", "b", "b", "a", "a", "b"]
