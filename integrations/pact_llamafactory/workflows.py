"""Brings the constraint into LLaMA-Factory: its configuration loses the key `pact`, its trainers gain PACT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from llamafactory.extras.logging import get_logger
from llamafactory.train import tuner
from llamafactory.train.pt import workflow as pt
from llamafactory.train.sft import workflow as sft
from pact_transformers.checkpoints import checkpoint_of_run
from pact_transformers.preflight import raise_first
from pact_transformers.resuming import attach_and_say

from pact_llamafactory.problems import problems
from pact_llamafactory.settings import settings
from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError
from pact_plugin.reference.choose import STORE

logger = get_logger("llamafactory.pact")  # a name that its settings of logging cover


@dataclass
class _Run:
    """The run of this process: its settings, and whether a trainer came up that PACT is brought into."""

    config: PactConfig | None = None
    met: bool = False


def bring_in() -> None:
    """Let LLaMA-Factory, in this process, read `pact` and constrain its trainers."""
    read, run_exp = tuner.read_args, tuner.run_exp
    found = _Run()

    def read_args(args: Any = None) -> Any:
        arguments = read(args)
        found.config, found.met = settings(arguments), False
        raise_first(problems(arguments, found.config))
        return {key: value for key, value in arguments.items() if key != "pact"}

    def run(*args: Any, **named: Any) -> None:
        run_exp(*args, **named)
        if not found.met:
            raise AdapterError(
                "LLaMA-Factory trained elsewhere than in the trainers that PACT knows, so this run was NOT constrained",
                key="pact",
                remedy="Do not use its model, and report this with the configuration.",
            )

    tuner.read_args, tuner.run_exp = read_args, run
    sft.CustomSeq2SeqTrainer = _constrained(sft.CustomSeq2SeqTrainer, found)
    pt.CustomTrainer = _constrained(pt.CustomTrainer, found)


def _constrained(kind: type, found: _Run) -> Callable[..., Any]:
    def make(**named: Any) -> Any:
        trainer = kind(**named)
        found.met = True
        if found.config is None or not trainer.args.do_train:
            return trainer
        checkpoint = checkpoint_of_run(trainer.args)
        if checkpoint is None and trainer.args.overwrite_output_dir:
            _drop_table(trainer.args)
        attach_and_say(trainer, found.config, checkpoint, logger.info_rank0)
        return trainer

    return make


def _drop_table(args: Any) -> None:
    """Delete the table of an earlier run in the output folder: one of other settings would stop this one."""
    with args.main_process_first(desc="PACT: drop the table of an earlier run"):
        if args.local_process_index <= 0:
            rmtree(Path(args.output_dir) / STORE, ignore_errors=True)
