"""Which reference a run would have, and what memory it needs: decided from the configurations of run and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pact_axolotl.check import loading, memory
from pact_axolotl.check.data import unreadable
from pact_axolotl.check.sharding import sharding
from pact_axolotl.settings import output_of
from pact_plugin.config import PactConfig
from pact_plugin.errors import PactError, ReferenceModelError
from pact_plugin.hooks.manager import offered
from pact_plugin.reference.choose import Choice, DataFacts, choose

_NOT_AT_ZERO = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class ReferencePlan:
    """Where the aligned model's predictions would come from.

    Args:
        kind: `table`, `adapter_off`, `copy`, `model` or `start` (see `Choice.name`).
        source: What computes them: `itself`, `adapter_off`, `copy` or `model`.
        why: One clause, for the eye.
        table: Folder of the table that they would be written to, or None.
        bytes: Estimate of its memory; None where it is not known.
        model_bytes: Estimate of the weights of the model in training, or None.
        device: Where it would lie, with the memory that is free there, or None.
    """

    kind: str
    source: str
    why: str
    table: str | None = None
    bytes: int | None = None
    model_bytes: int | None = None
    device: memory.Device | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits beside the model's weights; true where nothing is known."""
        if self.bytes is None or self.model_bytes is None or self.device is None:
            return True
        return self.bytes + self.model_bytes <= self.device.free


def planned(cfg: Mapping[str, Any], config: PactConfig) -> ReferencePlan:
    """The reference that a run would build, without its memory.

    Raises:
        ReferenceModelError: It would be a copy of parameters that are sharded.
    """
    state, start = _adapter(cfg)
    key = unreadable(cfg)
    data = DataFacts(
        folder=config.advanced.store or str(output_of(cfg) / "_pact_store"),
        obstacle=None if key is None else f"`{key}` data cannot be read before training",
        sharded=sharding(cfg),
    )
    try:
        choice = choose(
            named=config.reference != "auto", adapter=state, data=data, asked=config.asks_at_responses
        )
    except ReferenceModelError as error:
        raise ReferenceModelError(
            error.problem,
            key=error.key,
            remedy=f"Write `pact: {{reference: {cfg.get('base_model')}}}`, or remove `{key}`.",
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
    free = choice.source in ("itself", "adapter_off")
    return ReferencePlan(
        choice.name, choice.source, _why(choice, of, data.obstacle), choice.table, bytes=0 if free else None
    )


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


def measured(
    plan: ReferencePlan, cfg: Mapping[str, Any], device: memory.Device | None = None
) -> ReferencePlan:
    """The plan with its memory, as far as that can be estimated.

    Args:
        plan: The reference.
        cfg: An Axolotl configuration.
        device: Where the run trains; this process's when absent.

    Raises:
        ConfigError: A model is not there.
        NotAvailableError: A model's configuration cannot be loaded here, or has no causal language model.
    """
    if plan.bytes == 0 or (plan.source == "copy" and cfg.get("adapter")):
        return plan
    unit = memory.bytes_per_parameter(cfg)
    key = "base_model_config" if cfg.get("base_model_config") else "base_model"
    model = _size(key, cfg.get(key), cfg)
    count = model.trained
    if plan.source == "model":
        count = _size("pact.reference", cfg["pact"]["reference"], {}).parameters
    return replace(
        plan,
        bytes=int(count * unit),
        model_bytes=int(model.parameters * memory.base_bytes_per_parameter(cfg)),
        device=device or memory.device(),
    )


def _size(key: str, name: Any, cfg: Mapping[str, Any]) -> memory.Size:
    config = loading.model_config(key, name, cfg)
    trust = cfg.get("trust_remote_code") is True
    try:
        return memory.size(config, cfg.get("unfrozen_parameters"), trust_remote_code=trust)
    except (ValueError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise loading.NotAvailableError(f"`{key}: {name}` could not be sized ({reason})") from error


def impossible(config: PactConfig) -> Iterator[PactError]:
    """References that cannot exist."""
    name = config.reference
    if name == "auto" or name in offered("pact_references") or Path(name).is_dir():
        return
    if get_close_matches(name, ["auto"], n=1, cutoff=0.75):
        yield ReferenceModelError(
            "neither `auto` nor a folder", key="reference", value=name, remedy="Did you mean `auto`?"
        )


def too_large(plan: ReferencePlan, config: PactConfig) -> Iterator[PactError]:
    """An error where the reference does not fit beside the model."""
    if plan.fits or plan.bytes is None or plan.model_bytes is None or plan.device is None:
        return
    remedy = "Use data that can be read before training, or a device with more."
    if plan.source == "model":
        remedy = "Write `reference: auto` if training starts from that model, or use a device with more."
    yield ReferenceModelError(
        f"{plan.why}: it needs about {memory.readable(plan.bytes)} beside the {memory.readable(plan.model_bytes)} of "
        f"the model's weights, and {plan.device.name} has {memory.readable(plan.device.free)} free (gradients, "
        "optimiser and activations not counted)",
        key="reference",
        value=config.reference,
        remedy=remedy,
    )
