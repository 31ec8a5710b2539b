"""The loss of a batch from full logits and the formulas alone, without pact-plugin's code but for its judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pact_plugin.config import Anchors
from pact_plugin.judge import is_refusal


@dataclass(frozen=True)
class Eased:
    """Which responses are eased, and where.

    Args:
        weights: [d] of the probe that says how likely a prompt is harmful.
        bias: Of the same.
        tokenizer: Decodes responses for the judge.
        first: First tokens of each response that are eased; all when absent.
    """

    weights: Tensor
    bias: float
    tokenizer: Any
    first: int | None = None

    def share(self, state: Tensor, response: list[int]) -> float:
        """E of a response, from the aligned model's final hidden state at the prompt's end."""
        harmful = float((state * self.weights).sum()) + self.bias > 0
        refused = is_refusal(self.tokenizer.decode(response[:24], skip_special_tokens=True))
        return 1.0 if harmful and not refused else 0.0


def documents(position_ids: Tensor | None, length: int) -> list[tuple[int, int]]:
    """(start, end) of each document of a row: where the positions begin again at 0."""
    if position_ids is None:
        return [(0, length)]
    starts = [0, *[i for i in range(1, length) if position_ids[i] == 0]]
    return list(zip(starts, [*starts[1:], length], strict=True))


def row_outputs(model: Any, batch: dict[str, Tensor], row: int) -> tuple[Tensor, Tensor]:
    """[T, V] logits and [T, d] final hidden states of a row; every document was given to the model by itself."""
    ids = batch["input_ids"][row]
    packed = batch.get("position_ids")
    spans = documents(None if packed is None else packed[row], len(ids))
    mask = batch.get("attention_mask")
    parts = []
    for start, end in spans:
        inputs = {"input_ids": ids[None, start:end]}
        if mask is not None and packed is None:
            inputs["attention_mask"] = mask[row][None, start:end]
        output = model(**inputs, output_hidden_states=True)
        parts.append((output.logits[0], output.hidden_states[-1][0]))
    logits, states = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(states)


def run_from(labels: list[int], column: int, begins: set[int]) -> list[int]:
    """The response that begins in a column of a row."""
    end = column + 1
    while end < len(labels) and labels[end] != -100 and end not in begins:
        end += 1
    return labels[column:end]


def micro_batch_loss(
    model: Any,
    aligned: Any,
    batch: dict[str, Tensor],
    safety: Tensor,
    *,
    weight: float = 2.0,
    easing: Eased | None,
    hold_data: bool = True,
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
        easing: Where the task yields; nowhere when absent.
        hold_data: Whether the divergence is added.
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
        student = row_outputs(model, batch, row)[0].log_softmax(-1)
        with torch.no_grad():
            reference, states = row_outputs(aligned, batch, row)
            reference = reference.log_softmax(-1)
        packed = batch.get("position_ids")
        begins = {s for s, _ in documents(None if packed is None else packed[row], student.shape[0])}
        labels, index, share = batch["labels"][row].tolist(), -1, 0.0
        for column, label in enumerate(labels):
            goes_on = column not in begins and labels[column - 1] != -100
            index = index + 1 if goes_on else 0
            if easing is not None and label != -100 and index == 0:
                response = run_from(labels, column, begins)
                share = 0.0 if column in begins else easing.share(states[column - 1], response)
            if column == 0 or label == -100:
                continue
            counted += 1
            nll = -student[column - 1, label]
            if dft:
                nll = nll * student[column - 1, label].detach().exp()
            if column not in begins:
                exact = reference[column - 1, safety]
                p_ref, p = kept(exact).exp(), student[column - 1, safety].exp()
                r_ref, r = kept((1 - exact.exp().sum()).log()).exp(), 1 - p.sum()
                if hold_data and (hold_first is None or index < hold_first):
                    divergence = (p_ref * (p_ref / p).log()).sum() + r_ref * (r_ref / r).log()
                    # Clause C2.3: float16 probabilities need not add up to one.
                    divergences.append((divergence + 1 - p_ref.sum() - r_ref)[None])
                if easing is not None and (easing.first is None or index < easing.first):
                    shares.append(share)
                    nll = nll * (1 - share)
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


def anchor_divergence(
    model: Any, aligned: Any, pool: Any, chosen: Sequence[int], safety: Tensor, held: Anchors | None = None
) -> Tensor:
    """Mean over the chosen anchors of the mean over an answer's tokens, each given to the models by itself.

    Args:
        model: In training.
        aligned: The reference.
        pool: The term, which has the anchors' documents, the harmful ones first.
        chosen: Whose turn it is.
        safety: The safety tokens.
        held: How many likeliest tokens of each position are held beside them; by default those of `Anchors()`.
    """
    held = held or Anchors()
    parts = []
    for number in chosen:
        count = held.top_k if number < pool.harmful else held.benign_top_k
        every, every_ref = (one.softmax(-1) for one in _at_answer(model, aligned, pool, number))
        others = every_ref.index_fill(1, safety, -1.0).argsort(dim=1, descending=True)[:, :count]
        tokens = torch.cat([safety.expand(len(every), -1), others], 1)
        p, p_ref = every.gather(1, tokens), every_ref.gather(1, tokens)
        r_ref, r = 1 - p_ref.sum(1), 1 - p.sum(1)
        parts.append(((p_ref * (p_ref / p).log()).sum(1) + r_ref * (r_ref / r).log()).mean())
    return torch.stack(parts).mean()


def refusal_shifts(model: Any, aligned: Any, pool: Any, chosen: Sequence[int], safety: Tensor) -> list[float]:
    """The shift of the log odds of P(S) at the first token of each harmful anchor among the chosen, in nats."""
    found = []
    for number in chosen:
        if number < pool.harmful:
            first = [one[0].double() for one in _at_answer(model, aligned, pool, number)]
            ours, theirs = (one.softmax(-1)[safety].sum().logit() for one in first)
            found.append((ours - theirs).item())
    return found


def _at_answer(model: Any, aligned: Any, pool: Any, number: int) -> tuple[Tensor, Tensor]:
    """Both models' logits at an anchor's answer; those of the reference without gradient."""
    document = pool.documents[number]
    batch = {"input_ids": torch.from_numpy(document.tokens)[None]}
    where = torch.from_numpy(document.columns) - 1
    with torch.no_grad():
        theirs = row_outputs(aligned, batch, 0)[0][where]
    return row_outputs(model, batch, 0)[0][where], theirs
