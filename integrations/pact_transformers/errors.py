"""What several integrations find wrong, each in its own keys."""

from __future__ import annotations

from typing import Any

from pact_plugin.errors import AdapterError, ConfigError, ReferenceModelError


def unconstrainable(why: str, key: str, value: Any, remedy: str) -> AdapterError:
    """That a run cannot be constrained, and why."""
    return AdapterError(f"{why}, so it cannot be constrained", key=key, value=value, remedy=remedy)


def weighted_loss(key: str, value: Any, uneased: str) -> AdapterError:
    """That the cross-entropy is not a plain one.

    Args:
        key: What weights it.
        value: Its value.
        uneased: How to do without easing, behind an "or".
    """
    return AdapterError(
        "it weights the tokens of the cross-entropy, but easing needs a plain one",
        key=key,
        value=value,
        remedy=f"Remove `{key}`, or {uneased}.",
    )


def shared_layers(key: str, size: int, unanchored: str) -> AdapterError:
    """That ranks have their inputs in common.

    Args:
        key: What has them share a layer.
        size: Ranks that do.
        unanchored: How to do without anchors, behind an "or".
    """
    return AdapterError(
        "ranks that share a layer would read different anchors",
        key=key,
        value=size,
        remedy=f"Remove `{key}`, or {unanchored}.",
    )


def other_tokenizer(reference: str) -> ReferenceModelError:
    """That the reference is not the model that training starts from."""
    return ReferenceModelError(
        "the aligned model has another tokenizer than the model in training",
        key="reference",
        value=reference,
        remedy="Use the aligned model that training starts from.",
    )


def unnamed_model(key: str, value: Any) -> ConfigError:
    """That a configuration names no model."""
    return ConfigError("no model is named", key=key, value=value, remedy="Name the aligned model.")


def missing_folder(key: str, name: str) -> ConfigError:
    """That a model's folder is not there."""
    return ConfigError("there is no such folder", key=key, value=name, remedy=f"Correct the path in `{key}`.")


def switched_off() -> ConfigError:
    """What `pact: false` means."""
    return ConfigError(
        "it is off, so this run is not constrained", key="pact", value=False, remedy="Write `pact: true`."
    )


def only_measured() -> ConfigError:
    """What a weight of 0 means."""
    return ConfigError(
        "a weight of 0 only measures: the run is not constrained",
        key="weight",
        value=0,
        remedy="Give a weight above 0, or leave it out.",
    )
