"""Whether a LLaMA-Factory configuration will be constrained: decided without a model and without LLaMA-Factory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pact_transformers.config_file import block_of
from pact_transformers.errors import missing_folder, unconstrainable, weighted_loss
from pact_transformers.preflight import file_problems, fine_tuned_problems, is_missing_folder

from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError, PactError
from pact_plugin.model.ranks import FSDP1, NO_WEIGHTS

Arguments = Mapping[str, Any]
"""LLaMA-Factory's arguments by name, as its configuration file gives them."""

_STAGES = {
    "dpo": "DPO compares answers and has no next-token loss",
    "kto": "KTO compares answers and has no next-token loss",
    "ppo": "PPO rewards answers and has no next-token loss",
    "rm": "a reward model has no next-token loss",
}
_REFUSED = {
    "use_asft_loss": "ASFT adds a divergence of its own to the loss",
    "use_mca": "Megatron has trainers of its own",
    "use_megatron_bridge": "Megatron has trainers of its own",
    "use_hyper_parallel": "HyperParallel has a trainer of its own",
    "use_kt": "KTransformers replaces the model's forward pass",
    "use_unsloth": "Unsloth replaces the model's forward pass",
    "predict_with_generate": "evaluation data is left without its answers",
    "mixture_of_depths": "it converts the model into another than the aligned one",
    "use_llama_pro": "it trains blocks that the aligned model does not have",
    "train_from_scratch": "training starts from random weights, not from the aligned model",
}
_VARIABLES = {
    "USE_MCA": "Megatron has trainers of its own",
    "USE_MEGATRON_BRIDGE": "Megatron has trainers of its own",
    "USE_RAY": "Ray starts workers that PACT is not brought into",
    "USE_V1": "LLaMA-Factory's v1 has trainers of its own",
}
"""Of the environment, which alone decides: LLaMA-Factory has no argument `use_ray`."""
_ON = ("true", "yes", "on", "t", "y", "1")
_WEIGHTED = ("use_dft_loss", "use_eaft_loss", "label_smoothing_factor")


def problems(arguments: Arguments, config: PactConfig) -> Iterator[PactError]:
    """Every reason, visible in the arguments, why a run would fail or would not be constrained as it says.

    Args:
        arguments: LLaMA-Factory's.
        config: The settings under `pact`.
    """
    stage = arguments.get("stage", "sft")
    if stage in _STAGES:
        yield _refused("stage", arguments, _STAGES[stage])
    elif stage not in ("sft", "pt"):
        remedy = "Write `stage: sft` or `pt`."
        yield ConfigError("LLaMA-Factory has no such stage", key="stage", value=stage, remedy=remedy)
    for key, why in _REFUSED.items():
        if arguments.get(key):
            yield _refused(key, arguments, why)
    for key in _WEIGHTED:
        if config.eases and arguments.get(key):
            yield weighted_loss(key, arguments[key], "set `pact: {easing: false}`")
    holds = {"hold_data": config.hold_data, "advanced.published": config.advanced.published}
    held = next((key for key, value in holds.items() if value is not None), None)
    if held is not None and stage == "sft" and arguments.get("packing") and not arguments.get("neat_packing"):
        yield AdapterError(
            "packed conversations see each other, but the aligned model reads each by itself",
            key="packing",
            value=True,
            remedy=f"Set `neat_packing: true`, or leave `{held}` out.",
        )
    if config.asks_at_responses and stage == "sft" and not arguments.get("ignore_pad_token_for_loss", True):
        yield AdapterError(
            "padding counts as part of the answers, but the aligned model reads each without it",
            key="ignore_pad_token_for_loss",
            value=False,
            remedy=f"Remove `ignore_pad_token_for_loss`{_anchors_alone(config)}.",
        )
    yield from _fsdp(arguments)
    yield from _adapters(arguments)
    yield from fine_tuned_problems(config, {"adapter_name_or_path": arguments.get("adapter_name_or_path")})
    yield from file_problems(config)


def _anchors_alone(config: PactConfig) -> str:
    """How to look at no answer, behind an "or"; the published objective cannot, which goes without anchors."""
    off = ", ".join(f"{key}: false" for key in ("easing", "hold_data") if getattr(config, key) is not None)
    return f", or hold anchors alone: `pact: {{{off}}}`" if off else ""


def environment_problems() -> Iterator[AdapterError]:
    """The same of the environment's variables, by which LLaMA-Factory chooses other trainers or workers."""
    for name, why in _VARIABLES.items():
        if os.environ.get(name, "").lower() in _ON:
            yield unconstrainable(why, name, os.environ[name], f"Unset the environment variable {name}.")


def _fsdp(arguments: Arguments) -> Iterator[PactError]:
    """FSDP's first version, which transformers takes where none is named, and ranks without weights."""
    if not arguments.get("fsdp"):
        return
    try:
        block = block_of(arguments.get("fsdp_config"), "fsdp_config")
    except ConfigError as error:
        yield error
        return
    named = {key.removeprefix("fsdp_"): value for key, value in block.items()}
    if str(named.get("version", 1)) != "2":
        remedy = "Write `fsdp_config: {version: 2}`."
        yield AdapterError(FSDP1, key="fsdp", value=arguments["fsdp"], remedy=remedy)
    if str(named.get("cpu_ram_efficient_loading")).lower() in _ON:
        key = "fsdp_config.cpu_ram_efficient_loading"
        yield AdapterError(NO_WEIGHTS, key=key, value=True, remedy="Set it to `false`.")


def _adapters(arguments: Arguments) -> Iterator[PactError]:
    """Adapters to start from that are not there, or that LLaMA-Factory does not take."""
    key = "adapter_name_or_path"
    named, kind = arguments.get(key), arguments.get("finetuning_type", "lora")
    if named is None:
        return
    if kind != "lora":
        yield ConfigError(
            f"LLaMA-Factory stops at an adapter with `finetuning_type: {kind}`",
            key=key,
            value=named,
            remedy="Train with `finetuning_type: lora`, or merge the adapter first: `llamafactory-cli export`.",
        )
    for name in (part.strip() for part in str(named).split(",")):
        file = Path(name, arguments.get("adapter_folder") or "", "adapter_config.json")
        if is_missing_folder(name):
            yield missing_folder(key, name)
        elif Path(name).is_dir() and not file.is_file():
            remedy = "Name a folder with an `adapter_config.json`, such as a checkpoint."
            yield ConfigError("the folder holds no adapter", key=key, value=name, remedy=remedy)


def _refused(key: str, arguments: Arguments, why: str) -> AdapterError:
    remedy = f"Remove `{key}`, or train without PACT, by `llamafactory-cli`."
    return unconstrainable(why, key, arguments.get(key), remedy)
