"""The benchmarks run, and what they count is what happens; nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from sft import TOKENIZER, TOKENS
from tiny import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import worker
from benchmarks.allocations import Allocations
from benchmarks.counts import ANCHOR, count, head_flops
from benchmarks.profiling import profile_step
from benchmarks.settings import PLAIN, Mode, Settings, default_modes
from benchmarks.shapes import SHAPES
from benchmarks.trainers import StepCallback, Switch, build_trainer
from pact_plugin import PactConfig
from pact_plugin.constraint import PactConstraint
from pact_plugin.errors import ConfigError
from pact_plugin.model.head import LanguageHead

ROOT = Path(__file__).parents[2]
SMALL = {"batch": 2, "length": 32, "cycles": 1, "warmup": 0, "fill_batches": 2}
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_smoke_run(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "overhead",
        "--mode",
        "stored",
        "--cycles",
        "2",
        "--warmup",
        "1",
    ]
    command += ["--response-share", "0.25", "--threads", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
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
    plain, stored = run["kinds"]["plain"], run["kinds"]["stored"]
    assert plain["time_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert plain["fill_seconds"] is None
    assert plain["seconds"]["low"] <= plain["seconds"]["median"] <= plain["seconds"]["high"]
    for key in ("fill_seconds", "fill_share", "fill_peak_bytes", "tokens_per_second"):
        assert stored[key] > 0, key
    assert stored["memory_ratio"] == stored["peak_bytes"] / plain["peak_bytes"]
    assert stored["run_ratio"] == pytest.approx(stored["time_ratio"]["median"] + stored["fill_share"] / 3)
    assert stored["store_bytes_per_token"] > 2 * 51  # K and log r in float16, and the rest of the file
    lines = (tmp_path / f"{name}.md").read_text().splitlines()
    assert len(lines) == 4
    assert not (tmp_path / "scratch").exists()


def test_modes_and_settings():
    assert Mode.parse("published/adapter_off@64") == Mode("adapter_off", "published", 64)
    assert Mode.parse("stored") == Mode("stored")
    assert Mode.parse("stored+4@64") == Mode("stored", "confidence", 64, 4)
    for text in ("store", "stored@", "stored@0", "paper/stored", "stored@x"):
        with pytest.raises(ConfigError, match="mode="):
            Mode.parse(text)
    with pytest.raises(ConfigError, match="adapter_off"):
        Settings(train="full", modes=("adapter_off",))
    settings = Settings(modes=("stored@3",), length=7)
    assert Settings.from_json(settings.to_json()) == settings
    assert settings.sizes.length == 7


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_plain_steps_of_the_switched_trainer_are_those_of_one_that_was_never_attached(tmp_path, loss):
    def trained(modes: tuple[str, ...]) -> dict[str, torch.Tensor]:
        settings = Settings(loss=loss, modes=modes, **SMALL)
        trainer = build_trainer(settings, 3, tmp_path)
        switch = Switch(trainer, settings, tmp_path / "stores")
        trainer.add_callback(StepCallback(switch, [PLAIN] * 3))
        trainer.train()
        return {name: p.detach() for name, p in trainer.model.named_parameters()}

    alone, switched = trained(()), trained(default_modes("lora"))
    assert all(torch.equal(alone[name], weight) for name, weight in switched.items())
    assert any(weight.abs().sum() > 0 for name, weight in alone.items() if "lora_B" in name)


def in_place_flops(self_shape, a_shape, b_shape, **kwargs):
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


class Counting(StepCallback):
    """FLOPs of each step, forward and backward, by torch's counter."""

    def __init__(self, switch, plan):
        super().__init__(switch, plan)
        self.flops = {}

    def on_train_begin(self, args, state, control, **kwargs):
        for name in self.plan:
            if name != PLAIN:
                self.switch.fill(name, args=args, state=state, control=control, **kwargs)

    def begin(self):
        # The counter does not know the in-place form, which TRL's head uses.
        self.counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flops})
        self.counter.__enter__()

    def end(self, name):
        self.counter.__exit__(None, None, None)
        self.flops[name] = self.counter.get_total_flops()


