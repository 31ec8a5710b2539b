"""Hook specifications. A plugin is a module or object of the entry-point group `pact_plugin` that implements some.

Every hook that offers something yields *named* objects; two of one name raise. Nothing here runs in the hot path:
objects are resolved once and then called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pact_plugin.config import PactConfig
    from pact_plugin.constraint import PactConstraint
    from pact_plugin.judge.verdicts import Judge
    from pact_plugin.tokens import SafetyTokens

NAME = "pact_plugin"
hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)


@dataclass(frozen=True)
class Adapter:
    """Brings the constraint into one kind of trainer.

    Args:
        name: Of the trainer's framework.
        matches: Whether a trainer is of this kind; must not import a framework that is not loaded.
        parts: The model and the tokenizer of a trainer; raises `AdapterError` for settings that cannot be
            constrained, naming the key to change.
        attach: Puts a constraint into a trainer, which it returns.
        configure: Completes the settings by what a trainer knows, such as where its output goes; they stay as they
            are when absent.
    """

    name: str
    matches: Callable[[Any], bool]
    parts: Callable[[Any], tuple[Any, Any]]
    attach: Callable[[Any, PactConstraint], Any]
    configure: Callable[[Any, PactConfig], PactConfig] = lambda trainer, config: config


@dataclass(frozen=True)
class TokenSource:
    """A place that safety tokens come from, chosen by `safety_tokens: <name>`.

    Args:
        name: What the configuration calls it.
        load: (configuration, model, tokenizer) -> SafetyTokens.
    """

    name: str
    load: Callable[[Any, Any, Any], SafetyTokens]


@dataclass(frozen=True)
class ReferenceSource:
    """A loader of aligned models, chosen by `reference: <name>`; the one named `pretrained` loads paths and hub ids.

    Args:
        name: What the configuration calls it.
        load: (value of `reference`, model in training, tokenizer) -> the aligned model, a torch module.
    """

    name: str
    load: Callable[[str, Any, Any], Any]


@dataclass(frozen=True)
class JudgeSource:
    """A judge of answers, chosen by `--judge <name>`; the one named `guard` loads paths and hub ids of guard models.

    Args:
        name: What the command line calls it.
        load: (value of `--judge`) -> the judge; raises `JudgeError` when it cannot be loaded.
    """

    name: str
    load: Callable[[str], Judge]


class PactSpec:
    """The hooks that a plugin can implement."""

    @hookspec
    def pact_adapters(self) -> Iterable[Adapter]:  # type: ignore[empty-body]
        """Adapters for trainers."""

    @hookspec
    def pact_token_sources(self) -> Iterable[TokenSource]:  # type: ignore[empty-body]
        """Sources of safety tokens."""

    @hookspec
    def pact_references(self) -> Iterable[ReferenceSource]:  # type: ignore[empty-body]
        """Loaders of aligned models."""

    @hookspec
    def pact_judges(self) -> Iterable[JudgeSource]:  # type: ignore[empty-body]
        """Judges of answers."""

    @hookspec
    def pact_step(self, step: int, metrics: dict[str, float]) -> None:
        """Called on every rank when a trainer logs, with the `pact/*` metrics since its last log."""
