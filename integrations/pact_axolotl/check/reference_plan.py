"""Which reference a run would have, and what memory it needs: decided from the configurations of run and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pact_axolotl.check import loading, memory
from pact_plugin.config import OWN_REFERENCES, PactConfig
from pact_plugin.errors import PactError, ReferenceModelError
from pact_plugin.hooks.manager import offered

_NOT_AT_ZERO = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class ReferencePlan:
    """Where the aligned model's predictions would come from.

    Args:
        kind: `stored`, `adapter_off`, `frozen_copy` or `frozen_model`.
        of: What is copied (`adapter` or `parameters`), the model that is loaded, or the folder of the store; None for
            `adapter_off`.
        why: One clause, for the eye.
        bytes: Estimate of its memory; None where it is not known.
        model_bytes: Estimate of the weights of the model in training, or None.
        device: Where it would lie, with the memory that is free there, or None.
    """

    kind: str
    of: str | None
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
    """The reference that a run would build, without its memory."""
    adapter, named = cfg.get("adapter"), config.reference
    if named not in OWN_REFERENCES:
        return ReferencePlan(
            "frozen_model", named, "the model that `reference` names, loaded beside the other"
        )
    stored = _stored(cfg, config)
    if stored is not None:
        return stored
    if named == "adapter_off":
        return ReferencePlan(named, None, "the model with its adapter switched off", bytes=0)
    if not adapter:
        return ReferencePlan("frozen_copy", "parameters", "a copy of the parameters in training")
    if named == "frozen_copy":
        return ReferencePlan(named, "adapter", "a copy of the adapter")
    if cfg.get("lora_model_dir"):
        why = "a copy of the adapter in `lora_model_dir`, which is trained further"
        return ReferencePlan("frozen_copy", "adapter", why)
    start = cfg.get("peft_init_lora_weights")
    if start is False or str(start).startswith(_NOT_AT_ZERO):
        why = f"a copy of the adapter, which does not start at zero (`peft_init_lora_weights: {start}`)"
        return ReferencePlan("frozen_copy", "adapter", why)
    return ReferencePlan("adapter_off", None, "the model with its adapter switched off", bytes=0)


def not_storable(cfg: Mapping[str, Any]) -> str | None:
    """The key for which nothing can be stored: the data has no length, or holds more than token ids."""
    return next((key for key in ("streaming", "pretraining_dataset", "processor_type") if cfg.get(key)), None)


def _stored(cfg: Mapping[str, Any], config: PactConfig) -> ReferencePlan | None:
    """The plan to store the predictions, where the run would."""
    epochs = cfg.get("num_epochs")
    several = isinstance(epochs, int | float) and epochs > 1 and not cfg.get("max_steps")
    asked = config.reference == "stored" or config.store is not None
    if config.reference not in ("auto", "stored") or not_storable(cfg) is not None:
        return None
    if not (asked or several or not cfg.get("adapter")):
        return None
    folder = config.store or str(Path(str(cfg.get("output_dir") or "./model-out")) / "_pact_store")
    return ReferencePlan(
        "stored", folder, f"the model's predictions, written to {folder} before it trains", bytes=0
    )


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
    if plan.kind in ("adapter_off", "stored") or plan.of == "adapter":
        return plan
    unit = memory.bytes_per_parameter(cfg)
    key = "base_model_config" if cfg.get("base_model_config") else "base_model"
    model = _size(key, cfg.get(key), cfg)
    count = model.trained
    if plan.kind == "frozen_model":
        count = _size("pact.reference", plan.of, {}).parameters
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


def impossible(cfg: Mapping[str, Any], config: PactConfig) -> Iterator[PactError]:
    """References that cannot exist."""
    name = config.reference
    if name == "adapter_off" and not cfg.get("adapter"):
        yield ReferenceModelError(
            "the model has no adapter to switch off",
            key="reference",
            value=name,
            remedy="Use `reference: auto`, or train with `adapter: lora`.",
        )
    if name in OWN_REFERENCES or name in offered("pact_references") or Path(name).is_dir():
        return
    near = get_close_matches(name, OWN_REFERENCES, n=1, cutoff=0.75)
    if near:
        yield ReferenceModelError(
            "neither a kind of reference nor a folder",
            key="reference",
            value=name,
            remedy=f"Did you mean `{near[0]}`?",
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
        value=plan.kind if plan.kind == "frozen_copy" else plan.of,
        remedy="Set `reference: stored`, which needs no memory, or use a device with more.",
    )


def copy_of_shards(plan: ReferencePlan, cfg: Mapping[str, Any]) -> Iterator[PactError]:
    """An error where the reference is a copy of parameters that are sharded: it would be compared with itself."""
    key = sharding(cfg)
    if key is not None and plan.kind == "frozen_copy":
        obstacle = not_storable(cfg)
        own = f"remove `{obstacle}`" if obstacle else "`pact: {reference: stored}`"
        yield ReferenceModelError(
            f"it is {plan.why}, which cannot serve as the reference where `{key}` shards the parameters",
            key="reference",
            remedy=f"Write `pact: {{reference: {cfg.get('base_model')}}}`, or {own}.",
        )


def sharding(cfg: Mapping[str, Any]) -> str | None:
    """The key that shards the parameters over devices: FSDP's."""
    return next((key for key in ("fsdp", "fsdp_config") if cfg.get(key)), None)
