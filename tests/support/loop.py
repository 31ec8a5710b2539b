"""A loop of one's own around a tiny model: its tokens, its batches and its step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tiny import REFUSAL, tiny_model, tiny_tokenizer
from torch import Tensor, nn

from pact_plugin import PactConfig, PactConstraint, SafetyTokens
from pact_plugin.constraint import Constraint
from pact_plugin.model.linear import LinearFunction
from pact_plugin.reference.source import Source
from pact_plugin.terms.anchors import AnchorsTerm
from pact_plugin.terms.easing import EasingTerm
from pact_plugin.terms.step import Step

TOKENIZER = tiny_tokenizer()
TOKENS = SafetyTokens.for_tokenizer(TOKENIZER, [40, 41, 42, 43], [1.0, 0.5, -0.2, 0.1])
POSITIVE = [40, 41, 43]
PUBLISHED = {"easing": False, "anchors": False, "advanced": {"published": True}}
"""The objective of the authors' code."""
FEW_ANCHORS: dict[str, Any] = {"prompts": str(Path(__file__).parent / "few_anchors.jsonl"), "per_step": 2}
"""The bundled ones, some 500, take a third of a second to be answered."""
TERMS = {"easing": {}, "hold": {"hold_data": True}, "published": PUBLISHED}
"""What looks at the data's positions."""


def settings(*, store: Any = None, **changes: Any) -> PactConfig:
    """Without anchors, which have tests of their own."""
    advanced = {"advanced": changes.get("advanced", {}) | {"store": store}} if store is not None else {}
    return PactConfig(**({"safety_tokens": TOKENS, "anchors": False} | changes | advanced))


def a_batch(seed: int = 0, rows: int = 3, width: int = 12) -> dict[str, Tensor]:
    """Prompts of four tokens with responses, two of them in the last row; that of the second row refuses.

    By default the prompt of the third row is benign to `tiny_model()`, and all others harmful.
    """
    generator = torch.Generator().manual_seed(32 + seed)
    ids = torch.randint(30, 60, (rows, width), generator=generator)
    refusal = torch.tensor(TOKENIZER.encode(REFUSAL, add_special_tokens=False))
    ids[1:2, 4 : 4 + len(refusal)] = refusal[: width - 4]
    labels = ids.clone()
    labels[:, :4] = -100
    labels[0, 8:] = -100
    labels[-1, 6:7] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def without_response(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"labels": torch.full_like(batch["labels"], -100)}


def adapted(**config: Any) -> nn.Module:
    """A tiny model with an adapter that changes nothing yet."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(tiny_model(**config), lora)


def taught(model: nn.Module) -> nn.Module:
    """The same model, whose new adapter has learnt something, so that it cannot be switched off."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    return model


def trained(**config: Any) -> nn.Module:
    """A tiny model with an adapter that has learnt something."""
    return taught(adapted(**config))


def moved(model: nn.Module) -> nn.Module:
    """The same model, as if training had moved it."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def loss_of(
    constraint: Constraint, model: nn.Module, batch: dict[str, Tensor], step: Step | None = None
) -> Tensor:
    """The constraint of a step."""
    inputs = {name: value for name, value in batch.items() if not name.startswith("cu_seq_lens")}
    with constraint.watch(batch):
        model(**inputs)
    return constraint.loss(batch, step)


def measured(constraint: Constraint, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    """The metrics of an evaluation."""
    with constraint.watch(), torch.no_grad():
        model(**batch)
    constraint.observe(batch)
    return constraint.metrics("eval")


def constrained(
    model: nn.Module, config: PactConfig, batch: dict[str, Tensor], **parts: Any
) -> tuple[PactConstraint, Tensor]:
    """A constraint, and what it adds once training has moved the model."""
    constraint = PactConstraint(model, TOKENIZER, config, **parts)
    return constraint, loss_of(constraint, moved(model), batch)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def calls_of_sources(monkeypatch: Any) -> list[dict[str, Any]]:
    """The inputs of every pass of an aligned model from here on."""
    calls: list[dict[str, Any]] = []
    hidden: Callable[..., Tensor] = Source.hidden

    def recorded(self: Source, args: Any, kwargs: Any, autocast: Any = None) -> Tensor:
        calls.append(dict(kwargs))
        return hidden(self, args, kwargs, autocast)

    monkeypatch.setattr(Source, "hidden", recorded)
    return calls


def probe_of(constraint: Constraint) -> LinearFunction:
    """By which it eases."""
    (term,) = (term for term in constraint.terms if isinstance(term, EasingTerm))
    (column,) = term.columns
    assert column.linear is not None
    return column.linear


def anchors_of(constraint: Constraint) -> AnchorsTerm:
    (term,) = (term for term in constraint.terms if isinstance(term, AnchorsTerm))
    return term
