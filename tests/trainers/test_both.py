"""What `transformers.Trainer` and TRL's `SFTTrainer` have in common under PACT: logs and evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from both import CONFIG, HELD, changed, each_trainer, of_transformers
from hf import tokenized
from sft import train_logs
from transformers import Trainer, TrainerCallback

import pact_plugin as pact
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run

OF_ANCHORS = {"anchor_divergence", "refusal_shift"}
METRICS = {"loss", "eased", "divergence"} | OF_ANCHORS


def of_pact(entry: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The names of the metrics in a log."""
    start = f"{prefix}pact/"
    return {name.removeprefix(start) for name in entry if name.startswith(start)}


class Tracker(TrainerCallback):
    """What trackers such as TensorBoard are given, with the receipt's sums at the time."""

    def __init__(self, trainer: Any) -> None:
        self.logs: list[tuple[dict[str, float], dict[str, list[float]]]] = []
        self._trainer = trainer
        trainer.add_callback(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            sums = self._trainer.pact.record.receipt.sums
            self.logs.append((dict(logs), {name: list(pair) for name, pair in sums.items()}))


# --- logs ---


@each_trainer
@pytest.mark.parametrize(
    ("config", "terms", "names"),
    [
        (changed(CONFIG, hold_data=False), ["easing", "anchors"], {"loss", "eased"} | OF_ANCHORS),
        (CONFIG, ["easing", "hold_data", "anchors"], METRICS),
        (changed(HELD, easing=False), ["hold_data"], {"loss", "divergence"}),
        (changed(CONFIG, hold_data=False, easing=False), ["anchors"], {"loss"} | OF_ANCHORS),
        (changed(CONFIG, hold_data=False, anchors=False), ["easing"], {"eased"}),
    ],
    ids=["default", "all", "hold", "anchors", "easing"],
)
def test_logs_hold_what_the_terms_measure_and_no_more(tmp_path, build, config, terms, names):
    trainer = build(tmp_path)
    assert pact.attach(trainer, config) is trainer
    trainer.train()
    assert [of_pact(log) for log in train_logs(trainer)] == [names] * 3
    receipt = Receipt.read(tmp_path)
    assert receipt.terms == terms
    assert set(receipt.sums) == names
    assert receipt.steps == [[1, 3]]
    assert " and ".join(terms) in verify_run(tmp_path)


@each_trainer
def test_metrics_are_means_since_the_last_log(tmp_path, build):
    def run(**settings: Any) -> list[tuple[dict[str, float], dict[str, list[float]]]]:
        trainer = pact.attach(build(tmp_path, max_steps=4, gradient_accumulation_steps=2, **settings), CONFIG)
        tracker = Tracker(trainer)
        trainer.train()
        return tracker.logs

    steps, pairs = run(), run(logging_steps=2)
    assert (len(steps), len(pairs)) == (4, 2)
    for name in METRICS:
        sums = [[0.0, 0.0], *(sums[name] for _, sums in steps)]
        for number, (log, _) in enumerate(pairs):
            total, count = (sums[2 * number + 2][i] - sums[2 * number][i] for i in (0, 1))
            assert log[f"pact/{name}"] == pytest.approx(total / count, rel=1e-4, abs=1e-9), name
        for number, (log, _) in enumerate(steps):
            total, count = (sums[number + 1][i] - sums[number][i] for i in (0, 1))
            assert log[f"pact/{name}"] == pytest.approx(total / count, rel=1e-9, abs=1e-12), name


@each_trainer
def test_a_loss_that_a_callback_logs_waits_for_no_other_rank(tmp_path, build):
    """One rank alone may log it: the metrics, which are summed over ranks, wait for the trainer's own log."""

    class OwnLog(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.log({"loss": 1.0})

    trainer = pact.attach(build(tmp_path, logging_steps=3), CONFIG)
    trainer.add_callback(OwnLog())
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    own, trainers = ([e for e in logs if ("learning_rate" in e) == flag] for flag in (False, True))
    assert (len(own), len(trainers)) == (3, 1)
    assert not any(of_pact(entry) for entry in own)
    assert all(of_pact(entry) == METRICS for entry in trainers)


@each_trainer
def test_metrics_are_means_over_accumulated_batches(tmp_path, build):
    def run(batch_size: int, accumulation: int) -> list[dict[str, float]]:
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = pact.attach(build(tmp_path, **sizes), HELD)  # each micro-batch has other anchors
        trainer.train()
        return train_logs(trainer)

    for whole, split in zip(run(4, 1), run(1, 4), strict=True):
        for name in METRICS - OF_ANCHORS:
            assert whole[f"pact/{name}"] == pytest.approx(split[f"pact/{name}"], rel=1e-3, abs=1e-7)


# --- evaluations ---


@each_trainer
def test_the_evaluation_loss_stays_the_tasks(tmp_path, build):
    trainer = build(tmp_path)
    plain = trainer.evaluate()["eval_loss"]
    pact.attach(trainer, CONFIG)
    before = trainer.evaluate()
    assert before["eval_loss"] == plain
    assert of_pact(before, "eval_") == {"loss", "eased", "divergence"}, "an evaluation reads no anchors"
    assert before["eval_pact/divergence"] == pytest.approx(0, abs=1e-9)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_pact/divergence"] > 1e-5
    assert after["eval_pact/eased"] == pytest.approx(before["eval_pact/eased"], rel=1e-2)
    assert after["eval_loss"] == build(tmp_path, model=trainer.model).evaluate()["eval_loss"]
    assert trainer.evaluate(metric_key_prefix="held")["held_pact/divergence"] > 1e-5
    assert trainer.predict(trainer.eval_dataset).metrics["test_pact/divergence"] > 1e-5


@each_trainer
def test_an_evaluation_measures_only_what_looks_at_the_data(tmp_path, build):
    default = pact.attach(build(tmp_path), changed(CONFIG, hold_data=False))
    assert of_pact(default.evaluate(), "eval_") == {"eased"}
    anchors = pact.attach(build(tmp_path), changed(CONFIG, hold_data=False, easing=False))
    assert of_pact(anchors.evaluate(), "eval_") == set()


class WithoutComputeLoss(Trainer):
    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        with torch.no_grad():
            return model(**self._prepare_inputs(inputs)).loss, None, None


def test_an_evaluation_that_observes_nothing_is_left_out_with_one_warning(tmp_path, caplog):
    every = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    trainer = pact.attach(of_transformers(tmp_path, trainer_class=WithoutComputeLoss, **every), HELD)
    trainer.train()
    assert [of_pact(log) for log in train_logs(trainer)] == [{"loss", "eased", "divergence"}] * 2
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [of_pact(log, "eval_") for log in evaluations] == [set(), set()]
    assert caplog.text.count("no response position") == 1


def test_a_masked_evaluation_set_is_left_out_beside_another(tmp_path, caplog):
    trainer = pact.attach(of_transformers(tmp_path), HELD)
    masked = tokenized(4).map(lambda row: {"labels": [-100] * len(row["labels"])})
    measured = trainer.evaluate({"masked": masked, "shown": trainer.eval_dataset})
    assert of_pact(measured, "eval_shown_") == {"loss", "eased", "divergence"}
    assert of_pact(measured, "eval_masked_") == set()
    assert "an evaluation has shown no response position" in caplog.text
