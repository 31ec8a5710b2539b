"""Tiny guard models that have learnt what to write."""

from __future__ import annotations

from typing import Any

import torch
from tiny import tiny_model, tiny_tokenizer

from pact_plugin.judge.guard_formats import Guard


def taught_model(guard: Guard, said: dict[tuple[str, str], str]) -> tuple[Any, Any]:
    """A model that has learnt what to write after each prompt and answer, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(max_position_embeddings=4096).train()
    rows = []
    for (prompt, answer), written in said.items():
        asked = tokenizer(guard.question(tokenizer, prompt, answer), add_special_tokens=guard.special)[
            "input_ids"
        ]
        rows.append((asked, [*tokenizer(written)["input_ids"], tokenizer.eos_token_id]))
    width = max(len(asked) + len(written) for asked, written in rows)
    batch = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full_like(batch, -100)
    for ids, label, (asked, written) in zip(batch, labels, rows, strict=True):
        ids[: len(asked) + len(written)] = torch.tensor(asked + written)
        label[len(asked) : len(asked) + len(written)] = torch.tensor(written)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(300):
        loss = model(input_ids=batch, attention_mask=batch != tokenizer.pad_token_id, labels=labels).loss
        if loss.item() < 0.02:
            return model.eval(), tokenizer
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the tiny guard did not learn its verdicts (loss {loss.item():.2f})")
