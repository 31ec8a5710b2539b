"""Would this configuration's run be constrained? What can be said before it starts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pact_transformers.checkpoints import checkpoint_of
from pact_transformers.errors import only_measured
from pact_transformers.preflight import check_model, resumption_problems, unknown_arguments

from pact_llamafactory.check import config_file
from pact_llamafactory.problems import environment_problems, problems
from pact_llamafactory.settings import output_of, settings
from pact_plugin.errors import ConfigError
from pact_plugin.run.check_report import CheckReport

_ANEW = "begin a new run, with another `output_dir` or with `overwrite_output_dir: true`"
"""What keeps LLaMA-Factory from going on from what lies in the output folder."""

_ANY = "ALLOW_EXTRA_ARGS"
"""Of the environment: with it LLaMA-Factory passes over arguments that it does not know."""


def check(config: Path) -> CheckReport:
    """Check a configuration of LLaMA-Factory, without loading a model or data.

    Args:
        config: Its file, as given to `pact-plugin train`.
    """
    report = CheckReport()
    try:
        arguments = config_file.read(config)
    except ConfigError as error:
        report.find([error])
        return report
    report.find(environment_problems())
    _check_keys(arguments, report)
    if not arguments.get("do_train"):
        report.find([_untrained(arguments)])
    try:
        found = settings(arguments)
    except ConfigError as error:
        report.find([error], block=True)
        return report
    if found.weight == 0:
        report.find([only_measured()], block=True)
        return report
    report.find_mixed(problems(arguments, found))
    check_model(
        "model_name_or_path",
        arguments.get("model_name_or_path"),
        found,
        report,
        trust_remote_code=arguments.get("trust_remote_code") is True,
    )
    checkpoint = _checkpoint(arguments)
    if checkpoint is None and arguments.get("resume_from_checkpoint") is True:
        report.find([_no_checkpoint(arguments)])
    report.find_mixed(resumption_problems(checkpoint, found, anew=_ANEW))
    does = "passes over" if _any_pass() else "stops at"
    report.notes.append(f"`llamafactory-cli` {does} the key `pact`: train with `pact-plugin train`")
    return report


def _untrained(arguments: Mapping[str, Any]) -> ConfigError:
    return ConfigError(
        "nothing is trained",
        key="do_train",
        value=arguments.get("do_train"),
        remedy="Write `do_train: true`.",
    )


def _no_checkpoint(arguments: Mapping[str, Any]) -> ConfigError:
    return ConfigError(
        f"{output_of(arguments)} holds no checkpoint",
        key="resume_from_checkpoint",
        value=True,
        remedy="Remove it: LLaMA-Factory goes on from the last checkpoint by itself, where there is one.",
    )


def _checkpoint(arguments: Mapping[str, Any]) -> Path | None:
    """What the run goes on from; LLaMA-Factory looks in the output folder by itself."""
    looks = bool(arguments.get("do_train")) and not arguments.get("overwrite_output_dir")
    return checkpoint_of(arguments.get("resume_from_checkpoint"), output_of(arguments), looks=looks)


def _any_pass() -> bool:
    return os.environ.get(_ANY, "").lower() in ("true", "y", "1")  # no other value is LLaMA-Factory's yes


def _check_keys(arguments: Mapping[str, Any], report: CheckReport) -> None:
    """Those that LLaMA-Factory does not know stop it."""
    if importlib.util.find_spec("llamafactory") is None:
        report.unchecked.append("the names of the arguments, as LLaMA-Factory is not in this environment")
        return
    if _any_pass():
        report.unchecked.append(f"the names of the arguments, as {_ANY} lets any pass")
        return
    if report.findings:  # with those variables its imports may fail
        report.unchecked.append("the names of the arguments, before these variables are unset")
        return
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        RayArguments,
        TrainingArguments,
    )

    report.notes.append(f"LLaMA-Factory {version('llamafactory')}")
    kinds = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments)
    known = {field.name for kind in (*kinds, RayArguments) for field in fields(kind)} | {"pact"}
    report.find(unknown_arguments(arguments, known, "LLaMA-Factory"))
    # Not those of training, which ask for this machine's devices.
    for kind in (ModelArguments, DataArguments, FinetuningArguments):
        report.find(_refused_values(arguments, kind))


def _refused_values(arguments: Mapping[str, Any], kind: type) -> Iterator[ConfigError]:
    """What one of LLaMA-Factory's classes of arguments says to the values, which it compares with each other."""
    known = {field.name for field in fields(kind) if field.init}
    try:
        kind(**{key: value for key, value in arguments.items() if key in known})
    except Exception as error:  # whatever it raises would stop the run
        yield ConfigError(
            f"LLaMA-Factory stops at its values ({type(error).__name__}: {error})",
            key="config",
            remedy="Correct the arguments that it names.",
        )
