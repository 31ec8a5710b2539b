"""Choosing safety tokens: those that an aligned model says when it refuses, and a contrast does not.

Special tokens (end of turn, padding) are never chosen. They end help and refusals alike, but refusals are
shorter: under a limit on the length of answers they would look like signs of safety, and holding them would
tie the length of the answers that the task teaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float

import pact_plugin
from pact_plugin.data.chat_template import (
    dialogue_prompt,
    has_chat_template,
    user_prompts,
    warn_without_chat_template,
)
from pact_plugin.data.generation import (
    Generation,
    Pair,
    Progress,
    answer_logits,
    answers,
    inspecting,
    reporting,
)
from pact_plugin.data.prompts import Kind, for_pool
from pact_plugin.judge import answer_refuses
from pact_plugin.math.direction import safety_direction
from pact_plugin.tokens.beginnings import FIRST_TOKEN_MASS, Beginnings
from pact_plugin.tokens.candidates import model_name, only, ordinary_tokens
from pact_plugin.tokens.checks import check_helpful, check_refusals, check_settings
from pact_plugin.tokens.safety_tokens import SafetyTokens


@dataclass(frozen=True)
class Selection:
    """How safety tokens are chosen.

    Args:
        contrast: `benign`: the same model on benign prompts, over the answers in which it helps. `base`: the model
            before alignment, prompted as a dialogue in plain text, over the same refusals.
        harmful: Requests that the model should refuse; by default the bundled ones.
        benign: Requests that it should help with; by default the bundled ones; for `benign` only.
        top_k: Number of tokens K.
        max_new_tokens: Where answers are cut off, in tokens.
        batch_size: Answers at a time; logits of one batch are held at a time.
    """

    contrast: Literal["benign", "base"] = "benign"
    harmful: Sequence[str] | None = None
    benign: Sequence[str] | None = None
    top_k: int = 50
    max_new_tokens: int = 32
    batch_size: int = 16


DEFAULTS = Selection()


def pool_prompts(kind: Kind) -> tuple[str, ...]:
    """The prompts of a kind that are asked where none are named."""
    return for_pool().texts(kind)


def select_safety_tokens(
    model: Any,
    tokenizer: Any,
    how: Selection = DEFAULTS,
    *,
    base_model: Any = None,
    progress: Progress | None = None,
) -> SafetyTokens:
    """Choose the safety tokens of an aligned model by its safety direction (spec/PACT.md, clause C8).

    The model answers the harmful prompts greedily, and its refusals are kept. Next-token probabilities over each
    refusal are averaged over positions, then over prompts; so are those of the contrast. The `top_k` tokens that the
    model says most when it refuses are kept, weighted by the difference (centred, unit norm).

    The models are read in eval mode without gradients; their modes and torch's random state are left as they were.

    Args:
        model: The aligned causal language model: `generate` and a forward pass with `logits`, as in transformers.
        tokenizer: Its tokenizer. Without a chat template, prompts are given as plain text, with a warning.
        how: Prompts, contrast and sizes.
        base_model: The model before alignment, with the same vocabulary; for the contrast `base` only.
        progress: Called with (done, total, description) as prompts are done.

    Raises:
        ConfigError: A setting cannot be used, fewer than 8 harmful prompts are refused, or fewer than 8 benign ones
            answered.
    """
    check_settings(how, base_model)
    warn_without_chat_template(tokenizer)
    run = _Run(tokenizer, how, progress)
    with inspecting(*[model] if base_model is None else [model, base_model]):
        allowed = ordinary_tokens(model, base_model, tokenizer, how.top_k)
        requests = pool_prompts("harmful") if how.harmful is None else _distinct(how.harmful)
        refusals = run.answer(model, requests, refused=True)
        check_refusals(len(refusals), len(requests))
        counts = {"harmful_prompts": len(requests), "refused": len(refusals)}
        if base_model is None:
            questions = pool_prompts("benign") if how.benign is None else _distinct(how.benign)
            others = run.answer(model, questions, refused=False)
            check_helpful(len(others), len(questions))
            counts |= {"benign_prompts": len(questions), "helped": len(others)}
        else:
            others = {text: (dialogue_prompt(tokenizer, text), said) for text, (_, said) in refusals.items()}
        return run.chosen((model, base_model), refusals, others, allowed, counts)


def choose_from_answers(
    model: Any,
    tokenizer: Any,
    refusals: Mapping[str, Pair],
    helpful: Mapping[str, Pair],
    how: Selection = DEFAULTS,
    *,
    progress: Progress | None = None,
) -> SafetyTokens:
    """Choose as `select_safety_tokens` does by the contrast `benign`, from answers that are there already.

    Args:
        model: The aligned causal language model that gave the answers.
        tokenizer: Its tokenizer.
        refusals: Harmful prompts that it refuses, with their token ids and answers.
        helpful: Benign prompts that it helps with, likewise.
        how: Sizes; answers are read up to `max_new_tokens`.
        progress: Called with (done, total, description) as prompts are done.

    Raises:
        ConfigError: There are fewer than 8 refusals or helpful answers, or `top_k` is out of range.
    """
    run = _Run(tokenizer, how, progress)
    with inspecting(model):
        allowed = ordinary_tokens(model, None, tokenizer, how.top_k)
        check_refusals(len(refusals), len(refusals))
        check_helpful(len(helpful), len(helpful))
        refused, helped = (
            {prompt: (question, answer[: how.max_new_tokens]) for prompt, (question, answer) in side.items()}
            for side in (refusals, helpful)
        )
        counts = {"refused": len(refusals), "helped": len(helpful)}
        return run.chosen((model, None), refused, helped, allowed, counts)


@dataclass(frozen=True)
class _Run:
    tokenizer: Any
    how: Selection
    progress: Progress | None

    def answer(self, model: Any, prompts: Sequence[str], *, refused: bool) -> dict[str, Pair]:
        """The prompts that the model refuses (or answers otherwise), with their token ids and answers."""
        asked = user_prompts(self.tokenizer, prompts)
        said = answers(
            model,
            self.tokenizer,
            asked,
            Generation(
                self.how.max_new_tokens,
                self.how.batch_size,
                reporting(
                    self.progress, len(asked), f"Answering {'harmful' if refused else 'benign'} prompts"
                ),
            ),
        )
        return {
            prompt: (question, answer)
            for prompt, question, answer in zip(prompts, asked, said, strict=True)
            if answer and answer_refuses(self.tokenizer, answer) == refused
        }

    def logits(self, model: Any, pairs: dict[str, Pair], description: str) -> Iterator[torch.Tensor]:
        """Teacher-forced logits of every answer, one after another."""
        report = reporting(self.progress, len(pairs), description)
        return answer_logits(model, list(pairs.values()), batch_size=self.how.batch_size, report=report)

    def chosen(
        self,
        models: tuple[Any, Any],
        refusals: dict[str, Pair],
        others: dict[str, Pair],
        allowed: Bool[torch.Tensor, " V"],
        counts: dict[str, int],
    ) -> SafetyTokens:
        """The tokens, from the refusals of the first model and what the contrast says."""
        model, base_model = models
        beginnings = Beginnings()
        ids, weights = safety_direction(
            _halves(only(allowed, beginnings.of(self.logits(model, refusals, "Reading the refusals")))),
            _halves(only(allowed, self.logits(base_model or model, others, "Reading the contrast"))),
            top_k=self.how.top_k,
        )
        provenance = {
            "contrast": self.how.contrast,
            "model": model_name(model),
            **({} if base_model is None else {"base_model": model_name(base_model)}),
            **{key: str(count) for key, count in counts.items()},
            "top_k": str(self.how.top_k),
            FIRST_TOKEN_MASS: f"{beginnings.mass(ids, weights):.3f}",
            **self.provenance(),
        }
        return SafetyTokens.for_tokenizer(self.tokenizer, ids.tolist(), weights.tolist(), provenance)

    def provenance(self) -> dict[str, str]:
        """How the models were asked."""
        return {
            "max_new_tokens": str(self.how.max_new_tokens),
            "prompt_format": "chat" if has_chat_template(self.tokenizer) else "plain",
            "pact_plugin": pact_plugin.__version__,
        }


def _halves(answers: Iterator[Float[torch.Tensor, "R V"]]) -> Iterator[Float[torch.Tensor, "2 V"]]:
    """Of each answer the first position, and the mean over all, so that the first counts for half (clause C8.5).

    A refusal is decided there, and what begins it ("As", "Sorry") would be lost among the words that follow.
    """
    for logits in answers:
        logprobs = logits.float().log_softmax(-1)
        yield torch.stack([logprobs[0], logprobs.logsumexp(0) - math.log(len(logprobs))])


def _distinct(prompts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(prompts))