@pytest.mark.parametrize("loss", ["chunked", "full"])
@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_counted_operations_are_those_of_a_real_step(tmp_path, train, loss, share):
    published = "published/adapter_off" if train == "lora" else "published/frozen_copy"
    modes = (*default_modes(train), "stored@3", "published/stored", f"{published}@3")
    settings = Settings(train=train, loss=loss, modes=modes, response_share=share, **SMALL)
    plan = [
        PLAIN,
        *modes,
    ] * 2  # in its first step a constraint compares the task's log-probabilities with its own
    trainer = build_trainer(settings, len(plan), tmp_path)
    switch = Switch(trainer, settings, tmp_path / "stores")
    trainer.add_callback(counting := Counting(switch, plan))
    with sdpa_kernel(SDPBackend.MATH):  # nor the fused attention of CPUs
        trainer.train()
    expected = {name: found.flops for name, found in count(settings, every_position=True).items()}
    assert counting.flops == expected


def test_the_constraint_multiplies_no_vocabulary():
    shape = SHAPES["8b"]
    for train, times in (
        ("lora", 4),
        ("full", 6),
    ):  # forward, gradients of the states, and of a head in training
        settings = Settings(shape="8b", train=train, modes=("stored", "stored@64"), dtype="bfloat16")
        found = count(settings)
        for name, positions in (("stored", shape.batch * shape.length // 2), ("stored@64", shape.batch * 64)):
            rows = settings.tokens + 1  # and the label's
            assert found[name].extra_flops == times * positions * shape.hidden_size * rows


def test_anchors_multiply_the_vocabulary_with_their_answers():
    shape = SHAPES["8b"]
    for train, times in (("lora", 4), ("full", 8)):  # forward, gradients; in full fine-tuning recomputed, too
        settings = Settings(shape="8b", train=train, modes=("stored", "stored+4"), dtype="bfloat16")
        found = count(settings)
        extra = found["stored+4"].extra_flops - found["stored"].extra_flops
        positions = 4 * ANCHOR[1]
        own_head = times * positions * shape.hidden_size * shape.vocab_size
        full = train == "full"
        assert own_head == head_flops(
            positions, shape.hidden_size, shape.vocab_size, trained=full, recompute=full
        )
        task = head_flops(shape.batch * shape.length // 2, shape.hidden_size, shape.vocab_size, trained=full)
        task += task // (3 if full else 2)  # TRL computes the logits again
        decoder = (found[PLAIN].flops - task) * 4 * ANCHOR[0] // (shape.batch * shape.length)
        assert extra == pytest.approx(own_head + decoder, rel=0.1)  # less attention: they are short


# --- memory ---


@pytest.mark.parametrize("positions", [64, 512])
@pytest.mark.parametrize("vocabulary", [1000, 4000])
@pytest.mark.parametrize("tokens", [16, 200])
def test_the_constraint_allocates_a_chunk_of_logits_and_nothing_of_response_times_vocabulary(
    positions, vocabulary, tokens
):
    width, chunk = 16, 32
    with torch.device("meta"):
        projection = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
        states = torch.zeros(positions, width, requires_grad=True)
        ids, labels = torch.arange(tokens), torch.zeros(positions, dtype=torch.long)
    head = LanguageHead(torch.nn.Identity(), projection)
    with Allocations() as allocations:
        read = head.readout(states, ids, labels, chunk_size=chunk)
        (read.logprobs.sum() + read.log_rest.sum() + read.label.sum()).backward()
    assert allocations.largest == 4 * max(chunk * vocabulary, positions * tokens)
    assert allocations.peak <= 4 * (8 * chunk * vocabulary + 8 * positions * (tokens + width))


class Largest(StepCallback):
    """Sizes of every tensor that each step makes."""

    def __init__(self, switch, plan):
        super().__init__(switch, plan)
        self.sizes = {}

    on_train_begin = Counting.on_train_begin

    def begin(self):
        self.allocations = Allocations()
        self.allocations.__enter__()

    def end(self, name):
        self.allocations.__exit__(None, None, None)
        self.sizes[name] = self.allocations.sizes


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_no_copy_of_the_full_logits_that_plain_training_does_not_have(tmp_path, loss):
    modes = default_modes("lora")
    settings = Settings(loss=loss, modes=modes, **(SMALL | {"length": 512}))
    plan = [PLAIN, *modes] * 2
    trainer = build_trainer(settings, len(plan), tmp_path)
    switch = Switch(trainer, settings, tmp_path / "stores")
    trainer.add_callback(watched := Largest(switch, plan))
    trainer.train()
    shape = settings.sizes
    logits = 4 * (shape.batch * shape.length // 2) * shape.vocab_size  # those of the response alone
    copies = {name: sum(size >= logits for size in sizes) for name, sizes in watched.sizes.items()}
    assert copies == dict.fromkeys(copies, copies[PLAIN])
    assert (copies[PLAIN] > 0) == (loss == "full") or loss == "chunked"


def test_allocations_count_each_storage_once_and_forget_what_is_gone():
    with Allocations() as allocations:
        kept = torch.zeros(10)
        view = kept.view(2, 5)
        view += 1
        gone = kept + 1
        del gone
        torch.zeros(5)
    assert allocations.sizes == [40, 40, 20]
    assert (allocations.live, allocations.peak, allocations.largest) == (40, 80, 40)


# --- the host does not wait ---


@pytest.mark.parametrize("first_n", ["all", 2])
def test_a_step_with_a_stored_reference_reads_nothing_from_the_device(tmp_path, first_n, monkeypatch):
    """A `meta` tensor has no values: whatever would make a host wait for a device raises. The batch is on the host.

    What only a CUDA device does (pinned copies, events) is in test_cuda.py.
    """
    monkeypatch.setattr(
        "pact_plugin.data.view.ambient_autocast", lambda device: nullcontext()
    )  # meta knows no autocast
    ids = torch.randint(0, len(TOKENIZER), (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.masked_fill(torch.arange(12) < 6, -100)}
    config = PactConfig(
        safety_tokens=TOKENS,
        reference="stored",
        store=tmp_path,
        first_n=first_n,
        anchors=0,  # for theirs, too, transformers looks at the mask
    )
    model = tiny_model()
    constraint = PactConstraint(model, TOKENIZER, config)
    constraint.fill([batch], progress=False)
    model.to("meta")
    constraint._ids = constraint._ids.to("meta")
    mask = torch.zeros(1, 1, 12, 12, device="meta")  # transformers itself looks at a mask of two dimensions
    with constraint.watch(batch):
        model(input_ids=ids.to("meta"), attention_mask=mask, use_cache=False)
    loss = constraint.loss(batch, num_items_in_batch=12)
    loss.backward()
    assert loss.is_meta
    assert all(parameter.grad.is_meta for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


def test_a_profile_finds_the_constraints_operators_in_both_directions(tmp_path):
    settings = Settings(modes=("stored",), **SMALL)
    found = profile_step(settings, "stored", tmp_path)
    assert 0 < found.forward < found.step
    assert 0 < found.backward < found.step
    calls = {name: number for name, _, number in found.operators}
    assert calls["aten::mm"] == 2  # rows of the safety tokens: forward, and the gradient of the states
    assert calls["aten::bmm"] == 2  # the label's row
    assert sum(seconds for _, seconds, _ in found.operators) <= found.forward + found.backward


def test_plans_take_turns():
    assert worker.plan_of(["a", "b"], 3) == ["a", "b", "b", "a", "a", "b"]
