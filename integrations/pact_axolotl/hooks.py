"""What the hooks of the plugin do. Imported when Axolotl calls one, so that what is missing stops the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from pact_transformers.preflight import file_problems, fine_tuned_problems, raise_first

from pact_axolotl.check.config_file import has_plugin, misplaced_keys, misspelt_keys
from pact_axolotl.check.problems import problems
from pact_axolotl.settings import configured, settings

_LOG = logging.getLogger("axolotl.pact")


def register(cfg: Mapping[str, Any]) -> None:
    """Refuse a configuration as read from its file, where its run would fail or would not be constrained.

    Raises:
        PactError: Names the key to change.
    """
    listed = has_plugin(cfg, colons=True)
    raise_first(misspelt_keys(cfg, asked=listed or "pact" in cfg))
    raise_first(misplaced_keys(cfg))
    raise_first(problems(cfg))
    if settings(cfg) is None and listed:
        _log(logging.WARNING, "PACT: `pact` is off, so this run is NOT constrained.")


def before_the_data(cfg: Any) -> None:
    """Refuse files of settings that cannot be read, and a token file of another tokenizer.

    Commands that do not train, such as `merge-lora`, read no data, and do without these files.

    Args:
        cfg: The configuration as Axolotl has validated it.

    Raises:
        PactError: Names the key to change.
    """
    config = settings(cfg)
    if config is None:
        return
    raise_first(file_problems(config))
    raise_first(fine_tuned_problems(config, {"lora_model_dir": cfg.get("lora_model_dir")}))
    tokens = config.named_tokens()
    if tokens is not None:
        from axolotl.loaders import load_tokenizer

        tokens.check(load_tokenizer(cfg))


def constrain(cfg: Any, trainer: Any) -> None:
    """Put the constraint into a trainer.

    Raises:
        PactError: The trainer, the model, the safety tokens and the reference do not fit.
    """
    config = configured(cfg)
    if config is None:
        return
    from axolotl.utils.train import determine_last_checkpoint
    from pact_transformers.checkpoints import checkpoint_of
    from pact_transformers.resuming import attach_and_say

    checkpoint = checkpoint_of(determine_last_checkpoint(cfg), None)
    attach_and_say(trainer, config, checkpoint, partial(_log, logging.INFO))


def _log(level: int, message: str) -> None:
    """Once for all ranks, by the standard library: Axolotl's own helper may move."""
    if os.environ.get("RANK", "0") == "0":
        _LOG.log(level, message)
