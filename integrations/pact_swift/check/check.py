"""Would this configuration's run be constrained? What can be said before it starts."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pact_transformers.report import Report

from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError, PactError, ReceiptError
from pact_plugin.run.receipt import Receipt, differing
from pact_plugin.terms.build import check_tokenizer
from pact_swift.check import config_file
from pact_swift.problems import configured_tokens, problems

_FLAG = "Add `external_plugins: [FILE]`; `python -m pact_swift` prints the file of the default settings."


def check(config: Path) -> Report:
    """Check a configuration of ms-swift, without loading a model or data.

    Args:
        config: Its file.
    """
    report = Report()
    try:
        arguments = config_file.read(config)
    except ConfigError as error:
        report.find([error])
        return report
    _check_keys(arguments, report)
    settings = _settings(arguments, report)
    if settings is None:
        return report
    own = set(PactConfig.model_fields)
    for problem in problems(arguments, settings):
        report.find([problem], block=not isinstance(problem, AdapterError) and problem.key in own)
    _check_model(arguments, settings, report)
    report.find(_resumption(arguments, settings))
    if settings.safety_tokens is None:
        report.notes.append("Safety tokens: chosen from the model itself when training starts")
    return report


def _settings(arguments: Mapping[str, Any], report: Report) -> PactConfig | None:
    found = list(config_file.registered(arguments))
    settings = [one for one in found if isinstance(one, PactConfig)]
    for error in (one for one in found if isinstance(one, PactError)):
        report.find([error], block=isinstance(error, ConfigError))
    if not settings and len(found) == 0:
        problem = "no plugin registers PACT, so this run is not constrained"
        report.find([AdapterError(problem, key="external_plugins", remedy=_FLAG)])
    if any(one != settings[0] for one in settings[1:]):
        problem = "two plugins register PACT with different settings"
        report.find([ConfigError(problem, key="external_plugins", remedy="Name one of them.")])
    if settings and settings[0].weight == 0:
        problem = "a weight of 0 only measures: the run is not constrained"
        remedy = "Give a weight above 0, or leave it out."
        report.find([ConfigError(problem, key="pact.weight", value=0, remedy=remedy)])
    return settings[0] if settings else None


def _check_keys(arguments: Mapping[str, Any], report: Report) -> None:
    """Those that ms-swift does not know stop it."""
    if importlib.util.find_spec("swift") is None:
        report.unchecked.append("the names of the arguments, as ms-swift is not in this environment")
        return
    from swift.arguments import PretrainArguments, RLHFArguments, SftArguments

    report.notes.append(f"ms-swift {version('ms-swift')}")
    kinds = (SftArguments, PretrainArguments, RLHFArguments)
    known = {field.name for kind in kinds for field in fields(kind)}
    for key in arguments.keys() - known:
        near = difflib.get_close_matches(key, known, n=1)
        remedy = f"Did you mean `{near[0]}`?" if near else "Remove it."
        problem = "no argument of ms-swift, which stops"
        report.find([ConfigError(problem, key=key, value=arguments[key], remedy=remedy)])


def _check_model(arguments: Mapping[str, Any], settings: PactConfig, report: Report) -> None:
    """The folder and its tokenizer, where they are here."""
    name = arguments.get("model")
    if not isinstance(name, str) or not name:
        problem = "no model is named"
        report.find([ConfigError(problem, key="model", value=name, remedy="Name the aligned model.")])
        return
    if not Path(name).is_dir():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            problem, remedy = "there is no such folder", "Correct the path in `model`."
            report.find([ConfigError(problem, key="model", value=name, remedy=remedy)])
        else:
            report.unchecked.append(f"the tokenizer of `model: {name}`, which is no folder")
        return
    from pact_transformers.loading import load_tokenizer

    try:
        tokenizer = load_tokenizer(name)
        tokens = configured_tokens(settings)
        if tokens is not None:
            tokens.check(tokenizer)
        check_tokenizer(settings, tokenizer)
    except PactError as error:
        report.find([error], block=error.key in PactConfig.model_fields)


def _resumption(arguments: Mapping[str, Any], settings: PactConfig) -> Iterator[PactError]:
    """Why a run could not go on from its checkpoint: no receipt there, or one of other settings."""
    named = arguments.get("resume_from_checkpoint")
    if not named or not Path(str(named)).is_dir():
        return
    try:
        earlier = Receipt.read(Path(str(named)))
    except ReceiptError as error:
        remedy = "Begin a new run, or resume from a checkpoint of a constrained one."
        yield ReceiptError(error.problem, key="resume_from_checkpoint", value=str(named), remedy=remedy)
        return
    for key, ours, theirs in differing(settings.summary(), earlier.config):
        yield ReceiptError(
            f"the checkpoint {named} was constrained with {theirs!r}",
            key=f"pact.{key}",
            value=ours,
            remedy="Resume with the settings of the run, or begin a new run.",
        )
