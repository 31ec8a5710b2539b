"""One model at a time: what it says to the prompts, and how sure it is of the safety tokens along given answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.data.chat_template import user_prompts
from pact_plugin.data.documents import Row
from pact_plugin.data.generation import Done, Generation, Pair, answers, device_of, silent
from pact_plugin.errors import ConfigError, NonFiniteError
from pact_plugin.math.confidence import confidence_divergence
from pact_plugin.model.check_head import check_head
from pact_plugin.model.head import LanguageHead, language_head
from pact_plugin.model.wrappers import text_config
from pact_plugin.reference.passes import states_of


@dataclass(frozen=True)
class Answers:
    """A model's greedy answers to the prompts, in their order."""

    questions: list[list[int]]
    """Token ids of each prompt, in the model's own chat format."""
    tokens: list[list[int]]
    """Token ids of each answer, up to its first special token."""
    texts: list[str]

    def pairs(self, given: Sequence[list[int]] | None = None) -> list[Pair]:
        """The prompts in this model's format, with its own answers or those that another gave."""
        return list(zip(self.questions, self.tokens if given is None else given, strict=True))


@dataclass(frozen=True)
class States:
    """Final hidden states before the tokens of a batch of answers, one answer after the other."""

    hidden: Float[Tensor, "N d"]
    labels: Tensor
    """The N tokens."""
    counts: list[int]
    """Tokens of each answer."""


@dataclass(frozen=True)
class AnswerConfidence:
    """What a model thinks of the K safety tokens at the R positions of one answer, in nats, on the CPU."""

    logprobs: Float[Tensor, "R K"]
    log_rest: Float[Tensor, " R"]
    label: Float[Tensor, " R"]
    """Log-probability of the answer's own tokens."""

    @property
    def mass(self) -> Float[Tensor, " R"]:
        """The probability of the safety tokens together."""
        return -torch.expm1(self.log_rest)

    def divergence(self, reference: AnswerConfidence) -> Float[Tensor, " R"]:
        """The confidence divergence (clause C2) from the reference at each position, in nats."""
        return confidence_divergence(
            self.logprobs, reference.logprobs, self.log_rest, reference.log_rest
        ).clamp(min=0.0)


def ask(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    report: Done = silent,
) -> Answers:
    """Let a model answer the prompts greedily.

    Raises:
        ConfigError: A prompt with its answer is longer than the model's context, or has a token that it lacks.
        NonFiniteError: The model's probabilities are NaN.
    """
    questions = user_prompts(tokenizer, prompts)
    for one, question in zip(prompts, questions, strict=True):
        check_context(model, len(question), max_new_tokens, ("prompts", one[:60]))
    _check_vocabulary(model, questions)
    # Damaged weights would answer too, with nonsense; they are found before the long part.
    _refuse_nan(model(input_ids=torch.tensor([questions[0]], device=device_of(model))).logits)
    tokens = answers(
        model,
        tokenizer,
        questions,
        Generation(max_new_tokens, batch_size, report),
    )
    return Answers(questions, tokens, [tokenizer.decode(answer) for answer in tokens])


def read(
    model: Any, pairs: Sequence[Pair], ids: Sequence[int], *, batch_size: int, report: Done = silent
) -> list[AnswerConfidence]:
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
    found: list[AnswerConfidence] = []
    for batch in states(model, head, pairs, batch_size=batch_size, report=report):
        if len(batch.labels):
            tokens = torch.tensor(ids, device=batch.hidden.device)
            out = head.readout(batch.hidden, tokens, batch.labels)
            assert out.label is not None
            parts = [one.float().cpu() for one in (out.logprobs, out.log_rest, out.label)]
        else:
            parts = [torch.zeros(0, len(ids)), torch.zeros(0), torch.zeros(0)]
        for part in parts:
            _refuse_nan(part)
        found += map(AnswerConfidence, *(part.split(batch.counts) for part in parts))
    return found


def likelihoods(model: Any, pairs: Sequence[Pair], *, batch_size: int, report: Done = silent) -> list[Tensor]:
    """Log-probabilities of the tokens of each answer, teacher-forced, in nats; as for `read`."""
    return [one.label for one in read(model, pairs, [0], batch_size=batch_size, report=report)]


def states(
    model: Any, head: LanguageHead, pairs: Sequence[Pair], *, batch_size: int, report: Done = silent
) -> Iterator[States]:
    """Teacher-force answers batch by batch; the head is compared with the model's own logits first.

    Raises:
        ModelStructureError: The head is of a kind that is not known.
    """
    device = device_of(model)
    check_head(model, head, torch.arange(8, device=device))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        rows = [
            Row(np.asarray(prompt + answer), len(prompt) - 1 + np.arange(len(answer)))
            for prompt, answer in batch
        ]
        hidden = states_of(rows, device, lambda inputs: head.decoder(**inputs).last_hidden_state, flat=False)
        labels = torch.tensor([token for _, answer in batch for token in answer], device=hidden.device)
        yield States(hidden, labels.long(), [len(answer) for _, answer in batch])
        report(start + len(batch))


_SHORTER = {
    "prompts": "Leave it out, or lower `max_new_tokens`.",
    "everyday": "Give `everyday=False`, or lower `max_new_tokens`.",
    "task": "Leave it out.",
}


def check_context(model: Any, prompt: int, answer: int, given: tuple[str, Any]) -> None:
    """Refuse a prompt that is too long for a model.

    Args:
        model: The model.
        prompt: Tokens of the prompt.
        answer: Tokens of its answer, at most.
        given: What the prompt was given as: the key, and a value that tells which it is.

    Raises:
        ConfigError: Together they are longer than the model's context.
    """
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit is not None and prompt + answer > limit:
        raise ConfigError(
            f"a prompt of {prompt} tokens and an answer of {answer} exceed the model's context of {limit}",
            key=given[0],
            value=given[1],
            remedy=_SHORTER[given[0]],
        )


def _check_vocabulary(model: Any, questions: Sequence[Sequence[int]]) -> None:
    """Refuse tokens that a model has no embedding of: special tokens that were added to the tokenizer alone."""
    largest, rows = max(max(one, default=0) for one in questions), len(model.get_input_embeddings().weight)
    if largest >= rows:
        raise ConfigError(
            f"the prompts have the token {largest}, and the model has {rows}",
            key="tokenizer",
            remedy="Give the model's own tokenizer.",
        )


def _refuse_nan(values: Tensor) -> None:
    if values.isnan().any():
        remedy = "Load it in another `dtype`; if that does not help, its weights are damaged."
        raise NonFiniteError("the model's probabilities are NaN", key="model", remedy=remedy)
