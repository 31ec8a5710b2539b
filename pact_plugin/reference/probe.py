"""A linear probe: whether the aligned model sees a harmful request, from its state at the end of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pact_plugin.errors import ConfigError
from pact_plugin.model.linear import LinearFunction

MINIMUM = 16
"""Fewest prompts of each kind that a probe is fitted to."""
STRENGTH = 1e-4
"""Inverse of the ridge penalty, on standardised states: there are more dimensions than prompts."""
FOLDS = 5
"""Parts of the pool; each is scored by a probe that has not seen it, to set the scale."""
_EXACT = 1e-8
"""Largest gradient at which a fit ends: scores of different folds are compared with each other."""
_ROUNDING = 1e-5
"""States whose spread is at most this share of their largest entry count as equal: the rest is rounding."""


@dataclass(frozen=True)
class Probe:
    """How the aligned model tells harmful prompts from benign ones.

    Args:
        log_odds: That a prompt is harmful, in nats, of the final hidden state that predicts its answer.
        auc: Area under the ROC curve over the pool, each prompt scored by a probe that had not seen it.
        endings: The last tokens before the places that it was fitted at.
    """

    log_odds: LinearFunction
    auc: float
    endings: tuple[tuple[int, ...], ...] = ()


def fit_probe(
    hidden: Float[Tensor, "E N d"], harmful: Sequence[bool], endings: tuple[tuple[int, ...], ...] = ()
) -> Probe:
    """Fit one probe to the states at the E ends of prompts whose kinds are known.

    A ridge-penalised logistic regression gives the direction; a second, of one dimension, sets its scale and offset by
    the scores of prompts that were left out (Platt 1999), so that the log odds mean what they say on other prompts.

    Args:
        hidden: Final hidden states at the ends of the prompts, which have E places where an answer may begin.
        harmful: Whether each of the N prompts is harmful.
        endings: The last tokens before each of the E places.

    Raises:
        ConfigError: There are fewer than `MINIMUM` prompts of a kind, or the states do not differ.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = np.asarray(harmful, dtype=bool)
    fewest = min(int(kinds.sum()), int((~kinds).sum()))
    if fewest < MINIMUM:
        raise ConfigError(
            f"{fewest} prompts of one kind cannot tell harmful prompts from benign ones",
            key="easing",
            remedy="Set `easing: false`.",
        )
    states = hidden.flatten(0, 1).float().cpu().double().numpy()
    if states.std(0).max() <= _ROUNDING * np.abs(states).max():
        raise ConfigError(
            "the aligned model's states at the ends of all prompts are the same",
            key="easing",
            remedy="Check that the tokenizer and its chat template are the model's own, or set `easing: false`.",
        )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=STRENGTH, class_weight="balanced", tol=_EXACT, max_iter=1000)
    )
    # A prompt is left out at all of its places.
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(kinds, kinds)
    places = len(kinds) * np.arange(len(hidden))[:, None]
    splits = [tuple((places + part).ravel() for part in split) for split in folds]
    kinds = np.tile(kinds, len(hidden))
    scores = cross_val_predict(model, states, kinds, cv=splits, method="decision_function")
    size = float(scores.std()) or 1.0  # scores are small, and so would be what tells the fit that it is done
    scale = LogisticRegression(C=1e6, tol=_EXACT).fit(scores[:, None] / size, kinds)
    model.fit(states, kinds)
    spread, direction = model[0], model[1]
    slope = float(scale.coef_[0, 0]) / size
    weights = slope * direction.coef_[0] / spread.scale_
    bias = slope * float(direction.intercept_[0]) + float(scale.intercept_[0]) - float(weights @ spread.mean_)
    fit = LinearFunction(torch.from_numpy(_rounded(weights)).float(), float(_rounded(np.asarray(bias))))
    return Probe(fit, float(roc_auc_score(kinds, scores)), endings)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To 16 bits each: processors of several kinds fit alike to 30 or so, and a resumed run needs the same fit."""
    mantissas, exponents = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissas, 16)), exponents - 16)
