"""Would this configuration's run be constrained? Everything that can be said before it starts."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pact_transformers.checkpoints import checkpoint_of
from pact_transformers.preflight import (
    configured_anchors,
    file_problems,
    fine_tuned_problems,
    resumption_problems,
)

from pact_axolotl.check import config_file, environment, reference_plan
from pact_axolotl.check.axolotl_report import AxolotlReport
from pact_axolotl.check.problems import problems, valid_settings
from pact_axolotl.check.sharding import fsdp1, fsdp_version
from pact_axolotl.check.tokens import check_tokens, missing_folders, reference_tokenizer_problems
from pact_axolotl.settings import PREFERENCES, output_of
from pact_plugin.config import PactConfig
from pact_plugin.errors import AdapterError, ConfigError, PactError
from pact_plugin.run.check_report import Finding

_ENVIRONMENT = (
    "whether Axolotl's environment has pact-plugin, and how Axolotl reads the rest of the configuration"
)


def check(config: Path) -> AxolotlReport:
    """Check an Axolotl configuration against everything that can be known without loading a model or data.

    Args:
        config: Its file.
    """
    report = AxolotlReport()
    try:
        config = config_file.located(config)
        cfg = config_file.read(config)
    except ConfigError as error:
        report.find([error])
        return report
    report.find(config_file.repeated(config))
    misspelt = list(config_file.misspelt_keys(cfg))
    report.find(misspelt)
    misplaced = list(config_file.misplaced_keys(cfg))
    report.find(misplaced)
    report.find(config_file.switched_off(cfg, [*misspelt, *misplaced]), block=True)
    if cfg.get("pact") is False:
        return report
    axolotl = _environment(report, cfg)
    report.find(config_file.plugin_problems(cfg, needs_line=axolotl is None or axolotl.needs_line))
    if axolotl is not None and axolotl.autoloads_plugins and not config_file.has_plugin(cfg, colons=True):
        report.notes.append(
            "This Axolotl loads installed plugins, but trains on without one that fails to load: the line "
            f"`plugins: [{config_file.PLUGIN}]` makes it stop, and `pact-plugin train` verifies the run"
        )
    for problem in problems(cfg):
        report.find([problem], block=not isinstance(problem, AdapterError))
    report.find(missing_folders(cfg))
    settings, _ = valid_settings(cfg)
    report.find(file_problems(settings) if settings is not None else [], block=True)
    _as_axolotl_reads(config, axolotl, settings, report)
    if settings is not None:
        looks = bool(cfg.get("auto_resume_from_checkpoints"))
        checkpoint = checkpoint_of(cfg.get("resume_from_checkpoint"), output_of(cfg), looks=looks)
        check_tokens(cfg, settings, checkpoint, report)
        starts = {key: cfg.get(key) for key in ("base_model", "lora_model_dir")}
        report.find_mixed(fine_tuned_problems(settings, starts))
        _check_reference(cfg, settings, report)
        _check_fsdp(cfg, axolotl, report)
        _note_anchors(cfg, settings, report)
        report.find_mixed(resumption_problems(checkpoint, settings))
    return report


def _environment(report: AxolotlReport, cfg: Mapping[str, Any]) -> environment.Axolotl | None:
    """The Axolotl that would train, where there is one that could."""
    try:
        found = environment.find_axolotl()
    except AdapterError as error:
        report.find([error])
        return None
    except environment.UnknownInterpreterError as error:
        report.unchecked.append(f"{_ENVIRONMENT}, as the command {error} does not say which Python runs it")
        return None
    if found is None:
        report.unchecked.append(
            f"{_ENVIRONMENT}, as no Axolotl was found, neither a command `axolotl` nor in this environment"
        )
        return None
    report.notes.append(f"Axolotl {found.version} of {found.python}")
    try:
        environment.require_plugin(found, listed=config_file.has_plugin(cfg, colons=True))
    except AdapterError as error:
        report.find([error])
    return found


def _as_axolotl_reads(
    config: Path, axolotl: environment.Axolotl | None, settings: PactConfig | None, report: AxolotlReport
) -> None:
    """Let Axolotl validate the configuration."""
    if axolotl is None or axolotl.plugin is None or settings is None:
        return
    try:
        answer = environment.ask_axolotl(axolotl, config)
    except AdapterError as error:
        report.find([error])
        return
    except subprocess.TimeoutExpired as error:
        report.unchecked.append(
            f"how Axolotl reads the configuration, as that took more than {error.timeout:.0f} seconds"
        )
        return
    for problem in answer["problems"]:
        report.add(Finding(**problem))
    if answer["pact"] is None and report.constrained:
        dropped = AdapterError(
            "Axolotl drops it, as its plugin could not be imported there",
            key="pact",
            remedy="`axolotl preprocess` shows why; repair that environment's pact-plugin.",
        )
        report.find([dropped])


def _check_reference(cfg: Mapping[str, Any], settings: PactConfig, report: AxolotlReport) -> None:
    impossible = list(reference_plan.impossible(settings))
    report.find(impossible, block=True)
    if impossible:
        return
    try:
        report.reference = reference_plan.planned(cfg, settings)
    except PactError as error:  # of the sharding, whose key is Axolotl's
        report.find([error])
        return
    if settings.reference != "auto":
        report.find(reference_tokenizer_problems(cfg, settings, report), block=True)


def _check_fsdp(cfg: Mapping[str, Any], axolotl: environment.Axolotl | None, report: AxolotlReport) -> None:
    """Without a version, FSDP is the first before Axolotl 0.21."""
    if not any(cfg.get(key) for key in ("fsdp", "fsdp_config")) or fsdp_version(cfg) is not None:
        return
    if axolotl is None:
        report.notes.append(
            "Before Axolotl 0.21 FSDP needs `fsdp_version: 2`; as it is the run would stop there"
        )
    elif axolotl.is_before_0_21:
        report.find([fsdp1(cfg)])


def _note_anchors(cfg: Mapping[str, Any], settings: PactConfig, report: AxolotlReport) -> None:
    try:
        prompts = configured_anchors(settings)
    except ConfigError:  # reported already
        return
    if not prompts:
        return
    assert settings.anchors is not None
    if cfg.get("rl") == PREFERENCES:
        report.notes.append("Anchors alone: preferences have no next-token labels that could be eased")
    report.notes.append(
        f"Anchors: {settings.anchors.per_step} in each step, or one beside each micro-batch if these are more; from "
        f"those of {prompts} prompts that the aligned model answers as it should when training starts"
    )
