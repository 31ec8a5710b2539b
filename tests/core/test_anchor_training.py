"""Anchors and the ways a model is trained: checkpointed, compiled, in lower precision; what stops and warns."""

from __future__ import annotations

import pytest
import torch
from anchors import built
from loop import FEW_ANCHORS, a_batch, adapted, calls_of_sources, gradients, loss_of, moved
from tiny import tiny_model

from pact_plugin.errors import ConfigError, NonFiniteError
from pact_plugin.run.drift import FAR
from pact_plugin.run.receipt import Receipt
from pact_plugin.run.verify import verify_run
from pact_plugin.terms import anchors as anchors_module
from pact_plugin.terms.anchors import require_one_backward


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    def step(checkpointed: bool):
        model = adapted()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        constraint = built(model.train())
        loss = loss_of(constraint, moved(moved(model)), a_batch())
        loss.backward()
        return loss.item(), gradients(model)

    (loss, ours), (expected, theirs) = step(True), step(False)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("count", "reentrant"), [(1, True), (2, False), (2, None), (2, True)])
def test_reentrant_checkpointing_on_several_ranks_is_refused(monkeypatch, count, reentrant):
    """It would leave the ranks with different gradients (rank_steps.py)."""
    monkeypatch.setattr(anchors_module, "world_size", lambda: count)
    model = tiny_model().train()
    require_one_backward(model)
    model.gradient_checkpointing_enable({} if reentrant is None else {"use_reentrant": reentrant})
    if count == 1 or reentrant is False:
        require_one_backward(model)
        return
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing_kwargs.*constraint\.ahead.*use_reentrant: false"
    ):
        require_one_backward(model)


def test_a_compiled_model():
    model, batch = tiny_model(), a_batch()
    constraint = built(compiled := torch.compile(model, backend="eager"))
    other = tiny_model()
    expected = loss_of(built(other), moved(other), batch)
    moved(model)
    assert loss_of(constraint, compiled, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("reference", "bound"), [("copy", 5e-8), ("table", 1e-4)])
def test_the_precision_of_training(tmp_path, reference, bound):
    """A copy is read in the precision of training, too, the model itself before that is known."""
    model, batch = tiny_model(), a_batch()
    constraint = built(model, tmp_path if reference == "table" else None)
    if reference == "table":
        constraint.fill([batch], progress=False)
    assert constraint.reference.choice.name == reference
    with constraint.watch(), torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    assert torch.isfinite(constraint.loss(batch))
    assert abs(constraint.metrics()["pact/anchor_divergence"]) < bound


def test_nan_in_the_reference_and_in_the_model(monkeypatch):
    batch, model = a_batch(), adapted()
    constraint = built(model, easing=False)
    calls = calls_of_sources(monkeypatch)
    with torch.no_grad():
        model.base_model.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="in the reference"):
        loss_of(constraint, model, batch)
    assert len(calls) == 1
    model = tiny_model()
    constraint = built(model, easing=False)
    with constraint.watch():
        model(**batch)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)  # of the anchors' pass alone
    with pytest.raises(NonFiniteError, match="constraint became NaN"):
        constraint.loss(batch)


# --- how far the model has moved ---


@pytest.mark.parametrize("changes", [{}, {"easing": False}])
def test_the_receipt_says_how_far_the_model_has_moved_there(tmp_path, changes):
    model = tiny_model()
    constraint = built(model, **changes)
    loss_of(constraint, moved(model), a_batch())
    constraint.record.write(tmp_path)
    receipt = Receipt.read(tmp_path)
    held = {"per_step": 3, "tokens": 4, "top_k": 64, "benign_top_k": 0}
    assert receipt.config["anchors"] == FEW_ANCHORS | held
    assert receipt.terms == ["anchors"] if changes else ["easing", "anchors"]
    moved_by = constraint.metrics()["pact/anchor_divergence"]
    assert f"anchor_divergence {moved_by:.4g}" in verify_run(tmp_path)


def test_a_run_whose_model_moves_far_is_warned_of_once(tmp_path, recwarn):
    def warned() -> int:
        return len([one for one in recwarn if "nats per token from the aligned one" in str(one.message)])

    model = tiny_model()
    constraint = built(model)
    loss_of(constraint, moved(moved(model)), a_batch())
    assert warned() == 0
    constraint.record.write(tmp_path)
    assert Receipt.read(tmp_path).mean("anchor_divergence") > FAR
    constraint.record.write(tmp_path)
    assert warned() == 1
