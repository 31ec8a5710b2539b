"""Where the parts are put together: `PactConstraint` for your own loop, `attach` for a trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from pact_plugin.config import PactConfig
from pact_plugin.constraint import Constraint
from pact_plugin.data.facts import DataFacts
from pact_plugin.data.prompts import for_pool
from pact_plugin.errors import ConfigError
from pact_plugin.hooks.manager import find_adapter, one_offered
from pact_plugin.model.check_head import check_head
from pact_plugin.model.head import language_head
from pact_plugin.model.ranks import (
    broadcast_object,
    gathered,
    is_partitioned,
    partitioned_reference,
    refuse_fsdp1,
    sharding,
)
from pact_plugin.model.wrappers import evaluation_mode, unwrap
from pact_plugin.reference.adapter_state import adapter_state
from pact_plugin.reference.cache import Cache
from pact_plugin.reference.choose import ANSWERS, RunFacts, choose
from pact_plugin.reference.pool import Pool, PoolAnswer
from pact_plugin.reference.pool_file import pool_of
from pact_plugin.reference.pool_states import read_where
from pact_plugin.reference.pool_tokens import tokens_of
from pact_plugin.reference.reference import Reference
from pact_plugin.reference.source import Source, build_source
from pact_plugin.run.evidence import fine_tuned
from pact_plugin.run.parts import Parts
from pact_plugin.terms.anchor_prompts import anchor_prompts
from pact_plugin.terms.build import anchor_terms, data_terms
from pact_plugin.terms.student import Student
from pact_plugin.tokens.candidates import model_name
from pact_plugin.tokens.safety_tokens import SafetyTokens

logger = logging.getLogger("pact_plugin")

_SETTINGS = {"harmful": "safety_tokens", "benign": "safety_tokens", "top_k": "advanced.top_k"}
"""By the arguments with which tokens are chosen."""


def attach(trainer: Any, config: PactConfig | dict[str, Any] | bool = True) -> Any:
    """Constrain a trainer before it trains.

    Args:
        trainer: Any trainer that exactly one adapter knows.
        config: Settings; `True` for the defaults.

    Returns:
        The same trainer. Its `pact` is the PactConstraint.

    Raises:
        PactError: The trainer, the settings, the tokens, the model and the reference do not fit.
    """
    settings = PactConfig.of(config)
    adapter = find_adapter(trainer)
    parts = adapter.parts(trainer, settings.advanced.store)
    with parts.autocast():
        constraint = PactConstraint(parts.model, parts.tokenizer, settings, run=parts.run, data=parts.data)
    attached = adapter.attach(trainer, constraint)
    logger.info("PACT: attached; %s", constraint.record.receipt)
    return attached


class PactConstraint(Constraint):
    """A constraint from a model, its tokenizer and settings, for your own loop.

    Built before the first training step, on the device that trains:

        constraint = PactConstraint(model, tokenizer, {"advanced": {"store": "store"}})
        constraint.fill(loader)
        for batch in loader:
            with constraint.watch(batch):
                output = model(**batch)
            loss = output.loss + constraint.loss(batch)

    Without a store and `fill` each step runs the aligned model.

    Args:
        model: A causal language model, with or without PEFT adapters; still the aligned model.
        tokenizer: Its tokenizer.
        config: Settings, as a PactConfig or a mapping.
        reference_model: The aligned model itself, where `config.reference` should not decide.
        run: What is known of the run; by default a table lies where `advanced.store` says, if it does.
        data: What is known of the data.

    Raises:
        PactError: The safety tokens, the model and the reference do not fit; nothing is left changed.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        config: PactConfig | dict[str, Any] | bool = True,
        *,
        reference_model: nn.Module | None = None,
        run: RunFacts | None = None,
        data: DataFacts | None = None,
    ) -> None:
        settings = PactConfig.of(config)
        data = data or DataFacts()
        if not data.labels:
            settings = _anchors_alone(settings)
        refuse_fsdp1(model)
        # DeepSpeed's partitions are put together as long as the model is asked.
        with gathered(model):
            run = run or _own_loop(settings, model)
            parts = build_parts(settings, model, tokenizer, reference_model, run, data)
        super().__init__(parts)


