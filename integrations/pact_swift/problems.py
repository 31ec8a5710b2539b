"""Whether ms-swift's arguments will be constrained: decided without a model and without ms-swift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pact_transformers.errors import shared_layers, unconstrainable, weighted_loss
from pact_transformers.preflight import file_problems, fine_tuned_problems

from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError, PactError

Arguments = Mapping[str, Any]
"""ms-swift's arguments by name: of a configuration file, or as ms-swift has parsed them."""

UNEASED = "register `{'easing': False}`"
_PLAIN_SCALES = {"default", "last_round", "all", "base", "ignore_empty_think", "ignore_think_prefix"}
"""Values of `loss_scale`, joined by `+`, that leave tokens out and weight none."""
_SWIFT_TUNERS = ("longlora", "llamapro", "adapter", "reft")
"""Whose model is ms-swift's own wrapper."""
_WHOLE_TUNERS = ("full", "lora", "vera", "boft", "fourierft", "bone", "ia3")
"""Whose checkpoints the Trainer loads whole; not the ranks that AdaLoRA has left."""


def problems(arguments: Arguments, config: PactConfig) -> Iterator[PactError]:
    """Every reason, visible in the arguments, why a run would fail or would not be constrained as it says.

    Args:
        arguments: ms-swift's.
        config: What is registered.
    """
    yield from _other_losses(arguments)
    if config.eases:
        yield from _weighted_losses(arguments)
    yield from _tuners(arguments)
    yield from _ranks(arguments, config)
    yield from _checkpoints(arguments, config)
    yield from fine_tuned_problems(config, {"adapters": arguments.get("adapters")})
    yield from file_problems(config)


def different_settings() -> ConfigError:
    """That a process has two plugins of PACT."""
    problem = "two plugins register PACT with different settings"
    return ConfigError(
        problem, key="external_plugins", remedy="Name one of them. In a notebook restart the process."
    )


def _other_losses(arguments: Arguments) -> Iterator[PactError]:
    if arguments.get("rlhf_type") is not None:
        yield unconstrainable(
            "reinforcement and preference learning have no next-token loss",
            "rlhf_type",
            arguments["rlhf_type"],
            "Train with `swift sft`, or remove PACT's plugin.",
        )
    key = "num_labels" if arguments.get("task_type") is None else "task_type"
    if arguments.get(key) not in (None, "causal_lm"):  # ms-swift takes a number of labels for a classifier
        yield unconstrainable(
            "it is not trained on the next token",
            key,
            arguments[key],
            "Remove `task_type` and `num_labels`, or PACT's plugin.",
        )
    if arguments.get("predict_with_generate"):
        yield _refused("predict_with_generate", arguments, "evaluation data is left without token ids")


def _weighted_losses(arguments: Arguments) -> Iterator[PactError]:
    scales = str(arguments.get("loss_scale") or "default").split("+")
    binary = arguments.get("is_binary_loss_scale")
    weighted = {
        "loss_scale": binary is not True and not _PLAIN_SCALES.issuperset(scales),
        "is_binary_loss_scale": binary is False,
        "enable_dft_loss": arguments.get("enable_dft_loss"),
        "loss_type": arguments.get("loss_type") is not None,
        "label_smoothing_factor": arguments.get("label_smoothing_factor"),
    }
    masks = "set `is_binary_loss_scale: true` if it only masks, or "
    for key, found in weighted.items():
        if found:
            otherwise = f"{masks if key == 'loss_scale' else ''}{UNEASED}"
            yield weighted_loss(key, arguments[key], otherwise)


def _tuners(arguments: Arguments) -> Iterator[PactError]:
    if arguments.get("tuner_type") in _SWIFT_TUNERS:
        yield _refused("tuner_type", arguments, "ms-swift wraps the model for it in a way of its own")
    if arguments.get("tuner_backend") == "unsloth":
        yield _refused("tuner_backend", arguments, "it replaces the model's forward pass")


def _ranks(arguments: Arguments, config: PactConfig) -> Iterator[PactError]:
    if _number(arguments.get("sequence_parallel_size")) > 1:
        yield _refused(
            "sequence_parallel_size", arguments, "sequence parallelism splits a sequence over ranks"
        )
    if arguments.get("fsdp"):
        yield unconstrainable(
            "ms-swift loads the weights on one rank alone, and PACT asks the aligned model on every rank",
            "fsdp",
            arguments["fsdp"] if isinstance(arguments["fsdp"], str) else None,
            "Use `deepspeed: zero3` or less, or remove PACT's plugin.",
        )
    key, size = "deepspeed_autotp_size", arguments.get("deepspeed_autotp_size")
    deepspeed = arguments.get("deepspeed")
    if size is None and isinstance(deepspeed, Mapping):  # into which ms-swift writes it
        block = deepspeed.get("tensor_parallel")
        key, size = "autotp_size", block.get("autotp_size") if isinstance(block, Mapping) else None
    if config.has_anchors and _number(size) > 1:
        yield shared_layers(key, _number(size), "register `{'anchors': False}`")


def _number(value: Any) -> int:
    """Of ranks; 1 for what is no number, at which ms-swift stops itself."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 1


def _checkpoints(arguments: Arguments, config: PactConfig) -> Iterator[PactError]:
    if config.reference == "auto" and arguments.get("resume_only_model"):
        yield AdapterError(
            "training starts from the checkpoint's weights, which are not the aligned model's",
            key="resume_only_model",
            value=True,
            remedy="Remove `resume_only_model`, or register the aligned model as `reference`.",
        )
    tuner = arguments.get("tuner_type") or "lora"
    resumed = arguments.get("resume_from_checkpoint") and not arguments.get("resume_only_model")
    if resumed and tuner not in (*_WHOLE_TUNERS, *_SWIFT_TUNERS):
        yield AdapterError(
            f"`tuner_type: {tuner}` may keep more in its checkpoints than the Trainer loads",
            key="resume_from_checkpoint",
            value=arguments["resume_from_checkpoint"],
            remedy="Begin a new run, or train with `tuner_type: lora` or `full`.",
        )


def _refused(key: str, arguments: Arguments, why: str) -> AdapterError:
    return unconstrainable(why, key, arguments.get(key), f"Remove `{key}`, or PACT's plugin.")
