"""The loss of a batch from full logits and the formulas alone, without pact-plugin's code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def documents(position_ids: Tensor | None, length: int) -> list[tuple[int, int]]:
    """(start, end) of each document of a row: where the positions begin again at 0."""
    if position_ids is None:
        return [(0, length)]
    starts = [0, *[i for i in range(1, length) if position_ids[i] == 0]]
    return list(zip(starts, [*starts[1:], length], strict=True))


def row_logits(model: Any, batch: dict[str, Tensor], row: int) -> Tensor:
    """[T, V] logits of a row of which every document was given to the model by itself."""
    ids = batch["input_ids"][row]
    packed = batch.get("position_ids")
    spans = documents(None if packed is None else packed[row], len(ids))
    mask = batch.get("attention_mask")
    parts = []
    for start, end in spans:
        inputs = {"input_ids": ids[None, start:end]}
        if mask is not None and packed is None:
            inputs["attention_mask"] = mask[row][None, start:end]
        parts.append(model(**inputs).logits[0])
    return torch.cat(parts)


def micro_batch_loss(
    model: Any,
    aligned: Any,
    batch: dict[str, Tensor],
    safety: Tensor,
    *,
    weight: float = 2.0,
    easing: bool = True,
    hold_data: bool = True,
    easing_first: int | None = None,
    hold_first: int | None = None,
    count: int | None = None,
    dft: bool = False,
    stored: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """(task loss + weight * divergence) / count, with its parts.

    Args:
        model: In training.
        aligned: The reference.
        batch: `input_ids` and `labels` [B, T], with `position_ids` where rows hold several documents.
        safety: Ids of the safety tokens.
        weight: Of the divergence.
        easing: Whether the task yields where the reference says a safety token and the label does not.
        hold_data: Whether the divergence is added.
        easing_first: First tokens of each response that are eased; all when absent.
        hold_first: First tokens of each response that are held; all when absent.
        count: Denominator; the labels that a next-token loss counts in this batch when absent.
        dft: Whether the task weighs a token by its own probability.
        stored: Whether the reference's log-probabilities are those of a table, which keeps them as float16.
    """

    def kept(logprobs: Tensor) -> Tensor:
        return logprobs.half().float() if stored else logprobs

    task, divergences, shares = torch.zeros(()), [torch.zeros(0)], [0.0]
    counted = 0
    for row in range(batch["input_ids"].shape[0]):
        student = row_logits(model, batch, row).log_softmax(-1)
        with torch.no_grad():
            reference = row_logits(aligned, batch, row).log_softmax(-1)
        packed = batch.get("position_ids")
        begins = {s for s, _ in documents(None if packed is None else packed[row], student.shape[0])}
        labels, index = batch["labels"][row].tolist(), -1
        for column, label in enumerate(labels):
            goes_on = column not in begins and labels[column - 1] != -100
            index = index + 1 if goes_on else 0
            if column == 0 or label == -100:
                continue
            counted += 1
            nll = -student[column - 1, label]
            if dft:
                nll = nll * student[column - 1, label].detach().exp()
            if column not in begins:
                exact = reference[column - 1, safety]
                p_ref, p = kept(exact).exp(), student[column - 1, safety].exp()
                mass = exact.exp().sum()
                r_ref, r = kept((1 - mass).log()).exp(), 1 - p.sum()
                if hold_data and (hold_first is None or index < hold_first):
                    divergence = (p_ref * (p_ref / p).log()).sum() + r_ref * (r_ref / r).log()
                    # Clause C2.3: float16 probabilities need not add up to one.
                    divergences.append((divergence + 1 - p_ref.sum() - r_ref)[None])
                if easing and (easing_first is None or index < easing_first):
                    shares.append(
                        0.0 if label in safety.tolist() else min(1.0, kept(mass.log()).exp().item())
                    )
                    nll = nll * (1 - shares[-1])
            task = task + nll
    divergence = torch.cat(divergences)
    total = (task + weight * divergence.sum()) / (counted if count is None else count)
    parts = {
        "positions": len(divergence),
        "tokens": counted,
        "divergence": divergence.sum().item(),
        "eased": sum(shares),
        "eased_positions": len(shares) - 1,
    }
    return total, parts


def anchor_divergence(model: Any, aligned: Any, documents: Any, safety: Tensor) -> Tensor:
    """Mean over the tokens of the documents' answers, each document given to the models by itself."""
    parts = []
    for document in documents:
        batch = {"input_ids": torch.from_numpy(document.tokens)[None]}
        where = torch.from_numpy(document.columns) - 1
        p = row_logits(model, batch, 0)[where].softmax(-1)[:, safety]
        with torch.no_grad():
            p_ref = row_logits(aligned, batch, 0)[where].softmax(-1)[:, safety]
        r_ref, r = 1 - p_ref.sum(1), 1 - p.sum(1)
        parts.append((p_ref * (p_ref / p).log()).sum(1) + r_ref * (r_ref / r).log())
    return torch.cat(parts).mean()
