"""One model at a time: what it says to the prompts, and how sure it is of the safety tokens along given answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.data.generation import Asking, Pair, answers, device_of, user_prompt
from pact_plugin.data.prompts import AuditPrompt
from pact_plugin.errors import ConfigError, NonFiniteError
from pact_plugin.judge import is_refusal
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.head import check_head, language_head

Report = Callable[[int], None]
"""Called with the number of prompts done."""


@dataclass(frozen=True)
class Answers:
    """A model's greedy answers to the prompts, in their order."""

    questions: list[list[int]]
    """Token ids of each prompt, in the model's own chat format."""
    tokens: list[list[int]]
    """Token ids of each answer, up to its first special token."""
    texts: list[str]
    refused: list[bool]
    """By the keyword judge."""


@dataclass(frozen=True)
class Confidence:
    """What a model thinks of the K safety tokens at the R positions of one answer, in nats, on the CPU."""

    logprobs: Float[Tensor, "R K"]
    log_rest: Float[Tensor, " R"]

    @property
    def mass(self) -> Float[Tensor, " R"]:
        """The probability of the safety tokens together."""
        return -torch.expm1(self.log_rest)

    def divergence(self, reference: Confidence) -> Float[Tensor, " R"]:
        """The confidence divergence (clause C2) from the reference at each position, in nats."""
        return confidence_divergence(
            self.logprobs, reference.logprobs, self.log_rest, reference.log_rest
        ).clamp(min=0.0)


def ask(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[AuditPrompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    report: Report,
) -> Answers:
    """Let a model answer the prompts greedily.

    Raises:
        ConfigError: A prompt with its answer is longer than the model's context.
        NonFiniteError: The model's probabilities are NaN.
    """
    questions = [user_prompt(tokenizer, one.prompt) for one in prompts]
    _check_context(model, prompts, questions, max_new_tokens)
    # Damaged weights would answer too, with nonsense; they are found before the long part.
    _refuse_nan(model(input_ids=torch.tensor([questions[0]], device=device_of(model))).logits)
    tokens = answers(
        model,
        tokenizer,
        questions,
        Asking(max_new_tokens, batch_size, report),
    )
    texts = [tokenizer.decode(answer) for answer in tokens]
    return Answers(questions, tokens, texts, [is_refusal(text) for text in texts])


def read(
    model: Any, pairs: Sequence[Pair], ids: Sequence[int], *, batch_size: int, report: Report
) -> list[Confidence]:
    """Teacher-force answers, and keep what the model thinks of the safety tokens before each of their tokens.

    Read from the final hidden states, so that the full logits are never held.

    Args:
        model: The causal language model.
        pairs: Each prompt with an answer of R tokens; R = 0 gives an empty result.
        ids: The K safety tokens.
        batch_size: Pairs at a time, padded on the right, where a causal model does not look.
        report: Called with the number of pairs done.

    Raises:
        ModelStructureError: The model's head is of a kind that is not known.
        NonFiniteError: The model's probabilities are NaN.
    """
    head = language_head(model)
    device = device_of(model)
    tokens = torch.tensor(ids, device=device)
    check_head(model, head, tokens[:8])
    found: list[Confidence] = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        rows = [prompt + answer for prompt, answer in batch]
        width = max(map(len, rows))
        inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        hidden = head.decoder(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        before = [
            hidden[row, len(prompt) - 1 : len(prompt) + len(answer) - 1]
            for row, (prompt, answer) in enumerate(batch)
        ]
        labels = torch.tensor([token for _, answer in batch for token in answer], device=hidden.device).long()
        counts = [len(answer) for _, answer in batch]
        if sum(counts):
            out = head.readout(torch.cat(before), tokens.to(hidden.device), labels)
            logprobs, log_rest = out.logprobs.float().cpu(), out.log_rest.float().cpu()
        else:
            logprobs, log_rest = torch.zeros(0, len(ids)), torch.zeros(0)
        _refuse_nan(logprobs)
        found += map(Confidence, logprobs.split(counts), log_rest.split(counts))
        report(start + len(batch))
    return found


def _refuse_nan(values: Tensor) -> None:
    if values.isnan().any():
        remedy = "Load it in another --dtype; if that does not help, its weights are damaged."
        raise NonFiniteError("the model's probabilities are NaN", key="model", remedy=remedy)


def _check_context(
    model: Any, prompts: Sequence[AuditPrompt], questions: Sequence[list[int]], max_new_tokens: int
) -> None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    for one, question in zip(prompts, questions, strict=True):
        if limit is not None and len(question) + max_new_tokens > limit:
            raise ConfigError(
                f"a prompt of {len(question)} tokens and an answer of {max_new_tokens} "
                f"exceed the model's context of {limit}",
                key="--prompts",
                value=one.prompt[:60],
                remedy="Leave the prompt out, or lower --max-new-tokens.",
            )
