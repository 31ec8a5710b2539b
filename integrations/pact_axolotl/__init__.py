"""PACT for Axolotl: `plugins: [pact_axolotl.PactPlugin]` and `pact: true` in a configuration.

Axolotl trains on, without a plugin, when importing it raises `ImportError`. So importing this package imports nothing;
what can be missing is imported in the hooks, whose errors stop Axolotl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact_axolotl.plugin import PactPlugin as PactPlugin

__all__ = ["PactPlugin"]


def __getattr__(name: str) -> Any:
    if name == "PactPlugin":
        from pact_axolotl.plugin import PactPlugin

        return PactPlugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
