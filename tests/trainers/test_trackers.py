"""Trackers get the metrics through the trainer's own `report_to`: real TensorBoard, and MLflow in a local database."""

from __future__ import annotations

import math

import pytest
from both import CONFIG, of_transformers, of_trl
from preferences import CONFIG as ANCHORS
from preferences import dpo_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pact_plugin as pact

TRAINING = {"pact/loss", "pact/eased", "pact/divergence", "pact/anchor_divergence", "pact/refusal_shift"}
EVALUATION = {"eval_pact/loss", "eval_pact/eased", "eval_pact/divergence"}
EITHER = pytest.mark.parametrize("of", [of_transformers, of_trl], ids=["transformers", "TRL"])
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


def logged(trainer) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each of our metrics, as the trainer itself remembers them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if "pact/" in name:
                found.setdefault(name, []).append((entry["step"], value))
    return found


def same(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    """TensorBoard keeps 32 bits."""
    return len(one) == len(other) > 0 and all(
        a == b and math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-30)
        for (a, x), (b, y) in zip(one, other, strict=True)
    )


@EITHER
def test_tensorboard(of, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = pact.attach(of(tmp_path / "out", report_to=["tensorboard"], **EVALUATED), CONFIG)
    trainer.train()
    names = logged(trainer)
    assert names.keys() == TRAINING | EVALUATION
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name, values in names.items():
        tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
        assert same([(one.step, one.value) for one in events.Scalars(tag)], values), tag


def test_tensorboard_of_preferences(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = pact.attach(dpo_trainer(tmp_path / "out", report_to=["tensorboard"]), ANCHORS)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    names = logged(trainer)
    assert names.keys() == {"pact/loss", "pact/anchor_divergence", "pact/refusal_shift"}
    for name, values in names.items():
        assert same([(one.step, one.value) for one in events.Scalars(f"train/{name}")], values)


@EITHER
def test_mlflow(of, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pact")
    trainer = pact.attach(of(tmp_path / "out", report_to=["mlflow"], **EVALUATED), CONFIG)
    trainer.train()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("pact").experiment_id])
    names = logged(trainer)
    assert names.keys() == TRAINING | EVALUATION
    for name, values in names.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((one.step, one.value) for one in history) == values
