"""Brings the constraint into LLaMA-Factory: its configuration loses the key `pact`, its trainers gain PACT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llamafactory.extras.logging import get_logger
from llamafactory.train import tuner
from llamafactory.train.pt import workflow as pt
from llamafactory.train.sft import workflow as sft
from pact_transformers.resuming import attach_and_say

from pact_llamafactory.problems import require_constrainable
from pact_llamafactory.settings import settings
from pact_plugin.config import PactConfig
from pact_plugin.errors import ConfigError

logger = get_logger("llamafactory.pact")  # a name that its settings of logging cover


def bring_in() -> None:
    """Let LLaMA-Factory, in this process, read `pact` and constrain its trainers."""
    read = tuner.read_args
    found: list[PactConfig | None] = []

    def read_args(args: Any = None) -> Any:
        arguments = read(args)
        if not isinstance(arguments, dict):
            raise ConfigError(
                "PACT's settings stand in a configuration file",
                key="config",
                remedy="Write `pact-plugin llamafactory train config.yaml`.",
            )
        config = settings(arguments)
        if config is None:
            logger.warning_rank0("PACT: `pact` is off, so this run is NOT constrained.")
        else:
            require_constrainable(arguments, config)
        found[:] = [config]
        return {key: value for key, value in arguments.items() if key != "pact"}

    tuner.read_args = read_args
    sft.CustomSeq2SeqTrainer = _constrained(sft.CustomSeq2SeqTrainer, found)
    pt.CustomTrainer = _constrained(pt.CustomTrainer, found)


def _constrained(kind: type, found: list[PactConfig | None]) -> Callable[..., Any]:
    def make(**named: Any) -> Any:
        trainer = kind(**named)
        (config,) = found
        if config is None or not trainer.args.do_train:
            return trainer
        attach_and_say(trainer, config, trainer.args.resume_from_checkpoint, logger.info_rank0)
        return trainer

    return make
