"""Whether an Axolotl configuration will be constrained: decided from the configuration, without a model or Axolotl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pact_transformers.errors import shared_layers, unconstrainable, weighted_loss

from pact_axolotl.check import sharding
from pact_axolotl.settings import PREFERENCES, plain, settings, unreadable_data
from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError, PactError


def problems(cfg: Mapping[str, Any]) -> Iterator[PactError]:
    """Every reason, visible in a configuration, why its run would fail or would not be constrained as it says.

    Nothing is yielded for a configuration that asks for no constraint.
    """
    config, wrong = valid_settings(cfg)
    yield from wrong
    if config is None:
        return
    yield from _other_losses(cfg)
    yield from _other_tokenizers(cfg)
    yield from sharding.unreadable(cfg, config)
    yield from _moving_references(cfg, config)
    yield from _eased_losses(cfg, config)
    yield from _shared_inputs(cfg, config)


def valid_settings(cfg: Mapping[str, Any]) -> tuple[PactConfig | None, list[ConfigError]]:
    """The settings under `pact` that can be used, and an error for each of the others.

    Args:
        cfg: An Axolotl configuration.

    Returns:
        The settings are None where the configuration asks for no constraint, or where `pact` is no settings at all.
    """
    wrong: list[ConfigError] = []
    block = plain(cfg.get("pact"))
    while True:
        try:
            return settings({**cfg, "pact": block} if "pact" in cfg else cfg), wrong
        except ConfigError as error:
            wrong.append(error)
            block = _without(block, error.key or "")
            if block is None:
                return None, wrong


_DIFFUSION = "a diffusion model is not trained on the next token"
_OTHER_LOSSES = {
    "rl": "of reinforcement and preference learning only `dpo` is held",
    "reward_model": "a reward model has no next-token loss",
    "process_reward_model": "a process reward model has no next-token loss",
    "diffusion": _DIFFUSION,
    "diffusion_lm": _DIFFUSION,  # in Axolotl 0.21
    "kd_trainer": "distillation trains towards another model's predictions",
    "hatchery": "the model is trained elsewhere, where no constraint is",
}
_MANY_RANKS = {
    "context_parallel_size": "context parallelism splits a sequence over ranks",
    "expert_parallel_size": "each rank holds other experts, and so another model",
    "context_parallel": "context parallelism splits a sequence over ranks",  # a block, in Axolotl 0.21
    "sequence_parallel_degree": "sequence parallelism splits a sequence over ranks",
}

_SWITCHES = ("easing", "anchors", "hold_data")

_REWEIGHTED = ("use_eaft", "use_dft", "liger_use_token_scaling")

_MISTRAL_COMMON = "tokenizer_use_mistral_common"
_NAMES_A_TOKENIZER = ("base_model", "base_model_config", "tokenizer_config")

_MIXLORA = "mixlora"
"""The adapter of Axolotl 0.21 that puts experts, and a router with a loss of its own, into the model."""


def _other_losses(cfg: Mapping[str, Any]) -> Iterator[PactError]:
    for key, why in (_OTHER_LOSSES | _MANY_RANKS).items():
        value = cfg.get(key)
        if key in _MANY_RANKS:
            size = value.get("size") if isinstance(value, Mapping) else value
            asked = isinstance(size, int) and size > 1
        else:  # an empty block asks for its defaults
            asked = value is not None and value is not False and (key, value) != ("rl", PREFERENCES)
        if asked:
            shown = value if isinstance(value, bool | int | str) else None
            yield unconstrainable(why, key, shown, f"Remove `{key}`, or set `pact: false`.")
    for plugin in cfg.get("plugins") or []:
        if str(plugin).replace(":", ".").endswith(".DiffusionPlugin"):
            yield unconstrainable(_DIFFUSION, "plugins", plugin, "Remove that plugin, or set `pact: false`.")


def _other_tokenizers(cfg: Mapping[str, Any]) -> Iterator[PactError]:
    """Axolotl takes mistral-common's for a model that is called Magistral, unless it is told not to."""
    named = [key for key in _NAMES_A_TOKENIZER if "magistral" in str(cfg.get(key, "")).lower()]
    asked = cfg.get(_MISTRAL_COMMON)
    if asked or (asked is None and named):
        key = _MISTRAL_COMMON if asked else named[0]
        yield AdapterError(
            "Axolotl loads mistral-common's tokenizer, which cannot be given a chat as text",
            key=key,
            value=cfg[key],
            remedy=f"Set `{_MISTRAL_COMMON}: false`, with a Hugging Face tokenizer of the model as `tokenizer_config`, "
            "or set `pact: false`.",
        )


def _moving_references(cfg: Mapping[str, Any], config: PactConfig) -> Iterator[PactError]:
    if config.reference != "auto":
        return
    named = f"name the aligned model: `pact: {{reference: {cfg.get('base_model')}}}`"
    if cfg.get("relora"):
        yield AdapterError(
            "ReLoRA merges what was trained into the base model, which is then no reference any more",
            key="relora",
            value=cfg["relora"],
            remedy=f"Remove `relora`, or {named}.",
        )
    if cfg.get("adapter") == _MIXLORA:
        yield AdapterError(
            "its experts stay on when the adapter is switched off, so that the model would be no reference",
            key="adapter",
            value=_MIXLORA,
            remedy=f"Use `adapter: lora`, or {named}.",
        )
    if cfg.get("fix_untrained_tokens") and config.asks_at_responses:
        yield AdapterError(
            "Axolotl writes new embeddings when the aligned model was already looked at, which is then no reference "
            "any more",
            key="fix_untrained_tokens",
            value=cfg["fix_untrained_tokens"],
            remedy=f"Remove `fix_untrained_tokens`, or {named}.",
        )
    data = unreadable_data(cfg)
    if cfg.get("lisa_n_layers") and data is not None and config.asks_at_responses:
        yield AdapterError(
            "LISA changes during training which layers are trained, so no copy of them would be kept",
            key="lisa_n_layers",
            value=cfg["lisa_n_layers"],
            remedy=f"Remove `lisa_n_layers` or `{data}`, or {named}.",
        )


def _eased_losses(cfg: Mapping[str, Any], config: PactConfig) -> Iterator[PactError]:
    if not config.eases:
        return
    for key in _REWEIGHTED:
        if cfg.get(key):
            yield weighted_loss(key, cfg[key], "set `pact: {easing: false}`")
    if cfg.get("adapter") == _MIXLORA:
        yield AdapterError(
            "it adds its routers' loss to the cross-entropy, but easing needs a plain one",
            key="adapter",
            value=_MIXLORA,
            remedy="Use `adapter: lora`, or set `pact: {easing: false}`.",
        )


def _shared_inputs(cfg: Mapping[str, Any], config: PactConfig) -> Iterator[PactError]:
    size = cfg.get("tensor_parallel_size")
    if config.has_anchors and isinstance(size, int) and size > 1:
        yield shared_layers("tensor_parallel_size", size, "set `pact: {anchors: false}`")


def _without(block: Any, key: str) -> dict[str, Any] | None:
    """A block without the setting that an error names; None where that is not to be had.

    A term that is on by itself is switched off, so that the next conflict is found.
    """
    name, _, inner = key.partition(".")
    if not isinstance(block, dict) or block.get(name) is False:
        return None
    if name not in block:
        return {**block, name: False} if name in _SWITCHES else None
    rest = {other: value for other, value in block.items() if other != name}
    kept = _without(block[name], inner)
    return {**rest, name: kept} if kept else rest
