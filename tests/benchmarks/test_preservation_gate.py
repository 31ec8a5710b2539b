"""The published gate in probability space, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pact_spec import reference as spec
from sft import TOKENIZER, TOKENS, sft_trainer
from tiny import tiny_model

from benchmarks.preservation.gate import GatedConfidenceTrainer
from pact_plugin.terms.promptfree import assistant_header


def gate_by_loops(student, post, index):
    n, n_post = (spec.nucleus_size(spec.softmax(z), 0.9) / len(z) for z in (student, post))
    return spec.sigmoid(2 * (n - n_post)) * np.exp(-max(index - 8, 0) / 8)


def test_the_loss_is_that_of_a_plain_loop(tmp_path):
    trainer = sft_trainer(tmp_path, trainer_class=GatedConfidenceTrainer, loss_type="nll")
    aligned, model = tiny_model(seed=1).eval(), trainer.model.eval()
    ids = torch.tensor(TOKENS.positive.ids)
    trainer.aligned, trainer.strength, trainer.safety_ids = aligned, 2.0, ids
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["attention_mask"] == 0).any()  # responses of several lengths
    found = trainer.compute_loss(model, batch)

    header, nll, held = assistant_header(TOKENIZER, None), [], []
    for row, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        places = [i for i, label in enumerate(labels.tolist()) if label != -100]
        response = row[places]
        for t, place in enumerate(places):
            with torch.no_grad():
                read = [model(row[None, :place]), aligned(row[None, :place])]
                read.append(aligned(torch.tensor([header + response[:t].tolist()])))
                z, z_ref, z_post = (output.logits[0, -1].double().numpy() for output in read)
            c = gate_by_loops(z[ids], z_post[ids], t)
            target = (1 - c) * spec.softmax(z_ref) + c * spec.softmax(z_post)
            p = spec.softmax(z)
            divergence = sum(target[k] * np.log(target[k] / p[k]) for k in ids.tolist())
            rest, rest_target = 1 - p[ids].sum(), 1 - target[ids].sum()
            held.append(divergence + rest_target * np.log(rest_target / rest))
            nll.append(-np.log(p[row[place]]))
    assert np.mean(held) > 1e-4
    assert found.item() == pytest.approx(np.mean(nll) + 2 * np.mean(held), rel=1e-5)
    found.backward()
    assert all(parameter.grad is None for parameter in aligned.parameters())
