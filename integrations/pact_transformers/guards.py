"""Guard models by path or hub id, as judges."""

from __future__ import annotations

from pact_plugin.errors import ConfigError, JudgeError
from pact_plugin.judge.guard_formats import guard_of
from pact_plugin.judge.guards import GuardJudge


def load_guard(name: str) -> GuardJudge:
    """Load a guard model and its tokenizer; the name tells its format.

    Args:
        name: A folder or a hub id, such as meta-llama/Llama-Guard-3-8B.

    Raises:
        JudgeError: Its format is not known, or it cannot be loaded.
    """
    guard = guard_of(name)
    from pact_transformers.loading import load_causal_lm, load_tokenizer

    try:
        tokenizer = load_tokenizer(name)
        model = load_causal_lm(name)
    except ConfigError as error:
        raise JudgeError(
            f"the guard model {error.problem}", key="judge", value=name, remedy=error.remedy
        ) from error
    return GuardJudge(guard, model, tokenizer, name=name)
