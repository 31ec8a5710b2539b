"""Judges by name: those of this package, those that plugins offer, and guard models by path or hub id."""

from __future__ import annotations

from collections.abc import Callable

from pact_plugin.errors import JudgeError, PluginError
from pact_plugin.hooks.manager import offered
from pact_plugin.hooks.spec import JudgeSource
from pact_plugin.judge.classifier import ClassifierJudge
from pact_plugin.judge.keywords import KeywordJudge
from pact_plugin.judge.verdicts import Judge

DEFAULT = "classifier"
GUARD = "guard"
"""Name of the source that loads what no other name means: paths and hub ids of guard models."""
_OWN = (
    JudgeSource("keywords", lambda name: KeywordJudge()),
    JudgeSource("classifier", lambda name: ClassifierJudge()),
)


def _sources() -> dict[str, JudgeSource]:
    found: dict[str, JudgeSource] = dict(offered("pact_judges"))
    for source in _OWN:
        if source.name in found:
            raise PluginError(
                "a plugin offers a judge of pact-plugin's own name",
                key="name",
                value=source.name,
                remedy="Uninstall or rename it.",
            )
        found[source.name] = source
    return found


def judge_names() -> tuple[str, ...]:
    """The names of all judges, sorted; paths and hub ids of guard models come on top."""
    return tuple(sorted(name for name in _sources() if name != GUARD))


def find_judge(name: str = DEFAULT) -> Judge:
    """A judge by its name, or a guard model by its path or hub id.

    Args:
        name: One of `judge_names`, or what a guard model is loaded from.

    Raises:
        JudgeError: There is no such judge, or it cannot be loaded.
        PluginError: Two judges have one name.
    """
    return _source(name).load(name)


def prepared_judge(name: str = DEFAULT) -> Callable[[], Judge]:
    """What loads a judge later; whether it can be loaded is looked at now.

    A guard model takes memory that other models may need first. A judge whose source cannot be looked at is loaded now.

    Raises:
        JudgeError, PluginError: As for `find_judge`.
    """
    source = _source(name)
    if source.check is None:
        judge = source.load(name)
        return lambda: judge
    source.check(name)
    return lambda: source.load(name)


def _source(name: str) -> JudgeSource:
    sources = _sources()
    source = sources.get(name, sources.get(GUARD)) if name != GUARD else None
    if source is None:
        raise JudgeError(
            f"no such judge (judges: {', '.join(judge_names())})",
            key="judge",
            value=name,
            remedy="Name one of them; guard models by path or hub id need `pip install pact-plugin[transformers]`.",
        )
    return source
