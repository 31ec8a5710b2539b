"""What a check of any framework's configuration asks: files, the tokenizer, the checkpoint to go on from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pact_plugin.config import PactConfig
from pact_plugin.errors import ConfigError, PactError, ReceiptError
from pact_plugin.run.check_report import CheckReport
from pact_plugin.run.evidence import fine_tuned, resumable
from pact_plugin.run.receipt import differing
from pact_plugin.terms.anchor_prompts import anchor_prompts
from pact_plugin.terms.build import check_tokenizer
from pact_transformers.errors import missing_folder, unnamed_model


def configured_anchors(config: PactConfig) -> int:
    """How many prompts anchors are taken from; 0 where there are none.

    Raises:
        ConfigError: Their file cannot be read.
    """
    if config.anchors is None or not config.has_anchors:
        return 0
    return len(anchor_prompts(config.anchors))


def is_missing_folder(name: str) -> bool:
    """Whether a name can only mean a local folder, which is not there."""
    return not Path(name).exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1)


def file_problems(config: PactConfig) -> Iterator[PactError]:
    """What is wrong with the files that settings name."""
    for read in (PactConfig.named_tokens, configured_anchors):
        try:
            read(config)
        except PactError as error:
            yield error


def fine_tuned_problems(config: PactConfig, starts: Mapping[str, Any]) -> Iterator[PactError]:
    """That a run would take what a run of PACT has trained for the aligned model.

    Args:
        config: Settings.
        starts: By key, what the run starts from: paths or hub ids, several separated by commas or in a list.
    """
    if config.reference != "auto":
        return
    for key, named in starts.items():
        for name in named.split(",") if isinstance(named, str) else named or []:
            if (problem := fine_tuned(key, str(name).strip())) is not None:
                yield problem


def unknown_arguments(
    arguments: Mapping[str, Any],
    known: Collection[str],
    framework: str,
    renamed: Mapping[str, str] | None = None,
) -> Iterator[ConfigError]:
    """An error for each argument that a framework stops at, as it does not know it.

    Args:
        arguments: By name.
        known: Names that the framework knows.
        framework: Its name.
        renamed: Names that it had in earlier versions, with those of today.
    """
    for key in arguments.keys() - set(known):
        near = [renamed[key]] if renamed and key in renamed else get_close_matches(key, known, n=1)
        yield ConfigError(
            f"no argument of {framework}, which stops",
            key=key,
            value=arguments[key],
            remedy=f"Did you mean `{near[0]}`?" if near else "Remove it.",
        )


def check_model(
    key: str, name: Any, settings: PactConfig, report: CheckReport, *, trust_remote_code: bool | None = None
) -> None:
    """Look for the model's folder, and compare its tokenizer with the tokens, where they are here.

    Args:
        key: What the configuration calls the model.
        name: Its value.
        settings: Of the constraint.
        report: Takes what is found.
        trust_remote_code: Whether code of the tokenizer's own may run; None where transformers asks.
    """
    if not isinstance(name, str) or not name:
        report.find([unnamed_model(key, name)])
        return
    if is_missing_folder(name):
        report.find([missing_folder(key, name)])
        return
    if not Path(name).is_dir():
        report.unchecked.append(f"the tokenizer of `{key}: {name}`, which is no folder")
        return
    report.find_mixed(fine_tuned_problems(settings, {key: [name]}))
    from pact_transformers.loading import load_tokenizer

    try:
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        tokens = settings.named_tokens()
        if tokens is not None:
            tokens.check(tokenizer)
        check_tokenizer(settings, tokenizer)
    except PactError as error:
        report.find_mixed([error])
    if settings.safety_tokens is None:
        report.notes.append("Safety tokens: chosen from the model itself when training starts")


def raise_first(problems: Iterable[PactError]) -> None:
    """Raise the first of the problems that a check would report; nothing where there is none."""
    for problem in problems:
        raise problem


def resumption_problems(
    checkpoint: Path | None, settings: PactConfig, *, anew: str = "begin a new run"
) -> Iterator[PactError]:
    """Why a run could not go on from a checkpoint: it is not there, has no receipt, or has one of other settings.

    Args:
        checkpoint: Its folder (see `checkpoint_of`).
        settings: Of the constraint.
        anew: How not to go on from it.
    """
    if checkpoint is None:
        return
    if not checkpoint.is_dir():
        yield missing_folder("resume_from_checkpoint", str(checkpoint))
        return
    try:
        earlier = resumable(checkpoint, key="resume_from_checkpoint", anew=anew)
    except ReceiptError as error:
        yield error
        return
    for key, ours, theirs in differing(settings.summary(), earlier.config):
        yield ReceiptError(
            f"the checkpoint {checkpoint} was constrained with {theirs!r}",
            key=key,
            value=ours,
            remedy=f"Resume with the settings of the run, or {anew}.",
        )
