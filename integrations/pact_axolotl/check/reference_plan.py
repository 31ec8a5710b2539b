"""Which reference a run would have: decided from its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pact_axolotl.check.sharding import sharding
from pact_axolotl.settings import output_of, unreadable_data
from pact_plugin.config import PactConfig
from pact_plugin.errors import PactError, ReferenceModelError
from pact_plugin.reference.choose import STORE, Choice, RunFacts, choose

_NOT_AT_ZERO = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class ReferencePlan:
    """Where the aligned model's predictions would come from.

    Args:
        kind: `table`, `adapter_off`, `copy`, `model` or `start` (see `Choice.name`).
        source: What computes them: `itself`, `adapter_off`, `copy` or `model`.
        why: One clause, for the eye.
        table: Folder of the table that they would be written to, or None.
    """

    kind: str
    source: str
    why: str
    table: str | None = None


def planned(cfg: Mapping[str, Any], config: PactConfig) -> ReferencePlan:
    """The reference that a run would build.

    Raises:
        ConfigError: DeepSpeed's file cannot be read.
        ReferenceModelError: It would be a copy of parameters that are sharded.
    """
    state, start = _adapter(cfg)
    key = unreadable_data(cfg)
    run = RunFacts(
        folder=config.advanced.store or str(output_of(cfg) / STORE),
        obstacle=None if key is None else f"`{key}` data cannot be read before training",
        sharded=sharding(cfg),
    )
    try:
        choice = choose(
            named=config.reference != "auto", adapter=state, run=run, asked=config.asks_at_responses
        )
    except ReferenceModelError as error:
        named = f"Write `pact: {{reference: {cfg.get('base_model')}}}`"
        other = "Use ZeRO stage 2" if run.sharded == "deepspeed" else named
        raise ReferenceModelError(
            error.problem, key=error.key, remedy=f"{other}, or remove `{key}`."
        ) from error
    copied = (
        f"a copy of the adapter {start}" if cfg.get("adapter") else "a copy of the parameters in training"
    )
    of = {
        "itself": "the model as it starts",
        "adapter_off": "the model with its adapter switched off",
        "copy": copied,
        "model": f"{config.reference} (loaded beside the model in training)",
    }[choice.source]
    return ReferencePlan(choice.name, choice.source, _why(choice, of, run.obstacle), choice.table)


def _adapter(cfg: Mapping[str, Any]) -> tuple[Literal["none", "new", "trained"], str | None]:
    """The state that an adapter starts in; of one that is trained already, how that is known."""
    if not cfg.get("adapter"):
        return "none", None
    if cfg.get("lora_model_dir"):
        return "trained", "in `lora_model_dir` (which is trained further)"
    start = cfg.get("peft_init_lora_weights")
    if start is False or str(start).startswith(_NOT_AT_ZERO):
        return "trained", f"of `peft_init_lora_weights: {start or 'false'}` (which does not start at zero)"
    return "new", None


def _why(choice: Choice, of: str, obstacle: str | None) -> str:
    if not choice.asked:
        return f"{of}, asked for the anchors alone"
    if choice.table is not None:
        return f"the predictions of {of}, written to {choice.table} before the first step"
    return f"{of}, run in each step" + ("" if obstacle is None else f", as {obstacle}")


def impossible(config: PactConfig) -> Iterator[PactError]:
    """References that cannot exist."""
    name = config.reference
    if name == "auto" or Path(name).is_dir():
        return
    if get_close_matches(name, ["auto"], n=1, cutoff=0.75):
        yield ReferenceModelError(
            "neither `auto` nor a folder", key="reference", value=name, remedy="Did you mean `auto`?"
        )
