"""Would this configuration's run be constrained? What can be said before it starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pact_transformers.checkpoints import checkpoint_of
from pact_transformers.errors import only_measured
from pact_transformers.preflight import check_model, resumption_problems, unknown_arguments

from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError, PactError
from pact_plugin.run.check_report import CheckReport
from pact_swift.check import config_file
from pact_swift.problems import different_settings, problems

_FLAG = "Add `external_plugins: [FILE]`; `python -m pact_swift` prints the file of the default settings."


class _Report(CheckReport):
    block = ""  # settings stand in a plugin's file


def check(config: Path) -> CheckReport:
    """Check a configuration of ms-swift, without loading a model or data.

    Args:
        config: Its file, as given to `swift sft`.
    """
    report = _Report()
    try:
        arguments = config_file.read(config)
    except ConfigError as error:
        report.find([error])
        return report
    _check_keys(arguments, report)
    settings = _settings(arguments, report)
    if settings is None:
        return report
    report.find_mixed(problems(arguments, settings))
    check_model("model", arguments.get("model"), settings, report)
    checkpoint = checkpoint_of(arguments.get("resume_from_checkpoint"), None)
    report.find_mixed(resumption_problems(checkpoint, settings))
    if checkpoint is not None and (checkpoint / "adapter_config.json").is_file():
        report.unchecked.append("whether the adapter's settings are those of the checkpoint")
    return report


def _settings(arguments: Mapping[str, Any], report: CheckReport) -> PactConfig | None:
    found = list(config_file.registered(arguments))
    settings = [one for one in found if isinstance(one, PactConfig)]
    for error in (one for one in found if isinstance(one, PactError)):
        report.find([error])
    if not settings and len(found) == 0:
        problem = "no plugin registers PACT, so this run is not constrained"
        report.find([AdapterError(problem, key="external_plugins", remedy=_FLAG)])
    if any(one != settings[0] for one in settings[1:]):
        report.find([different_settings()])
    if settings and settings[0].weight == 0:
        report.find([only_measured()])
    return settings[0] if settings else None


def _check_keys(arguments: Mapping[str, Any], report: CheckReport) -> None:
    """Those that ms-swift does not know stop it."""
    if importlib.util.find_spec("swift") is None:
        report.unchecked.append("the names of the arguments, as ms-swift is not in this environment")
        return
    from swift.arguments import PretrainArguments, RLHFArguments, SftArguments

    report.notes.append(f"ms-swift {version('ms-swift')}")
    kinds = (SftArguments, PretrainArguments, RLHFArguments)
    known = {field.name for kind in kinds for field in fields(kind)}
    report.find(unknown_arguments(arguments, known, "ms-swift", {"train_type": "tuner_type"}))
