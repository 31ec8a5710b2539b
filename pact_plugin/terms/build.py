"""The terms that a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pact_plugin.config import PactConfig, first_tokens
from pact_plugin.data.tokenizers import require_usable
from pact_plugin.reference.choose import Choice
from pact_plugin.reference.pool import PoolAnswer
from pact_plugin.reference.probe import Probe
from pact_plugin.reference.source import Source
from pact_plugin.terms.anchors import AnchorsTerm
from pact_plugin.terms.base import Term
from pact_plugin.terms.data_hold import DataHoldTerm
from pact_plugin.terms.easing import EasingTerm
from pact_plugin.terms.published import PublishedTerm, assistant_header
from pact_plugin.terms.student import Student
from pact_plugin.tokens.safety_tokens import SafetyTokens


def data_terms(config: PactConfig, tokens: SafetyTokens, probe: Probe | None, tokenizer: Any) -> list[Term]:
    """The terms that look at the data's response positions.

    Args:
        config: Settings.
        tokens: The safety tokens; those with a positive weight form S.
        probe: How the aligned model tells harmful prompts; not needed without easing.
        tokenizer: The model's tokenizer.

    Raises:
        ConfigError: The published objective's assistant header is not known.
    """
    ids, terms = tokens.positive.ids, list[Term]()
    if config.easing is not None:
        assert probe is not None
        terms.append(EasingTerm(probe, first_tokens(config.easing.first), tokenizer))
    if config.hold_data is not None:
        terms.append(DataHoldTerm(ids, first_tokens(config.hold_data.first), config.weight))
    published = config.advanced.published
    if published is not None:
        header = assistant_header(tokenizer, published.assistant_header)
        terms.append(PublishedTerm(published, tokens, header, config.weight))
    return terms


def asks_of_tokenizer(config: PactConfig) -> bool:
    """Whether a term needs something of the tokenizer that can be looked at before a model is loaded."""
    return config.advanced.published is not None


def check_tokenizer(config: PactConfig, tokenizer: Any) -> None:
    """Look at a tokenizer for the terms, before a model is loaded.

    Raises:
        ConfigError: It is one of mistral-common, or the published objective's assistant header is not known.
    """
    require_usable(tokenizer)
    published = config.advanced.published
    if published is not None:
        assistant_header(tokenizer, published.assistant_header)


def anchor_terms(
    config: PactConfig, asked: Sequence[PoolAnswer], student: Student, source: Source, choice: Choice
) -> list[Term]:
    """The terms that bring prompts of their own; none at weight 0, which leaves training as it was (C10.3).

    Args:
        config: Settings.
        asked: The aligned model's answers to the anchors' prompts; not needed without anchors.
        student: The model in training.
        source: The aligned model.
        choice: Where its predictions come from.

    Raises:
        ConfigError: The aligned model answers none of the anchors' prompts at all.
    """
    if not config.has_anchors:
        return []
    assert config.anchors is not None
    return [AnchorsTerm(config.anchors, config.weight, asked, student, source, lasting=choice.lasting)]
