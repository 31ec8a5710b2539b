"""Hook specifications. A plugin is a module or object of the entry-point group `pact_plugin` that implements some.

Every hook that offers something yields *named* objects; two of one name raise. Nothing here runs in the hot path:
objects are resolved once and then called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pact_plugin.constraint import Constraint
    from pact_plugin.data.facts import DataFacts
    from pact_plugin.judge.verdicts import Judge
    from pact_plugin.reference.choose import RunFacts
    from pact_plugin.run.check_report import CheckReport

NAME = "pact_plugin"
hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)


def packages_of(trainer: Any) -> set[str]:
    """The packages that a trainer's classes come from; an adapter knows its own by them, and imports none."""
    return {base.__module__.split(".")[0] for base in type(trainer).__mro__}


@dataclass(frozen=True)
class TrainerParts:
    """What a trainer brings to its constraint.

    Args:
        model: The model in training.
        tokenizer: Its tokenizer.
        run: What is known of its run.
        data: What is known of its data.
        autocast: Gives the precision of its training steps; the aligned model runs in it, too.
    """

    model: Any
    tokenizer: Any
    run: RunFacts
    data: DataFacts
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Adapter:
    """Brings the constraint into one kind of trainer.

    Args:
        name: Of the trainer's framework.
        matches: Whether a trainer is of this kind; must not import a framework that is not loaded.
        parts: (trainer, folder that the configuration names for the table, or None) -> its parts; leaves the trainer as
            it is, and raises `AdapterError` for settings that cannot be constrained, naming the key to change.
        attach: Puts a constraint into a trainer, which it returns.
    """

    name: str
    matches: Callable[[Any], bool]
    parts: Callable[[Any, str | None], TrainerParts]
    attach: Callable[[Any, Constraint], Any]


@dataclass(frozen=True)
class ModelLoader:
    """Reads models, adapters and data sets by path or hub id, for the command line and for the setting `reference`.

    Args:
        name: Of the framework.
        model: (name, dtype=..., device=...) -> a causal language model in eval mode.
        reference: (value of `reference`, model in training, tokenizer) -> the aligned model, of the same device and
            precision; raises `ReferenceModelError`.
        tokenizer: name -> its tokenizer.
        check_model: Refuses what holds no model, before any is loaded.
        check_adapter: Refuses what cannot be loaded as an adapter, before any model is loaded.
        adapter: (model, adapter) -> the model with the adapter on it.
        adapter_tokenizer: adapter -> the tokenizer beside it, or None.
        prompt_rows: name of a data set -> its rows, numbered from 1.
    """

    name: str
    model: Callable[..., Any]
    reference: Callable[[str, Any, Any], Any]
    tokenizer: Callable[[str], Any]
    check_model: Callable[[str], None]
    check_adapter: Callable[[str], None]
    adapter: Callable[[Any, str], Any]
    adapter_tokenizer: Callable[[str], Any]
    prompt_rows: Callable[[str], Iterator[tuple[int, dict[str, Any]]]]


@dataclass(frozen=True)
class ConfigCheck:
    """Says of a training configuration whether its run would be constrained, before it starts.

    Args:
        name: Of the framework whose configurations it reads.
        check: file -> what was found.
        reads: Whether a file is a configuration of this framework. Without it, those that no other reads.
    """

    name: str
    check: Callable[[Path], CheckReport]
    reads: Callable[[Path], bool] | None = None


@dataclass(frozen=True)
class TrainCommand:
    """Trains by a configuration, for `pact-plugin train`.

    Args:
        name: Of the framework whose configurations it reads; that of its `ConfigCheck`.
        output: file -> folder of the run's output; raises `ConfigError` when it cannot be read.
        run: (file, launcher or None for the framework's own, arguments for the launcher) -> exit status; raises
            `AdapterError` for those that it cannot use.
    """

    name: str
    output: Callable[[Path], Path]
    run: Callable[[Path, str | None, Sequence[str]], int]


@dataclass(frozen=True)
class JudgeSource:
    """A judge of answers, chosen by `--judge <name>`; the one named `guard` loads paths and hub ids of guard models.

    Args:
        name: What the command line calls it.
        load: (value of `--judge`) -> the judge; raises `JudgeError` when it cannot be loaded.
        check: (value of `--judge`) -> None; raises `JudgeError` when it cannot be loaded, without loading it. Audits
            load such a judge when their models are done, and any other judge at once.
    """

    name: str
    load: Callable[[str], Judge]
    check: Callable[[str], None] | None = None


class PactSpec:
    """The hooks that a plugin can implement."""

    @hookspec
    def pact_adapters(self) -> Iterable[Adapter]:  # type: ignore[empty-body]
        """Adapters for trainers."""

    @hookspec
    def pact_judges(self) -> Iterable[JudgeSource]:  # type: ignore[empty-body]
        """Judges of answers."""

    @hookspec
    def pact_model_loaders(self) -> Iterable[ModelLoader]:  # type: ignore[empty-body]
        """What models are read with, by path or hub id."""

    @hookspec
    def pact_config_checks(self) -> Iterable[ConfigCheck]:  # type: ignore[empty-body]
        """Checks of training configurations, for `pact-plugin check`."""

    @hookspec
    def pact_train_commands(self) -> Iterable[TrainCommand]:  # type: ignore[empty-body]
        """Training by a configuration, for `pact-plugin train`."""