def build_parts(
    settings: PactConfig,
    model: nn.Module,
    tokenizer: Any,
    reference_model: nn.Module | None,
    run: RunFacts,
    data: DataFacts,
) -> Parts:
    """What a constraint is made of; the arguments are those of `PactConstraint`.

    Raises:
        PactError: They do not fit.
    """
    # 1. The head of the model in training.
    head = language_head(model)
    # 2. The reference: which model is the aligned one.
    other = load_reference(settings, model, tokenizer) if reference_model is None else reference_model
    if other is None and (trained := fine_tuned("model", model_name(unwrap(model)))) is not None:
        raise trained
    adapter = adapter_state(model) if other is None else "none"
    choice = choose(named=other is not None, adapter=adapter, run=run, asked=settings.asks_at_responses)
    source = build_source(choice.source, model, other, adapter=adapter)
    # 3. Tokens that are named: checked before the model is asked, which takes long.
    tokens = settings.named_tokens()
    if tokens is not None:
        tokens.check(tokenizer, source.head.vocabulary)
    # 4. The aligned model is asked prompts.
    cache = Cache(None if run.folder is None else Path(run.folder) / ANSWERS)
    bundled_answers, anchor_answers = ask_pools(settings, source, tokenizer, cache)
    # 5. Tokens that are not named: chosen from its answers.
    if tokens is None:
        assert bundled_answers is not None
        tokens = _chosen(bundled_answers, source, tokenizer, settings.advanced.top_k)
        tokens.check(tokenizer, source.head.vocabulary)
    student = Student(model, head, tokens.positive.ids, settings.advanced.chunk_size)
    with evaluation_mode(model):
        check_head(model, head, student.ids_on(student.device())[:16])
    # 6. The probe, by which easing tells harmful prompts.
    probe = None
    if settings.easing is not None:
        assert bundled_answers is not None
        read = read_where(bundled_answers, source, data.endings)
        # A fit that differs by rounding would be another column of the table on each rank.
        probe = broadcast_object(read.probe)
    # 7. The terms, and what they ask of the reference.
    looking = data_terms(settings, tokens, probe, tokenizer)
    anchors = anchor_terms(settings, anchor_answers, student, source, choice)
    reference = Reference(
        choice,
        source,
        tuple(dict.fromkeys(asked for term in looking for asked in term.columns)),
        chunk_size=settings.advanced.chunk_size,
        tokenizer=tokenizer,
        tokenizer_fingerprint=tokens.fingerprint,
    )
    aligned = broadcast_object(source.fingerprint(any_type=True).values[:16])
    return Parts(settings, model, student, tokens, reference, aligned, (*looking, *anchors), data.masked)


def ask_pools(
    settings: PactConfig, source: Source, tokenizer: Any, cache: Cache
) -> tuple[Pool | None, list[PoolAnswer]]:
    """What the aligned model answers to the bundled prompts, and to those that may become anchors.

    A user's own anchors change neither safety tokens nor easing: they may be of one kind, or of one register.

    Returns:
        The answers to the bundled prompts, from which safety tokens and easing come; None where nothing needs them. And
        those to the anchors' prompts, in their order; empty without anchors.

    Raises:
        PactError: The anchors' prompts cannot be read, or the model cannot answer.
    """
    bundled = for_pool().prompts
    anchors = settings.anchors if settings.has_anchors else None
    candidates = [] if anchors is None else anchor_prompts(anchors)
    own = not set(candidates) <= set(bundled)
    bundled_answers = None
    if settings.safety_tokens is None or settings.easing is not None or (candidates and not own):
        # All of it whatever is asked for, so that what is kept serves every run.
        bundled_answers = pool_of(source, tokenizer, bundled, cache=cache)
    answers = pool_of(source, tokenizer, candidates, cache=cache) if own else bundled_answers
    return bundled_answers, answers.of(candidates) if answers is not None else []


def _chosen(pool: Pool, source: Source, tokenizer: Any, top_k: int) -> SafetyTokens:
    """See `tokens_of`; errors name settings in place of its arguments."""
    try:
        return tokens_of(pool, source, tokenizer, top_k)
    except ConfigError as error:
        key = _SETTINGS.get(error.key or "", error.key)
        raise ConfigError(error.problem, key=key, value=error.value, remedy=error.remedy) from error


def load_reference(settings: PactConfig, model: nn.Module, tokenizer: Any) -> nn.Module | None:
    """The aligned model where a configuration names one; None for the model in training itself.

    Raises:
        PluginError: No plugin loads it, or more than one would.
        ReferenceModelError: It cannot be loaded, or DeepSpeed has partitioned it.
    """
    if settings.reference == "auto":
        return None
    remedy = "Use `reference: auto`, or install pact-plugin[transformers] and no other loader."
    loader = one_offered("pact_model_loaders", remedy)
    loaded: nn.Module = loader.reference(settings.reference, model, tokenizer)
    if is_partitioned(loaded):
        raise partitioned_reference(settings.reference)
    return loaded


def _own_loop(settings: PactConfig, model: nn.Module) -> RunFacts:
    return RunFacts(folder=settings.advanced.store, sharded=sharding(model))


def _anchors_alone(settings: PactConfig) -> PactConfig:
    """See `PactConfig.without_labels`; easing that is on by default goes off with a word in the log."""
    alone = settings.without_labels()
    if settings.easing is not None:
        logger.warning("PACT: preferences have no next-token labels to ease, so anchors alone are held.")
    return alone
