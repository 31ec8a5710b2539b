"""PACT for TRL: `pact.attach(SFTTrainer(...), config)` or `PactSFTTrainer(..., pact=config)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pact_trl.trainer import PactSFTTrainer as PactSFTTrainer

__all__ = ["PactSFTTrainer"]


def __getattr__(name: str) -> Any:
    if name == "PactSFTTrainer":
        from pact_trl.trainer import PactSFTTrainer

        return PactSFTTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
