"""PACT: keep an aligned model's refusals while it is fine-tuned.

Names are loaded on first use, so that `import pact_plugin` imports no array framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact_plugin.assemble import PactConstraint as PactConstraint
    from pact_plugin.assemble import attach as attach
    from pact_plugin.config import PactConfig as PactConfig
    from pact_plugin.errors import PactError as PactError
    from pact_plugin.math.confidence import confidence_divergence as confidence_divergence
    from pact_plugin.math.direction import safety_direction as safety_direction
    from pact_plugin.math.published import published_divergence as published_divergence
    from pact_plugin.terms.step import Step as Step
    from pact_plugin.tokens.safety_tokens import SafetyTokens as SafetyTokens

__version__ = "0.2.0"

_HOME = {
    "PactConfig": "config",
    "PactConstraint": "assemble",
    "PactError": "errors",
    "SafetyTokens": "tokens.safety_tokens",
    "Step": "terms.step",
    "attach": "assemble",
    "confidence_divergence": "math.confidence",
    "published_divergence": "math.published",
    "safety_direction": "math.direction",
}

__all__ = [
    "PactConfig",
    "PactConstraint",
    "PactError",
    "SafetyTokens",
    "Step",
    "attach",
    "confidence_divergence",
    "published_divergence",
    "safety_direction",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
