"""Brings the constraint into ms-swift's `TrainerFactory`, which every training asks for its arguments and trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pact_transformers.checkpoints import checkpoint_of_run
from pact_transformers.preflight import raise_first
from pact_transformers.resuming import attach_and_say
from swift.trainers import TrainerFactory
from swift.utils import get_logger

from pact_plugin.config import PactConfig
from pact_swift.problems import different_settings, problems
from pact_swift.resumption import require_same_adapter

logger = get_logger()
_settings: PactConfig | None = None


def bring_in(settings: PactConfig) -> None:
    """Let the factory check the arguments before a model is loaded, and constrain the trainer that it makes.

    Raises:
        ConfigError: Other settings are there already.
    """
    global _settings
    if _settings is None:
        _settings = settings
        TrainerFactory.get_training_args = staticmethod(_checked(TrainerFactory.get_training_args, settings))
        TrainerFactory.get_trainer_cls = staticmethod(_constrained(TrainerFactory.get_trainer_cls, settings))
    elif _settings != settings:
        raise different_settings()


def _checked(make: Callable[[Any], Any], settings: PactConfig) -> Callable[[Any], Any]:
    def get_training_args(args: Any) -> Any:
        raise_first(problems(vars(args), settings))
        made = make(args)
        if not args.resume_only_model:
            # The Trainer loads the checkpoint when it trains. Here ms-swift would load its adapter once more, before
            # the constraint has seen the model as it was when the run began.
            args.resume_from_checkpoint = None
        return made

    return get_training_args


def _constrained(choose: Callable[[Any], Any], settings: PactConfig) -> Callable[[Any], Any]:
    def get_trainer_cls(args: Any) -> Any:
        kind = choose(args)

        def make(*positional: Any, **named: Any) -> Any:
            trainer = kind(*positional, **named)
            checkpoint = checkpoint_of_run(trainer.args)
            require_same_adapter(trainer.model, checkpoint)
            attach_and_say(trainer, settings, checkpoint, logger.info)
            return trainer

        return make

    return get_trainer_cls
