"""Parameters that an Axolotl configuration spreads over devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pact_transformers.config_file import block_of

from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError, PactError
from pact_plugin.model.ranks import FSDP1, FSDP1_REMEDY, NO_WEIGHTS, ZERO3_HEAD, partitioned_reference


def is_zero3(cfg: Mapping[str, Any]) -> bool:
    """Whether `deepspeed` partitions the parameters.

    Raises:
        ConfigError: Its file cannot be read.
    """
    content = block_of(cfg.get("deepspeed"), "deepspeed")
    return (content.get("zero_optimization") or {}).get("stage") == 3


def sharding(cfg: Mapping[str, Any]) -> str | None:
    """The key that spreads the parameters over devices: FSDP's or DeepSpeed's.

    Raises:
        ConfigError: DeepSpeed's file cannot be read.
    """
    fsdp = next((key for key in ("fsdp", "fsdp_config") if cfg.get(key)), None)
    return fsdp or ("deepspeed" if is_zero3(cfg) else None)


def fsdp_version(cfg: Mapping[str, Any]) -> int | None:
    """Of FSDP, where a configuration names one."""
    block = cfg.get("fsdp_config")
    inner = block if isinstance(block, Mapping) else {}
    found = cfg.get("fsdp_version") or inner.get("fsdp_version") or inner.get("version")
    return int(found) if found is not None and str(found).isdigit() else None


def unreadable(cfg: Mapping[str, Any], config: PactConfig) -> Iterator[PactError]:
    """Errors where the constraint cannot have parameters that are spread over devices."""
    if any(cfg.get(key) for key in ("fsdp", "fsdp_config")) and fsdp_version(cfg) == 1:
        yield fsdp1(cfg)
    block = cfg.get("fsdp_config")
    for key in ("cpu_ram_efficient_loading", "fsdp_cpu_ram_efficient_loading"):
        if isinstance(block, Mapping) and block.get(key):
            yield AdapterError(NO_WEIGHTS, key=f"fsdp_config.{key}", value=True, remedy="Set it to `false`.")
    # A file that is not here yet is for `check` to report, and for the trainer to refuse.
    with suppress(ConfigError):
        if not is_zero3(cfg):
            return
        if config.reference != "auto":
            yield partitioned_reference(config.reference)
        if config.advanced.published is not None and not cfg.get("adapter"):
            yield AdapterError(
                ZERO3_HEAD,
                key="pact.advanced.published",
                remedy="Train an adapter, use ZeRO stage 2 or FSDP2, or leave `published` out.",
            )


def fsdp1(cfg: Mapping[str, Any]) -> AdapterError:
    """That FSDP's first version cannot be constrained."""
    return AdapterError(FSDP1, key="fsdp_version", value=fsdp_version(cfg), remedy=FSDP1_REMEDY)
