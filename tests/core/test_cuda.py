"""The same on a GPU: losses, readout, constraint, memory. Collected only where CUDA is available."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loop import TERMS, TOKENIZER, a_batch, adapted, moved, settings
from pact_spec import reference as spec
from tiny import tiny_model
from torch import nn

from pact_plugin import PactConstraint, confidence_divergence, published_divergence
from pact_plugin.errors import NonFiniteError
from pact_plugin.model.head import LanguageHead
from pact_plugin.terms.step import Step

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 2e-4), (torch.bfloat16, 5e-2)], ids=str
)
def test_losses(dtype, rtol):
    logits = [torch.tensor(RNG.normal(size=(64, 40)) * 3).to(dtype) for _ in range(3)]
    student, reference = (x.double().log_softmax(-1)[:, :7].to(dtype) for x in logits[:2])
    ours = confidence_divergence(student.cuda(), reference.cuda())
    expected = spec.confidence_divergence(student.double().numpy(), reference.double().numpy())
    np.testing.assert_allclose(ours.double().cpu().numpy(), expected, rtol=rtol, atol=1e-6)
    weights, position = RNG.normal(size=40), np.arange(64)
    ours = published_divergence(
        *(x.cuda() for x in logits), torch.tensor(weights).cuda(), torch.arange(64).cuda()
    )
    expected = spec.published_divergence(*(x.double().numpy() for x in logits), weights, position)
    np.testing.assert_allclose(ours.double().cpu().numpy(), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("terms", [*TERMS, "anchors"])
@pytest.mark.parametrize("build", [tiny_model, adapted], ids=["full", "lora"])
def test_the_constraint_equals_that_on_the_cpu(terms, build):
    changes = TERMS.get(terms, {"anchors": {"per_step": 2}})

    def run(device: str):
        model = build().to(device)
        batch = {key: value.to(device) for key, value in a_batch().items()}
        constraint = PactConstraint(model, TOKENIZER, settings(**changes))
        moved(model.cpu())
        model.to(device)
        with constraint.watch():
            model(**batch)
        loss = constraint.loss(batch)
        loss.backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        return loss.item(), gradients, constraint.metrics()

    loss, gradients, metrics = run("cuda")
    expected, cpu_gradients, cpu_metrics = run("cpu")
    assert loss == pytest.approx(expected, rel=1e-3)
    assert metrics == pytest.approx(cpu_metrics, rel=1e-3)
    for a, b in zip(gradients, cpu_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-2)


def test_under_bfloat16_autocast():
    model = tiny_model().cuda()
    batch = {key: value.cuda() for key, value in a_batch().items()}
    constraint = PactConstraint(model, TOKENIZER, settings(hold_data=True, anchors=True))
    with torch.autocast("cuda", torch.bfloat16):
        with constraint.watch():
            model(**batch)
        at_reference = constraint.loss(batch)
        at_reference.backward()
    metrics = constraint.metrics()
    assert metrics["pact/divergence"] == pytest.approx(0, abs=1e-6)
    assert metrics["pact/anchor_divergence"] == pytest.approx(0, abs=1e-6)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_nan_stops_one_step_later():
    model = tiny_model().cuda()
    batch = {key: value.cuda() for key, value in a_batch().items()}
    constraint = PactConstraint(model, TOKENIZER, settings(hold_data=True, anchors=True))
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with constraint.watch():
        model(**batch)
    constraint.loss(batch)
    with constraint.watch():
        model(**batch)
    with pytest.raises(NonFiniteError, match="constraint became NaN"):
        constraint.loss(batch)


def test_peak_memory_is_that_of_a_chunk():
    hidden_size, vocabulary, positions, chunk = 512, 128_000, 8192, 256
    with torch.device("cuda"):
        projection = nn.Linear(hidden_size, vocabulary, bias=False, dtype=torch.bfloat16).requires_grad_(
            False
        )
        hidden = torch.randn(positions, hidden_size, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.randint(0, vocabulary, (positions,))
    head = LanguageHead(nn.Identity(), projection)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    read = head.readout(hidden, torch.arange(50, device="cuda"), labels, chunk_size=chunk)
    (read.logprobs.sum() + read.log_rest.sum()).backward()
    peak = torch.cuda.max_memory_allocated() - before
    full_logits = positions * vocabulary * 4
    assert peak < 8 * chunk * vocabulary * 4 + 64 * 2**20
    assert peak < full_logits / 3


@pytest.mark.parametrize("terms", [*TERMS, "default"])
def test_a_step_with_a_table_never_makes_the_host_wait(tmp_path, terms):
    model = tiny_model().cuda()
    batch = {key: value.cuda() for key, value in a_batch().items()}
    changes = TERMS.get(terms, {"anchors": True})
    constraint = PactConstraint(model, TOKENIZER, settings(store=tmp_path, **changes))
    constraint.fill([a_batch()], progress=False)  # from the host
    moved(model.cpu())
    model.cuda()
    count = (batch["labels"][:, 1:] != -100).sum()
    for step, mode in enumerate(("default", "error"), 1):  # the first step looks at the batch
        with constraint.watch(batch):
            model(**batch)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = constraint.loss(batch, Step(step, tokens=count))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
