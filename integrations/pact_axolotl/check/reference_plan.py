"""Which reference a run would have, and what memory it needs: decided from the configurations of run and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pact_axolotl.check import loading, memory
from pact_plugin.config import PactConfig
from pact_plugin.errors import PactError, ReferenceModelError
from pact_plugin.hooks.manager import offered
from pact_plugin.reference.choose import Choice, Data, choose

_NOT_AT_ZERO = ("pissa", "olora", "corda", "loftq")
_UNREADABLE = ("streaming", "pretraining_dataset", "processor_type")
"""Keys of data that has no length, or holds more than token ids."""


@dataclass(frozen=True)
class ReferencePlan:
    """Where the aligned model's predictions would come from.

    Args:
        kind: `table`, `adapter_off`, `copy`, `model` or `start` (see `Choice.name`).
        source: What computes them: `itself`, `adapter_off`, `copy` or `model`.
        why: One clause, for the eye.
        bytes: Estimate of its memory; None where it is not known.
        model_bytes: Estimate of the weights of the model in training, or None.
        device: Where it would lie, with the memory that is free there, or None.
    """

    kind: str
    source: str
    why: str
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
    choice = choose(
        named=config.reference != "auto",
        adapter=_adapter(cfg),
        data=_data(cfg, config),
        asked=config.asks_at_responses,
    )
    nothing = choice.source in ("itself", "adapter_off")
    return ReferencePlan(choice.name, choice.source, _why(choice, config, cfg), bytes=0 if nothing else None)


def _adapter(cfg: Mapping[str, Any]) -> Literal["none", "new", "trained"]:
    if not cfg.get("adapter"):
        return "none"
    start = cfg.get("peft_init_lora_weights")
    trained = cfg.get("lora_model_dir") or start is False or str(start).startswith(_NOT_AT_ZERO)
    return "trained" if trained else "new"


def _data(cfg: Mapping[str, Any], config: PactConfig) -> Data:
    unreadable = next((key for key in _UNREADABLE if cfg.get(key)), None)
    return Data(
        folder=config.advanced.store
        or str(Path(str(cfg.get("output_dir") or "./model-out")) / "_pact_store"),
        obstacle=None if unreadable is None else f"`{unreadable}` data cannot be read before training",
        sharded=sharding(cfg),
    )


def _why(choice: Choice, config: PactConfig, cfg: Mapping[str, Any]) -> str:
    of = {
        "itself": "the model",
        "adapter_off": "the model with its adapter switched off",
        "copy": "a copy of the adapter" if cfg.get("adapter") else "a copy of the parameters in training",
        "model": f"{config.reference}, loaded beside the model in training",
    }[choice.source]
    if not choice.asked:
        return f"{of}, asked once, for the anchors"
    if choice.table is not None:
        return f"the predictions of {of}, written to {choice.table} before the first step"
    return f"{of}, run in each step"


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
    if plan.source in ("itself", "adapter_off") or (plan.source == "copy" and cfg.get("adapter")):
        return plan
    unit = memory.bytes_per_parameter(cfg)
    key = "base_model_config" if cfg.get("base_model_config") else "base_model"
    model = _size(key, cfg.get(key), cfg)
    count = model.trained
    if plan.source == "model":
        count = _size("pact.reference", _named(cfg), {}).parameters
    return replace(
        plan,
        bytes=int(count * unit),
        model_bytes=int(model.parameters * memory.base_bytes_per_parameter(cfg)),
        device=device or memory.device(),
    )


def _named(cfg: Mapping[str, Any]) -> Any:
    block = cfg.get("pact")
    return block.get("reference") if isinstance(block, Mapping) else None


def _size(key: str, name: Any, cfg: Mapping[str, Any]) -> memory.Size:
    config = loading.model_config(key, name, cfg)
    trust = cfg.get("trust_remote_code") is True
    try:
        return memory.size(config, cfg.get("unfrozen_parameters"), trust_remote_code=trust)
    except (ValueError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise loading.NotAvailableError(f"`{key}: {name}` could not be sized ({reason})") from error


def impossible(cfg: Mapping[str, Any], config: PactConfig) -> Iterator[PactError]:
    """References that cannot exist."""
    name = config.reference
    if name == "auto" or name in offered("pact_references") or Path(name).is_dir():
        return
    if get_close_matches(name, ["auto"], n=1, cutoff=0.75):
        yield ReferenceModelError(
            "neither `auto` nor a folder", key="reference", value=name, remedy="Did you mean `auto`?"
        )


def too_large(plan: ReferencePlan) -> Iterator[PactError]:
    """An error where the reference does not fit beside the model."""
    if plan.fits or plan.bytes is None or plan.model_bytes is None or plan.device is None:
        return
    yield ReferenceModelError(
        f"it needs about {memory.readable(plan.bytes)} beside the {memory.readable(plan.model_bytes)} of the model's "
        f"weights, and {plan.device.name} has {memory.readable(plan.device.free)} free (gradients, optimiser and "
        "activations not counted)",
        key="reference",
        value=plan.source,
        remedy="Use `reference: auto` with text data of known length, which needs no memory, or a device with more.",
    )


def sharding(cfg: Mapping[str, Any]) -> str | None:
    """The key that shards the parameters over devices: FSDP's."""
    return next((key for key in ("fsdp", "fsdp_config") if cfg.get(key)), None)
