"""The methods that are compared, one idea in each file; written from formulas, never from the authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.field.methods.base import Method
from benchmarks.field.methods.pact import PACT
from benchmarks.field.methods.plain import PLAIN
from benchmarks.field.methods.replay import REPLAY
from benchmarks.field.methods.replay_kl import REPLAY_KL
from benchmarks.field.methods.safegrad import SAFEGRAD
from benchmarks.field.methods.sbr import SBR_METHODS
from benchmarks.field.methods.treatment import TITLES, TREATMENTS
from pact_plugin.errors import ConfigError

METHODS: dict[str, Method] = {**PLAIN, **REPLAY, **REPLAY_KL, **PACT, **SBR_METHODS, **SAFEGRAD}
TREATED = ("plain", "replay", "replay-kl", "anchors")
"""Methods that `all` also runs with each treatment."""


def all_names() -> list[str]:
    """Every method, with the treatments that it is compared with."""
    found = []
    for name in METHODS:
        found += [name, *(f"{name}+{one}" for one in TREATMENTS[1:] if name in TREATED)]
    return found


def method_of(name: str, others: Mapping[str, Method] | None = None) -> Method:
    """The method of a name, `METHOD` or `METHOD+TREATMENT`.

    Args:
        name: The name.
        others: Methods beside those of this package.

    Raises:
        ConfigError: There is none.
    """
    methods = METHODS | dict(others or {})
    base, _, treatment = name.partition("+")
    if base not in methods or (treatment or "none") not in TREATMENTS:
        remedy = f"Methods: {', '.join(methods)}; each alone or with +{', +'.join(TREATMENTS[1:])}."
        raise ConfigError("no such method", key="method", value=name, remedy=remedy)
    method = methods[base]
    if not treatment:
        return method
    return replace(method, title=method.title + TITLES[treatment], treatment=treatment)
